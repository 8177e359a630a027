//! The standby's host: what is staged, what its memory and disks hold, what its storage would keep in a power cut.

use std::collections::{BTreeMap, BTreeSet};

use ev_core::checkpoint::{Epoch, Session, Standby, StandbyAction, StandbyEvent};
use ev_core::ids::DiskId;
use uuid::Uuid;

/// The guest's disks.
pub const DISKS: [DiskId; 2] = [DiskId(Uuid::from_u128(1)), DiskId(Uuid::from_u128(2))];

/// What one disk of the standby holds.
#[derive(Debug, Default, Clone, Copy)]
pub struct Replica {
    pub value: u64,
    pub durable: u64,
}

/// What a disk holds at the end of an epoch.
#[derive(Debug, Clone, Copy)]
pub struct DiskPart {
    pub index: usize,
    pub epoch: Epoch,
    pub value: u64,
    /// The guest flushed it in that epoch.
    pub flushed: bool,
}

/// What it was asked to apply.
#[derive(Debug, Clone, Copy)]
enum Work {
    Disk { index: usize, epoch: Epoch },
    Memory { epoch: Epoch },
}

/// The standby.
#[derive(Debug, Default)]
pub struct Peer {
    pub engine: Standby,
    pub session: Option<Session>,
    /// Staged memory images and disk contents.
    memory_staged: BTreeMap<Epoch, u64>,
    /// With whether the guest flushed it in that epoch.
    disks_staged: BTreeMap<(usize, Epoch), (u64, bool)>,
    pub memory: u64,
    pub replicas: [Replica; 2],
    work: Vec<Work>,
    /// Went on: with what memory.
    pub went_on: Option<u64>,
    pub cannot_go_on: bool,
}

/// What it sends back.
pub type Answers = Vec<StandbyAction>;

impl Peer {
    /// Its process died: memory and all that was staged are gone, replicas stay. With its power also what was not durable.
    pub fn die(&mut self, power: bool) {
        let mut replicas = self.replicas;
        if power {
            for replica in &mut replicas {
                replica.value = replica.durable;
            }
        }
        *self = Self { replicas, ..Self::default() };
    }

    /// The mirror has brought both replicas in step at Level 2.
    pub fn resync(&mut self, values: [u64; 2]) {
        self.replicas = values.map(|value| Replica { value, durable: value });
    }

    pub fn begin(&mut self, session: Session) -> Answers {
        self.session = Some(session);
        self.tell(StandbyEvent::Begin { session, disks: DISKS.into_iter().collect::<BTreeSet<_>>() })
    }

    pub fn memory(&mut self, session: Session, epoch: Epoch, value: u64) -> Answers {
        if self.session == Some(session) {
            self.memory_staged.insert(epoch, value);
        }
        self.tell(StandbyEvent::MemoryStaged { session, epoch })
    }

    pub fn disk(&mut self, session: Session, part: DiskPart) -> Answers {
        let DiskPart { index, epoch, value, flushed } = part;
        if self.session == Some(session) {
            self.disks_staged.insert((index, epoch), (value, flushed));
        }
        self.tell(StandbyEvent::DiskStaged { session, disk: DISKS[index], epoch, flushed })
    }

    /// Does the oldest thing that was asked of one part, if there is any.
    pub fn work(&mut self, pick: usize) -> Answers {
        let Some(session) = self.session.filter(|_| !self.work.is_empty()) else { return Vec::new() };
        // Each disk and the memory work in their own order.
        let part = |work: &Work| match work {
            Work::Disk { index, .. } => *index,
            Work::Memory { .. } => DISKS.len(),
        };
        let wanted = part(&self.work[pick % self.work.len()]);
        let first = self.work.iter().position(|work| part(work) == wanted).expect("it was just picked");
        match self.work.remove(first) {
            Work::Disk { index, epoch } => {
                let (value, flushed) = self.disks_staged.remove(&(index, epoch)).expect("it was staged");
                let replica = &mut self.replicas[index];
                replica.value = value;
                if flushed {
                    replica.durable = value;
                }
                self.tell(StandbyEvent::DiskApplied { session, disk: DISKS[index], epoch })
            }
            Work::Memory { epoch } => {
                self.memory = self.memory_staged.remove(&epoch).expect("it was staged");
                self.tell(StandbyEvent::MemoryApplied { session, epoch })
            }
        }
    }

    pub fn tell(&mut self, event: StandbyEvent) -> Answers {
        let mut out = Vec::new();
        self.engine.step(event, &mut out);
        out.retain(|action| !self.perform(*action));
        out
    }

    /// Does what is to be done here; `false`: it is to be sent.
    fn perform(&mut self, action: StandbyAction) -> bool {
        match action {
            StandbyAction::Discard => {
                self.memory_staged.clear();
                self.disks_staged.clear();
                self.work.clear();
            }
            StandbyAction::ApplyDisk { disk, epoch } => {
                let index = DISKS.iter().position(|one| *one == disk).expect("one of the guest's disks");
                self.work.push(Work::Disk { index, epoch });
            }
            StandbyAction::ApplyMemory { epoch } => self.work.push(Work::Memory { epoch }),
            StandbyAction::GoOn { .. } => self.went_on = Some(self.memory),
            StandbyAction::CannotGoOn => self.cannot_go_on = true,
            StandbyAction::Confirm { .. } | StandbyAction::Refuse { .. } => return false,
        }
        true
    }
}
