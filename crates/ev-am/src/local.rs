//! The AM's local socket, on which `evd` calls.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ev_wire::am::{AmAnswer, AmCall};
use ev_wire::local::{BindError, LocalHandler, LocalServer};
use tokio::sync::{mpsc, oneshot};

/// Calls that may wait for the AM; more wait in their connections.
pub const CALLS_MAX: usize = 16;
/// How long a call may wait for its answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// A call, and where its answer goes.
#[derive(Debug)]
pub struct LocalCall {
    pub call: AmCall,
    pub answer: oneshot::Sender<AmAnswer>,
}

struct Handler {
    calls: mpsc::Sender<LocalCall>,
}

impl LocalHandler for Handler {
    fn call(&self, call: AmCall) -> std::pin::Pin<Box<dyn Future<Output = AmAnswer> + Send + '_>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let exchange = async {
                self.calls.send(LocalCall { call, answer }).await.ok()?;
                answered.await.ok()
            };
            match tokio::time::timeout(ANSWER_TIME_MAX, exchange).await {
                Ok(Some(answer)) => answer,
                Ok(None) => AmAnswer::Refused("this ev-am is ending; call the next one".into()),
                Err(_) => AmAnswer::Refused("this ev-am is too busy to answer; try again".into()),
            }
        })
    }
}

/// Serves the socket at `path` until the server is dropped; calls go to `calls`.
pub fn serve(path: &Path, calls: mpsc::Sender<LocalCall>) -> Result<LocalServer, BindError> {
    LocalServer::start(path, Arc::new(Handler { calls }))
}
