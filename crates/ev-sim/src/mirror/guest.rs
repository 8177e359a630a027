//! The guest: what it asks for, what it is answered, and what it may rely on after a start.

use ev_core::mirror::{Coordinator, Durability, Extent, Health, Input, OpId, Source, Write, WriteKind};
use ev_core::report::ReplicaState;

use super::disk::{SECTOR_BYTES, sectors};
use super::host::{Host, Process};
use super::oracle::Loss;
use super::protect::Behind;
use super::world::{Asked, Closing, GUEST_OPS_MAX, GuestOp, HOSTS, SECTORS, World, place};

impl World {
    /// After a start the guest's world begins when its host acts by the record and nothing of an earlier guest is under way.
    pub fn try_recover(&mut self, place: usize) {
        let host = &self.hosts[place];
        if !self.recovering || self.active != host.id {
            return;
        }
        let Some(engine) = host.process.as_ref().and_then(Process::coordinator) else { return };
        let in_effect = engine.record().is_some_and(|record| record.generation == self.generation);
        let Some(source) = engine.reads_from().filter(|_| in_effect && engine.guest_ops_in_flight() == 0) else {
            return;
        };
        self.recover(place, source);
    }

    /// The guest's firmware reads its first sector, and waits.
    pub fn knock(&mut self, place: usize) {
        let now = self.instant();
        if !self.recovering || self.active != HOSTS[place] {
            return;
        }
        let Host { process, disk, .. } = &mut self.hosts[place];
        let waits = |process: &&mut Process| {
            let engine = process.coordinator();
            process.next_role.is_none() && engine.is_some_and(|engine| engine.guest_ops_in_flight() == 0)
        };
        let Some(process) = process.as_mut().filter(waits) else { return };
        process.next_op += 1;
        let extent = Extent { offset: 0, length: SECTOR_BYTES };
        process.tell(now, disk, Input::Read { op: OpId(process.next_op), extent });
    }

    /// The guest starts on this replica: all that it may rely on must be there.
    fn recover(&mut self, place: usize, source: Source) {
        self.recovering = false;
        self.tell(|| format!("the guest begins on host {place}"));
        let source = match source {
            Source::Local => place,
            Source::Partner => 1 - place,
        };
        let host = &self.hosts[source];
        let kept_power = host.lost_power_at <= host.good_since;
        let loss = match self.behind {
            Some(Behind { together, seen }) => {
                let seen = seen.max(self.oracle.newest(host.disk.content()));
                Loss::Behind { together: together.filter(|_| kept_power), seen }
            }
            None if kept_power => Loss::None,
            None => Loss::UnflushedBefore(host.lost_power_at),
        };
        for (sector, value) in host.disk.content().iter().enumerate() {
            assert!(
                self.oracle.allows(sector, *value, loss),
                "after recovery on host {place} ({loss:?}) sector {sector} has {value}: {}",
                self.oracle.explain(sector)
            );
        }
        assert_eq!(host.disk.superblock().health, Health::Good, "a guest starts from a good replica only");
        self.now += 3;
        if let Loss::Behind { seen, .. } = loss {
            self.oracle.unflush_after(seen);
        }
        self.behind = None;
        self.oracle.found(host.disk.content(), self.now - 2);
        self.guest.clear();
        self.guest_runs = true;
        self.guest_since = self.now;
        self.summary.recoveries += 1;
    }

    fn guest_op_of(&self, place: usize, op: OpId) -> Option<u64> {
        if self.active != HOSTS[place] || !self.guest_runs || self.recovering {
            return None;
        }
        self.guest.iter().find(|(_, guest)| guest.op == Some(op)).map(|(id, _)| *id)
    }

    pub fn acknowledged(&mut self, place: usize, op: OpId) {
        if self.closing == Some(Closing::Flushing(op)) && self.active == HOSTS[place] {
            self.closing = Some(Closing::Tidying);
            self.flushed(self.now + 1);
        }
        let Some(id) = self.guest_op_of(place, op) else { return };
        let Some(guest) = self.guest.remove(&id) else { return };
        self.now += 1;
        self.summary.acknowledged += 1;
        match guest.asked {
            Asked::Write { write, .. } => {
                let durable = write.durability == Durability::BeforeReply;
                self.oracle.acknowledged(id, sectors(write.extent), durable, self.now);
            }
            Asked::Flush => self.flushed(guest.at),
            Asked::Read { .. } => panic!("a read is answered, not acknowledged"),
        }
        if let Some(process) = &mut self.hosts[place].process {
            process.data.remove(&op);
        }
    }

    fn flushed(&mut self, asked: u64) {
        self.oracle.flushed(asked, self.now);
        if !self.may_be_behind() {
            self.oracle.forget_superseded();
        }
    }

    pub fn answered(&mut self, place: usize, op: OpId) {
        let data = self.hosts[place].process.as_mut().and_then(|process| process.data.remove(&op));
        let Some(id) = self.guest_op_of(place, op) else { return };
        let Some(guest) = self.guest.remove(&id) else { return };
        let Asked::Read { extent } = guest.asked else { panic!("only a read is answered") };
        let data = data.expect("an answered read has its data");
        for (sector, value) in sectors(extent).zip(data) {
            assert!(
                self.oracle.allows(sector, value, Loss::None),
                "a read of sector {sector} on host {place} gives {value}: {}",
                self.oracle.explain(sector)
            );
        }
    }

