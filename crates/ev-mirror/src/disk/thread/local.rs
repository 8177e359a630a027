//! The engine's operations on this host's replica, carried out on the ring.

use std::io;

use ev_core::mirror::{Durability, LocalIo, OpId, Write, WriteKind};

use super::Thread;
use super::engine::Told;
use super::ring::Tag;
use crate::buffer::IoBuffer;
use crate::link::codec::HASH_BLOCK_BYTES;

/// One operation under way.
pub struct Local {
    pub op: OpId,
    pub stage: Stage,
    /// Bytes that are read or written already.
    done: usize,
    /// For hashes, which need no buffer of the operation's.
    scratch: Option<IoBuffer>,
}

#[derive(Debug, Clone, Copy)]
pub enum Stage {
    Read { offset: u64 },
    Hash { offset: u64 },
    Write { offset: u64, durable: bool },
    Allocate { write: Write },
    Sync,
}

impl Thread {
    pub fn start_local(&mut self, op: OpId, io: LocalIo) -> io::Result<()> {
        let mut scratch = None;
        let stage = match io {
            LocalIo::Read { extent } => {
                let buffer = self.pool.take(length(extent.length));
                self.op_entry(op).data = Some(buffer);
                Stage::Read { offset: extent.offset }
            }
            LocalIo::Hash { extent } => {
                scratch = Some(self.pool.take(length(extent.length)));
                Stage::Hash { offset: extent.offset }
            }
            LocalIo::Write(write) => {
                self.store.save_before_write(write.extent);
                let durable = write.durability == Durability::BeforeReply;
                match write.kind {
                    WriteKind::Data => Stage::Write { offset: write.extent.offset, durable },
                    WriteKind::Zeroes | WriteKind::ZeroesAllocated | WriteKind::Trim => Stage::Allocate { write },
                }
            }
            LocalIo::Flush => Stage::Sync,
        };
        self.op_entry(op).busy = true;
        let slot = self.locals.insert(Local { op, stage, done: 0, scratch });
        if let Stage::Write { offset, durable: false } = stage
            && let Some(data) = self.ops.get(&op).and_then(|op| op.data.as_ref())
            && self.inline.takes(offset, data)
        {
            self.inline.push(slot);
            return Ok(());
        }
        self.submit_local(slot)
    }

    pub fn submit_local(&mut self, slot: u32) -> io::Result<()> {
        let Some(local) = self.locals.get_mut(slot) else { return Ok(()) };
        let file = self.store.replica();
        let tag = Tag::Local(slot);
        let done = u64::try_from(local.done).expect("at most a request");
        match local.stage {
            Stage::Sync => self.ring.sync(file, tag),
            Stage::Allocate { write } => {
                let mode = match write.kind {
                    WriteKind::ZeroesAllocated => libc::FALLOC_FL_ZERO_RANGE,
                    WriteKind::Data | WriteKind::Zeroes | WriteKind::Trim => libc::FALLOC_FL_PUNCH_HOLE,
                } | libc::FALLOC_FL_KEEP_SIZE;
                self.ring.allocate(file, mode, write.extent.offset, u64::from(write.extent.length), tag)
            }
            Stage::Hash { offset } => {
                let buffer = local.scratch.as_mut().expect("a hash has its own buffer");
                self.ring.read(file, &mut buffer.data_mut()[local.done..], offset + done, tag)
            }
            Stage::Read { offset } => {
                let buffer =
                    self.ops.get_mut(&local.op).and_then(|op| op.data.as_mut()).expect("kept while it is read");
                self.ring.read(file, &mut buffer.data_mut()[local.done..], offset + done, tag)
            }
            Stage::Write { offset, durable } => {
                let buffer = self.ops.get(&local.op).and_then(|op| op.data.as_ref()).expect("kept while it is written");
                self.ring.write(file, &buffer.data()[local.done..], offset + done, durable, tag)
            }
        }
    }

    pub fn local_completed(&mut self, slot: u32, result: io::Result<u32>) -> io::Result<()> {
        let Some(local) = self.locals.get_mut(slot) else { return Ok(()) };
        let op = local.op;
        let count = match result {
            Ok(count) => length(count),
            Err(error) => return self.local_failed(slot, &error),
        };
        let total = match local.stage {
            Stage::Sync => return self.local_ended(slot, true),
            Stage::Allocate { write } if write.durability == Durability::BeforeReply => {
                local.stage = Stage::Sync;
                return self.submit_local(slot);
            }
            Stage::Allocate { .. } => return self.local_ended(slot, true),
            Stage::Hash { .. } => local.scratch.as_ref().map_or(0, IoBuffer::len),
            Stage::Read { .. } | Stage::Write { .. } => {
                self.ops.get(&op).and_then(|op| op.data.as_ref()).map_or(0, IoBuffer::len)
            }
        };
        let Some(local) = self.locals.get_mut(slot) else { return Ok(()) };
        local.done += count;
        if local.done < total && count > 0 {
            return self.submit_local(slot);
        }
        let complete = local.done >= total;
        self.local_ended(slot, complete)
    }

    fn local_failed(&mut self, slot: u32, error: &io::Error) -> io::Result<()> {
        let Some(local) = self.locals.get_mut(slot) else { return Ok(()) };
        let unsupported = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS));
        match local.stage {
            // A file system or device without holes: write the zeroes.
            Stage::Allocate { write } if unsupported => {
                let durable = write.durability == Durability::BeforeReply;
                local.stage = Stage::Write { offset: write.extent.offset, durable };
                let op = local.op;
                self.op_entry(op).data = Some(IoBuffer::new(length(write.extent.length)));
                self.submit_local(slot)
            }
            Stage::Allocate { .. } | Stage::Sync | Stage::Read { .. } | Stage::Hash { .. } | Stage::Write { .. } => {
                tracing::warn!(disk = %self.spec.disk, %error, stage = ?local.stage, "this host's replica gave an error");
                self.local_ended(slot, false)
            }
        }
    }

    fn local_ended(&mut self, slot: u32, ok: bool) -> io::Result<()> {
        let Some(local) = self.locals.remove(slot) else { return Ok(()) };
        let op = local.op;
        if let Some(entry) = self.ops.get_mut(&op) {
            entry.busy = false;
            if entry.over {
                self.drop_op(op);
            }
        }
        match local.scratch {
            Some(buffer) => {
                let hashes = ok.then(|| hashes_of(&buffer));
                self.pool.give(buffer);
                self.tell(Told::LocalHashes { op, hashes });
            }
            None if op.is_beside() => self.read_beside(op, ok),
            None => self.tell(Told::LocalDone { op, ok }),
        }
        Ok(())
    }
}

fn hashes_of(buffer: &IoBuffer) -> Vec<[u8; 32]> {
    buffer.data().chunks(length(HASH_BLOCK_BYTES)).map(|block| *blake3::hash(block).as_bytes()).collect()
}

fn length(bytes: u32) -> usize {
    usize::try_from(bytes).expect("usize holds 32 bits")
}
