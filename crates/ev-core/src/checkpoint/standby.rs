//! The engine of the standby: which epoch is complete, what is applied, from where to go on.
//!
//! An epoch is **decided** in the moment in which its memory and the writes of all disks are here, whole and checked. Only
//! then is anything of it applied. A takeover goes on from the newest decided epoch, whatever was confirmed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Epoch, Session};
use crate::ids::DiskId;
use crate::time::Instant;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyEvent {
    /// The active side opens a session. All of an earlier one is void.
    Begin {
        session: Session,
        disks: BTreeSet<DiskId>,
    },
    /// The newest reading of the active host's clock. It is answered with the last confirmation, which shows that this side lives.
    /// It must not queue behind what is being sent.
    Clock {
        session: Session,
        reading: Instant,
    },
    /// The memory and device state of this epoch are staged, whole, and passed their checksum.
    MemoryStaged {
        session: Session,
        epoch: Epoch,
    },
    /// All writes of this epoch to the disk are staged. `flushed`: the guest flushed the disk in it, so that its writes must be
    /// durable before the epoch is confirmed.
    DiskStaged {
        session: Session,
        disk: DiskId,
        epoch: Epoch,
        flushed: bool,
    },
    /// The disk's writes up to this epoch are applied, durably as far as the guest flushed.
    DiskApplied {
        session: Session,
        disk: DiskId,
        epoch: Epoch,
    },
    MemoryApplied {
        session: Session,
        epoch: Epoch,
    },
    /// Memory or a disk failed here: nothing can be continued from this host.
    Failed,
    /// The record names this host active and tells it to go on from memory.
    TakeOver,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandbyAction {
    /// Drop all that is staged or held of another session.
    Discard,
    /// Apply the staged writes, and flush where the guest did.
    ApplyDisk {
        disk: DiskId,
        epoch: Epoch,
    },
    ApplyMemory {
        epoch: Epoch,
    },
    Confirm {
        session: Session,
        epoch: Epoch,
        echo: Instant,
    },
    /// Tell the active side that this session can't go on.
    Refuse {
        session: Session,
    },
    /// Drop what is staged beyond this epoch, and let the guest go on from it: memory and disks hold exactly it.
    GoOn {
        epoch: Epoch,
    },
    /// There is nothing to go on from: the guest has to be started anew.
    CannotGoOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taking {
    No,
    /// Waits for what is being applied.
    Over,
    Done,
}

#[derive(Debug, Clone, Default)]
struct Staged {
    memory: bool,
    disks: BTreeSet<DiskId>,
    /// Disks that were flushed in it.
    flushed: BTreeSet<DiskId>,
}

/// The engine. One thread owns it.
#[derive(Debug)]
pub struct Standby {
    session: Option<Session>,
    disks: BTreeSet<DiskId>,
    echo: Instant,
    /// Parts of epochs that are not decided.
    staged: BTreeMap<Epoch, Staged>,
    decided: Epoch,
    /// Epochs with a flush that are decided and not yet durable on the disks that were flushed.
    durable_wanted: BTreeMap<Epoch, BTreeSet<DiskId>>,
    applied_disks: BTreeMap<DiskId, Epoch>,
    applied_memory: Epoch,
    confirmed: Epoch,
    taking: Taking,
}

impl Default for Standby {
    fn default() -> Self {
        Self {
            session: None,
            disks: BTreeSet::new(),
            echo: Instant::default(),
            staged: BTreeMap::new(),
            decided: Epoch::NONE,
            durable_wanted: BTreeMap::new(),
            applied_disks: BTreeMap::new(),
            applied_memory: Epoch::NONE,
            confirmed: Epoch::NONE,
            taking: Taking::No,
        }
    }
}

impl Standby {
    /// The newest epoch that this host could go on from.
    #[must_use]
    pub fn decided(&self) -> Epoch {
        self.decided
    }

    /// Takes one event; what is to be done goes to `out`, in order.
    pub fn step(&mut self, event: StandbyEvent, out: &mut Vec<StandbyAction>) {
        if self.taking == Taking::Done {
            return;
        }
        match event {
            // From the takeover on the old active side has no say.
            StandbyEvent::Begin { session, disks } if self.taking == Taking::No => self.begin(session, disks, out),
            StandbyEvent::Clock { session, reading } if self.is_current(session) => {
                self.echo = self.echo.max(reading);
                out.push(StandbyAction::Confirm { session, epoch: self.confirmed, echo: self.echo });
            }
            StandbyEvent::MemoryStaged { session, epoch } if self.is_current(session) => {
                self.stage(epoch, out, |staged| staged.memory = true);
            }
            StandbyEvent::DiskStaged { session, disk, epoch, flushed } if self.is_current(session) => {
                self.stage(epoch, out, |staged| {
                    staged.disks.insert(disk);
                    staged.flushed.extend(flushed.then_some(disk));
                });
            }
            StandbyEvent::DiskApplied { session, disk, epoch } if self.session == Some(session) => {
                let applied = self.applied_disks.entry(disk).or_insert(Epoch::NONE);
                *applied = epoch.max(*applied);
            }
            StandbyEvent::MemoryApplied { session, epoch } if self.session == Some(session) => {
                self.applied_memory = epoch.max(self.applied_memory);
            }
            StandbyEvent::Failed => self.fail(out),
            StandbyEvent::TakeOver => self.take_over(),
            StandbyEvent::Begin { .. }
            | StandbyEvent::Clock { .. }
            | StandbyEvent::MemoryStaged { .. }
            | StandbyEvent::DiskStaged { .. }
            | StandbyEvent::DiskApplied { .. }
            | StandbyEvent::MemoryApplied { .. } => {}
        }
        self.confirm(out);
        self.go_on(out);
    }

    fn is_current(&self, session: Session) -> bool {
        self.session == Some(session) && self.taking == Taking::No
    }

    fn begin(&mut self, session: Session, disks: BTreeSet<DiskId>, out: &mut Vec<StandbyAction>) {
        *self = Self { session: Some(session), disks, ..Self::default() };
        out.push(StandbyAction::Discard);
        out.push(StandbyAction::Confirm { session, epoch: Epoch::NONE, echo: self.echo });
    }

    fn stage(&mut self, epoch: Epoch, out: &mut Vec<StandbyAction>, part: impl FnOnce(&mut Staged)) {
        // A part of a decided epoch again, or of one far ahead: the stream is not what it should be, but nothing is applied by it.
        if epoch <= self.decided {
            return;
        }
        part(self.staged.entry(epoch).or_default());
        self.decide(out);
    }

    fn decide(&mut self, out: &mut Vec<StandbyAction>) {
        loop {
            let next = self.decided.next();
            let Some(staged) = self.staged.get(&next) else { return };
            if !staged.memory || !staged.disks.is_superset(&self.disks) {
                return;
            }
            let flushed = self.staged.remove(&next).unwrap_or_default().flushed;
            self.decided = next;
            if !flushed.is_empty() {
                self.durable_wanted.insert(next, flushed);
            }
            for disk in &self.disks {
                out.push(StandbyAction::ApplyDisk { disk: *disk, epoch: next });
            }
            out.push(StandbyAction::ApplyMemory { epoch: next });
        }
    }

    /// The newest epoch up to which nothing that must be durable is not.
    fn confirmable(&mut self) -> Epoch {
        let Self { durable_wanted, applied_disks, .. } = self;
        let is_applied = |disk: &DiskId, epoch| applied_disks.get(disk).is_some_and(|applied| *applied >= epoch);
        durable_wanted.retain(|epoch, disks| !disks.iter().all(|disk| is_applied(disk, *epoch)));
        durable_wanted.first_key_value().map_or(self.decided, |(epoch, _)| Epoch(epoch.0 - 1))
    }

    fn confirm(&mut self, out: &mut Vec<StandbyAction>) {
        let Some(session) = self.session.filter(|_| self.taking == Taking::No) else { return };
        let epoch = self.confirmable();
        if epoch > self.confirmed {
            self.confirmed = epoch;
            out.push(StandbyAction::Confirm { session, epoch, echo: self.echo });
        }
    }

    fn fail(&mut self, out: &mut Vec<StandbyAction>) {
        let taking = self.taking;
        if let Some(session) = self.session {
            out.push(StandbyAction::Refuse { session });
        }
        *self = Self { taking, ..Self::default() };
        out.push(StandbyAction::Discard);
    }

    fn take_over(&mut self) {
        if self.taking == Taking::No {
            self.taking = Taking::Over;
            self.staged.clear();
        }
    }

    fn go_on(&mut self, out: &mut Vec<StandbyAction>) {
        if self.taking != Taking::Over {
            return;
        }
        let disks = self.disks.iter().all(|disk| self.applied_disks.get(disk).copied() >= Some(self.decided));
        if self.decided == Epoch::NONE {
            self.taking = Taking::Done;
            out.push(StandbyAction::CannotGoOn);
        } else if disks && self.applied_memory >= self.decided {
            self.taking = Taking::Done;
            out.push(StandbyAction::GoOn { epoch: self.decided });
        }
    }
}
