//! The replicated state machine: `ev-core`'s pool state, with snapshots.
//!
//! It lives in memory. On disk are the last snapshot and the log after it, from which it is rebuilt at the start.

use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ev_core::pool::PoolState;
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::store::{Contents, OpenError, StoredSnapshot, Write, Writer, json};
use crate::types::{Applied, Entry, LogId, Proposal, SnapshotMeta, StorageError, StoredMembership, TypeConfig};

/// Version of a snapshot's format. History: 1 (2026) pool state as JSON.
const SNAPSHOT_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct SnapshotBody {
    version: u32,
    state: PoolState,
}

/// The last snapshot, shared with the task that makes the next one.
type Kept = Arc<Mutex<Option<StoredSnapshot>>>;

/// The state machine of one member.
pub(crate) struct Machine {
    state: Arc<PoolState>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Kept,
    /// Everyone who reads the state.
    published: watch::Sender<Arc<PoolState>>,
    writer: Writer,
}

impl Machine {
    /// Rebuild it from the last snapshot; the consensus library applies the log after it.
    pub(crate) fn new(
        contents: &mut Contents,
        writer: Writer,
        path: &std::path::Path,
    ) -> Result<(Self, watch::Receiver<Arc<PoolState>>), OpenError> {
        let (published, readers) = watch::channel(Arc::new(PoolState::default()));
        let mut machine = Self {
            state: Arc::default(),
            last_applied: None,
            membership: StoredMembership::default(),
            snapshot: Kept::default(),
            published,
            writer,
        };
        if let Some(snapshot) = contents.snapshot.take() {
            let damaged = || OpenError::Damaged { path: path.to_owned(), what: "the snapshot" };
            machine.take_over(&snapshot).map_err(|_| damaged())?;
            *locked(&machine.snapshot) = Some(snapshot);
        }
        Ok((machine, readers))
    }

    fn take_over(&mut self, snapshot: &StoredSnapshot) -> Result<(), serde_json::Error> {
        let body: SnapshotBody = serde_json::from_slice(&snapshot.data)?;
        if body.version != SNAPSHOT_VERSION {
            return Err(serde::de::Error::custom("snapshot of another version: upgrade Evenkeel on the older host"));
        }
        self.state = Arc::new(body.state);
        self.last_applied = snapshot.meta.last_log_id;
        self.membership = snapshot.meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        self.published.send_replace(Arc::clone(&self.state));
    }
}

fn locked(kept: &Kept) -> MutexGuard<'_, Option<StoredSnapshot>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Make a snapshot durable, then the current one.
async fn keep(writer: &Writer, kept: &Kept, snapshot: StoredSnapshot) -> Result<(), StorageError> {
    let (meta, data) = (json(&snapshot.meta), snapshot.data.clone());
    let signature = snapshot.meta.signature();
    let written = writer.durable(|done| Write::Snapshot { meta, data, done }).await;
    written.map_err(|error| StorageIOError::write_snapshot(Some(signature), &error))?;
    *locked(kept) = Some(snapshot);
    Ok(())
}

fn handle_of(snapshot: &StoredSnapshot) -> Snapshot<TypeConfig> {
    Snapshot { meta: snapshot.meta.clone(), snapshot: Box::new(Cursor::new(snapshot.data.clone())) }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = Vec::new();
        for entry in entries {
            self.last_applied = Some(entry.log_id);
            applied.push(match entry.payload {
                EntryPayload::Blank => Applied::Internal,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Applied::Internal
                }
                EntryPayload::Normal(Proposal { if_term: Some(term), .. }) if term != entry.log_id.leader_id.term => {
                    Applied::OtherTerm
                }
                EntryPayload::Normal(Proposal { stamped, .. }) => {
                    Applied::Command(Arc::make_mut(&mut self.state).apply(stamped))
                }
            });
        }
        if applied.iter().any(|one| matches!(one, Applied::Command(_))) {
            self.publish();
        }
        Ok(applied)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder {
            state: Arc::clone(&self.state),
            last_applied: self.last_applied,
            membership: self.membership.clone(),
            kept: Arc::clone(&self.snapshot),
            writer: self.writer.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let snapshot = StoredSnapshot { meta: meta.clone(), data: snapshot.into_inner() };
        self.take_over(&snapshot).map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), &error))?;
        keep(&self.writer, &self.snapshot, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        Ok(locked(&self.snapshot).as_ref().map(handle_of))
    }
}

/// Makes a snapshot of the state as it was when this was asked for.
pub(crate) struct Builder {
    state: Arc<PoolState>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    kept: Kept,
    writer: Writer,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let body = SnapshotBody { version: SNAPSHOT_VERSION, state: PoolState::clone(&self.state) };
        let position = self.last_applied.map_or_else(|| "0".to_owned(), |last| last.to_string());
        let meta = SnapshotMeta {
            last_log_id: self.last_applied,
            last_membership: self.membership.clone(),
            // Two snapshots at one position are the same: the state machine is deterministic.
            snapshot_id: position,
        };
        let snapshot = StoredSnapshot { meta, data: json(&body) };
        let handle = handle_of(&snapshot);
        keep(&self.writer, &self.kept, snapshot).await?;
        Ok(handle)
    }
}
