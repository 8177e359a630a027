//! What a guest is made of, with every file and socket named: what QEMU's command line is made of.

use std::path::{Path, PathBuf};

use ev_core::ids::MacAddress;
use ev_core::vm::{Boot, Firmware, Vm};
use uuid::Uuid;

use crate::ram::TrackedMemory;

/// Folder, below the VM's run folder, that belongs to QEMU's user: QEMU makes its sockets there, and it is QEMU's
/// working directory. QEMU can't touch anything else in the run folder, `am.sock` among it.
pub const QEMU_DIR: &str = "qemu";

/// Checkpoints' own QMPs, in [`QEMU_DIR`]: to stop the guest and let it go on, and to have its devices saved.
pub(crate) const CHECKPOINT_SOCKET: &str = "ckpt.sock";
pub(crate) const SAVE_SOCKET: &str = "save.sock";
/// Where a waiting QEMU listens for its device state, in [`QEMU_DIR`].
pub(crate) const INCOMING_SOCKET: &str = "incoming.sock";

/// Where a VM's files and sockets are on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPaths {
    /// Volatile folder: sockets, `qemu.pid`, QEMU's log.
    pub run_dir: PathBuf,
    /// Durable folder: UEFI variables.
    pub state_dir: PathBuf,
    /// Folder of library files, named by their hash.
    pub library_dir: PathBuf,
}

impl GuestPaths {
    /// QEMU's own folder, owned by QEMU's user.
    #[must_use]
    pub fn qemu_dir(&self) -> PathBuf {
        self.run_dir.join(QEMU_DIR)
    }

    /// QMP. This and the other sockets of QEMU are links in the run folder to sockets in [`Self::qemu_dir`].
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.run_dir.join("qmp.sock")
    }

    /// A second QMP, for checkpoints alone, so that they don't wait for other commands.
    #[must_use]
    pub fn checkpoint_qmp(&self) -> PathBuf {
        self.run_dir.join(CHECKPOINT_SOCKET)
    }

    /// A third one, on which the command that saves the devices can lie ready while others are carried out.
    #[must_use]
    pub fn save_qmp(&self) -> PathBuf {
        self.run_dir.join(SAVE_SOCKET)
    }

    /// Serial console; one client at a time.
    #[must_use]
    pub fn serial(&self) -> PathBuf {
        self.run_dir.join("serial.sock")
    }

    /// What the guest wrote to its serial console, the last part of it.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.qemu_dir().join("serial.log")
    }

    /// Screen (RFB protocol).
    #[must_use]
    pub fn vnc(&self) -> PathBuf {
        self.run_dir.join("vnc.sock")
    }

    /// Where a QEMU that waits listens for the device state.
    #[must_use]
    pub fn incoming(&self) -> PathBuf {
        self.run_dir.join(INCOMING_SOCKET)
    }

    /// Frames of NIC `index`; QEMU listens.
    #[must_use]
    pub fn nic(&self, index: usize) -> PathBuf {
        self.run_dir.join(format!("nic-{index}.sock"))
    }

    /// NBD server of disk `index`; `ev-am` listens and lets QEMU's user connect (see
    /// [`crate::guest::allow_connect`]).
    #[must_use]
    pub fn nbd(&self, index: usize) -> PathBuf {
        self.run_dir.join(format!("nbd-{index}.sock"))
    }

    /// Process id of QEMU; locked (flock) for as long as that process lives.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.run_dir.join("qemu.pid")
    }

    /// What QEMU itself says.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.run_dir.join("qemu.log")
    }

    /// UEFI variables.
    #[must_use]
    pub fn uefi_vars(&self) -> PathBuf {
        self.state_dir.join("uefi-vars.fd")
    }

    /// A file of the pool's library.
    #[must_use]
    pub fn library(&self, blake3: &str) -> PathBuf {
        self.library_dir.join(blake3)
    }
}

/// Where the guest's first instruction comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootSource {
    /// The first disk.
    Disk,
    /// A CD-ROM image, then the first disk.
    Iso(PathBuf),
    /// A Linux kernel handed over directly.
    #[allow(missing_docs)]
    Kernel { kernel: PathBuf, initrd: Option<PathBuf>, command_line: String },
}

