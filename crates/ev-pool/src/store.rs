//! The file that survives: log, vote and snapshot of one member in a redb database, written by one thread.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use openraft::storage::LogFlushed;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::types::{Entry, LogId, SnapshotMeta, TypeConfig, Vote};

/// Version of the file's format. History: 1 (2026) entries, vote and snapshot as JSON.
const FORMAT_VERSION: u32 = 1;
/// Memory for the database's pages. All reading is done at the start; so little is enough.
const CACHE_BYTES: usize = 1 << 20;
/// Most operations waiting to be written; the consensus library waits beyond that.
const QUEUE_MAX: usize = 256;
/// Most operations in one transaction.
const BATCH_MAX: usize = 64;

/// Entries by index, JSON.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Everything else by name, JSON: `format`, `vote`, `committed`, `purged`, `snapshot_meta`; `snapshot` as it is.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("opening the pool's database {} failed: {source}", path.display())]
    Database { path: PathBuf, source: Box<redb::Error> },
    #[error(
        "the pool's database {} is damaged ({what} can't be read): remove this member from the pool, \
         move the file away, and have it join again", path.display()
    )]
    Damaged { path: PathBuf, what: &'static str },
    #[error("the pool's database {} has format {found}, this program reads {FORMAT_VERSION}: upgrade Evenkeel", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("starting a thread failed: {0}")]
    Thread(io::Error),
}

/// A snapshot as kept.
#[derive(Debug, Clone)]
pub(crate) struct StoredSnapshot {
    pub meta: SnapshotMeta,
    pub data: Vec<u8>,
}

/// What the file held when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub entries: Vec<Entry>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub snapshot: Option<StoredSnapshot>,
}

/// Something to write. What has a `done` is durable when that is answered.
pub(crate) enum Write {
    Append {
        entries: Vec<(u64, Vec<u8>)>,
        done: LogFlushed<TypeConfig>,
    },
    Vote {
        vote: Vec<u8>,
        done: Done,
    },
    /// Nothing breaks if this is lost: it is written along with the next durable operation.
    Committed {
        committed: Vec<u8>,
    },
    TruncateFrom {
        index: u64,
        done: Done,
    },
    PurgeTo {
        index: u64,
        purged: Vec<u8>,
        done: Done,
    },
    Snapshot {
        meta: Vec<u8>,
        data: Vec<u8>,
        done: Done,
    },
}

type Done = oneshot::Sender<Result<(), String>>;

/// Hands operations to the writing thread, in order.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Write>,
}

impl Writer {
    /// Queue an operation.
    pub(crate) async fn send(&self, write: Write) -> io::Result<()> {
        self.queue.send(write).await.map_err(|_| stopped())
    }

    /// Queue an operation and wait until it is durable.
    pub(crate) async fn durable(&self, write: impl FnOnce(Done) -> Write) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.send(write(done)).await?;
        written.await.map_err(|_| stopped())?.map_err(io::Error::other)
    }
}

fn stopped() -> io::Error {
    io::Error::other("the database of the pool is closed")
}

pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our types and the consensus library's can all be written as JSON")
}

/// Open or make the file, and start the thread that writes it. The thread ends, and the file is closed, when all
/// [`Writer`]s are gone.
pub(crate) fn open(path: &Path) -> Result<(Contents, Writer, JoinHandle<()>), OpenError> {
    let database = |error: redb::Error| OpenError::Database { path: path.to_owned(), source: Box::new(error) };
    let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| database(error.into()))?;
    create_tables(&db).map_err(database)?;
    let contents = read_all(&db, path)?;
    let (queue, operations) = mpsc::channel(QUEUE_MAX);
    let thread = std::thread::Builder::new()
        .name("pool-writer".to_owned())
        .spawn(move || write_loop(&db, operations))
        .map_err(OpenError::Thread)?;
    Ok((contents, Writer { queue }, thread))
}

