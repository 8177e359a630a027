//! The record's store: linearizable, and as simple as can be.

use std::collections::BTreeSet;

use ev_core::ids::HostId;
use ev_core::mirror::Wish;

use super::world::{Closing, HOSTS, World, place};

impl World {
    /// A proposal reaches the store: it is committed only if nothing has changed since.
    pub fn commit_wish(&mut self, index: usize) {
        let wish = self.wishes.swap_remove(index);
        let seen = match wish {
            Wish::ReplicaLost { seen, .. } | Wish::ReplicaGood { seen, .. } => seen,
        };
        if seen != self.generation {
            return;
        }
        match wish {
            Wish::ReplicaLost { host, .. } => {
                if self.good == BTreeSet::from([host]) {
                    return;
                }
                let lacking = self.ahead.as_ref().is_some_and(|ahead| HOSTS[ahead.standby] != self.active);
                assert!(host != self.active || !lacking, "the replica that was written ahead of is to be the only one");
                self.good.remove(&host);
                self.memory = false;
                self.standby_is_out();
                self.end_guest_of_a_lost_cache();
            }
            Wish::ReplicaGood { host, .. } => {
                self.summary.came_home += u64::from(host == self.active && !self.good.contains(&host));
                self.good.insert(host);
            }
        }
        self.generation = self.generation.next();
        self.tell(|| format!("record {}: {wish:?}", self.generation));
    }

    /// A guest whose only replica lost its power under it, and so what it had not flushed, can't go on. (With two replicas it
    /// takes the second one's failure as well; then somebody has to start it again.)
    fn end_guest_of_a_lost_cache(&mut self) {
        let lost = |host: &HostId| {
            let host = &self.hosts[place(*host)];
            host.lost_power_at > host.good_since.max(self.guest_since)
        };
        if self.guest_runs && self.good.iter().all(lost) {
            self.guest_runs = false;
            self.closing = None;
        }
    }

    /// The guest is not running, or its host can't be heard: it is started where its data is. Its old host's gate is closed,
    /// by its lease, before this.
    pub fn start_guest(&mut self) {
        let can = |host: HostId| self.good.contains(&host) && self.hosts[place(host)].powered;
        // Of two good replicas the one whose host did not lose its power holds more.
        let kept_power = |host: HostId| {
            let host = &self.hosts[place(host)];
            host.lost_power_at <= host.good_since
        };
        let [a, b] = HOSTS;
        let choice = match (can(a), can(b)) {
            (true, true) if kept_power(a) == kept_power(b) => {
                if self.rng.per_mille(500) {
                    a
                } else {
                    b
                }
            }
            (true, true) => {
                if kept_power(a) {
                    a
                } else {
                    b
                }
            }
            (true, false) => a,
            (false, true) => b,
            (false, false) => return,
        };
        if self.hosts[place(choice)].disk.failed {
            return;
        }
        if self.memory && choice != self.active {
            return self.continue_guest();
        }
        self.memory = false;
        self.continuing = false;
        self.is_started_from(choice);
        self.active = choice;
        if self.closing != Some(Closing::Clean) {
            self.good = BTreeSet::from([choice]);
        }
        self.closing = None;
        self.generation = self.generation.next();
        self.guest_runs = false;
        self.recovering = true;
        self.guest.clear();
        self.tell(|| format!("record {}: the guest is started on host {choice}", self.generation));
    }
}
