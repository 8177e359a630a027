//! Frames of the partner link: what the coordinator of a mirror set and the other replica say to each other.
//!
//! There is no socket here. To send: [`encode`] appends to a buffer and returns the payload to be sent after it. To
//! receive: put bytes into [`Decoder::space`], say so by [`Decoder::received`], take messages from [`Decoder::next`];
//! data arrives in the buffer that is then written to the disk. The stream below is TLS, so that the checksum in the
//! header only has to find a stream that is out of step, and data has none of its own.
//!
//! Both sides open with [`Message::Hello`]. Each answers a hello that it cannot work with by [`Message::Refused`] and closes.

mod decode;
mod encode;
mod frame;
mod hello;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, FrameError};
pub use encode::encode;
pub use hello::{Hello, LinkRole, LinkVersion, Refusal};

use ev_core::ids::Generation;

use crate::extent::Extent;
use crate::metadata::RegionMap;
use crate::nbd::{Durability, Zeroing};

/// Most data bytes in one frame; the longest request of the NBD server.
pub const DATA_BYTES_MAX: u32 = crate::nbd::REQUEST_BYTES_MAX;
/// Size of the blocks that are compared by hash during a copy. The last one of a disk may be shorter.
pub const HASH_BLOCK_BYTES: u32 = 64 << 10;
/// Most blocks in one request for hashes.
pub const HASH_BLOCKS_MAX: u32 = 256;
/// Most acknowledgements in one frame.
pub const ACKS_MAX: usize = 1024;
/// Most 64-bit words of a region map in one frame; longer maps are sent in parts.
pub const REGION_WORDS_MAX: usize = 4096;

/// Number of a request on one link, given by its sender, rising by one. Answers carry it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Hash of one block (BLAKE3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// The hash of `block`.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        Self(*blake3::hash(block).as_bytes())
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Carried out; durable if that was asked for.
    Done,
    /// The replica could not do it: its storage failed.
    Failed,
    /// The receiver's state does not allow it (a write to a replica that serves nobody, data outside of a copy).
    NotNow,
}

/// Answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub sequence: Sequence,
    pub outcome: Outcome,
}

/// Whether more parts of the same map follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    More,
    Last,
}

/// How much of the disk a copy looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    Delta,
    Full,
}

/// A message. `D` is what holds data: [`crate::buffer::IoBuffer`] when received, whatever gives bytes when sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<D> {
    /// First in each direction.
    Hello(Hello),
    /// The other side's hello cannot be worked with; the link is closed after it.
    Refused(Refusal),
    /// Part of the sender's map, from bit `64 * first_word` on; bit `n` stands for region `n`.
    Regions {
        map: RegionMap,
        first_word: u64,
        words: Vec<u64>,
        part: Part,
    },
    /// Nothing to say, still here.
    KeepAlive,

    /// Guest's requests, coordinator to replica; each is answered by an ack (reads by `ReadData` when they succeed).
    Write {
        sequence: Sequence,
        offset: u64,
        durability: Durability,
        data: D,
    },
    WriteZeroes {
        sequence: Sequence,
        extent: Extent,
        zeroing: Zeroing,
        durability: Durability,
    },
    Trim {
        sequence: Sequence,
        extent: Extent,
        durability: Durability,
    },
    Flush {
        sequence: Sequence,
    },
    Read {
        sequence: Sequence,
        extent: Extent,
    },

    /// Answers, replica to coordinator.
    Acks(Vec<Ack>),
    ReadData {
        sequence: Sequence,
        data: D,
    },

    /// Everything up to and including `through` has been flushed on both replicas: what was logged only for it may
    /// leave the write-intent log. Not answered.
    Settled {
        through: Sequence,
    },
    /// The record of `generation` is committed: the replica's superblock is to say so. Answered when durable.
    History {
        sequence: Sequence,
        current: Generation,
        bitmap_base: Generation,
    },

    /// A copy, from the side with the good replica to the other, whose superblock is to say `Copying` and `current`.
    CopyBegin {
        sequence: Sequence,
        kind: CopyKind,
        current: Generation,
    },
    /// Asks for the hashes of the blocks in the extent, which starts at a block.
    HashRequest {
        sequence: Sequence,
        extent: Extent,
    },
    Hashes {
        sequence: Sequence,
        hashes: Vec<BlockHash>,
    },
    CopyData {
        sequence: Sequence,
        offset: u64,
        data: D,
    },
    CopyZeroes {
        sequence: Sequence,
        extent: Extent,
    },
    /// All was sent: flush, and be good with this history. Answered when durable.
    CopyEnd {
        sequence: Sequence,
        current: Generation,
        bitmap_base: Generation,
    },
}
