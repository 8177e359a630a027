//! Authority records, and what is wished of them.

use super::super::acknowledge::Required;
use super::super::good::{GiveUp, PartnerView, give_up, may_serve};
use super::super::history::{PartnerStanding, under_record};
use super::super::message::{Action, CloseReason, Trouble, Wish};
use super::partner::{Expected, Link, Proposed};
use super::{Coordinator, Record, WISH_REPEAT};

impl Record {
    fn standing(&self) -> PartnerStanding {
        match self.partner {
            None => PartnerStanding::None,
            Some(_) if self.good.partner => PartnerStanding::Good,
            Some(_) => PartnerStanding::Lacking,
        }
    }
}

impl Coordinator {
    pub(super) fn take_record(&mut self, record: Record) {
        if record.generation > self.newest_generation() {
            // One that was not in effect yet may have asked for more than the newest does: nothing was acknowledged by
            // it that the one in effect would not have allowed.
            self.next_record = Some(record);
            if self.record.is_none() {
                self.first_record(record);
            }
        }
    }

    /// Puts a new record into effect, once this host's superblock (or the partner's) says what it has to.
    pub(super) fn advance_record(&mut self, out: &mut Vec<Action>) {
        let Some(next) = self.next_record else { return };
        if next.good.local && !self.local.failed {
            if !may_serve(self.local.info()) {
                if !std::mem::replace(&mut self.told.not_servable, true) {
                    out.push(Action::Trouble(Trouble::NotServable));
                }
                return;
            }
            let history = under_record(self.local.history(), next.generation, next.standing());
            self.local.want_history(history);
            if !self.local.is_stored() {
                return;
            }
        } else if next.good.partner && !next.good.local && !self.partner.tracks_for_us() {
            return;
        }
        self.put_in_effect(next, out);
    }

    fn put_in_effect(&mut self, next: Record, out: &mut Vec<Action>) {
        let before = self.record.replace(next);
        self.settling.forget_flushes();
        self.next_record = None;
        if !next.good.partner {
            self.ahead_is_over(out);
        }
        // A proposal that the partner be good was against an older record: it is either in this one or void. What was
        // proposed against our first one is not known.
        let lacking = next.good.local && next.partner.is_some() && !next.good.partner;
        self.partner.proposed = if before.is_none() && lacking { Proposed::PerhapsEarlier } else { Proposed::Nothing };
        self.own.proposed = false;
        let partner_alone = next.good.partner && !next.good.local;
        let perhaps_proposed = before.is_none() && partner_alone && may_serve(self.local.info());
        if std::mem::replace(&mut self.own.unresolved, perhaps_proposed) && next.good.local {
            // It was proposed, and so both are good; whether they are in step is as unknown as at any start.
            self.first_record(next);
            self.drop_link(CloseReason::RoleChanged, out);
        }
        if before.is_some_and(|before| before.partner != next.partner) {
            self.partner.expected = Expected::Nothing;
            self.drop_link(CloseReason::RoleChanged, out);
        }
        if !(next.good.local && next.good.partner) {
            self.partner.unresolved_start = false;
        }
        if next.partner.is_none() {
            self.local.log.clear_all();
        } else if !next.good.partner {
            // By a record that we have not seen the partner may have been active, and written what is not here.
            if before.is_some_and(|before| before.generation.next() != next.generation) {
                self.drop_link(CloseReason::RoleChanged, out);
            }
            // One that takes part all the same is in step, or being copied to; it needs no second copy.
            if !self.partner.takes_part() {
                self.partner.expected = Expected::Nothing;
                self.local.log.intent_is_out_of_sync();
            }
        }
        self.reconsider_all(out);
    }

    /// What is expected of the partner's first greeting.
    fn first_record(&mut self, record: Record) {
        self.partner.unresolved_start = false;
        self.partner.expected = match record.good {
            Required { local: true, partner: true } if self.partner.clean_at_open => Expected::Clean,
            Required { local: true, partner: true } => {
                self.partner.unresolved_start = true;
                Expected::Nothing
            }
            Required { local: true, partner: false } | Required { local: false, .. } => Expected::Nothing,
        };
    }

    /// Wishes for a record, and repeats them.
    pub(super) fn advance_wishes(&mut self, out: &mut Vec<Action>) {
        let Some(wish) = self.wish() else {
            self.told.wish = None;
            return;
        };
        if let Some((told, at)) = self.told.wish
            && told == wish
            && self.now.since(at) < WISH_REPEAT
        {
            return;
        }
        self.told.wish = Some((wish, self.now));
        // From here on it may be good without our knowing: it counts.
        match wish {
            Wish::ReplicaGood { host, .. } if host == self.local.host => self.own.proposed = true,
            Wish::ReplicaGood { .. } => self.partner.proposed = Proposed::ByUs,
            Wish::ReplicaLost { .. } => {}
        }
        out.push(Action::Wish(wish));
    }

    fn wish(&self) -> Option<Wish> {
        // Whoever protects the memory gives the partner up, memory and disks at once.
        let record = self.record.filter(|_| !self.is_ahead())?;
        let partner = record.partner?;
        if self.next_record.is_some() {
            return None;
        }
        let seen = record.generation;
        if self.partner.proposed == Proposed::PerhapsEarlier {
            return Some(Wish::ReplicaLost { host: partner, seen });
        }
        if self.own.unresolved {
            return Some(Wish::ReplicaLost { host: self.local.host, seen });
        }
        if self.own.is_ready() && !record.good.local {
            return Some(Wish::ReplicaGood { host: self.local.host, seen });
        }
        match give_up(self.required(), self.local.failed, self.partner_view()) {
            // After an unclean end somebody else may still choose the partner's replica, which holds more if this host has
            // lost its power. Only a guest that goes on here settles it.
            GiveUp::Partner if self.partner.start_is_unresolved() && self.guest_ops_in_flight() == 0 => {}
            GiveUp::Partner if record.good.local => return Some(Wish::ReplicaLost { host: partner, seen }),
            GiveUp::Local if record.good.partner => return Some(Wish::ReplicaLost { host: self.local.host, seen }),
            GiveUp::Partner | GiveUp::Local | GiveUp::Neither => {}
        }
        let good_again = !record.good.partner && matches!(self.partner.link, Link::InStep);
        good_again.then_some(Wish::ReplicaGood { host: partner, seen })
    }

    fn partner_view(&self) -> PartnerView {
        match self.partner.link {
            _ if self.was_ahead() => PartnerView::Behind,
            Link::InStep | Link::Alone | Link::Entrusting(_) => PartnerView::InStep,
            Link::Behind(_) | Link::Preparing(_) | Link::Copying | Link::Stalled { .. } => PartnerView::Behind,
            Link::Failed { .. } => PartnerView::Lost,
            Link::Down | Link::Greeting(_) => {
                if self.now.since(self.partner.heard) >= self.settings.partner_timeout {
                    PartnerView::Lost
                } else {
                    PartnerView::Waiting
                }
            }
        }
    }
}
