//! The guests that `cargo xtask guests` made.

use std::path::{Path, PathBuf};

/// Memory of the guests, unless something else is asked for.
const MEMORY_MIB: u32 = 256;
const DEBIAN_MEMORY_MIB: u32 = 512;

/// Cargo's target folder: the test program lies in `target/debug/deps`.
pub(crate) fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let folder = own.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") {
        folder.parent().expect("deps lies in a folder").to_owned()
    } else {
        folder.to_owned()
    }
}

fn guests() -> PathBuf {
    programs().parent().expect("target/debug lies in target").join("guests")
}

fn made(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run `cargo xtask guests`", path.display());
    path
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("paths of a checkout are text")
}

/// Kernel and initial RAM disk of the tiny guest; its program is `guests/tiny`.
#[derive(Debug, Clone)]
pub struct TinyImage {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl TinyImage {
    /// The address that scenarios with one guest give it.
    pub const ADDRESS: &'static str = "10.10.3.30";

    /// # Panics
    /// If `cargo xtask guests` has not made it.
    pub fn find() -> Self {
        let folder = guests().join("tiny");
        Self { kernel: made(folder.join("vmlinuz")), initrd: made(folder.join("initrd")) }
    }

    /// The arguments of `ev vm-create` for a guest of that name with one disk and that address on the VM network.
    pub fn create_arguments(&self, name: &str, disk: &str, address: &str) -> Vec<String> {
        self.arguments_with(name, disk, &format!("ev.address={address}/24"))
    }

    /// The same with two processors, both of which write and verify memory without end: 16 MiB each, then a rest, so that the
    /// machine of the tests, which has few processors itself, is not all taken.
    pub fn create_verifying_arguments(&self, name: &str, disk: &str, address: &str) -> Vec<String> {
        let mut words = self.arguments_with(name, disk, &format!("ev.address={address}/24 ev.memory=32/50"));
        words.extend(["--vcpus", "2"].map(str::to_owned));
        words
    }

    /// For measuring: two processors, so much memory, and further parameters of the guest's program (`guests/tiny`).
    pub fn create_measured_arguments(&self, name: &str, memory_mib: u32, parameters: &str) -> Vec<String> {
        let parameters = format!("ev.address={}/24 {parameters}", Self::ADDRESS);
        let mut words = self.arguments_of(name, memory_mib, "256M", &parameters);
        words.extend(["--vcpus", "2"].map(str::to_owned));
        words
    }

    fn arguments_with(&self, name: &str, disk: &str, parameters: &str) -> Vec<String> {
        self.arguments_of(name, MEMORY_MIB, disk, parameters)
    }

    fn arguments_of(&self, name: &str, memory_mib: u32, disk: &str, parameters: &str) -> Vec<String> {
        // The kernel's check of its timer fails if this machine stands still for a moment right then.
        let append = format!("console=ttyS0 quiet mitigations=off nokaslr no_timer_check {parameters}");
        let memory = memory_mib.to_string();
        let words = ["vm-create", name, "--memory", &memory, "--disk", disk, "--nic", "vm"];
        let boot = ["--kernel", plain(&self.kernel), "--initrd", plain(&self.initrd), "--append", &append];
        words.iter().chain(&boot).map(|word| (*word).to_owned()).collect()
    }
}

/// A disk with only a boot sector, which writes a line to the serial port.
#[derive(Debug, Clone)]
pub struct BootSector {
    image: PathBuf,
}

impl BootSector {
    /// # Panics
    /// If `cargo xtask guests` has not made it.
    pub fn find() -> Self {
        Self { image: made(guests().join("boot-sector/disk.raw")) }
    }

    /// The arguments of `ev vm-import` for a guest of that name.
    pub fn import_arguments(&self, name: &str) -> Vec<String> {
        ["vm-import", name, plain(&self.image), "--memory", "64"].iter().map(|word| (*word).to_owned()).collect()
    }
}

/// Debian 12 with PostgreSQL, in an image that boots by itself.
#[derive(Debug, Clone)]
pub struct DebianGuest {
    image: PathBuf,
}

impl DebianGuest {
    /// Its address on the VM network.
    pub const ADDRESS: &'static str = "10.10.3.20";

    /// # Panics
    /// If `cargo xtask guests` has not made it.
    pub fn find() -> Self {
        let newest = std::fs::read_dir(guests()).ok().and_then(|entries| {
            let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
            names.filter(|path| path.extension().is_some_and(|extension| extension == "qcow2")).max()
        });
        Self { image: made(newest.unwrap_or_else(|| guests().join("debian.qcow2"))) }
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The arguments of `ev vm-import` for a guest of that name.
    pub fn import_arguments(&self, name: &str) -> Vec<String> {
        self.import_arguments_with(name, DEBIAN_MEMORY_MIB)
    }

    /// The same with so much memory.
    pub fn import_arguments_with(&self, name: &str, memory_mib: u32) -> Vec<String> {
        let memory = memory_mib.to_string();
        let words = ["vm-import", name, plain(&self.image), "--memory", &memory, "--nic", "vm"];
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}