    /// The guest may see an error only when no good replica can be reached.
    pub fn failed(&mut self, place: usize, op: OpId) {
        let Some(id) = self.guest_op_of(place, op) else { return };
        let Some(asked_at) = self.guest.get(&id).map(|guest| guest.at) else { return };
        let works = |host: &Host| !host.disk.failed && host.disk.bad.is_empty() && host.trouble_at < asked_at;
        let [here, there] = [place, 1 - place].map(|place| &self.hosts[place]);
        let state = here.process.as_ref().and_then(Process::coordinator).and_then(Coordinator::partner_state);
        let local_can = self.good.contains(&here.id) && works(here);
        let partner_can = self.good.contains(&there.id) && state == Some(ReplicaState::Online) && works(there);
        assert!(!local_can, "host {place} failed an operation that its own replica can do");
        assert!(!partner_can, "host {place} failed an operation that its partner can do");
        // The guest's file system has had its error; it is ended and started again.
        self.guest.remove(&id);
        self.guest_runs = false;
        self.closing = None;
    }

    /// The guest does something.
    pub fn guest_acts(&mut self) {
        let waits = self.recovering || self.closing.is_some() || self.is_paused() || self.now < self.idle_until;
        if !self.guest_runs || waits || self.guest.len() >= GUEST_OPS_MAX {
            return;
        }
        self.now += 1;
        let id = self.next_guest;
        self.next_guest += 1;
        let asked = match self.rng.within(0..10) {
            0..=5 => {
                let write = self.any_write();
                let value = match write.kind {
                    WriteKind::Data => id,
                    WriteKind::Zeroes | WriteKind::ZeroesAllocated | WriteKind::Trim => 0,
                };
                self.touched.extend(self.geometry.regions_of(write.extent));
                self.oracle.asked(id, sectors(write.extent), value, self.now);
                Asked::Write { write, value }
            }
            6 | 7 => Asked::Flush,
            _ => Asked::Read { extent: self.any_extent() },
        };
        self.tell(|| format!("guest {id}: {asked:?}"));
        self.guest.insert(id, GuestOp { asked, at: self.now, op: None });
        self.submit_guest_ops();
    }

    fn any_extent(&mut self) -> Extent {
        // Mostly a few hot places, so that writes overlap; they lie in both words of the maps.
        let hot = [0, 5, 17, 250, 262, 275];
        let last = u64::try_from(SECTORS).expect("small");
        let first = if self.rng.per_mille(850) {
            hot[usize::try_from(self.rng.within(0..6)).expect("small")]
        } else {
            self.rng.within(0..last)
        };
        let length = self.rng.within(1..7).min(last - first);
        let bytes = u64::from(SECTOR_BYTES);
        Extent { offset: first * bytes, length: u32::try_from(length * bytes).expect("small") }
    }

    fn any_write(&mut self) -> Write {
        let extent = self.any_extent();
        let kind = match self.rng.within(0..10) {
            0 => WriteKind::Zeroes,
            1 => WriteKind::Trim,
            _ => WriteKind::Data,
        };
        let durability = if self.rng.per_mille(100) { Durability::BeforeReply } else { Durability::AtFlush };
        Write { extent, kind, durability }
    }

    /// Gives the process what it does not know of, in the order in which the guest asked.
    pub fn submit_guest_ops(&mut self) {
        let place = place(self.active);
        if self.is_frozen(place) {
            return;
        }
        let now = self.instant();
        let Host { process, disk, .. } = &mut self.hosts[place];
        let Some(process) = process else { return };
        if !self.guest_runs || self.recovering || process.coordinator().is_none() || process.next_role.is_some() {
            return;
        }
        for guest in self.guest.values_mut().filter(|guest| guest.op.is_none()) {
            process.next_op += 1;
            let op = OpId(process.next_op);
            guest.op = Some(op);
            let input = match guest.asked {
                Asked::Write { write, value } => {
                    if write.kind == WriteKind::Data {
                        process.data.insert(op, vec![value; sectors(write.extent).len()]);
                    }
                    Input::Write { op, write }
                }
                Asked::Flush => Input::Flush { op },
                Asked::Read { extent } => Input::Read { op, extent },
            };
            process.tell(now, disk, input);
        }
        self.after(place);
    }

    /// The guest is asked to shut down.
    pub fn begin_clean_end(&mut self) {
        if self.guest_runs && !self.recovering && self.closing.is_none() {
            self.closing = Some(Closing::Wanted);
        }
    }

    /// After its end the disk is flushed and the log cleared; then the record says that the end was clean.
    pub fn advance_clean_end(&mut self) {
        let Some(closing) = self.closing else { return };
        let place = place(self.active);
        let now = self.instant();
        let frozen = self.is_frozen(place);
        let Host { process, disk, .. } = &mut self.hosts[place];
        let Some(process) = process.as_mut().filter(|process| !frozen && process.next_role.is_none()) else { return };
        if process.coordinator().is_none() {
            return;
        }
        match closing {
            Closing::Wanted if self.guest.is_empty() => {
                // No checkpoint comes any more.
                process.tell(now, disk, Input::EndAhead);
                process.next_op += 1;
                let op = OpId(process.next_op);
                self.closing = Some(Closing::Flushing(op));
                process.tell(now, disk, Input::Flush { op });
            }
            Closing::Tidying => {
                process.tell(now, disk, Input::Tidy);
                if process.coordinator().is_some_and(Coordinator::is_tidy) {
                    self.closing = Some(Closing::Clean);
                    self.guest_runs = false;
                    self.generation = self.generation.next();
                    self.summary.clean_ends += 1;
                    self.tell(|| format!("record {}: the guest has ended cleanly", self.generation));
                }
            }
            Closing::Wanted | Closing::Flushing(_) | Closing::Clean => {}
        }
        self.after(place);
    }
}
