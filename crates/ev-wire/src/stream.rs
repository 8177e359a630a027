//! Frames on asynchronous byte streams.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::frame::{Frame, FrameError, HEADER_BYTES, decode_header, encode_header};

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading from the other side failed: {0}")]
    Io(#[from] io::Error),
    #[error("the other side went away in the middle of a frame")]
    CutOff,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Read one frame; `None` when the stream ended between two frames. Not to be cancelled in the middle if the stream
/// is to be read on.
///
/// # Errors
/// See [`ReadError`].
pub async fn read_frame<R: AsyncRead + Unpin + ?Sized>(stream: &mut R) -> Result<Option<Frame>, ReadError> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while let Some(rest) = header.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest).await? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(ReadError::CutOff),
            count => filled += count,
        }
    }
    let header = decode_header(&header)?;
    let mut body = vec![0; header.body_bytes()];
    match stream.read_exact(&mut body).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ReadError::CutOff),
        Err(error) => return Err(error.into()),
    }
    header.check(&body)?;
    Ok(Some(Frame { kind: header.kind(), body }))
}

/// Write one frame and flush the stream.
///
/// # Errors
/// The stream's.
pub async fn write_frame<W: AsyncWrite + Unpin + ?Sized>(stream: &mut W, frame: &Frame) -> io::Result<()> {
    stream.write_all(&encode_header(frame.kind, &frame.body)).await?;
    stream.write_all(&frame.body).await?;
    stream.flush().await
}
