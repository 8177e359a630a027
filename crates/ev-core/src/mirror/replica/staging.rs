//! What a replica holds back in memory, whole epochs at a time, and in which order it is written.
//!
//! ```text
//!   write, flush              mark of n                told to apply n                    written
//!  ──────────────► the tail ─────────────► epoch n ─────────────────────► due, in order ───────────►
//!                     │ link lost             │ discarded, copy begins
//!                     ▼                       ▼
//!                  dropped                 dropped
//! ```
//! What is due is written as the coordinator's host wrote it: a write that overlaps one under way waits for it, and nothing passes a
//! flush or a durable write. So whatever a power cut leaves of an epoch that is being applied is a state that the guest's
//! own disk could have been found in.

use std::collections::{BTreeMap, VecDeque};

use super::super::message::{Action, Durability, LocalIo, Message, OpId, Outcome, Write, WriteKind};
use crate::checkpoint::{Epoch, Session};

/// Most that may be staged, in bytes. More, and the session is lost: its epochs are longer than this host can hold back.
pub const STAGED_BYTES_MAX: u64 = 256 << 20;
/// What an operation counts for besides its data.
const STEP_BYTES: u64 = 256;
/// Whole epochs that are not told to be applied. The active side has at most two unconfirmed; with so many it is not followed any more,
/// and the session is lost.
pub const EPOCHS_MAX: usize = 16;
/// Writes of decided epochs under way at once; the others wait for them.
const APPLYING_MAX: usize = 32;

/// Where what is staged comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// The link that is up now.
    Live,
    /// A link that is gone: nothing is added any more.
    Ended,
    /// Nothing more of the session is applied but what was told to be.
    Lost,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Write {
        id: OpId,
        write: Write,
    },
    /// Under its number here, and that of the coordinator.
    Flush {
        id: OpId,
        theirs: OpId,
    },
    End(Epoch),
}

impl Step {
    fn bytes(&self) -> u64 {
        match self {
            Self::Write { write: Write { kind: WriteKind::Data, extent, .. }, .. } => {
                STEP_BYTES + u64::from(extent.length)
            }
            Self::Write { .. } | Self::Flush { .. } => STEP_BYTES,
            Self::End(_) => 0,
        }
    }

    /// Whether what comes after it has to wait for its end.
    fn is_barrier(&self) -> bool {
        match self {
            Self::Write { write, .. } => write.durability == Durability::BeforeReply,
            Self::Flush { .. } | Self::End(_) => true,
        }
    }

    /// Whether the guest may rely on something being durable once this is done.
    fn makes_durable(&self) -> bool {
        !matches!(self, Self::End(_)) && self.is_barrier()
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Write { write, .. }, Self::Write { write: other, .. }) => write.extent.overlaps(other.extent),
            (Self::Write { .. } | Self::Flush { .. } | Self::End(_), _) => false,
        }
    }
}

#[derive(Debug)]
struct Part {
    epoch: Epoch,
    steps: Vec<Step>,
}

/// More was staged than this host can hold, or the mark is not the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    TooMuch,
    OutOfOrder,
}

/// One session.
#[derive(Debug)]
pub(super) struct Staging {
    session: Session,
    stream: Stream,
    /// The newest mark.
    marked: Epoch,
    /// What has come since.
    tail: Vec<Step>,
    /// Whole and not told to be applied, oldest first.
    whole: VecDeque<Part>,
    /// To be written, in order.
    due: VecDeque<Step>,
    running: BTreeMap<OpId, Step>,
    bytes: u64,
}

