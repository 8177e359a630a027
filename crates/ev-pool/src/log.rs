//! The consensus log: kept in memory whole (it is compacted after some hundred entries), on disk by the writer.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader, StorageIOError};

use crate::store::{Contents, Write, Writer, json};
use crate::types::{Entry, LogId, StorageError, TypeConfig, Vote};

/// Log of one member.
#[derive(Clone)]
pub(crate) struct Log {
    memory: Arc<Mutex<Memory>>,
    writer: Writer,
}

struct Memory {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

impl Log {
    /// Take over what the file held.
    pub(crate) fn new(contents: &mut Contents, writer: Writer) -> Self {
        let entries = std::mem::take(&mut contents.entries);
        let memory = Memory {
            entries: entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect(),
            vote: contents.vote,
            committed: contents.committed,
            purged: contents.purged,
        };
        Self { memory: Arc::new(Mutex::new(memory)), writer }
    }

    /// The last entry's identity, or the last purged one's.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        self.memory().last_log_id()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn last_log_id(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.memory().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = json(vote);
        let written = self.writer.durable(|done| Write::Vote { vote: bytes, done }).await;
        written.map_err(|error| StorageIOError::write_vote(&error))?;
        self.memory().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.memory().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let sent = self.writer.send(Write::Committed { committed: json(&committed) }).await;
        sent.map_err(|error| StorageIOError::write(&error))?;
        self.memory().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, done: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let bytes = entries.iter().map(|entry| (entry.log_id.index, json(entry))).collect();
        self.memory().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        let sent = self.writer.send(Write::Append { entries: bytes, done }).await;
        Ok(sent.map_err(|error| StorageIOError::write_logs(&error))?)
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.memory().entries.split_off(&log_id.index);
        let written = self.writer.durable(|done| Write::TruncateFrom { index: log_id.index, done }).await;
        Ok(written.map_err(|error| StorageIOError::write_logs(&error))?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        {
            let mut memory = self.memory();
            memory.entries = memory.entries.split_off(&(log_id.index + 1));
            memory.purged = Some(log_id);
        }
        let purged = json(&log_id);
        let written = self.writer.durable(|done| Write::PurgeTo { index: log_id.index, purged, done }).await;
        Ok(written.map_err(|error| StorageIOError::write_logs(&error))?)
    }
}
