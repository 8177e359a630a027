//! The thread that looks for written pages and copies them, so that nothing else waits while it does.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::oneshot;

use crate::ram::{PassError, PassReport, RamTracker, Staging};

/// Passes that may wait: there is one guest, and one pass at a time.
const JOBS_QUEUED_MAX: usize = 1;

struct Job {
    staging: Staging,
    done: oneshot::Sender<(Staging, Result<PassReport, PassError>)>,
}

/// Ends with its thread when dropped.
#[derive(Debug)]
pub(super) struct Copier {
    jobs: SyncSender<Job>,
}

impl Copier {
    pub(super) fn start(tracker: Arc<RamTracker>) -> std::io::Result<Self> {
        let (jobs, receiver) = sync_channel(JOBS_QUEUED_MAX);
        std::thread::Builder::new().name("ram-copier".to_owned()).spawn(move || serve(&tracker, &receiver))?;
        Ok(Self { jobs })
    }

    /// One pass. `None`: the thread is gone, and the pages with it.
    pub(super) async fn pass(&self, staging: Staging) -> Option<(Staging, Result<PassReport, PassError>)> {
        let (done, answer) = oneshot::channel();
        self.jobs.try_send(Job { staging, done }).ok()?;
        answer.await.ok()
    }
}

fn serve(tracker: &RamTracker, jobs: &Receiver<Job>) {
    while let Ok(Job { mut staging, done }) = jobs.recv() {
        let result = tracker.copy_written(&mut staging);
        // Nobody waits any more: then whoever asked has been dropped, and knows that pages may be lost.
        let _ = done.send((staging, result));
    }
}
