//! This host's replica as an engine holds it: superblock, maps, and whether its storage still works.

use super::history::{Health, History, ReplicaInfo};
use super::log::RegionLog;
use super::message::{Action, Epochs, Hello, Message, RegionMap};
use crate::ids::{Generation, HostId};

/// Most words of a region map in one message; longer maps go in parts.
pub const REGION_WORDS_MAX: usize = 4096;

/// What an engine begins with, and hands over to the next one when the role changes.
#[derive(Debug, Clone)]
pub struct LocalReplica {
    pub(super) host: HostId,
    pub(super) instance: u64,
    pub(super) log: RegionLog,
    pub(super) failed: bool,
    durable: ReplicaInfo,
    wanted: ReplicaInfo,
    storing: Option<ReplicaInfo>,
}

impl LocalReplica {
    /// As read from the metadata file. `instance` is drawn anew at each opening.
    #[must_use]
    pub fn new(host: HostId, instance: u64, info: ReplicaInfo, log: RegionLog) -> Self {
        Self { host, instance, log, failed: false, durable: info, wanted: info, storing: None }
    }

    /// What the superblock says, or is about to say.
    #[must_use]
    pub fn info(&self) -> ReplicaInfo {
        self.wanted
    }

    /// Its maps.
    #[must_use]
    pub fn log(&self) -> &RegionLog {
        &self.log
    }

    /// Whether its storage failed since it was opened.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn history(&self) -> History {
        self.wanted.history
    }

    pub(super) fn want_history(&mut self, history: History) {
        self.wanted.history = history;
    }

    pub(super) fn want(&mut self, info: ReplicaInfo) {
        self.wanted = info;
    }

    /// Whether the superblock on disk says what is wanted.
    pub(super) fn is_stored(&self) -> bool {
        self.durable == self.wanted
    }

    /// Begins what is to be written: a commit of the maps, a superblock.
    pub(super) fn advance(&mut self, out: &mut Vec<Action>) {
        if self.failed {
            return;
        }
        if let Some(words) = self.log.next_commit() {
            out.push(Action::Commit(words));
        }
        if self.storing.is_none() && self.wanted != self.durable {
            self.storing = Some(self.wanted);
            out.push(Action::Superblock(self.wanted));
        }
    }

    pub(super) fn stored(&mut self) {
        if let Some(info) = self.storing.take() {
            self.durable = info;
        }
    }

    /// Whether nothing of the metadata is being written.
    pub(super) fn is_idle(&self) -> bool {
        self.failed || (self.storing.is_none() && !self.log.is_busy())
    }

    pub(super) fn hello(&self, generation: Generation, epochs: Epochs) -> Hello {
        let mut replica = self.wanted;
        if self.failed {
            replica.health = Health::Failed;
        }
        Hello { host: self.host, instance: self.instance, generation, replica, epochs }
    }

    /// Says which history is held and which regions the maps name.
    pub(super) fn greet(&self, generation: Generation, epochs: Epochs, out: &mut Vec<Action>) {
        out.push(Action::Send(Message::Hello(self.hello(generation, epochs))));
        for (map, set) in [(RegionMap::WriteIntent, self.log.intent()), (RegionMap::OutOfSync, self.log.out_of_sync())]
        {
            send_map(map, set.words(), out);
        }
    }
}

/// Sends a map in parts; an empty one is one empty part.
pub(super) fn send_map(map: RegionMap, words: &[u64], out: &mut Vec<Action>) {
    let used = words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
    let parts = used.div_ceil(REGION_WORDS_MAX).max(1);
    for (index, part) in (0..parts).map(|index| (index, index * REGION_WORDS_MAX)) {
        let words = words[part..used.min(part + REGION_WORDS_MAX)].to_vec();
        let first_word = u64::try_from(part).expect("a region map fits memory");
        out.push(Action::Send(Message::Regions { map, first_word, words, last: index + 1 == parts }));
    }
}
