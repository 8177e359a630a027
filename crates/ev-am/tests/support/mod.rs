//! What the tests with real `ev-am` processes and a real QEMU share.

#![allow(dead_code)]

pub mod path;
pub mod pool;
mod reserved;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ev_core::ids::HostId;
use ev_core::report::{AmReport, GuestState};
use ev_vm::{Guest, GuestPaths};
use ev_wire::am::{AmAnswer, AmCall, AmConfig, MemberEndpoint, Times, Turns};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use pool::{ONE, POOL, Pool, TWO, VM};
use reserved::Reserved;

/// Nothing that a test waits for takes longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One host: its folders, and the AM that runs on it. When it is dropped nothing of it is left running.
pub struct Host {
    _root: tempfile::TempDir,
    folder: PathBuf,
    pub id: HostId,
    pub link: SocketAddr,
    _link_reserved: Reserved,
    am: Option<Child>,
}

impl Host {
    pub fn new(pool: &Pool, id: HostId) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().to_owned();
        for name in ["state", "run", "library"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        pool.write_identity(id, &folder);
        let reserved = Reserved::new();
        let link = reserved.address();
        Self { _root: root, folder, id, link, _link_reserved: reserved, am: None }
    }

    pub fn paths(&self) -> GuestPaths {
        GuestPaths {
            run_dir: self.folder.join("run"),
            state_dir: self.folder.join("state"),
            library_dir: self.folder.join("library"),
        }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join("state").join(name)
    }

    fn am_socket(&self) -> PathBuf {
        self.folder.join("run/am.sock")
    }

