//! Bodies of requests on their way to a disk, without holding up the daemon's few threads.

use axum::body::{Body, Bytes};
use ev_api::{ApiError, ErrorCode};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

/// Chunks that wait for the disk; then the network waits.
const CHUNKS_WAITING_MAX: usize = 8;

/// Something that takes bytes in order.
pub trait Sink: Send + 'static {
    /// # Errors
    /// The disk is full or faulty.
    fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError>;
}

/// Writes the whole body into `sink` on a thread where waiting for a disk is allowed, and gives the sink back.
///
/// # Errors
/// The connection broke before the end, or the sink refused.
pub async fn pour<S: Sink>(mut body: Body, mut sink: S) -> Result<S, ApiError> {
    let (chunks, mut queue) = mpsc::channel::<Bytes>(CHUNKS_WAITING_MAX);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(chunk) = queue.blocking_recv() {
            sink.write(&chunk)?;
        }
        Ok(sink)
    });
    let mut broken = None;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(chunk) = frame.into_data()
                    && chunks.send(chunk).await.is_err()
                {
                    // The writer gave up; its error is the answer.
                    break;
                }
            }
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    drop(chunks);
    let written = writer.await.map_err(|error| super::answer::internal("writing an upload", &error))?;
    match broken {
        Some(error) => {
            Err(ApiError::new(ErrorCode::Invalid, format!("the upload broke off: {error}")).hint("send it again"))
        }
        None => written,
    }
}
