//! Answers to requests. Each request came with the one kind of reply that fits it, to be used once.

use zerocopy::IntoBytes;

use super::STATUS_EXTENTS_MAX;
use super::wire::{self, ChunkHeader, DataChunkHeader, SimpleReply};
use crate::buffer::{BufferPool, IoBuffer, SendQueue};
use crate::extent::Extent;

/// Errors that NBD can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum NbdError {
    NotPermitted = 1,
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
    NotSupported = 95,
    Shutdown = 108,
}

impl NbdError {
    fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }
}

/// Which form of READ reply the client negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplyForm {
    Simple,
    Structured,
}

fn simple(cookie: u64, error: u32) -> SimpleReply {
    SimpleReply { magic: wire::SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie: cookie.into() }
}

fn last_chunk(cookie: u64, kind: u16, length: u32) -> ChunkHeader {
    ChunkHeader {
        magic: wire::CHUNK_MAGIC.into(),
        flags: wire::CHUNK_FLAG_DONE.into(),
        kind: kind.into(),
        cookie: cookie.into(),
        length: length.into(),
    }
}

fn error_chunk(cookie: u64, error: NbdError, out: &mut SendQueue) {
    let batch = out.batch();
    // Error number, then the length of a text that we leave out.
    batch.extend_from_slice(last_chunk(cookie, wire::chunk::ERROR, 6).as_bytes());
    batch.extend_from_slice(&error.number().to_be_bytes());
    batch.extend_from_slice(&0_u16.to_be_bytes());
}

/// Answers a READ.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct ReadReply {
    pub(super) cookie: u64,
    pub(super) extent: Extent,
    pub(super) form: ReplyForm,
}

impl ReadReply {
    /// Sends the data, which must be exactly as long as the request.
    pub fn data(self, mut buffer: IoBuffer, out: &mut SendQueue, pool: &mut BufferPool) {
        assert_eq!(u32::try_from(buffer.len()), Ok(self.extent.length), "a read is answered with what was asked for");
        match self.form {
            ReplyForm::Simple => buffer.put_header(simple(self.cookie, 0).as_bytes()),
            ReplyForm::Structured => {
                let length = self.extent.length + 8;
                let chunk = last_chunk(self.cookie, wire::chunk::OFFSET_DATA, length);
                let header = DataChunkHeader { chunk, offset: self.extent.offset.into() };
                buffer.put_header(header.as_bytes());
            }
        }
        out.frame(buffer, pool);
    }

    /// Sends an error.
    pub fn fail(self, error: NbdError, out: &mut SendQueue) {
        match self.form {
            ReplyForm::Simple => out.batch().extend_from_slice(simple(self.cookie, error.number()).as_bytes()),
            ReplyForm::Structured => error_chunk(self.cookie, error, out),
        }
    }
}

/// Answers a request that has no data to give back.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct DoneReply {
    pub(super) cookie: u64,
}

impl DoneReply {
    /// The request was carried out.
    pub fn done(self, out: &mut SendQueue) {
        out.batch().extend_from_slice(simple(self.cookie, 0).as_bytes());
    }

    /// Sends an error.
    pub fn fail(self, error: NbdError, out: &mut SendQueue) {
        out.batch().extend_from_slice(simple(self.cookie, error.number()).as_bytes());
    }
}

/// What is known of a stretch of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Written, or not known.
    Data,
    /// No space is allocated, and it reads as zeroes.
    Hole,
}

/// A stretch for BLOCK_STATUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocationExtent {
    /// Not 0.
    pub length: u32,
    pub allocation: Allocation,
}

/// Whether a BLOCK_STATUS may be answered with more than one extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extents {
    One,
    Many,
}

/// Answers a BLOCK_STATUS.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct StatusReply {
    pub(super) cookie: u64,
    pub(super) extent: Extent,
    pub(super) extents: Extents,
}

impl StatusReply {
    /// Sends what is allocated, from the start of the requested extent on and at least one extent. Neighbours of the
    /// same kind are joined, and what goes beyond the request or beyond the limit is left out.
    pub fn extents(self, extents: impl IntoIterator<Item = AllocationExtent>, out: &mut SendQueue) {
        let limit = match self.extents {
            Extents::One => 1,
            Extents::Many => STATUS_EXTENTS_MAX,
        };
        let mut joined: Vec<AllocationExtent> = Vec::new();
        let mut left = self.extent.length;
        for next in extents {
            if left == 0 {
                break;
            }
            let length = next.length.min(left);
            let full = joined.len() == limit;
            match joined.last_mut() {
                Some(last) if last.allocation == next.allocation => last.length += length,
                Some(_) if full => break,
                Some(_) | None => joined.push(AllocationExtent { length, allocation: next.allocation }),
            }
            left -= length;
        }
        assert!(!joined.is_empty(), "a block status has at least one extent");
        let payload = 4 + 8 * u32::try_from(joined.len()).expect("at most the limit");
        let batch = out.batch();
        batch.extend_from_slice(last_chunk(self.cookie, wire::chunk::BLOCK_STATUS, payload).as_bytes());
        batch.extend_from_slice(&wire::BASE_ALLOCATION_ID.to_be_bytes());
        for extent in joined {
            let flags: u32 = match extent.allocation {
                Allocation::Data => 0,
                Allocation::Hole => 3,
            };
            batch.extend_from_slice(&extent.length.to_be_bytes());
            batch.extend_from_slice(&flags.to_be_bytes());
        }
    }

    /// Sends an error.
    pub fn fail(self, error: NbdError, out: &mut SendQueue) {
        error_chunk(self.cookie, error, out);
    }
}
