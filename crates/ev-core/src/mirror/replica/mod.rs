//! The engine of a replica: carries out what the coordinator sends, and answers when it is done.
//!
//! Writes that overlap never come while an earlier one is in flight (the coordinator sees to that), except after a lost link,
//! when they come again: so a new link is greeted only when everything that came over the old one has ended.
//!
//! With Level 3 it stages writes, epoch by epoch, and applies what the standby has decided: `staging` holds them, `epochs` says what
//! that means for everything else.

mod epochs;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use self::staging::Staging;
use super::extent::Extent;
use super::history::{Health, History, ReplicaInfo};
use super::message::{
    Action, BlockHash, CloseReason, Hello, LocalIo, Message, OpId, Outcome, RegionMap, Trouble, Write,
};
use super::superblock::LocalReplica;
use crate::checkpoint::{Epoch, Session};
use crate::ids::{Generation, HostId};
use crate::report::ReplicaState;

/// What a replica is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaInput {
    LinkUp,
    LinkDown,
    Received(Message),
    /// A [`LocalIo`] other than a hash has ended.
    LocalDone {
        op: OpId,
        ok: bool,
    },
    /// `None`: the blocks could not be read.
    LocalHashes {
        op: OpId,
        hashes: Option<Vec<BlockHash>>,
    },
    Committed {
        ok: bool,
    },
    SuperblockStored {
        ok: bool,
    },
    /// The newest record still makes this host a replica of the same coordinator.
    Record {
        generation: Generation,
    },
    /// Everything up to this epoch is decided.
    ApplyEpoch {
        session: Session,
        epoch: Epoch,
    },
    /// Nobody will go on from what is staged.
    DiscardEpochs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    /// Up; our hello waits for the end of what came over the last one.
    Draining,
    /// Our hello is sent, theirs has not come.
    Greeting,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The region has to be marked first.
    Logging,
    /// On its way to or from the replica's storage.
    Storage,
    /// The superblock (and map) has to be durable before the answer; a flush comes first for the end of a copy.
    Superblock,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Write(Write),
    Flush,
    Read,
    Hash,
    /// The superblock is to say this.
    Become {
        info: ReplicaInfo,
        sole: bool,
        clear_maps: bool,
    },
}

#[derive(Debug)]
struct Op {
    task: Task,
    stage: Stage,
    /// It came over the link that is up now, so it is to be answered.
    answer: bool,
}

/// The engine.
#[derive(Debug)]
pub struct Replica {
    local: LocalReplica,
    coordinator: HostId,
    generation: Generation,
    link: Link,
    /// The coordinator's greeting, if it came before ours could be sent.
    early_hello: Option<Hello>,
    ops: BTreeMap<OpId, Op>,
    /// This replica alone is good: each write is marked for the coordinator's own, failed one.
    sole: bool,
    /// A session of checkpoints is on.
    staging: Option<Staging>,
    next_staged: u64,
    /// A copy that is to begin: with this history, once what is decided is written.
    copy_awaited: Option<(OpId, Generation)>,
}

impl Replica {
    /// A replica that takes its writes from `coordinator`.
    #[must_use]
    pub fn new(local: LocalReplica, coordinator: HostId, generation: Generation) -> Self {
        Self {
            local,
            coordinator,
            generation,
            link: Link::Down,
            early_hello: None,
            ops: BTreeMap::new(),
            sole: false,
            staging: None,
            next_staged: OpId::STAGED,
            copy_awaited: None,
        }
    }

    /// This host's replica.
    #[must_use]
    pub fn local(&self) -> &LocalReplica {
        &self.local
    }

