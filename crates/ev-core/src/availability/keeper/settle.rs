//! From what is known to what is to be done. Called after each event; each part asks for nothing that was asked for already.

use super::{Action, EndCause, Gate, Guest, Keeper, POWER_DOWN_REPEAT, PROPOSAL_TIMEOUT, Role, Wish};
use crate::authority::{AuthorityChange, Origin};
use crate::ids::Generation;
use crate::time::Instant;
use crate::vm::Level;

impl Keeper {
    pub(super) fn settle(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.settle_guest(now, out);
        self.settle_gate(now, out);
        if self.has_no_business_here() {
            if self.guest.alive_since().is_none() {
                self.left = true;
                out.push(Action::Leave);
            }
            return;
        }
        self.settle_roles(out);
        self.settle_wishes(now, out);
    }

    fn has_no_business_here(&self) -> bool {
        self.gone || !self.vm.hosts.contains(&self.host)
    }

    fn settle_guest(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.guest.alive_since() {
            Some(since) => self.settle_living(now, since, out),
            None => self.settle_start(now, out),
        }
    }

    fn settle_start(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(since) = self.ordered_since() else {
            if let Guest::Ended { .. } = self.guest {
                self.guest = Guest::Absent;
            }
            return;
        };
        if matches!(self.guest, Guest::Ended { since: ended, .. } if ended == since) {
            return;
        }
        if self.started >= since {
            let cause = EndCause::Crashed("it was started here and is gone: the host or QEMU died".to_owned());
            self.guest = Guest::Ended { since, cause, clean: false };
        } else if self.wished_off_by_force() {
            self.guest = Guest::Ended { since, cause: EndCause::Forced, clean: true };
        } else if self.heard_master {
            match self.vm.authority.origin {
                Origin::Memory => out.push(Action::Continue { since }),
                Origin::Boot if self.lease_is_valid(now) => out.push(Action::Start { since }),
                Origin::Boot => return,
            }
            self.started = since;
            self.guest = Guest::Starting { since };
        }
    }

    fn settle_living(&mut self, now: Instant, since: Generation, out: &mut Vec<Action>) {
        if let Guest::Ending { .. } = self.guest {
            return;
        }
        let ordered = self.ordered_since() == Some(since);
        if !ordered && !self.record_is_stale(since) {
            return self.end(since, EndCause::Superseded, out);
        }
        if ordered && self.wished_off_by_force() {
            return self.end(since, EndCause::Forced, out);
        }
        let grace_over = self.without_lease_since.is_some_and(|from| now.since(from) >= self.grace);
        let valid = self.lease_is_valid(now);
        let waits = self.first_lease_until.is_some_and(|until| now < until);
        match self.guest {
            Guest::Running { .. } if !valid && !waits => {
                self.guest = Guest::Pausing { since };
                out.push(Action::Pause);
            }
            Guest::Paused { .. } if valid => {
                self.guest = Guest::Resuming { since };
                out.push(Action::Resume);
            }
            Guest::Paused { .. } | Guest::Pausing { .. } if grace_over => self.end(since, EndCause::LeaseLost, out),
            Guest::Running { .. } if ordered => self.settle_power_down(now, out),
            Guest::Absent
            | Guest::Starting { .. }
            | Guest::Running { .. }
            | Guest::Pausing { .. }
            | Guest::Paused { .. }
            | Guest::Resuming { .. }
            | Guest::Ending { .. }
            | Guest::Ended { .. } => {}
        }
    }

    /// A process that was started anew from an old configuration finds a guest that a newer record ordered: what it knows
    /// says nothing about that guest until a master was heard. (The gate stays closed, and the lease's end counts.)
    fn record_is_stale(&self, since: Generation) -> bool {
        !self.gone && self.vm.authority.generation < since
    }

    fn end(&mut self, since: Generation, cause: EndCause, out: &mut Vec<Action>) {
        self.guest = Guest::Ending { since };
        out.push(Action::End { cause });
    }

    fn settle_power_down(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.wished_to_power_down() {
            self.power_down_asked = None;
        } else if self.power_down_asked.is_none_or(|at| now.since(at) >= POWER_DOWN_REPEAT) {
            self.power_down_asked = Some(now);
            out.push(Action::PowerDown);
        }
    }

