//! From a [`GuestSpec`] to QEMU's command line. The same spec gives the same devices at the same addresses, always:
//! guests remember them, and a standby's device state only fits the same machine.
//!
//! | PCI slot on `pcie.0` | device |
//! |---|---|
//! | 0x01 | VGA (works with BIOS and UEFI; its memory is not in the guest's memory file, which Level 3 must care for) |
//! | 0x02 | virtio-rng |
//! | 0x03 | kept free (input devices) |
//! | 0x04–0x13 | disks 0–15 |
//! | 0x14–0x1b | NICs 0–7 |
//! | 0x1f | chipset, with the SATA controller of the CD-ROM drive |

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use ev_core::vm::{DISKS_MAX, NICS_MAX};
use serde_json::{Value, json};

use crate::accelerator::Accelerator;
use crate::qemu::Qemu;
use crate::ram::prepare::OtherBlocks;
use crate::spec::{BootSource, CHECKPOINT_SOCKET, GuestSpec, SAVE_SOCKET, StartState, from_qemu_dir};

/// How long a disk request waits in QEMU for a disk server that is away (an AM that is being replaced). After that it
/// fails, which stops the guest (`werror=stop`) and does not reach it.
pub const DISK_RECONNECT_TIME_MAX: Duration = Duration::from_secs(3600);
/// How long QEMU tries at its start to reach a disk server that does not answer yet.
pub const DISK_OPEN_TIME_MAX: Duration = Duration::from_secs(20);

const VGA_SLOT: usize = 0x01;
const RNG_SLOT: usize = 0x02;
const FIRST_DISK_SLOT: usize = 0x04;
const FIRST_NIC_SLOT: usize = FIRST_DISK_SLOT + DISKS_MAX;
const _: () = assert!(FIRST_NIC_SLOT + NICS_MAX <= 0x1c);

/// QEMU's name for the block node of disk `index`.
#[must_use]
pub fn disk_node(index: usize) -> String {
    format!("disk-{index}")
}

/// QEMU's name for NIC `index`.
#[must_use]
pub fn nic_name(index: usize) -> String {
    format!("nic-{index}")
}

/// Files that QEMU gets as open descriptors, since its user may not be able to walk to them: names under which QEMU
/// finds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    pub kernel: Option<String>,
    pub initrd: Option<String>,
    /// Number of the descriptor.
    pub iso: Option<i32>,
    pub uefi: Option<OpenUefi>,
    /// Number of the descriptor of tracked memory.
    pub ram: Option<i32>,
    /// Whether QEMU is to share its other RAM blocks: `None`, it can't.
    pub other_blocks: Option<OtherBlocks>,
}

/// UEFI's two flash devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenUefi {
    pub code: String,
    /// Number of the descriptor.
    pub variables: i32,
}

/// Sets of descriptors (`-add-fd`), by what is in them.
const ISO_SET: u32 = 1;
const UEFI_VARIABLES_SET: u32 = 2;

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    /// JSON needs no escaping of commas and equals signs.
    fn json(&mut self, option: &str, value: &Value) {
        self.option(option, value.to_string());
    }
}

/// QEMU's arguments for `spec`.
pub(crate) fn command_line(
    qemu: &Qemu,
    accelerator: &Accelerator,
    spec: &GuestSpec,
    files: &OpenFiles,
) -> Vec<OsString> {
    let mut arguments = Arguments(Vec::new());
    machine(&mut arguments, qemu, accelerator, spec, files);
    consoles(&mut arguments);
    boot(&mut arguments, spec, files);
    for (index, disk) in spec.disks.iter().enumerate() {
        let socket = from_qemu_dir(&spec.paths, &disk.nbd_socket);
        add_disk(&mut arguments, index, &socket, &disk.serial, boot_index(spec, index));
    }
    for (index, mac) in spec.nics.iter().enumerate() {
        add_nic(&mut arguments, index, &mac.to_string());
    }
    match spec.start {
        StartState::Running => {}
        StartState::Stopped => arguments.flag("-S"),
        StartState::Waiting => {
            arguments.flag("-S");
            arguments.option("-incoming", "defer");
        }
    }
    arguments.0
}

