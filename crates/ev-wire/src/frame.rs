//! Frames: what every stream between Evenkeel's programs is cut into, with version and checksum.
//!
//! This file does no I/O; [`crate::stream`] reads and writes frames on asynchronous streams.

use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"EVNK";
/// Version written into every frame. History: 1 (2026) first one.
pub const PROTOCOL_VERSION: u16 = 1;
/// Oldest version that is still read.
pub const PROTOCOL_VERSION_OLDEST: u16 = 1;
/// Length of the header.
pub const HEADER_BYTES: usize = 16;
/// Longest body. A longer one is refused before a byte of it is read; the stream is of no use then.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// What a frame's body is. Streams refuse kinds that they don't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameKind(pub u16);

impl FrameKind {
    /// [`crate::peer::PeerCall`].
    pub const PEER_CALL: Self = Self(1);
    /// [`crate::peer::PeerAnswer`].
    pub const PEER_ANSWER: Self = Self(2);
    /// Empty: "are you there?", answered by [`Self::PONG`].
    pub const PING: Self = Self(3);
    /// Empty.
    pub const PONG: Self = Self(4);
    /// Of no meaning, read and dropped: what the speed of a link is measured with.
    pub const FILLER: Self = Self(5);
    /// [`crate::am::AmCall`].
    pub const AM_CALL: Self = Self(16);
    /// [`crate::am::AmAnswer`].
    pub const AM_ANSWER: Self = Self(17);
    /// [`crate::quorum::Enlist`] and the messages after it.
    pub const QUORUM: Self = Self(32);
    /// First message on a link between two AMs: which disk the stream belongs to.
    pub const LINK_HELLO: Self = Self(64);
    /// First of the kinds that `ev-mirror`'s link uses, up to 127.
    pub const LINK_FIRST: Self = Self(65);
}

/// The header as it is on the wire; numbers are big-endian.
///
/// | offset | bytes | what |
/// |---|---|---|
/// | 0 | 4 | `EVNK` |
/// | 4 | 2 | protocol version of the sender |
/// | 6 | 2 | [`FrameKind`] |
/// | 8 | 4 | length of the body |
/// | 12 | 4 | CRC-32C of the twelve bytes before and of the body |
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    length: U32,
    checksum: U32,
}

/// A header that was found good as far as it can be without the body.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    raw: RawHeader,
    body_bytes: usize,
}

/// Why bytes are not a frame of ours. After any of these the stream can't be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error(
        "the other side does not speak Evenkeel's protocol (its first bytes are {found:02x?}): check address and port"
    )]
    Magic { found: [u8; 4] },
    #[error(
        "the other side speaks protocol version {theirs}, this program {PROTOCOL_VERSION_OLDEST} to {PROTOCOL_VERSION}: \
         upgrade Evenkeel on the other machine"
    )]
    TooOld { theirs: u16 },
    #[error(
        "the other side speaks protocol version {theirs}, this program {PROTOCOL_VERSION_OLDEST} to {PROTOCOL_VERSION}: \
         upgrade Evenkeel on this machine"
    )]
    TooNew { theirs: u16 },
    #[error(
        "a frame of {length} bytes was announced, the most is {BODY_BYTES_MAX}: the stream is damaged or the peer faulty"
    )]
    TooLong { length: u32 },
    #[error("the checksum of a frame does not match: the stream is damaged, look at the network hardware")]
    Checksum,
    #[error("the body of a frame of kind {} can't be understood: the two sides run versions that don't fit", kind.0)]
    Body { kind: FrameKind },
    #[error("a frame of kind {} came where kind {} was due", found.0, due.0)]
    Kind { found: FrameKind, due: FrameKind },
}

/// A value too large to be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes is over the limit of {BODY_BYTES_MAX} bytes for one frame")]
pub struct TooLarge {
    pub bytes: usize,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: FrameKind,
    pub body: Vec<u8>,
}

impl Frame {
    /// A frame without a body.
    #[must_use]
    pub fn empty(kind: FrameKind) -> Self {
        Self { kind, body: Vec::new() }
    }

