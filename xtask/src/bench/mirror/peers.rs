//! What is measured: NBD servers with one or two copies, each on a unix socket, gone when dropped.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::bench::servers::{MirrorDisk, START_TIMEOUT, Server, free_port, spawn, wait_for};

/// Size of the parts in which an image is filled.
const FILL_BYTES: usize = 1 << 20;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PeerKind {
    /// qemu-nbd with a raw file: one copy.
    QemuNbd,
    /// QEMU's quorum driver with a raw file and a remote qemu-nbd: two copies.
    QemuQuorum,
    /// Ours: two copies.
    Evenkeel,
}

impl PeerKind {
    pub const ALL: [Self; 3] = [Self::QemuNbd, Self::QemuQuorum, Self::Evenkeel];

    pub fn name(self) -> &'static str {
        match self {
            Self::QemuNbd => "qemu-nbd",
            Self::QemuQuorum => "qemu-quorum",
            Self::Evenkeel => "evenkeel",
        }
    }
}

/// A server in service.
pub struct Peer {
    pub kind: PeerKind,
    pub uri: String,
    pub images: Vec<PathBuf>,
    _servers: Vec<Server>,
}

impl Peer {
    /// Makes the images, starts the processes and waits until the socket takes connections.
    pub fn start(kind: PeerKind, folder: &Path, size_bytes: u64) -> Result<Self> {
        let folder = folder.join(kind.name());
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let socket = folder.join("nbd.sock");
        let image = |name: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            fill(&path, size_bytes).with_context(|| format!("filling {}", path.display()))?;
            Ok(path)
        };
        let (images, servers) = match kind {
            PeerKind::QemuNbd => {
                let images = vec![image("disk.raw")?];
                let servers = vec![qemu_nbd(&socket, &images[0])?];
                (images, servers)
            }
            PeerKind::QemuQuorum => {
                let images = vec![image("local.raw")?, image("remote.raw")?];
                let servers = qemu_quorum(&socket, &images[0], &images[1])?;
                (images, servers)
            }
            PeerKind::Evenkeel => {
                let images = vec![image("active.raw")?, image("standby.raw")?];
                let servers = evenkeel(&socket, &folder, &images, size_bytes)?;
                (images, servers)
            }
        };
        wait_for("its socket", START_TIMEOUT, || UnixStream::connect(&socket).is_ok())
            .with_context(|| format!("starting {}", kind.name()))?;
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        Ok(Self { kind, uri, images, _servers: servers })
    }
}

/// An image in which every block is allocated and in the page cache.
fn fill(path: &Path, size_bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut part = vec![0_u8; FILL_BYTES];
    for (byte, number) in part.iter_mut().zip((0..=250_u8).cycle()) {
        *byte = number;
    }
    let mut left = usize::try_from(size_bytes).expect("fits the address space");
    while left > 0 {
        let count = left.min(FILL_BYTES);
        file.write_all(&part[..count])?;
        left -= count;
    }
    file.sync_all()
}

fn qemu_nbd(socket: &Path, image: &Path) -> Result<Server> {
    spawn(
        Command::new("qemu-nbd")
            .args(["--persistent", "--shared=8", "--format=raw"])
            .arg(format!("--socket={}", socket.display()))
            .arg(image),
    )
}

fn qemu_quorum(socket: &Path, local: &Path, remote: &Path) -> Result<Vec<Server>> {
    let port = free_port()?;
    let remote_server = spawn(
        Command::new("qemu-nbd")
            .args(["--persistent", "--shared=8", "--format=raw", "--bind=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(remote),
    )?;
    wait_for("qemu-nbd's port", START_TIMEOUT, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    // Reads are taken from the local file, as ours are; the driver's default asks both copies and compares.
    let options = [
        "driver=quorum".to_owned(),
        "read-pattern=fifo".to_owned(),
        "vote-threshold=2".to_owned(),
        "children.0.driver=raw".to_owned(),
        "children.0.file.driver=file".to_owned(),
        format!("children.0.file.filename={}", local.display()),
        "children.1.driver=raw".to_owned(),
        "children.1.file.driver=nbd".to_owned(),
        "children.1.file.server.type=inet".to_owned(),
        "children.1.file.server.host=127.0.0.1".to_owned(),
        format!("children.1.file.server.port={port}"),
    ]
    .join(",");
    let server = spawn(
        Command::new("qemu-nbd")
            .args(["--persistent", "--shared=8", "--image-opts"])
            .arg(format!("--socket={}", socket.display()))
            .arg(options),
    )?;
    Ok(vec![server, remote_server])
}

/// Two processes of the release build, a link with TLS over the loopback between them.
fn evenkeel(socket: &Path, folder: &Path, images: &[PathBuf], size_bytes: u64) -> Result<Vec<Server>> {
    let pair = MirrorDisk::prepare(folder, socket, [&images[0], &images[1]], size_bytes)?;
    let replica = pair.replica()?;
    let coordinator = pair.coordinator()?;
    wait_for("our second replica", START_TIMEOUT, || pair.ready().exists())?;
    Ok(vec![coordinator, replica])
}