fn machine(arguments: &mut Arguments, qemu: &Qemu, accelerator: &Accelerator, spec: &GuestSpec, files: &OpenFiles) {
    for dir in &qemu.data_dirs {
        arguments.option("-L", dir);
    }
    for flag in ["-nodefaults", "-no-user-config"] {
        arguments.flag(flag);
    }
    // Commas separate; a doubled one stands for itself.
    arguments.option("-name", format!("guest={},debug-threads=on", spec.name.replace(',', ",,")));
    arguments.option("-uuid", spec.uuid.to_string());
    let flash = if files.uefi.is_some() { ",pflash0=uefi-code,pflash1=uefi-variables" } else { "" };
    let machine = &spec.machine;
    let shared = if files.other_blocks == Some(OtherBlocks::Shared) { ",aux-ram-share=on" } else { "" };
    arguments.option("-machine", format!("{machine},memory-backend=ram,vmport=off,dump-guest-core=off{shared}{flash}"));
    arguments.option("-accel", accelerator.option());
    arguments.option("-cpu", &spec.cpu_model);
    let vcpus = spec.vcpus;
    arguments.option("-smp", format!("{vcpus},maxcpus={vcpus},sockets=1,cores={vcpus},threads=1"));
    arguments.option("-m", format!("{}M", spec.memory_mib));
    add_memory(arguments, spec, files);
    arguments.option("-rtc", "base=utc,clock=host");
    // Guests that suspend themselves would have to be woken by hand.
    for sleep in ["ICH9-LPC.disable_s3=1", "ICH9-LPC.disable_s4=1"] {
        arguments.option("-global", sleep);
    }
    if matches!(accelerator, Accelerator::Tcg { .. }) && files.ram.is_some() {
        // Each pause for a checkpoint would take these away and put them back, and the emulated processors' translations with them.
        for device in ["virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci"] {
            arguments.option("-global", format!("{device}.ioeventfd=off"));
        }
    }
    arguments.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    arguments.option("-msg", "timestamp=on");
    arguments.json("-object", &json!({"qom-type": "rng-builtin", "id": "entropy"}));
    let rng = json!({"driver": "virtio-rng-pci", "rng": "entropy", "bus": "pcie.0", "addr": slot(RNG_SLOT)});
    arguments.json("-device", &rng);
}

/// A file that another process can map: Level 3 reads the guest's memory there.
fn add_memory(arguments: &mut Arguments, spec: &GuestSpec, files: &OpenFiles) {
    let bytes = spec.memory_bytes();
    let object = match files.ram {
        None => json!({"qom-type": "memory-backend-memfd", "id": "ram", "size": bytes, "share": true}),
        Some(fd) => {
            let path = format!("/proc/self/fd/{fd}");
            json!({"qom-type": "memory-backend-file", "id": "ram", "size": bytes, "share": true, "mem-path": path})
        }
    };
    arguments.json("-object", &object);
}

/// Sockets by their names in QEMU's working directory.
fn consoles(arguments: &mut Arguments) {
    arguments.option("-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off");
    arguments.option("-mon", "chardev=qmp,mode=control");
    for (id, socket) in [("checkpoint", CHECKPOINT_SOCKET), ("save", SAVE_SOCKET)] {
        arguments.option("-chardev", format!("socket,id={id},path={socket},server=on,wait=off"));
        arguments.option("-mon", format!("chardev={id},mode=control"));
    }
    // `logappend` opens the log so that it can be cut while QEMU writes it.
    let log = "logfile=serial.log,logappend=on";
    arguments.option("-chardev", format!("socket,id=serial-0,path=serial.sock,server=on,wait=off,{log}"));
    arguments.option("-serial", "chardev:serial-0");
    arguments.json("-device", &json!({"driver": "VGA", "bus": "pcie.0", "addr": slot(VGA_SLOT)}));
    arguments.option("-display", "none");
    arguments.option("-vnc", "unix:vnc.sock");
}

