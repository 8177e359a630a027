//! Frames of the partner link: the messages of `ev_core::mirror` and the data that belongs to them, as bytes.
//!
//! There is no socket here. To send: [`encode`] appends to a buffer and returns the data to be sent after it. To
//! receive: put bytes into [`Decoder::space`], say so by [`Decoder::received`], take frames from [`Decoder::next`];
//! data arrives in the buffer that is then written to the disk. The stream below is TLS, so that the checksum in the
//! header only has to find a stream that is out of step, and data has none of its own.
//!
//! Both sides open with a [`LinkHello`]. Each answers one that it cannot work with by a [`Refusal`] and closes.

mod decode;
mod encode;
mod frame;
mod hello;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, FrameError, Incoming};
pub use encode::{encode, encode_acks, encode_hello, encode_refusal};
pub use hello::{LinkHello, LinkIdentity, LinkVersion, Refusal};

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
/// Longest stretch of zeroes that a copy sends as one frame.
pub const COPY_ZEROES_BYTES_MAX: u32 = HASH_BLOCK_BYTES * HASH_BLOCKS_MAX;