    /// A frame with `message` (postcard) as its body.
    ///
    /// # Errors
    /// When it is over [`BODY_BYTES_MAX`].
    pub fn of<T: Serialize>(kind: FrameKind, message: &T) -> Result<Self, TooLarge> {
        let body = postcard::to_stdvec(message).expect("our messages are of plain types that postcard can write");
        if body.len() > BODY_BYTES_MAX {
            return Err(TooLarge { bytes: body.len() });
        }
        Ok(Self { kind, body })
    }

    /// The message in a frame that has to be of `kind`.
    ///
    /// # Errors
    /// When the kind is another one, the body can't be read, or something is left after it.
    pub fn message<T: DeserializeOwned>(&self, kind: FrameKind) -> Result<T, FrameError> {
        if self.kind != kind {
            return Err(FrameError::Kind { found: self.kind, due: kind });
        }
        match postcard::take_from_bytes(&self.body) {
            Ok((message, [])) => Ok(message),
            Ok(_) | Err(_) => Err(FrameError::Body { kind }),
        }
    }

    /// The frame as it goes over the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.body.len());
        bytes.extend_from_slice(&encode_header(self.kind, &self.body));
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The header to be sent before `body`, for senders that don't want to copy it into one buffer.
///
/// # Panics
/// When the body is over [`BODY_BYTES_MAX`]: the caller's mistake.
#[must_use]
pub fn encode_header(kind: FrameKind, body: &[u8]) -> [u8; HEADER_BYTES] {
    assert!(body.len() <= BODY_BYTES_MAX, "a frame over the limit is refused before it is made");
    let length = u32::try_from(body.len()).expect("the limit fits");
    let mut raw = RawHeader {
        magic: MAGIC,
        version: U16::new(PROTOCOL_VERSION),
        kind: U16::new(kind.0),
        length: U32::new(length),
        checksum: U32::ZERO,
    };
    raw.checksum = U32::new(raw.checksum_with(body));
    zerocopy::transmute!(raw)
}

/// Look at a header: magic, version, length.
///
/// # Errors
/// When it is not one of ours; see [`FrameError`].
pub fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
    let raw: RawHeader = zerocopy::transmute!(*bytes);
    if raw.magic != MAGIC {
        return Err(FrameError::Magic { found: raw.magic });
    }
    let theirs = raw.version.get();
    if theirs < PROTOCOL_VERSION_OLDEST {
        return Err(FrameError::TooOld { theirs });
    }
    if theirs > PROTOCOL_VERSION {
        return Err(FrameError::TooNew { theirs });
    }
    let length = raw.length.get();
    let body_bytes = usize::try_from(length).ok().filter(|bytes| *bytes <= BODY_BYTES_MAX);
    let body_bytes = body_bytes.ok_or(FrameError::TooLong { length })?;
    Ok(Header { raw, body_bytes })
}

impl Header {
    /// How many bytes follow.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    #[must_use]
    pub fn kind(&self) -> FrameKind {
        FrameKind(self.raw.kind.get())
    }

    /// Check the body that followed.
    ///
    /// # Errors
    /// [`FrameError::Checksum`].
    pub fn check(&self, body: &[u8]) -> Result<(), FrameError> {
        if self.raw.checksum_with(body) == self.raw.checksum.get() { Ok(()) } else { Err(FrameError::Checksum) }
    }
}

impl RawHeader {
    fn checksum_with(&self, body: &[u8]) -> u32 {
        let (before, _) = self.as_bytes().split_at(HEADER_BYTES - 4);
        crc32c::crc32c_append(crc32c::crc32c(before), body)
    }
}

/// Cuts bytes that arrive in any portions into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Take in bytes. The caller asks [`Self::next_frame`] after each portion, so that no more than one frame and
    /// one portion are ever held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// See [`FrameError`]; the stream is of no use then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = decode_header(header)?;
        let Some(body) = rest.get(..header.body_bytes()) else { return Ok(None) };
        header.check(body)?;
        let frame = Frame { kind: header.kind(), body: body.to_vec() };
        self.buffer.drain(..HEADER_BYTES + header.body_bytes());
        Ok(Some(frame))
    }
}