fn boot(arguments: &mut Arguments, spec: &GuestSpec, files: &OpenFiles) {
    arguments.option("-boot", "menu=off,strict=on");
    if let Some(uefi) = &files.uefi {
        let code = json!({"driver": "file", "filename": uefi.code});
        let code = json!({"driver": "raw", "node-name": "uefi-code", "read-only": true, "file": code});
        arguments.json("-blockdev", &code);
        let variables = add_fd(arguments, uefi.variables, UEFI_VARIABLES_SET);
        arguments.json("-blockdev", &json!({"driver": "raw", "node-name": "uefi-variables", "file": variables}));
    }
    if let Some(iso) = files.iso {
        let file = add_fd(arguments, iso, ISO_SET);
        arguments.json("-blockdev", &json!({"driver": "raw", "node-name": "iso", "read-only": true, "file": file}));
        arguments.json("-device", &json!({"driver": "ide-cd", "bus": "ide.0", "drive": "iso", "bootindex": 0}));
    }
    if let Some(kernel) = &files.kernel {
        arguments.option("-kernel", kernel);
    }
    if let Some(initrd) = &files.initrd {
        arguments.option("-initrd", initrd);
    }
    if let BootSource::Kernel { command_line, .. } = &spec.boot {
        arguments.option("-append", command_line);
    }
}

/// Hands over an inherited descriptor, and names the file behind it for `-blockdev`.
fn add_fd(arguments: &mut Arguments, fd: i32, set: u32) -> Value {
    arguments.option("-add-fd", format!("fd={fd},set={set}"));
    json!({"driver": "file", "filename": format!("/dev/fdset/{set}"), "locking": "off"})
}

/// The first disk comes after the CD-ROM; the others are not booted from.
fn boot_index(spec: &GuestSpec, index: usize) -> Option<u32> {
    let boots = index == 0 && !matches!(spec.boot, BootSource::Kernel { .. });
    boots.then_some(1)
}

fn add_disk(arguments: &mut Arguments, index: usize, socket: &Path, serial: &str, boot_index: Option<u32>) {
    let node = disk_node(index);
    let server = json!({"type": "unix", "path": socket});
    arguments.json(
        "-blockdev",
        &json!({
            "driver": "nbd", "node-name": node, "server": server, "discard": "unmap",
            "reconnect-delay": DISK_RECONNECT_TIME_MAX.as_secs(), "open-timeout": DISK_OPEN_TIME_MAX.as_secs(),
        }),
    );
    // The guest sees a write cache and flushes it; a failed request stops the guest rather than reaching it.
    let mut device = json!({
        "driver": "virtio-blk-pci", "id": format!("virtio-{node}"), "drive": node, "serial": serial, "write-cache": "on",
        "werror": "stop", "rerror": "stop", "bus": "pcie.0", "addr": slot(FIRST_DISK_SLOT + index),
    });
    if let (Some(boot_index), Some(device)) = (boot_index, device.as_object_mut()) {
        device.insert("bootindex".to_owned(), boot_index.into());
    }
    arguments.json("-device", &device);
}

fn add_nic(arguments: &mut Arguments, index: usize, mac: &str) {
    let name = nic_name(index);
    let address = json!({"type": "unix", "path": format!("{name}.sock")});
    arguments.json("-netdev", &json!({"type": "stream", "id": name, "server": true, "addr": address}));
    // No option ROM: guests don't boot from the network.
    arguments.json(
        "-device",
        &json!({
            "driver": "virtio-net-pci", "id": format!("virtio-{name}"), "netdev": name, "mac": mac, "romfile": "",
            "bus": "pcie.0", "addr": slot(FIRST_NIC_SLOT + index),
        }),
    );
}

fn slot(number: usize) -> String {
    format!("{number:#x}")
}
