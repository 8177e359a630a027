//! What must hold at every moment, and comparisons of both replicas.

use ev_core::mirror::{CopyKind, Health, Input, Message, Verified};
use ev_core::report::ReplicaState;

use super::host::{Host, Process};
use super::link::Link;
use super::world::{World, place};

impl World {
    /// A delta copy looks at nothing that was never written.
    pub fn check_copy(&mut self, place: usize, message: &Message) {
        match message {
            Message::CopyBegin { kind, .. } => {
                self.copy_kind = Some(*kind);
                match kind {
                    CopyKind::Delta => self.summary.delta_copies += 1,
                    CopyKind::Full => self.summary.full_copies += 1,
                }
            }
            // What is looked at from here on is a comparison.
            Message::CopyEnd { .. } => self.copy_kind = None,
            Message::History { .. } => self.summary.entrusted += 1,
            Message::HashRequest { extent, .. } => {
                let torn = self.hosts.iter().any(|host| host.disk.torn);
                let interrupted = self.hosts.iter().any(|host| host.disk.superblock().health != Health::Good);
                if self.copy_kind == Some(CopyKind::Delta) && !torn && self.summary.full_copies == 0 && !interrupted {
                    for region in self.geometry.regions_of(*extent) {
                        assert!(self.touched.contains(&region), "host {place} looks at region {region} for nothing");
                    }
                }
            }
            _ => {}
        }
    }

    /// What must hold at every moment.
    pub fn check(&self) {
        for host in &self.hosts {
            if self.good.contains(&host.id) {
                let health = host.disk.superblock().health;
                assert_eq!(health, Health::Good, "the record calls the replica of host {} good", host.id);
            }
        }
    }

    /// Replicas in step are the same while the guest goes on, block for block.
    pub fn verified(&mut self, verified: Verified) {
        self.summary.compared += u64::from(verified.complete);
        assert!(!self.exact || verified.different_bytes == 0, "a comparison of replicas in step finds {verified:?}");
    }

    /// Compares both replicas, if they are in step.
    pub fn compare(&mut self) {
        let (place, repair) = (place(self.active), self.rng.per_mille(500));
        if self.is_frozen(place) {
            return;
        }
        let now = self.instant();
        let Host { process, disk, .. } = &mut self.hosts[place];
        if let Some(process) = process.as_mut().filter(|process| process.coordinator().is_some()) {
            process.tell(now, disk, Input::Verify { repair, bytes_per_s: None });
        }
        self.after(place);
    }

    /// Both replicas are in step and nothing is under way: then they are the same.
    pub fn check_same(&mut self) -> bool {
        let active = place(self.active);
        let quiet = |host: &Host| host.process.as_ref().is_some_and(|process| process.pending.is_empty());
        let Some(engine) = self.hosts[active].process.as_ref().and_then(Process::coordinator) else { return false };
        let in_step = engine.partner_state() == Some(ReplicaState::Online)
            && engine.ahead().is_none()
            && engine.local_state() == ReplicaState::Online
            && self.good.len() == 2;
        let whole = |link: &&Link| !link.cut && link.held == [true, true];
        let link = self.link.as_ref().filter(whole);
        let silent = link.is_some_and(|link| link.to.iter().all(std::collections::VecDeque::is_empty));
        if !(in_step && silent && self.hosts.iter().all(quiet) && engine.ops_in_flight() == 0) {
            return false;
        }
        let [a, b] = &self.hosts;
        for (sector, (a, b)) in a.disk.content().iter().zip(b.disk.content()).enumerate() {
            assert_eq!(a, b, "the replicas are in step and differ in sector {sector}: {}", self.oracle.explain(sector));
        }
        // Whatever was written ahead before is on both.
        self.ahead = None;
        true
    }
}