/// Whether the guest's processors run from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartState {
    /// At once.
    Running,
    /// Only after [`crate::Qmp::cont`].
    Stopped,
    /// Only after a device state was loaded and [`crate::Qmp::cont`]: the guest continues from a checkpoint
    /// ([`crate::checkpoint::Standby`]), and its memory is left as it is.
    Waiting,
}

/// One virtual disk, served over NBD on a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSource {
    /// The server's socket.
    pub nbd_socket: PathBuf,
    /// Serial number that the guest sees: at most [`DISK_SERIAL_MAX`] bytes.
    pub serial: String,
}

/// Longest serial number of a virtio disk, in bytes (Virtio 1.2, 5.2.6: `VIRTIO_BLK_ID_BYTES`).
pub const DISK_SERIAL_MAX: usize = 20;

/// What a guest's memory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// A memory file that QEMU makes for itself.
    Own,
    /// A memory file of ours, whose written pages the kernel notes: what Level 3 needs.
    Tracked(TrackedMemory),
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// Name, for people (`ps`, window titles).
    pub name: String,
    /// The VM's id; the guest sees it as its SMBIOS UUID.
    pub uuid: Uuid,
    /// Versioned machine type, such as `pc-q35-7.2`.
    pub machine: String,
    /// QEMU's name of the processor model.
    pub cpu_model: String,
    /// Virtual processors.
    pub vcpus: u16,
    /// Memory.
    pub memory_mib: u32,
    /// How that memory is held.
    pub memory: Memory,
    /// Firmware.
    pub firmware: Firmware,
    /// Where it boots from.
    pub boot: BootSource,
    /// Disks, by their place on the bus.
    pub disks: Vec<DiskSource>,
    /// NICs' addresses, by their place on the bus.
    pub nics: Vec<MacAddress>,
    /// Whether it runs at once.
    pub start: StartState,
    /// Its files.
    pub paths: GuestPaths,
    /// Unprivileged user that QEMU runs as. `root` is refused.
    pub user: String,
}

impl GuestSpec {
    /// Size of the memory, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }

    /// The guest of `vm` on this host.
    #[must_use]
    pub fn of_vm(vm: &Vm, paths: GuestPaths, user: &str) -> Self {
        let config = &vm.config;
        let disk = |(index, disk): (usize, &ev_core::vm::DiskConfig)| DiskSource {
            nbd_socket: paths.nbd(index),
            serial: disk.id.0.simple().to_string().chars().take(DISK_SERIAL_MAX).collect(),
        };
        Self {
            name: vm.name.clone(),
            uuid: vm.id.0,
            machine: config.machine.clone(),
            cpu_model: config.cpu_model.clone(),
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            memory: Memory::Own,
            firmware: config.firmware,
            boot: boot_source(&config.boot, &paths),
            disks: config.disks.iter().enumerate().map(disk).collect(),
            nics: config.nics.iter().map(|nic| nic.mac).collect(),
            start: StartState::Running,
            user: user.to_owned(),
            paths,
        }
    }
}

fn boot_source(boot: &Boot, paths: &GuestPaths) -> BootSource {
    match boot {
        Boot::Disk => BootSource::Disk,
        Boot::Iso(iso) => BootSource::Iso(paths.library(&iso.blake3)),
        Boot::Kernel { kernel, initrd, command_line } => BootSource::Kernel {
            kernel: paths.library(&kernel.blake3),
            initrd: initrd.as_ref().map(|initrd| paths.library(&initrd.blake3)),
            command_line: command_line.clone(),
        },
    }
}

/// `path` relative to QEMU's working directory if it lies in the run folder: unix socket paths are limited to 107
/// bytes, and QEMU's user need not be able to walk down to the run folder.
pub(crate) fn from_qemu_dir(paths: &GuestPaths, path: &Path) -> PathBuf {
    match path.strip_prefix(&paths.run_dir) {
        Ok(below) => Path::new("..").join(below),
        Err(_) => path.to_owned(),
    }
}
