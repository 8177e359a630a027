//! What an init program has to do before there is a system: mounts, modules, the network.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

/// The modules to load, in order; made by `cargo xtask guests`.
const MODULES_DIR: &str = "/modules";
const NETWORK_INTERFACE: &str = "eth0";
/// Between two looks for a device that a driver is about to make.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often to look for it.
const POLLS_MAX: u32 = 500;

pub fn mount_kernel_file_systems() {
    for (kind, point) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        if let Err(error) = mount(kind, point, kind, MountFlags::empty(), None) {
            println!("EVENKEEL-GUEST could not mount {point}: {error}");
        }
    }
}

/// New at each boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

pub fn command_line() -> String {
    fs::read_to_string("/proc/cmdline").unwrap_or_default()
}

/// The value of `name=value` on the kernel's command line.
pub fn parameter<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    command_line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Loads all modules of the initramfs, by their numbered names.
pub fn load_modules() {
    let Ok(entries) = fs::read_dir(MODULES_DIR) else { return };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let loaded = fs::File::open(&path).map(|file| rustix::system::finit_module(&file, c"", 0));
        if let Err(error) | Ok(Err(error)) = loaded.map(|result| result.map_err(std::io::Error::from)) {
            println!("EVENKEEL-GUEST could not load {}: {error}", path.display());
        }
    }
}

/// The address comes with `ev.address=A.B.C.D/N`, a gateway with `ev.gateway=A.B.C.D`.
pub fn configure_network(command_line: &str) {
    let Some(address) = parameter(command_line, "ev.address") else { return };
    wait_for(&Path::new("/sys/class/net").join(NETWORK_INTERFACE));
    ip(&["link", "set", "lo", "up"]);
    ip(&["link", "set", NETWORK_INTERFACE, "up"]);
    ip(&["addr", "add", address, "dev", NETWORK_INTERFACE]);
    if let Some(gateway) = parameter(command_line, "ev.gateway") {
        ip(&["route", "add", "default", "via", gateway]);
    }
}

fn ip(args: &[&str]) {
    match Command::new("/bin/busybox").arg("ip").args(args).status() {
        Ok(status) if status.success() => {}
        other => println!("EVENKEEL-GUEST ip {args:?}: {other:?}"),
    }
}

/// Waits until the file is there, for some seconds at most.
pub fn wait_for(path: &Path) -> bool {
    (0..POLLS_MAX).any(|_| {
        let there = path.exists();
        if !there {
            std::thread::sleep(POLL_INTERVAL);
        }
        there
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_whole_name() {
        let line = "console=ttyS0 ev.address=10.10.3.20/24 xev.gateway=1.2.3.4\n";
        assert_eq!(parameter(line, "ev.address"), Some("10.10.3.20/24"));
        assert_eq!(parameter(line, "ev.gateway"), None);
    }
}