impl Staging {
    /// The session's first mark has come: what came before it is not staged.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            stream: Stream::Live,
            marked: Epoch::FIRST,
            tail: Vec::new(),
            whole: VecDeque::from([Part { epoch: Epoch::FIRST, steps: Vec::new() }]),
            due: VecDeque::new(),
            running: BTreeMap::new(),
            bytes: 0,
        }
    }

    pub fn session(&self) -> Session {
        self.session
    }

    pub fn stream(&self) -> Stream {
        self.stream
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of whole epochs that are not told to be applied.
    #[cfg(test)]
    pub fn undecided(&self) -> usize {
        self.whole.len()
    }

    /// Whether nothing that was told to be applied is left.
    pub fn is_quiet(&self) -> bool {
        self.due.is_empty() && self.running.is_empty()
    }

    /// Takes what has come over the session's link, under a number of ours.
    pub fn write(&mut self, id: OpId, write: Write) -> Result<(), Refused> {
        self.push(Step::Write { id, write })
    }

    pub fn flush(&mut self, id: OpId, theirs: OpId) -> Result<(), Refused> {
        self.push(Step::Flush { id, theirs })
    }

    fn push(&mut self, step: Step) -> Result<(), Refused> {
        let bytes = self.bytes + step.bytes();
        if bytes > STAGED_BYTES_MAX {
            return Err(Refused::TooMuch);
        }
        self.bytes = bytes;
        self.tail.push(step);
        Ok(())
    }

    /// The tail becomes this epoch. Gives whether the guest asked in it that something be durable.
    pub fn mark(&mut self, session: Session, epoch: Epoch) -> Result<bool, Refused> {
        if self.stream != Stream::Live || session != self.session || epoch != self.marked.next() {
            return Err(Refused::OutOfOrder);
        }
        if self.whole.len() >= EPOCHS_MAX {
            return Err(Refused::TooMuch);
        }
        let steps = std::mem::take(&mut self.tail);
        let flushed = steps.iter().any(Step::makes_durable);
        self.marked = epoch;
        self.whole.push_back(Part { epoch, steps });
        Ok(flushed)
    }

    /// Everything up to this epoch is to be written. What is not staged whole is not touched.
    pub fn decide(&mut self, session: Session, epoch: Epoch) {
        if session != self.session || self.whole.back().is_none_or(|newest| newest.epoch < epoch) {
            return;
        }
        while let Some(part) = self.whole.pop_front_if(|part| part.epoch <= epoch) {
            self.due.extend(part.steps);
            self.due.push_back(Step::End(part.epoch));
        }
    }

    /// The link is gone: what has come since the last mark will never be whole.
    pub fn stream_ends(&mut self, out: &mut Vec<Action>) {
        if self.stream == Stream::Live {
            self.stream = Stream::Ended;
        }
        let tail = std::mem::take(&mut self.tail);
        self.forget(tail, out);
    }

    /// Drops what was not told to be applied.
    pub fn discard(&mut self, out: &mut Vec<Action>) {
        self.stream_ends(out);
        self.stream = Stream::Lost;
        let whole: Vec<Step> = self.whole.drain(..).flat_map(|part| part.steps).collect();
        self.forget(whole, out);
    }

    /// The storage failed: drops what is not under way.
    pub fn give_up(&mut self, out: &mut Vec<Action>) {
        self.discard(out);
        let due: Vec<Step> = self.due.drain(..).collect();
        self.forget(due, out);
    }

    fn forget(&mut self, steps: Vec<Step>, out: &mut Vec<Action>) {
        for step in steps {
            self.bytes -= step.bytes();
            if let Step::Write { id, .. } = step {
                out.push(Action::Forget { op: id });
            }
        }
    }

    /// Begins what may be begun, and tells what is applied.
    pub fn advance(&mut self, out: &mut Vec<Action>) {
        while let Some(next) = self.due.front().copied() {
            let waits = match next {
                Step::Write { .. } => self.running.values().any(|step| step.is_barrier() || step.overlaps(&next)),
                Step::Flush { .. } | Step::End(_) => !self.running.is_empty(),
            };
            if waits || self.running.len() >= APPLYING_MAX {
                return;
            }
            self.due.pop_front();
            let (id, io) = match next {
                Step::Write { id, write } => (id, LocalIo::Write(write)),
                Step::Flush { id, .. } => (id, LocalIo::Flush),
                Step::End(epoch) => {
                    out.push(Action::EpochApplied { session: self.session, epoch });
                    continue;
                }
            };
            self.running.insert(id, next);
            out.push(Action::Local { op: id, io });
        }
    }

    /// One of ours has ended well.
    pub fn done(&mut self, id: OpId, out: &mut Vec<Action>) {
        let Some(step) = self.running.remove(&id) else { return };
        self.bytes -= step.bytes();
        match step {
            // The coordinator counts on it for its write-intent log.
            Step::Flush { theirs, .. } if self.stream == Stream::Live => {
                out.push(Action::Send(Message::Ack { op: theirs, outcome: Outcome::Done }));
            }
            Step::Write { .. } | Step::Flush { .. } | Step::End(_) => {}
        }
        out.push(Action::Forget { op: id });
    }

    /// One of ours has ended, and its storage failed.
    pub fn failed(&mut self, id: OpId, out: &mut Vec<Action>) {
        if let Some(step) = self.running.remove(&id) {
            self.bytes -= step.bytes();
            out.push(Action::Forget { op: id });
        }
    }
}
