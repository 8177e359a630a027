//! Real daemons on loopback addresses of their own.

use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ev_api::client::{Client, ClientError, Target};
use ev_api::pool::{JoinPool, JoinToken, JoinTokenRequest, JoinedPool, PoolCreate, PoolCreated};
use ev_api::{ApiError, ErrorCode};

/// How long anything may take that happens by itself.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One host: its folder and its daemon. The daemon ends with it.
pub struct Host {
    pub name: String,
    pub address: IpAddr,
    folder: tempfile::TempDir,
    program: PathBuf,
    daemon: Option<Child>,
}

/// Addresses that no other test uses: from this process's number and the host's.
fn address(number: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{high}.{low}", 64 + number).parse().expect("four small numbers")
}

impl Host {
    /// Starts a daemon with nothing on its disk. Its AMs are `true`: nothing runs.
    pub fn start(number: u8) -> Self {
        Self::start_as(number, Path::new(env!("CARGO_BIN_EXE_evd")), "")
    }

    /// Starts this program, with more in its configuration.
    pub fn start_as(number: u8, program: &Path, more: &str) -> Self {
        let (name, program, folder) = (format!("host{number}"), program.to_owned(), tempfile::tempdir().unwrap());
        let mut host = Self { name, address: address(number), folder, program, daemon: None };
        let config = format!(
            "name = '{}'\nmanagement_address = '{}'\nstate_dir = '{}'\nrun_dir = '{}'\nqemu_user = 'nobody'\n\
             am_program = '/bin/true'\n{more}",
            host.name,
            host.address,
            host.state().display(),
            host.folder.path().join("run").display(),
        );
        std::fs::write(host.folder.path().join("evd.toml"), config).unwrap();
        host.restart();
        host
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/evd.sock")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// Kills the daemon if there is one, starts it and waits until it listens.
    pub fn restart(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(self.socket());
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.folder.path().join("evd.toml")).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.daemon = Some(command.spawn().unwrap());
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(start.elapsed() < PATIENCE, "evd does not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn local(&self) -> Client {
        Client::new(Target::Local(self.socket()))
    }

    #[allow(dead_code, reason = "not every test asks")]
    pub fn remote(&self, token: &str) -> Client {
        let address = std::net::SocketAddr::new(self.address, 7411);
        Client::new(Target::Remote { addresses: vec![address], token: token.parse().unwrap() })
    }

    pub async fn create_pool(&self) -> PoolCreated {
        self.local().post("/v1/pool", &PoolCreate { name: "office".into() }).await.unwrap()
    }

    pub async fn token(&self) -> String {
        let token: JoinToken = self.local().post("/v1/tokens/host", &JoinTokenRequest { valid_s: 600 }).await.unwrap();
        token.token
    }

    pub async fn join(&self, token: &str) -> Result<JoinedPool, ClientError> {
        self.local().post("/v1/pool/join", &JoinPool { token: token.to_owned() }).await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
    }
}

/// Asks again while the other host counts as down because it, or this machine, stood still for a moment; a refusal for that reason
/// has changed nothing.
#[allow(dead_code, reason = "not every test asks")]
pub async fn while_heard<T>(mut ask: impl AsyncFnMut() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let reasons = ["is down or cut off", "is not online", "no second host online"];
    eventually("the other host to be heard", async || match ask().await {
        Err(ClientError::Api(error)) if reasons.iter().any(|reason| error.message.contains(reason)) => None,
        answer => Some(answer),
    })
    .await
}

/// The error that the API answered.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ApiError {
    match result {
        Err(ClientError::Api(error)) => error,
        other => panic!("an answer of the API was expected, not {other:?}"),
    }
}

/// Looks again and again until `found` has something.
pub async fn eventually<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = found().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[allow(dead_code, reason = "not every test asks")]
pub fn is_code(error: &ApiError, code: ErrorCode, part: &str) {
    assert_eq!(error.error, code, "{error:?}");
    let all = format!("{} {}", error.message, error.hint.as_deref().unwrap_or_default());
    assert!(all.contains(part), "{part:?} is not in {all:?}");
}

#[allow(dead_code, reason = "not every test asks")]
pub fn exists(path: &Path) -> bool {
    path.exists()
}
