//! What a VM is: its hardware as configured, its level, where it lives, what it is wished to do.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::ids::{DiskId, HostId, MacAddress, NetworkId, VmId};

/// Most disks of one VM.
pub const DISKS_MAX: usize = 16;
/// Most NICs of one VM.
pub const NICS_MAX: usize = 8;
/// Disks are addressed in sectors of this many bytes; sizes are multiples of it.
pub const SECTOR_BYTES: u64 = 512;

/// How far a VM is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Level 0: runs on one host and stays down with it.
    Unprotected,
    /// Level 1: restarted on the other host when its host dies.
    Restart,
    /// Level 2: disks and network exist on both hosts; a failed one is served through the other.
    Component,
    /// Level 3: memory and processors too; the guest goes on at the other host when its own dies.
    System,
}

impl Level {
    /// The number by which users name the level.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Unprotected => 0,
            Self::Restart => 1,
            Self::Component => 2,
            Self::System => 3,
        }
    }
}

/// Firmware that the guest boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF, with its variables on a disk of their own.
    Uefi,
}

/// A file of the pool's library (ISO image, kernel, initrd), named by its content: every host that may run the VM
/// keeps a copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LibraryFile {
    /// Name it was uploaded under, for people.
    pub name: String,
    /// BLAKE3 of the content, 64 hexadecimal digits; also the file's name in the library folder.
    pub blake3: String,
    /// Length of the content.
    pub size_bytes: u64,
}

/// Where the guest's first instruction comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// The first disk.
    Disk,
    /// A CD-ROM image, then the first disk.
    Iso(LibraryFile),
    /// A Linux kernel handed over directly.
    Kernel { kernel: LibraryFile, initrd: Option<LibraryFile>, command_line: String },
}

/// One virtual disk. Its place in `VmConfig::disks` is its place on the guest's bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    pub id: DiskId,
    /// A multiple of [`SECTOR_BYTES`].
    pub size_bytes: u64,
}

/// One virtual NIC. Its place in `VmConfig::nics` is its place on the guest's bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    pub mac: MacAddress,
    pub network: NetworkId,
    /// Name of the Linux bridge that carries the network; the same on every host.
    pub bridge: String,
}

/// The guest's hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    pub vcpus: u16,
    pub memory_mib: u32,
    pub firmware: Firmware,
    /// Versioned QEMU machine type, such as `pc-q35-7.2`: the same on both hosts, for life.
    pub machine: String,
    /// QEMU processor model that all hosts of the pool have, such as `qemu64` or `Nehalem`.
    pub cpu_model: String,
    pub boot: Boot,
    pub disks: Vec<DiskConfig>,
    pub nics: Vec<NicConfig>,
    /// Lower starts earlier; VMs of one order start side by side.
    pub start_order: u32,
}

/// What the user wants the guest to do. The pool master and the active host work towards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    Running,
    /// Ask the guest to power down (ACPI), and stay off.
    Shutdown,
    /// End it at once, and stay off.
    ForceOff,
    /// Ask the guest to power down, then start it anew.
    Reboot,
    /// End it at once, then start it anew.
    ForceReboot,
}

/// A VM in the pool state: everything that its hosts need to know to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub id: VmId,
    pub name: String,
    /// Small number, unique among the pool's VMs while this one exists: its AMs listen for each other on the pool's
    /// first link port plus this.
    pub number: u16,
    pub config: VmConfig,
    pub level: Level,
    /// Hosts that hold a replica of each disk, or are to hold one. One host at level 0, two above.
    pub hosts: BTreeSet<HostId>,
    pub desired: Desired,
    pub authority: Authority,
}