    /// Whether the link is up and both sides have greeted.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.link == Link::Up
    }

    /// State of the replica, for people.
    #[must_use]
    pub fn state(&self) -> ReplicaState {
        match self.local.info().health {
            _ if self.local.failed => ReplicaState::Failed,
            Health::Good => ReplicaState::Online,
            Health::Copying => ReplicaState::Copying,
            Health::Empty => ReplicaState::Stale,
            Health::Failed => ReplicaState::Failed,
        }
    }

    /// Whether nothing is under way, so that the role can change. The link must have been closed. What was told to be applied is under
    /// way; what is only staged goes with the role.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let storage = self.ops.values().all(|op| op.stage != Stage::Storage);
        storage && !self.is_applying() && self.local.is_idle()
    }

    /// Hands the replica over to the next engine. Only when [`Replica::is_idle`].
    #[must_use]
    pub fn into_local(self) -> LocalReplica {
        self.local
    }

    /// Takes one input; what is to be done goes to `out`.
    pub fn step(&mut self, input: ReplicaInput, out: &mut Vec<Action>) {
        match input {
            ReplicaInput::LinkUp => {
                self.drop_link(out);
                self.link = Link::Draining;
            }
            ReplicaInput::LinkDown => self.drop_link(out),
            ReplicaInput::Received(message) => self.received(message, out),
            ReplicaInput::LocalDone { op, ok } if op.is_staged() => self.staged_done(op, ok, out),
            ReplicaInput::LocalDone { op, ok } => self.local_done(op, ok, out),
            ReplicaInput::LocalHashes { op, hashes } => self.hashed(op, hashes, out),
            ReplicaInput::Committed { ok: true } => self.local.log.committed(),
            ReplicaInput::SuperblockStored { ok: true } => self.local.stored(),
            ReplicaInput::Committed { ok: false } | ReplicaInput::SuperblockStored { ok: false } => self.fail(out),
            ReplicaInput::Record { generation } => self.generation = self.generation.max(generation),
            ReplicaInput::ApplyEpoch { session, epoch } => self.apply_epoch(session, epoch),
            ReplicaInput::DiscardEpochs => self.discard_epochs(out),
        }
        self.advance(out);
    }

    fn drop_link(&mut self, out: &mut Vec<Action>) {
        self.link = Link::Down;
        self.early_hello = None;
        self.copy_awaited = None;
        self.sole = false;
        if let Some(staging) = &mut self.staging {
            staging.stream_ends(out);
        }
        // What has not been started never will be; the coordinator sends it again.
        self.ops.retain(|op, entry| {
            let started = entry.stage == Stage::Storage;
            if !started {
                out.push(Action::Forget { op: *op });
            }
            started
        });
        for op in self.ops.values_mut() {
            op.answer = false;
        }
    }

    fn fail(&mut self, out: &mut Vec<Action>) {
        if !self.local.failed {
            self.local.failed = true;
            out.push(Action::Trouble(Trouble::LocalFailed));
            self.fail_epochs(out);
            if let Some((op, _)) = self.copy_awaited.take() {
                self.answer(op, Outcome::Failed, out);
            }
        }
    }

    fn received(&mut self, message: Message, out: &mut Vec<Action>) {
        match (self.link, message) {
            (Link::Draining, Message::Hello(hello)) => self.early_hello = Some(hello),
            (Link::Greeting, Message::Hello(hello)) => self.greeted(hello, out),
            (Link::Up, Message::Write { op, write }) if self.staging.is_some() => self.stage_write(op, write, out),
            (Link::Up, Message::Write { op, write }) => self.write(op, write, out),
            (Link::Up, Message::CopyData { op, extent }) => self.copied(op, extent, out),
            (Link::Up, Message::EpochEnd { session, epoch }) => self.epoch_ends(session, epoch, out),
            (Link::Up, Message::Flush { op }) if self.staging.is_some() => self.stage_flush(op, out),
            (Link::Up, Message::Flush { op }) => self.start(op, Task::Flush, LocalIo::Flush, out),
            (Link::Up, Message::Read { op, extent }) => self.read(op, extent, out),
            (Link::Up, Message::HashRequest { op, extent }) => {
                self.start(op, Task::Hash, LocalIo::Hash { extent }, out);
            }
            (Link::Up, Message::Regions { map: RegionMap::OutOfSync, first_word, words, .. }) => {
                self.learn(first_word, &words);
            }
            (Link::Up, Message::History { op, current, bitmap_base }) => {
                self.go_on_alone(op, current, bitmap_base, out)
            }
            (Link::Up, Message::CopyBegin { op, current, .. }) => self.copy_begins(op, current, out),
            (Link::Up, Message::CopyEnd { op, current }) => self.copy_ends(op, current, out),
            // The coordinator's own maps interest only when it asks us to go on alone, and then they come again.
            (Link::Up, Message::Regions { .. }) => {}
            (Link::Greeting | Link::Up, Message::KeepAlive) => out.push(Action::Send(Message::KeepAlive)),
            // What came over a link that is gone.
            (Link::Down | Link::Draining, Message::Write { op, .. } | Message::CopyData { op, .. }) => {
                out.push(Action::Forget { op });
            }
            (Link::Down | Link::Draining, _) => {}
            (Link::Greeting | Link::Up, _) => self.close(CloseReason::OutOfPlace, out),
        }
    }

    fn close(&mut self, reason: CloseReason, out: &mut Vec<Action>) {
        self.drop_link(out);
        out.push(Action::CloseLink(reason));
    }

    fn greeted(&mut self, hello: Hello, out: &mut Vec<Action>) {
        if hello.host != self.coordinator {
            self.close(CloseReason::OtherHost, out);
        } else if hello.generation < self.generation {
            self.close(CloseReason::OlderRecord, out);
        } else {
            self.link = Link::Up;
        }
    }

    fn answer(&self, op: OpId, outcome: Outcome, out: &mut Vec<Action>) {
        out.push(Action::Send(Message::Ack { op, outcome }));
    }

    /// Whether the replica can be written, or how to refuse.
    fn refusal(&self) -> Option<Outcome> {
        if self.local.failed {
            return Some(Outcome::Failed);
        }
        match self.local.info().health {
            Health::Good | Health::Copying => None,
            Health::Empty => Some(Outcome::NotNow),
            Health::Failed => Some(Outcome::Failed),
        }
    }

    fn start(&mut self, op: OpId, task: Task, io: LocalIo, out: &mut Vec<Action>) {
        if self.local.failed {
            self.answer(op, Outcome::Failed, out);
            return;
        }
        self.ops.insert(op, Op { task, stage: Stage::Storage, answer: true });
        out.push(Action::Local { op, io });
    }

    fn write(&mut self, op: OpId, write: Write, out: &mut Vec<Action>) {
        if let Some(outcome) = self.refusal() {
            self.answer(op, outcome, out);
            out.push(Action::Forget { op });
        } else if self.sole {
            self.local.log.mark_out_of_sync(write.extent);
            self.ops.insert(op, Op { task: Task::Write(write), stage: Stage::Logging, answer: true });
        } else {
            self.start(op, Task::Write(write), LocalIo::Write(write), out);
        }
    }

    /// Reads of a guest are served only from a consistent state.
    fn read(&mut self, op: OpId, extent: Extent, out: &mut Vec<Action>) {
        if self.local.info().health == Health::Good && self.staging.is_none() {
            self.start(op, Task::Read, LocalIo::Read { extent }, out);
        } else {
            self.answer(op, Outcome::NotNow, out);
        }
    }

    /// Regions that the coordinator's failed replica lacks.
    fn learn(&mut self, first_word: u64, words: &[u64]) {
        if self.staging.is_some() {
            return;
        }
        let Ok(first) = usize::try_from(first_word) else { return };
        let regions = self.local.log.geometry().regions();
        let mut set = super::region::RegionSet::empty(regions);
        for (index, bits) in words.iter().enumerate() {
            if first + index < set.words().len() {
                set.union_word(first + index, *bits);
            }
        }
        self.local.log.merge_out_of_sync(&set);
    }

    fn change(&mut self, op: OpId, task: Task, stage: Stage, out: &mut Vec<Action>) {
        self.ops.insert(op, Op { task, stage, answer: true });
        if stage == Stage::Storage {
            out.push(Action::Local { op, io: LocalIo::Flush });
        }
    }

    fn go_on_alone(&mut self, op: OpId, current: Generation, bitmap_base: Generation, out: &mut Vec<Action>) {
        if self.local.failed || self.local.info().health != Health::Good || self.staging.is_some() {
            self.answer(op, Outcome::NotNow, out);
            return;
        }
        let info = ReplicaInfo { health: Health::Good, history: History { current, bitmap_base } };
        self.local.want(info);
        self.change(op, Task::Become { info, sole: true, clear_maps: false }, Stage::Superblock, out);
    }

    fn copy_ends(&mut self, op: OpId, current: Generation, out: &mut Vec<Action>) {
        let refusal = self.refusal().or(self.staging.is_some().then_some(Outcome::NotNow));
        if let Some(outcome) = refusal {
            self.answer(op, outcome, out);
            return;
        }
        let history = History { current, bitmap_base: current };
        let info = ReplicaInfo { health: Health::Good, history };
        // The coordinator marks its writes again.
        self.sole = false;
        // First what was copied, then the superblock that vouches for it.
        self.change(op, Task::Become { info, sole: false, clear_maps: true }, Stage::Storage, out);
    }

    fn local_done(&mut self, op: OpId, ok: bool, out: &mut Vec<Action>) {
        if !ok && self.ops.get(&op).is_some_and(|entry| entry.task != Task::Read) {
            self.fail(out);
        }
        let Some(mut entry) = self.ops.remove(&op) else { return };
        let outcome = if ok { Outcome::Done } else { Outcome::Failed };
        match entry.task {
            Task::Write(_) | Task::Flush => {
                if entry.answer {
                    self.answer(op, outcome, out);
                }
                out.push(Action::Forget { op });
            }
            Task::Read => {
                if entry.answer && ok {
                    out.push(Action::Send(Message::ReadData { op }));
                } else if entry.answer {
                    self.answer(op, outcome, out);
                }
                out.push(Action::Forget { op });
            }
            Task::Become { info, clear_maps, .. } if ok && entry.answer => {
                self.local.want(info);
                if clear_maps {
                    self.local.log.clear_all();
                }
                entry.stage = Stage::Superblock;
                self.ops.insert(op, entry);
            }
            Task::Become { .. } if entry.answer => self.answer(op, outcome, out),
            Task::Become { .. } | Task::Hash => {}
        }
    }

    fn hashed(&mut self, op: OpId, hashes: Option<Vec<BlockHash>>, out: &mut Vec<Action>) {
        let Some(entry) = self.ops.remove(&op) else { return };
        if entry.answer {
            // Blocks that can't be read have no hash, so that they are written; that mends them, or shows that they can't be.
            out.push(Action::Send(Message::Hashes { op, hashes: hashes.unwrap_or_default() }));
        }
        out.push(Action::Forget { op });
    }

    /// Starts and answers what has become possible.
    fn advance(&mut self, out: &mut Vec<Action>) {
        self.advance_epochs(out);
        if self.link == Link::Draining && self.is_idle() {
            self.link = Link::Greeting;
            self.local.greet(self.generation, self.epochs(), out);
            if let Some(hello) = self.early_hello.take() {
                self.greeted(hello, out);
            }
        }
        let waiting = self.ops.iter().filter(|(_, op)| op.stage != Stage::Storage);
        let waiting: Vec<OpId> = waiting.map(|(op, _)| *op).collect();
        for op in waiting {
            self.advance_op(op, out);
        }
        self.local.advance(out);
    }

    fn advance_op(&mut self, op: OpId, out: &mut Vec<Action>) {
        let Some(entry) = self.ops.get_mut(&op) else { return };
        if self.local.failed {
            self.ops.remove(&op);
            self.answer(op, Outcome::Failed, out);
            return;
        }
        match entry.task {
            Task::Write(write) => {
                if !self.sole || self.local.log.protects(write.extent) {
                    entry.stage = Stage::Storage;
                    out.push(Action::Local { op, io: LocalIo::Write(write) });
                }
            }
            Task::Become { info, sole, .. } => {
                let maps_are_safe = !sole || self.local.log.out_of_sync_is_sure();
                if maps_are_safe && self.local.is_stored() && self.local.info() == info {
                    self.sole = sole;
                    self.ops.remove(&op);
                    self.answer(op, Outcome::Done, out);
                }
            }
            Task::Flush | Task::Read | Task::Hash => {}
        }
    }
}