fn create_tables(db: &Database) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    {
        transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        if meta.get("format")?.is_none() {
            meta.insert("format", json(&FORMAT_VERSION).as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn read_all(db: &Database, path: &Path) -> Result<Contents, OpenError> {
    let database = |error: redb::Error| OpenError::Database { path: path.to_owned(), source: Box::new(error) };
    let damaged = |what| OpenError::Damaged { path: path.to_owned(), what };
    let read = || -> Result<_, redb::Error> {
        let transaction = db.begin_read()?;
        Ok((transaction.open_table(LOG)?, transaction.open_table(META)?))
    };
    let (log, meta) = read().map_err(database)?;
    let bytes = |name| -> Result<Option<Vec<u8>>, OpenError> {
        let value = meta.get(name).map_err(|error| database(error.into()))?;
        Ok(value.map(|value| value.value().to_vec()))
    };
    let format: u32 = parse(bytes("format")?).ok().flatten().ok_or_else(|| damaged("format"))?;
    if format != FORMAT_VERSION {
        return Err(OpenError::Format { path: path.to_owned(), found: format });
    }
    let mut entries = Vec::new();
    for item in log.iter().map_err(|error| database(error.into()))? {
        let (_, value) = item.map_err(|error| database(error.into()))?;
        entries.push(serde_json::from_slice(value.value()).map_err(|_| damaged("the log"))?);
    }
    let snapshot_meta = parse(bytes("snapshot_meta")?).map_err(|_| damaged("the snapshot"))?;
    let snapshot = match (snapshot_meta, bytes("snapshot")?) {
        (Some(meta), Some(data)) => Some(StoredSnapshot { meta, data }),
        (None, None) => None,
        _ => return Err(damaged("the snapshot")),
    };
    Ok(Contents {
        entries,
        vote: parse(bytes("vote")?).map_err(|_| damaged("the vote"))?,
        committed: parse(bytes("committed")?).map_err(|_| damaged("the commit position"))?.flatten(),
        purged: parse(bytes("purged")?).map_err(|_| damaged("the purge position"))?,
        snapshot,
    })
}

fn parse<T: DeserializeOwned>(bytes: Option<Vec<u8>>) -> Result<Option<T>, serde_json::Error> {
    bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()
}

fn write_loop(db: &Database, mut queue: mpsc::Receiver<Write>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while let Some(next) = (batch.len() < BATCH_MAX).then(|| queue.try_recv().ok()).flatten() {
            batch.push(next);
        }
        let result = write_batch(db, &batch).map_err(|error| error.to_string());
        if let Err(error) = &result {
            tracing::error!(%error, "writing the pool's database failed: free space on its disk, or replace the disk, and restart");
        }
        batch.into_iter().for_each(|write| write.finish(result.clone()));
    }
}

fn write_batch(db: &Database, batch: &[Write]) -> Result<(), redb::Error> {
    let mut transaction = db.begin_write()?;
    if batch.iter().all(|write| matches!(write, Write::Committed { .. })) {
        transaction
            .set_durability(Durability::None)
            .map_err(|error| redb::Error::from(redb::StorageError::from(io::Error::other(error.to_string()))))?;
    }
    batch.iter().try_for_each(|write| write.put(&transaction))?;
    transaction.commit()?;
    Ok(())
}

impl Write {
    fn put(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        let mut log = transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        match self {
            Self::Append { entries, .. } => {
                for (index, entry) in entries {
                    log.insert(index, entry.as_slice())?;
                }
            }
            Self::Vote { vote, .. } => {
                meta.insert("vote", vote.as_slice())?;
            }
            Self::Committed { committed } => {
                meta.insert("committed", committed.as_slice())?;
            }
            Self::TruncateFrom { index, .. } => log.retain_in(*index.., |_, _| false)?,
            Self::PurgeTo { index, purged, .. } => {
                meta.insert("purged", purged.as_slice())?;
                log.retain_in(..=*index, |_, _| false)?;
            }
            Self::Snapshot { meta: snapshot_meta, data, .. } => {
                meta.insert("snapshot_meta", snapshot_meta.as_slice())?;
                meta.insert("snapshot", data.as_slice())?;
            }
        }
        Ok(())
    }

    fn finish(self, result: Result<(), String>) {
        match self {
            Self::Append { done, .. } => done.log_io_completed(result.map_err(io::Error::other)),
            Self::Committed { .. } => {}
            Self::Vote { done, .. }
            | Self::TruncateFrom { done, .. }
            | Self::PurgeTo { done, .. }
            | Self::Snapshot { done, .. } => {
                // Nobody waits any more when the consensus task was stopped.
                let _ = done.send(result);
            }
        }
    }
}
