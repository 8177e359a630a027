//! Processor priority: the AM's threads go before the guest's, so that a busy guest does not look like a dead host.

use rustix::process::{nice, setpriority_process};

/// Nice value of the AM's own threads.
const NICE_AM: i32 = -10;
/// Nice value of the guest.
const NICE_GUEST: i32 = 0;

/// Raises this thread, and with it all threads that it will start. Without the right to do so the AM goes on as it is:
/// it is slower under load, not wrong.
pub fn raise() {
    if let Err(error) = setpriority_process(None, NICE_AM) {
        tracing::warn!(
            %error,
            "cannot raise the priority of this program; a busy guest may delay its disks. Run it as root or with CAP_SYS_NICE"
        );
    }
}

/// Runs `work` on a thread of the guest's priority (a process that it starts inherits it) and waits for its result.
pub fn as_guest<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name("launch".into()).spawn(move || {
        // Linux keeps the nice value per thread; going up needs no right.
        if let Ok(present) = nice(0)
            && present < NICE_GUEST
        {
            let _ = setpriority_process(None, NICE_GUEST);
        }
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_started_as_guest_has_the_guests_priority() {
        let of_child = |_: ()| {
            let output = std::process::Command::new("nice").output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        std::thread::spawn(move || {
            raise();
            assert_eq!(of_child(()), "-10");
            assert_eq!(as_guest(move || of_child(())).unwrap().join().unwrap(), "0");
        })
        .join()
        .unwrap();
    }
}
