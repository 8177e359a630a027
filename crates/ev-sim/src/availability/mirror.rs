//! Stands in for the mirror: which writes are acknowledged, what the other replica has, and what is wished of the record.

use ev_core::availability::keeper::{Event, Role};
use ev_core::ids::Generation;
use ev_core::vm::Level;

use super::host::{Life, Mirror};
use super::world::{DISK, World};

/// An AM wishes its partner's replica away after this time without it, and back after that time with it.
const PARTNER_TIMEOUT_MS: u64 = 1_000;
const COPY_MS: u64 = 2_000;

impl World {
    /// Whether the two AMs can talk.
    pub(super) fn pair_connected(&self) -> bool {
        let up = self.hosts.iter().all(|host| host.life == Life::Up && host.keeper.is_some());
        up && (!self.private_cut || self.connected(0, 1))
    }

    /// Whether the other host's AM takes this one's writes: not while it believes that it serves the guest itself.
    fn partner_serves(&self, index: usize) -> bool {
        let role = self.hosts[1 - index].pair.role;
        self.pair_connected() && matches!(role, Some(Role::Replica { .. }))
    }

    /// A host's AM is the one that serves the guest from now on.
    pub(super) fn becomes_coordinator(&mut self, index: usize) {
        let alike = self.hosts[0].disk == self.hosts[1].disk;
        let mirror = match self.record_known(index) {
            None | Some((_, false)) => Mirror::Behind,
            Some((asked, true)) if alike => Mirror::InStep { asked },
            // As after a process that had written ahead.
            Some((asked, true)) => Mirror::Waiting { asked },
        };
        self.hosts[index].pair.mirror = mirror;
    }

    /// The newest record that a host knows, and whether it counts on the other one's replica.
    fn record_known(&self, index: usize) -> Option<(Generation, bool)> {
        let record = &self.hosts[index].keeper.as_ref()?.vm().authority;
        Some((record.generation, record.holds_all_good(self.hosts[1 - index].id)))
    }

    /// Whether a write of the guest is acknowledged now.
    pub(super) fn acknowledges(&self, index: usize) -> bool {
        let open = self.hosts[index].gate_is_open(self.now_ms);
        match self.hosts[index].pair.mirror {
            Mirror::InStep { .. } => open && self.partner_serves(index),
            Mirror::Behind => open,
            Mirror::Ahead => true,
            Mirror::Waiting { .. } => false,
        }
    }

    pub(super) fn mirror(&mut self, index: usize) {
        let other = self.hosts[1 - index].id;
        let reachable = self.partner_serves(index);
        let host = &mut self.hosts[index];
        if host.partner_reachable != reachable {
            host.partner_reachable = reachable;
            host.partner_changed_ms = self.now_ms;
        }
        let for_ms = self.now_ms - host.partner_changed_ms;
        self.follow_record(index);
        let Some((generation, counts)) = self.record_known(index) else { return };
        if self.hosts[index]
            .keeper
            .as_ref()
            .is_none_or(|keeper| keeper.vm().authority.active != Some(self.hosts[index].id))
        {
            return;
        }
        let lost = Event::ReplicaLost { disk: DISK, host: other };
        match self.hosts[index].pair.mirror {
            Mirror::InStep { .. } if !reachable && for_ms >= PARTNER_TIMEOUT_MS => {
                self.hosts[index].pair.mirror = Mirror::Waiting { asked: generation };
                self.keep(index, lost);
            }
            // Whether or not the mirror says so too: the checkpoint engine does.
            Mirror::Ahead if !reachable && for_ms == PARTNER_TIMEOUT_MS && self.rng.per_mille(500) => {
                self.keep(index, lost);
            }
            Mirror::InStep { .. } if !counts && for_ms.is_multiple_of(COPY_MS) => {
                self.keep(index, Event::ReplicaGood { disk: DISK, host: other });
            }
            Mirror::Behind if reachable && for_ms >= COPY_MS && for_ms.is_multiple_of(COPY_MS) => {
                self.hosts[1 - index].disk = self.hosts[index].disk;
                self.hosts[index].pair.mirror = Mirror::InStep { asked: generation };
                self.keep(index, Event::ReplicaGood { disk: DISK, host: other });
            }
            Mirror::Waiting { .. } if for_ms.is_multiple_of(PARTNER_TIMEOUT_MS) && !self.at_level_3(index) => {
                self.keep(index, lost);
            }
            Mirror::InStep { .. } | Mirror::Behind | Mirror::Waiting { .. } | Mirror::Ahead => {}
        }
    }

    pub(super) fn at_level_3(&self, index: usize) -> bool {
        self.hosts[index].keeper.as_ref().is_some_and(|keeper| keeper.vm().level == Level::System)
    }

    fn follow_record(&mut self, index: usize) {
        let Some((generation, counts)) = self.record_known(index) else { return };
        let written_ahead = self.hosts[index].pair.primary.is_some();
        let mirror = &mut self.hosts[index].pair.mirror;
        match *mirror {
            Mirror::InStep { asked } | Mirror::Waiting { asked } if !counts && generation > asked => {
                *mirror = Mirror::Behind;
            }
            // The guest that it was ahead for has ended.
            Mirror::Ahead if !written_ahead && counts => *mirror = Mirror::Waiting { asked: generation },
            Mirror::Ahead if !written_ahead => *mirror = Mirror::Behind,
            Mirror::Behind if counts => self.becomes_coordinator(index),
            Mirror::InStep { .. } | Mirror::Waiting { .. } | Mirror::Ahead | Mirror::Behind => {}
        }
    }
}