    /// The gate is open for a guest that the newest known record orders, and for the time of the lease.
    fn settle_gate(&mut self, now: Instant, out: &mut Vec<Action>) {
        let ordered = self.guest.alive_since().is_some() && self.guest.alive_since() == self.ordered_since();
        let ending = matches!(self.guest, Guest::Ending { .. });
        let unknown_past = self.is_heir() && self.vm.level != Level::Unprotected;
        let gate = match self.lease_until {
            _ if !ordered || ending || unknown_past => Gate::Closed,
            _ if !self.needs_lease() => Gate::Open,
            Some(until) if now < until => Gate::OpenUntil(until),
            Some(_) | None => Gate::Closed,
        };
        if gate != self.gate_set {
            self.gate_set = gate;
            out.push(Action::Gate(gate));
        }
    }

    fn settle_roles(&mut self, out: &mut Vec<Action>) {
        let record = &self.vm.authority;
        let role = if self.is_active() {
            let partner = self.vm.hosts.iter().copied().find(|host| *host != self.host);
            Role::Coordinator { partner }
        } else {
            Role::Replica { coordinator: record.active }
        };
        if self.roles_set != Some((record.generation, role)) {
            self.roles_set = Some((record.generation, role));
            out.push(Action::SetRoles { record: record.clone(), role });
        }
    }

    /// One proposal at a time, each at the newest generation known.
    fn settle_wishes(&mut self, now: Instant, out: &mut Vec<Action>) {
        let record = &self.vm.authority;
        let hosts = &self.vm.hosts;
        // A loss under this very record is asked for even if the record does not call the replica good: a proposal that
        // it does may be under way, and only a newer record tells the disk that it came to nothing.
        self.wishes.retain(|wish, made| match wish {
            Wish::Lost(disk, host) => {
                *made == record.generation || record.good.get(disk).is_some_and(|good| good.contains(host))
            }
            Wish::Good(disk, host) => {
                hosts.contains(host) && record.good.get(disk).is_some_and(|good| !good.contains(host))
            }
            Wish::StandbyLost(host) => {
                let counts = record.memory == Some(*host) || record.good.values().any(|good| good.contains(host));
                hosts.contains(host) && (*made == record.generation || counts)
            }
            Wish::MemoryHeld(host) => hosts.contains(host) && record.memory != Some(*host),
            Wish::SwitchTo(host) => record.memory == Some(*host),
        });
        if !self.is_active() {
            self.wishes.clear();
        }
        if self.proposal.is_some_and(|(seen, at)| seen == record.generation && now.since(at) < PROPOSAL_TIMEOUT) {
            return;
        }
        let first = self.wishes.first_key_value().map(|(wish, _)| *wish);
        let ending = matches!(self.guest, Guest::Ending { .. });
        let Some(wish) = self.wish_of_heir().filter(|_| !ending).or(first) else { return };
        let change = self.change_wished(wish);
        self.proposal = Some((record.generation, now));
        out.push(Action::Propose { seen: record.generation, change });
    }

    fn change_wished(&self, wish: Wish) -> AuthorityChange {
        let record = &self.vm.authority;
        match (wish, record.memory) {
            // It has the last good replica of a disk, so it can't be given up, and what is held back here never leaves. All that
            // was let out is there: the guest starts anew where its disks are.
            (Wish::StandbyLost(host), _) if record.holds_all_good(host) && !record.holds_all_good(self.host) => {
                AuthorityChange::Start { host, clean: false }
            }
            (Wish::StandbyLost(host), _) => AuthorityChange::StandbyLost { host },
            // A disk of this host fails, and what was written to it last is nowhere else: the guest goes on where all is well.
            (Wish::Lost(_, lost), Some(host)) if lost == self.host => AuthorityChange::Continue { host },
            (Wish::Lost(disk, host), _) => AuthorityChange::ReplicaLost { disk, host },
            (Wish::SwitchTo(host), _) => AuthorityChange::Continue { host },
            (Wish::Good(disk, host), _) => AuthorityChange::ReplicaGood { disk, host },
            (Wish::MemoryHeld(host), _) => AuthorityChange::MemoryHeld { host },
        }
    }
}