    /// Writes `am.json` as `evd` would, with the partner over `paths`.
    pub fn configure(&self, pool: &Pool, partner: &[SocketAddr]) {
        let settings = pool.settings();
        let other = if self.id == ONE { TWO } else { ONE };
        let config = AmConfig {
            version: 1,
            pool: POOL,
            host: self.id,
            vm: pool.vm(),
            vm_id: VM,
            state_dir: self.folder.join("state"),
            run_dir: self.folder.join("run"),
            library_dir: self.folder.join("library"),
            members: vec![MemberEndpoint { member: pool.master_id(), address: pool.address() }],
            link_listen: if partner.is_empty() { Vec::new() } else { vec![self.link] },
            link_partner: partner.to_vec(),
            partner: if partner.is_empty() { None } else { Some(other) },
            certificate: self.folder.join("host.pem"),
            key: self.folder.join("host.key"),
            authority_certificate: self.folder.join("ca.pem"),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            qemu_user: "nobody".into(),
            qemu_data_dir: None,
            times: Times {
                lease_ms: settings.lease_ms,
                report_interval_ms: settings.report_interval_ms,
                grace_ms: settings.grace_ms,
                partner_timeout_ms: settings.partner_timeout_ms,
            },
            copy_rate_limit: None,
            turns: Turns { folder: self.folder.join("turns"), at_once: 1 },
            blackout_ms: 300,
        };
        std::fs::write(self.folder.join("am.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    }

    /// Starts `ev-am`. What it logs is in `am.log`, and shown when the test fails.
    pub fn start_am(&mut self) {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(self.folder.join("am.log")).unwrap();
        self.start_am_logging_to(log);
    }

    /// Starts `ev-am` with another log.
    pub fn start_am_logging_to(&mut self, log: std::fs::File) {
        assert!(self.am.is_none());
        let mut command = Command::new(env!("CARGO_BIN_EXE_ev-am"));
        command.arg("--config").arg(self.folder.join("am.json")).stdin(Stdio::null());
        command.env("RUST_LOG", "info,ev_am=debug").env("RUST_BACKTRACE", "1");
        self.am = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    pub fn am_pid(&self) -> u32 {
        self.am.as_ref().unwrap().id()
    }

    /// SIGKILL; the guest is left alone.
    pub fn kill_am(&mut self) {
        let mut am = self.am.take().unwrap();
        am.kill().unwrap();
        am.wait().unwrap();
    }

    /// SIGTERM; tells whether it ended well.
    pub async fn stop_am(&mut self) -> bool {
        let mut am = self.am.take().unwrap();
        signal(am.id(), Signal::TERM);
        let status = tokio::task::spawn_blocking(move || am.wait().unwrap()).await.unwrap();
        status.success()
    }

    /// Whether the AM has ended by itself.
    pub fn am_has_ended(&mut self) -> bool {
        self.am.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    pub fn qemu_pid(&self) -> Option<u32> {
        let pid: u32 = std::fs::read_to_string(self.paths().pid_file()).ok()?.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}/exe")).exists().then_some(pid)
    }

    /// Both at once, as a power cut would end them.
    pub fn power_cut(&mut self) {
        if let Some(pid) = self.qemu_pid() {
            signal(pid, Signal::KILL);
        }
        self.kill_am();
    }

    pub async fn call(&self, call: AmCall) -> AmAnswer {
        ev_wire::local::call(&self.am_socket(), &call, PATIENCE).await.unwrap()
    }

    pub async fn status(&self) -> AmReport {
        match self.call(AmCall::Status).await {
            AmAnswer::Status(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("am.log")).unwrap_or_default()
    }

    /// A disk image with the boot sector, and 'a' at the beginning of sector 1, as an imported replica.
    pub fn import_boot_disk(&self) {
        let mut bytes = boot_sector(&self.folder);
        assert_eq!(bytes.len(), 512);
        bytes.push(b'a');
        bytes.resize(usize::try_from(pool::DISK_BYTES).unwrap(), 0);
        std::fs::write(self.file("disk-0.raw"), bytes).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- ev-am of host {} ---\n{}", self.id, self.log());
            let qemu = std::fs::read_to_string(self.paths().log()).unwrap_or_default();
            eprintln!("--- its QEMU ---\n{qemu}");
        }
        if let Some(mut am) = self.am.take() {
            let _ = am.kill();
            let _ = am.wait();
        }
        if let Some(pid) = self.qemu_pid() {
            signal(pid, Signal::KILL);
        }
    }
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

fn boot_sector(folder: &Path) -> Vec<u8> {
    let (object, binary) = (folder.join("boot.o"), folder.join("boot.bin"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ev-vm/tests/support/boot_sector.s");
    assert!(Command::new("as").arg("--32").arg("-o").arg(&object).arg(source).status().unwrap().success());
    let mut linker = Command::new("ld");
    linker.args(["-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-e", "start", "-o"]);
    assert!(linker.arg(&binary).arg(&object).status().unwrap().success());
    std::fs::read(binary).unwrap()
}

/// Polls: the condition belongs to another process that has no way to tell us.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the pool master has this guest state from the host's AM.
pub async fn until_guest(pool: &Pool, host: HostId, what: &str, wanted: impl Fn(&GuestState) -> bool) {
    let mut last = None;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = pool.report(host).map(|report| report.guest);
        if state.as_ref().is_some_and(&wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}; last: {state:?}");
        if state != last {
            eprintln!("host {host}: {state:?}");
            last = state;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

pub fn running(state: &GuestState) -> bool {
    matches!(state, GuestState::Running { .. })
}

pub fn paused(state: &GuestState) -> bool {
    matches!(state, GuestState::Paused { .. })
}

/// Whether QEMU says that the guest's processors run. The AM must be dead: QMP takes one client.
pub async fn processors_run(paths: &GuestPaths) -> bool {
    let guest = Guest::attach(paths).await.unwrap().unwrap();
    let qmp = guest.qmp().await.unwrap();
    qmp.status().await.unwrap() == ev_vm::RunState::Running
}

/// The guest's serial port.
pub struct Serial {
    stream: UnixStream,
    seen: String,
}

impl Serial {
    pub async fn connect(host: &Host) -> Self {
        let path = host.paths().serial();
        until("the serial port", || std::os::unix::net::UnixStream::connect(&path).is_ok()).await;
        Self { stream: UnixStream::connect(path).await.unwrap(), seen: String::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Asks and expects an answer. Characters that the guest was too early for are sent again by [`Self::wake`].
    pub async fn ask(&mut self, question: &str, answer: &str) {
        self.send(question).await;
        self.expect(answer).await;
    }

    /// Waits until the guest echoes, however far its boot was when this port was connected.
    pub async fn wake(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.send("x").await;
            let mut bytes = [0; 256];
            if let Ok(Ok(count)) = timeout(Duration::from_millis(300), self.stream.read(&mut bytes)).await
                && bytes[..count].contains(&b'x')
            {
                break;
            }
            assert!(Instant::now() < deadline, "the guest does not answer");
        }
        // Late echoes of earlier attempts.
        let mut bytes = [0; 256];
        while let Ok(Ok(count)) = timeout(Duration::from_millis(300), self.stream.read(&mut bytes)).await {
            assert!(count > 0, "the serial port was closed");
        }
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
