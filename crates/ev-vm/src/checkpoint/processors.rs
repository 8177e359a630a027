//! Whether a guest's processors have anything to do, as the host's scheduler sees their threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::guest::Guest;
use crate::qmp::QmpError;

/// Of `/proc/PID/task/TID/stat` what holds the thread's name (15 bytes at most) and its state.
const STAT_BYTES: usize = 64;

/// Why the processors can't be watched.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum WatchError {
    #[error("QEMU did not name the threads of the guest's processors: {0}")]
    Threads(#[from] QmpError),
    #[error("could not open the state of thread {thread} of QEMU: {source}")]
    Open { thread: u32, source: io::Error },
}

/// The processors of one guest.
#[derive(Debug)]
pub struct Processors {
    /// The one that was found at work last comes first: it is likely to be again.
    threads: Vec<File>,
}

impl Processors {
    /// All that the guest has.
    ///
    /// # Errors
    /// QEMU does not answer, or ends meanwhile.
    pub async fn of(guest: &Guest) -> Result<Self, WatchError> {
        let open = |thread: u32| {
            let path = format!("/proc/{}/task/{thread}/stat", guest.pid());
            File::open(path).map_err(|source| WatchError::Open { thread, source })
        };
        let threads = guest.qmp().await?.processor_threads().await?;
        Ok(Self { threads: threads.into_iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Whether all of them sleep at this instant: the guest has halted them, and waits for something. Takes some microseconds.
    pub fn rest(&mut self) -> bool {
        let at_work = self.threads.iter().position(|thread| !sleeps(thread));
        if let Some(index) = at_work {
            self.threads.swap(0, index);
        }
        at_work.is_none()
    }
}

/// One that is runnable and has to wait for a processor of the host does not sleep.
fn sleeps(stat: &File) -> bool {
    let mut bytes = [0; STAT_BYTES];
    // It fails for a thread that has ended: nothing to wait for.
    let read = stat.read_at(&mut bytes, 0).unwrap_or(0);
    let after_name = bytes[..read].iter().rposition(|byte| *byte == b')');
    after_name.and_then(|end| bytes.get(end + 2)) == Some(&b'S')
}
