//! Processor priority: the AM's threads go before the guest's, so that a busy guest does not look like a dead host.

use rustix::process::{Pid, setpriority_process};

/// Nice value of the AM's own threads.
const NICE_AM: i32 = -10;
/// Nice value of the guest.
const NICE_GUEST: i32 = 0;
/// Most looks at QEMU's threads: one finds them all unless some are just being started.
const ROUNDS_MAX: usize = 10;

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

/// Brings a QEMU that this program started to the guest's priority, thread by thread (Linux keeps the nice value per
/// thread). Threads that it starts later inherit that.
pub fn lower(pid: u32) {
    // A thread that begins meanwhile may inherit the old value from one that was not reached yet: look until none is new.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
        let ids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok());
        let new: Vec<i32> = ids.filter(|id| seen.insert(*id)).collect();
        if new.is_empty() {
            return;
        }
        for thread in new.into_iter().filter_map(Pid::from_raw) {
            // Fails only for a thread that has ended meanwhile.
            let _ = setpriority_process(Some(thread), NICE_GUEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpriority_process;

    #[test]
    fn a_process_started_at_raised_priority_is_brought_down() {
        std::thread::spawn(|| {
            raise();
            let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let pid = Pid::from_child(&child);
            assert_eq!(getpriority_process(Some(pid)).unwrap(), NICE_AM);
            lower(child.id());
            let lowered = getpriority_process(Some(pid)).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(lowered, NICE_GUEST);
        })
        .join()
        .unwrap();
    }
}
