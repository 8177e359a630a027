//! NBD server: fixed newstyle handshake and transmission, as bytes in and requests out.
//!
//! Follows `doc/proto.md` of the NetworkBlockDevice project. There is no socket here: the disk's thread receives
//! into [`Connection::space`], says so by [`Connection::received`], takes what has become complete from
//! [`Connection::next`], and later answers through the reply that came with the request. Replies may be given in any order.
//!
//! ```text
//! Greeted --client flags--> Options --GO / EXPORT_NAME--> Transmission --DISC--> end
//!                             |  ^                           |
//!                             +--+ other options             +-- wrong magic, write too long --> ProtocolError
//! ```
//! - Greeted → Options: the client has said which handshake flags it knows; unknown ones end the connection.
//! - Options → Options: an option was answered, with an error if it was not understood.
//! - Options → Transmission: the export exists; its size and flags were told.
//! - Transmission → end: the client is done, or what it sends can no longer be told apart from payload.

mod handshake;
mod reply;
#[cfg(test)]
mod tests;
mod transmission;
mod wire;

pub use ev_core::mirror::Durability;
pub use reply::{Allocation, AllocationExtent, DoneReply, NbdError, ReadReply, StatusReply};

use handshake::Handshake;
use transmission::Transmission;

use crate::buffer::{BufferPool, IoBuffer, SendQueue};
use crate::extent::Extent;
use crate::receive::Receiver;

/// Longest READ and WRITE. A longer READ is refused; a longer WRITE ends the connection.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Requests must be multiples of this; others are refused.
pub const BLOCK_BYTES_MIN: u32 = 512;
/// What we tell clients to prefer.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Longest option that is looked at. Longer ones are skipped and answered with `TOO_BIG`.
pub const OPTION_BYTES_MAX: u32 = 8 << 10;
/// Longest option that is skipped; one beyond it ends the connection.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Options that a client may send before it starts transmission; one more ends the connection.
pub const OPTIONS_MAX: u32 = 256;
/// Most extents in one answer to BLOCK_STATUS; the client asks again for the rest.
pub const STATUS_EXTENTS_MAX: usize = 1024;

/// What is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Name that clients may ask for; the empty name gives the same export.
    pub name: String,
    /// A multiple of [`BLOCK_BYTES_MIN`].
    pub size_bytes: u64,
}

/// What a WRITE_ZEROES may leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeroing {
    /// A hole that reads as zeroes will do.
    MayDeallocate,
    /// The space must stay allocated.
    KeepAllocated,
}

/// A request with what is needed to answer it. All extents lie within the disk and are aligned to [`BLOCK_BYTES_MIN`].
#[derive(Debug)]
pub enum Request {
    Read {
        extent: Extent,
        reply: ReadReply,
    },
    Write {
        extent: Extent,
        data: IoBuffer,
        durability: Durability,
        reply: DoneReply,
    },
    WriteZeroes {
        extent: Extent,
        zeroing: Zeroing,
        durability: Durability,
        reply: DoneReply,
    },
    Trim {
        extent: Extent,
        durability: Durability,
        reply: DoneReply,
    },
    Flush {
        reply: DoneReply,
    },
    BlockStatus {
        extent: Extent,
        reply: StatusReply,
    },
    /// The client is done; requests in flight are finished, nothing more comes.
    Disconnect,
}

/// The client broke the protocol so that the connection must be closed (after sending what is queued).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error(
        "the NBD client set handshake flags {0:#x}, of which this server knows only 0x3; use a client for fixed newstyle NBD"
    )]
    UnknownClientFlags(u32),
    #[error("the NBD client sent {0:#018x} where an option starts; it does not speak fixed newstyle NBD")]
    BadOptionMagic(u64),
    #[error("the NBD client sent an option of {0} bytes; at most {OPTION_SKIP_BYTES_MAX} are skipped")]
    OptionTooLong(u32),
    #[error("the NBD client sent more than {OPTIONS_MAX} options; it should have started transmission")]
    TooManyOptions,
    #[error(
        "the NBD client asked by EXPORT_NAME for an export that is not served; ask for the default one (empty name)"
    )]
    UnknownExport,
    #[error("the NBD client sent {0:#010x} where a request starts; the stream is out of step")]
    BadRequestMagic(u32),
    #[error(
        "the NBD client sent a write of {0} bytes; the longest is {REQUEST_BYTES_MAX}, as the block size information says"
    )]
    WriteTooLong(u32),
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Transmission(Transmission),
    /// Nothing more is taken from the client.
    Ended,
}

/// One client's connection.
#[derive(Debug)]
pub struct Connection {
    export: Export,
    receiver: Receiver,
    phase: Phase,
}

impl Connection {
    /// A fresh connection; the greeting goes to `out`.
    pub fn new(export: Export, out: &mut SendQueue) -> Self {
        assert!(export.size_bytes.is_multiple_of(u64::from(BLOCK_BYTES_MIN)), "a disk is a whole number of sectors");
        Self { export, receiver: Receiver::default(), phase: Phase::Handshake(Handshake::greet(out)) }
    }

    /// Where the next bytes from the client are to be received; see [`Receiver::space`]. Call it only when
    /// [`Connection::next`] had nothing more, else it can be empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.receiver.space()
    }

    /// `count` bytes were received into the space.
    pub fn received(&mut self, count: usize) {
        self.receiver.received(count);
    }

    /// Whether the handshake is over.
    #[must_use]
    pub fn in_transmission(&self) -> bool {
        matches!(self.phase, Phase::Transmission(_))
    }

    /// The next complete request; `None` when more bytes are needed. Options and bad requests are answered here.
    /// Not calling it for a while holds the client back.
    pub fn next(&mut self, out: &mut SendQueue, pool: &mut BufferPool) -> Result<Option<Request>, ProtocolError> {
        loop {
            match &mut self.phase {
                Phase::Handshake(handshake) => match handshake.step(&self.export, &mut self.receiver, out)? {
                    handshake::Progress::NeedBytes => return Ok(None),
                    handshake::Progress::Again => {}
                    handshake::Progress::Transmission(features) => {
                        self.phase = Phase::Transmission(Transmission::new(features));
                    }
                    handshake::Progress::Ended => {
                        self.phase = Phase::Ended;
                        return Ok(Some(Request::Disconnect));
                    }
                },
                Phase::Transmission(transmission) => {
                    let request = transmission.next(self.export.size_bytes, &mut self.receiver, out, pool)?;
                    if matches!(request, Some(Request::Disconnect)) {
                        self.phase = Phase::Ended;
                    }
                    return Ok(request);
                }
                Phase::Ended => return Ok(None),
            }
        }
    }
}
