//! The processes that benchmarks start, and our own pair of them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run;

/// How long a server may take until it listens.
pub const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How often that is looked at.
const START_INTERVAL: Duration = Duration::from_millis(10);
/// A process that ends with its owner.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone after this.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn spawn(command: &mut Command) -> Result<Server> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {command:?}; run `cargo xtask setup` if it is missing"))?;
    Ok(Server(child))
}

/// Waits until `ready`; what is waited for is another process, which tells nobody when it is.
pub fn wait_for(what: &str, timeout: Duration, ready: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !ready() {
        if Instant::now() > deadline {
            bail!("{what} did not come within {timeout:?}; see its messages above");
        }
        std::thread::sleep(START_INTERVAL);
    }
    Ok(())
}

/// A free TCP port of the loopback.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr())?.port())
}

/// Both sides of a mirrored disk, as `crates/ev-mirror/examples/mirror-disk` of the release build.
pub struct MirrorDisk {
    program: PathBuf,
    papers: PathBuf,
    socket: PathBuf,
    /// The active side's and the standby's.
    images: [PathBuf; 2],
    size_bytes: u64,
    port: u16,
}

impl MirrorDisk {
    /// Builds the program and makes the certificates.
    pub fn prepare(folder: &Path, socket: &Path, images: [&Path; 2], size_bytes: u64) -> Result<Self> {
        run::heading("building ours for release");
        let build = ["build", "--quiet", "--release", "--package", "ev-mirror", "--example", "mirror-disk"];
        run::show(run::cargo().args(build))?;
        let program = run::target().join("release/examples/mirror-disk");
        let papers = folder.join("papers");
        run::quiet(Command::new(&program).arg("papers").arg(&papers))?;
        let images = images.map(Path::to_path_buf);
        Ok(Self { program, papers, socket: socket.to_path_buf(), images, size_bytes, port: free_port()? })
    }

    pub fn coordinator(&self) -> Result<Server> {
        self.start("coordinator", &self.images[0])
    }

    pub fn replica(&self) -> Result<Server> {
        self.start("replica", &self.images[1])
    }

    fn start(&self, role: &str, image: &Path) -> Result<Server> {
        spawn(
            Command::new(&self.program)
                .arg(role)
                .arg("--papers")
                .arg(&self.papers)
                .arg("--replica")
                .arg(image)
                .arg("--size-bytes")
                .arg(self.size_bytes.to_string())
                .arg("--link")
                .arg(format!("127.0.0.1:{}", self.port))
                .arg("--socket")
                .arg(&self.socket),
        )
    }

    /// The file that is there while both are in step.
    pub fn ready(&self) -> PathBuf {
        let mut ready = self.socket.as_os_str().to_owned();
        ready.push(".ready");
        ready.into()
    }

    /// Where the replica listens for the coordinator.
    pub fn port(&self) -> u16 {
        self.port
    }
}
