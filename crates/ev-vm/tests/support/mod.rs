//! What the tests with a real QEMU share: folders, a disk server, a guest of one sector that obeys its serial port.

#![allow(dead_code)]

pub mod tracked;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ev_core::ids::MacAddress;
use ev_core::vm::Firmware;
use ev_vm::accelerator::WhyNotKvm;
use ev_vm::{Accelerator, BootSource, Guest, GuestPaths, GuestSpec, Qemu, StartState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

/// The user that guests run as in tests.
pub const USER: &str = "nobody";
/// Nothing that a test waits for takes longer.
pub const PATIENCE: Duration = Duration::from_secs(40);
pub const DISK_BYTES: u64 = 1 << 20;

/// The QEMUs to test with: the installed one, and the one that `EVENKEEL_QEMU_10` names (the folder that its
/// packages were unpacked in).
pub fn qemus() -> Vec<Qemu> {
    let mut qemus = vec![Qemu::at(Path::new("/usr/bin/qemu-system-x86_64"), None)];
    if let Some(root) = std::env::var_os("EVENKEEL_QEMU_10") {
        let qemu = Qemu::unpacked(Path::new(&root));
        assert!(qemu.program.exists(), "EVENKEEL_QEMU_10 is set, but {} does not exist", qemu.program.display());
        qemus.push(qemu);
    }
    qemus
}

pub fn tcg() -> Accelerator {
    Accelerator::Tcg { reason: WhyNotKvm::NoDevice }
}

/// Folders of one VM. The outermost one can't be walked by QEMU's user, as on a careful host.
pub struct Folders {
    _root: tempfile::TempDir,
    pub paths: GuestPaths,
}

impl Folders {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let below = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let paths = GuestPaths { run_dir: below("run"), state_dir: below("state"), library_dir: below("library") };
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { _root: root, paths }
    }

    /// A disk image with the boot sector, and 'a' at the beginning of sector 1.
    pub fn boot_disk(&self) -> PathBuf {
        let path = self.paths.state_dir.join("disk.raw");
        let mut bytes = boot_sector(&self.paths.state_dir);
        assert_eq!(bytes.len(), 512);
        bytes.push(b'a');
        bytes.resize(usize::try_from(DISK_BYTES).unwrap(), 0);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A kernel that says its command line on the serial port; its module (initrd) too.
    pub fn kernel(&self) -> PathBuf {
        let path = self.paths.library("kernel");
        std::fs::write(&path, assemble(&self.paths.state_dir, "kernel.s", "0x100000")).unwrap();
        path
    }

    /// A CD-ROM image (ISO 9660 with El Torito, no emulation) that boots the boot sector.
    pub fn boot_iso(&self) -> PathBuf {
        const BLOCK: usize = 2048;
        let mut bytes = vec![0; 64 * BLOCK];
        let mut put = |block: usize, at: usize, content: &[u8]| {
            let start = block * BLOCK + at;
            bytes[start..start + content.len()].copy_from_slice(content);
        };
        put(16, 0, b"\x01CD001\x01");
        put(17, 0, b"\x00CD001\x01EL TORITO SPECIFICATION");
        put(17, 0x47, &19_u32.to_le_bytes());
        put(18, 0, b"\xffCD001\x01");
        // Catalogue: validation entry (its 16-bit words sum to zero), then the default entry: bootable, no emulation,
        // 4 sectors from block 20.
        put(19, 0, &[1]);
        put(19, 28, &[0xaa, 0x55, 0x55, 0xaa]);
        put(19, 32, &[0x88, 0, 0, 0, 0, 0, 4, 0, 20, 0, 0, 0]);
        put(20, 0, &boot_sector(&self.paths.state_dir));
        let path = self.paths.library("iso");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn spec(&self, machine: &str) -> GuestSpec {
        GuestSpec {
            name: "test, with a comma".to_owned(),
            uuid: "6d2d1b5c-2f7e-4a38-9a4f-0d6a52b0a001".parse().unwrap(),
            machine: machine.to_owned(),
            cpu_model: "qemu64".to_owned(),
            vcpus: 1,
            memory_mib: 64,
            memory: ev_vm::Memory::Own,
            firmware: Firmware::Bios,
            boot: BootSource::Disk,
            disks: vec![ev_vm::spec::DiskSource { nbd_socket: self.paths.nbd(0), serial: "test-disk-0".to_owned() }],
            nics: vec![MacAddress([0x52, 0x54, 0, 0, 0, 1])],
            start: StartState::Running,
            paths: self.paths.clone(),
            user: USER.to_owned(),
        }
    }
}

fn boot_sector(folder: &Path) -> Vec<u8> {
    assemble(folder, "boot_sector.s", "0x7c00")
}

/// A program in this folder, as it lies in memory from `address` on.
pub fn assemble(folder: &Path, name: &str, address: &str) -> Vec<u8> {
    let (object, binary) = (folder.join("boot.o"), folder.join("boot.bin"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(name);
    assert!(Command::new("as").arg("--32").arg("-o").arg(&object).arg(source).status().unwrap().success());
    let mut linker = Command::new("ld");
    linker.args(["-m", "elf_i386", "--oformat", "binary", "-Ttext", address, "-e", "start", "-o"]);
    assert!(linker.arg(&binary).arg(&object).status().unwrap().success());
    std::fs::read(binary).unwrap()
}

/// A `qemu-nbd` that serves one file; ended when dropped.
pub struct DiskServer(Child);

impl DiskServer {
    pub async fn start(file: &Path, socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["--format", "raw", "--persistent", "--shared", "32", "--discard", "unmap", "--socket"]);
        let child = command.arg(socket).arg(file).stdin(Stdio::null()).spawn().unwrap();
        let server = Self(child);
        until("the disk server's socket", || std::os::unix::net::UnixStream::connect(socket).is_ok()).await;
        ev_vm::guest::allow_connect(socket, USER).unwrap();
        server
    }

    /// It answers nothing until it is thawed.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for DiskServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Polls: the condition belongs to another process that has no way to tell us.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Ends the guest when a test fails, so that no QEMU is left behind.
pub struct Ending(pub Guest);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

impl std::ops::Deref for Ending {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.0
    }
}

/// A guest after it has said `sign` on its serial port. It runs only once the port has a client: QEMU drops what is said before.
pub async fn heard(qemu: &Qemu, mut spec: GuestSpec, sign: &str) -> (Ending, Serial) {
    spec.start = StartState::Stopped;
    let guest = Ending(Guest::start(qemu, &tcg(), &spec).await.unwrap());
    let mut serial = Serial::connect(&spec.paths).await;
    guest.qmp().await.unwrap().cont().await.unwrap();
    serial.expect(sign).await;
    (guest, serial)
}

/// The guest's serial port.
pub struct Serial {
    stream: UnixStream,
    seen: String,
}

impl Serial {
    pub async fn connect(paths: &GuestPaths) -> Self {
        Self { stream: UnixStream::connect(paths.serial()).await.unwrap(), seen: String::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads on until `text` was said, and forgets what was said up to it.
    pub async fn expect(&mut self, text: &str) {
        let read = async {
            loop {
                if let Some(at) = self.seen.find(text) {
                    self.seen.drain(..at + text.len());
                    return;
                }
                let mut bytes = [0; 256];
                let count = self.stream.read(&mut bytes).await.unwrap();
                assert!(count > 0, "the serial port was closed before it said {text:?}");
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        };
        if timeout(PATIENCE, read).await.is_err() {
            panic!("the guest did not say {text:?}, but {:?}", self.seen);
        }
    }

    /// Whether the guest says nothing for this long.
    pub async fn is_silent(&mut self, time: Duration) -> bool {
        let mut byte = [0; 1];
        timeout(time, self.stream.read(&mut byte)).await.is_err()
    }
}
