//! Who is seen to own a guest from outside: the ports of the VM network's switch at which its frames come in.
//!
//! A switch learns where an address is from each frame, and tells when it moves. Two hosts that both let a guest speak would
//! show as an address that goes back to a host that it had left.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use ev_lab::Lab;

/// How the pool's guests' addresses begin.
const GUEST_PREFIX: &str = "52:54:00:";
/// The switch's ports on the VM network; the machine's name follows.
const PORT_PREFIX: &str = "vmnet-";

/// Watches from its making on.
#[derive(Debug)]
pub(crate) struct Owners {
    monitor: Child,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Owners {
    /// Of the lab's only guest.
    ///
    /// # Panics
    /// If `bridge` of iproute2 can't be started.
    pub(crate) fn watch(lab: &Lab) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.plan().switch_namespace(), "bridge", "monitor", "fdb"]);
        let mut monitor = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("iproute2 is installed");
        let lines = BufReader::new(monitor.stdout.take().expect("it was asked for")).lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let of_thread = Arc::clone(&seen);
        std::thread::spawn(move || {
            for machine in lines.map_while(Result::ok).filter_map(|line| machine_of(&line)) {
                let mut seen: std::sync::MutexGuard<'_, Vec<String>> =
                    of_thread.lock().unwrap_or_else(PoisonError::into_inner);
                if seen.last() != Some(&machine) {
                    seen.push(machine);
                }
            }
        });
        Self { monitor, seen }
    }

    /// The machines that the guest's address was at, in order.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        // The thread ends with its pipe.
        let _ended = self.monitor.kill().and_then(|()| self.monitor.wait());
    }
}

/// `h1` out of `52:54:00:12:34:56 dev vmnet-h1 master br-vmnet`; nothing out of other machines' addresses and forgotten ones.
fn machine_of(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (address, dev, port) = (words.next()?, words.next()?, words.next()?);
    let guest = address.starts_with(GUEST_PREFIX) && dev == "dev";
    guest.then(|| port.strip_prefix(PORT_PREFIX).map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::machine_of;

    #[test]
    fn only_what_the_switch_learned_of_guests_counts() {
        assert_eq!(machine_of("52:54:00:12:34:56 dev vmnet-h1 master br-vmnet").as_deref(), Some("h1"));
        assert_eq!(machine_of("Deleted 52:54:00:12:34:56 dev vmnet-h1 master br-vmnet"), None);
        assert_eq!(machine_of("1e:9e:2c:00:00:01 dev vmnet-h1 master br-vmnet"), None);
        assert_eq!(machine_of("52:54:00:12:34:56 dev mgmt-h1 master br-mgmt"), None);
    }
}
