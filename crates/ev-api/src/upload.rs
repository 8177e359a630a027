//! A file as the body of a request.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::client::Body;

/// Read and sent at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead of the network.
const CHUNKS_AHEAD: usize = 4;

struct Chunks(mpsc::Receiver<std::io::Result<Bytes>>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        Poll::Ready(ready!(self.0.poll_recv(context)).map(|chunk| chunk.map(Frame::data)))
    }
}

/// The file at `path`, read as it is sent; `progress` is told of each chunk's length.
///
/// # Errors
/// The file can't be opened.
pub fn file_body(path: &Path, progress: impl Fn(u64) + Send + 'static) -> std::io::Result<Body> {
    let mut file = tokio::fs::File::from_std(std::fs::File::open(path)?);
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::spawn(async move {
        loop {
            let mut buffer = vec![0; CHUNK_BYTES];
            let chunk = match file.read(&mut buffer).await {
                Ok(0) => return,
                Ok(length) => {
                    buffer.truncate(length);
                    progress(u64::try_from(length).unwrap_or(u64::MAX));
                    Ok(Bytes::from(buffer))
                }
                Err(error) => Err(error),
            };
            let failed = chunk.is_err();
            if sender.send(chunk).await.is_err() || failed {
                return;
            }
        }
    });
    Ok(Chunks(receiver).boxed_unsync())
}
