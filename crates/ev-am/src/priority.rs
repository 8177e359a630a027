//! Processor priority: the AM's threads go before the guest's, so that a busy guest does not look like a dead host.

use std::path::Path;

use rustix::process::{Pid, setpriority_process};

/// Nice value of the AM's own threads, and of QEMU's that are no processors.
const NICE_AM: i32 = -10;
/// Nice value of the guest.
const NICE_GUEST: i32 = 0;
/// What QEMU's names of its processors' threads begin with.
const PROCESSOR_PREFIX: &str = "CPU ";

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

/// Brings the guest's processors to the guest's priority (Linux keeps the nice value per thread). QEMU's other threads stay at this
/// program's: the guest waits for them, in the pause of a checkpoint and for its disks and frames. To be called when QEMU answers: by then
/// it has started all processors.
pub fn lower_processors(pid: u32) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    for task in tasks.flatten().filter(|task| is_processor(&task.path())) {
        let thread = task.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Err(error) = setpriority_process(thread, NICE_GUEST) {
            tracing::warn!(%error, ?thread, "a processor of the guest keeps this program's priority, and may delay the disks");
        }
    }
}

/// Named so by QEMU with `debug-threads=on`.
fn is_processor(task: &Path) -> bool {
    std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with(PROCESSOR_PREFIX))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use rustix::process::getpriority_process;

    #[test]
    fn only_processors_are_brought_down() {
        std::thread::spawn(|| {
            raise();
            // As QEMU names them.
            let nice_of = |name: &str| {
                let script = format!("printf '{name}' > /proc/self/comm; echo; read -r end");
                let mut child = std::process::Command::new("sh")
                    .args(["-c", &script])
                    .stdin(std::process::Stdio::piped())
                    .stdout(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                let mut line = [0];
                child.stdout.take().unwrap().read_exact(&mut line).unwrap();
                let pid = Pid::from_child(&child);
                assert_eq!(getpriority_process(Some(pid)).unwrap(), NICE_AM);
                lower_processors(child.id());
                let nice = getpriority_process(Some(pid)).unwrap();
                drop(child.stdin.take());
                child.wait().unwrap();
                nice
            };
            assert_eq!(nice_of("CPU 0/TCG"), NICE_GUEST);
            assert_eq!(nice_of("CPU 1/KVM"), NICE_GUEST);
            assert_eq!(nice_of("qemu-system-x86"), NICE_AM);
        })
        .join()
        .unwrap();
    }
}
