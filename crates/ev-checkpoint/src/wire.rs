//! The frames of the memory stream.
//!
//! An epoch is any number of `PAGES` and `STATE` frames and then one `END` frame. The first of an epoch's `END`s is that of the epoch before it.
//! Each `PAGES` and `STATE` body begins with session and epoch (8 bytes each, big-endian), then entries (`entry.rs`); a device state is cut into
//! pages, the last one filled up with zeroes. `END` carries [`End`].

use std::io::{self, Read, Write};

use ev_core::checkpoint::{Epoch, Session};
use ev_wire::frame::{Frame, FrameError, FrameKind, HEADER_BYTES, decode_header, encode_header};
use serde::{Deserialize, Serialize};

pub const PAGES: FrameKind = FrameKind(128);
pub const STATE: FrameKind = FrameKind(129);
pub const END: FrameKind = FrameKind(130);

/// Bytes of a body before its entries.
pub const PREFIX_BYTES: usize = 16;
/// A body is sent when it has this length; entries may take it a little further.
pub const BODY_BYTES_USUAL: usize = 256 << 10;

/// The end of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub session: Session,
    pub epoch: Epoch,
    /// Length of the device state.
    pub state_bytes: u32,
    /// BLAKE3 of the bodies of all its frames, in order.
    pub hash: [u8; 32],
}

/// A body without entries.
pub fn begin_body(body: &mut Vec<u8>, session: Session, epoch: Epoch) {
    body.clear();
    body.extend(session.0.to_be_bytes());
    body.extend(epoch.0.to_be_bytes());
}

/// Session, epoch and entries of a body.
pub fn split_body(body: &[u8]) -> Option<(Session, Epoch, &[u8])> {
    let (session, rest) = body.split_first_chunk::<8>()?;
    let (epoch, entries) = rest.split_first_chunk::<8>()?;
    Some((Session(u64::from_be_bytes(*session)), Epoch(u64::from_be_bytes(*epoch)), entries))
}

/// Writes one frame.
pub fn write(stream: &mut impl Write, kind: FrameKind, body: &[u8]) -> io::Result<()> {
    stream.write_all(&encode_header(kind, body))?;
    stream.write_all(body)
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading the memory stream failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads one frame.
pub fn read(stream: &mut impl Read) -> Result<Frame, ReadError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let header = decode_header(&header)?;
    let mut body = vec![0; header.body_bytes()];
    stream.read_exact(&mut body)?;
    header.check(&body)?;
    Ok(Frame { kind: header.kind(), body })
}
