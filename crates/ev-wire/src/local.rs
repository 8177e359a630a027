//! Calls between `evd` and an AM of the same host, over the AM's unix socket: one call at a time per connection.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::am::{AmAnswer, AmCall};
use crate::frame::{Frame, FrameError, FrameKind, TooLarge};
use crate::stream::{ReadError, read_frame, write_frame};

/// Most connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16;
/// How long a client that said nothing keeps its connection.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Answers calls.
pub trait LocalHandler: Send + Sync + 'static {
    /// Carry out one call.
    fn call(&self, call: AmCall) -> Pin<Box<dyn Future<Output = AmAnswer> + Send + '_>>;
}

/// Why the socket could not be served.
#[derive(Debug, thiserror::Error)]
#[error("listening on the unix socket {} failed: {source}", path.display())]
pub struct BindError {
    path: PathBuf,
    source: io::Error,
}

/// Serves the socket until it is dropped.
#[derive(Debug)]
pub struct LocalServer {
    task: tokio::task::JoinHandle<()>,
}

impl LocalServer {
    /// Listen on `path` (a socket left there by an earlier process is replaced; the caller holds the lock that says
    /// that it is the only one) and answer calls by `handler`. Only the owner may connect.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn start(path: &Path, handler: Arc<dyn LocalHandler>) -> Result<Self, BindError> {
        let fail = |source| BindError { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        Ok(Self { task: tokio::spawn(serve(listener, handler)) })
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: UnixListener, handler: Arc<dyn LocalHandler>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    if let Err(error) = serve_one(stream, handler.as_ref()).await {
                        tracing::debug!(%error, "a local connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a local connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(mut stream: UnixStream, handler: &dyn LocalHandler) -> Result<(), LocalCallError> {
    loop {
        let Ok(frame) = tokio::time::timeout(IDLE_MAX, read_frame(&mut stream)).await else { return Ok(()) };
        let Some(frame) = frame? else { return Ok(()) };
        let answer = handler.call(frame.message(FrameKind::AM_CALL)?).await;
        write_frame(&mut stream, &Frame::of(FrameKind::AM_ANSWER, &answer)?).await.map_err(ReadError::from)?;
    }
}

/// Why a local call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LocalCallError {
    #[error("connecting to {} failed: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Stream(#[from] ReadError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error("the process behind the socket closed it without an answer")]
    Closed,
    #[error("the process behind the socket did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// Connect, ask once, and hang up.
///
/// # Errors
/// See [`LocalCallError`].
pub async fn call(path: &Path, call: &AmCall, timeout: Duration) -> Result<AmAnswer, LocalCallError> {
    let exchange = async {
        let mut stream = UnixStream::connect(path)
            .await
            .map_err(|source| LocalCallError::Connect { path: path.to_owned(), source })?;
        write_frame(&mut stream, &Frame::of(FrameKind::AM_CALL, call)?).await.map_err(ReadError::from)?;
        let frame = read_frame(&mut stream).await?.ok_or(LocalCallError::Closed)?;
        Ok(frame.message(FrameKind::AM_ANSWER)?)
    };
    tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(LocalCallError::Timeout(timeout)))
}
