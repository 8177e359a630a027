//! `ev` in the lab's machines, and the steps that most scenarios begin with.

use std::fmt;
use std::time::Duration;

use ev_api::pool::{JoinToken, PoolView};
use ev_api::vm::{DiskView, Health, PowerState, VmView};
use ev_lab::Lab;
use serde::de::DeserializeOwned;

use crate::wait::eventually;

/// How long the daemons may take to answer after the machines were switched on.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Replicas are read as a whole.
const COMPARE_LIMIT: Duration = Duration::from_secs(180);
/// Refusals that are over, and have changed nothing, when the other host is heard again.
const MISSED: [&str; 3] = ["is down or cut off", "is not online", "no second host online"];

/// `ev` on the hosts of a lab.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    lab: &'a Lab,
}

/// `ev` ended with another code than 0.
#[derive(Debug, Clone)]
pub struct EvFailure {
    pub arguments: String,
    pub code: Option<i32>,
    pub message: String,
}

impl fmt::Display for EvFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ev {} ended with {:?}: {}", self.arguments, self.code, self.message)
    }
}

impl<'a> Pool<'a> {
    pub fn of(lab: &'a Lab) -> Self {
        Self { lab }
    }

    /// A pool of all hosts and quorum servers of the lab.
    ///
    /// # Panics
    /// If any step fails.
    pub fn create(lab: &'a Lab) -> Self {
        let pool = Self { lab };
        eventually("evd on h1 to make the pool", START_LIMIT, || pool.ev("h1", &["pool-create", "office"]));
        let kinds = |prefix: &'static str| {
            let names = lab.plan().nodes.iter().map(|node| node.name.to_string());
            names.filter(move |name| name.starts_with(prefix) && name[1..].parse::<u8>().is_ok())
        };
        for host in kinds("h").filter(|name| name != "h1") {
            let token: JoinToken = pool.json("h1", &["host-token"]);
            eventually("evd to join", START_LIMIT, || pool.ev(&host, &["host-join", &token.token]));
        }
        for server in kinds("q") {
            pool.add_quorum_server(&server);
        }
        pool.wait_for_voters();
        pool
    }

    /// Invites and adds one quorum server.
    ///
    /// # Panics
    /// If the server does not answer or is refused.
    pub fn add_quorum_server(&self, name: &str) {
        let node = self.lab.plan().node(name).expect("a quorum server of the lab");
        let config = self.lab.plan().config_path(node);
        let invitation = eventually("an invitation of the quorum server", START_LIMIT, || {
            let mut command = self.lab.command(name, "ev-quorumd").map_err(|error| error.to_string())?;
            let output =
                command.arg("--config").arg(&config).arg("invite").output().map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
        self.ok("h1", &["quorum-add", name, &invitation]);
    }

    fn wait_for_voters(&self) {
        let wanted = self.lab.plan().nodes.len() - 1;
        eventually("all members to vote", START_LIMIT, || {
            let view: PoolView = self.try_json("h1", &["pool-show"]).map_err(|failure| failure.to_string())?;
            let voters = view.members.iter().filter(|member| member.votes && member.reachable).count();
            // A pool of two hosts alone has one voter.
            let enough = voters == wanted || wanted < 3;
            if enough { Ok(()) } else { Err(format!("{voters} of {wanted} vote")) }
        });
    }

    /// Runs `ev` on a machine; what it printed.
    pub fn ev<S: AsRef<str>>(&self, host: &str, arguments: &[S]) -> Result<String, EvFailure> {
        let words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let failure = |code, message: String| EvFailure { arguments: words.join(" "), code, message };
        let mut command = self.lab.command(host, "ev").map_err(|error| failure(None, error.to_string()))?;
        let output = command.args(&words).output().map_err(|error| failure(None, error.to_string()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(failure(output.status.code(), text(&output.stderr)))
    }

    /// The same, of a command that must succeed: at once, unless a host that lives stood still for a moment, and counts as down.
    ///
    /// # Panics
    /// With `ev`'s message.
    #[track_caller]
    pub fn ok<S: AsRef<str>>(&self, host: &str, arguments: &[S]) -> String {
        let missed = |failure: &EvFailure| MISSED.iter().any(|reason| failure.message.contains(reason));
        eventually("every host to be heard", START_LIMIT, || match self.ev(host, arguments) {
            Err(failure) if missed(&failure) => Err(failure),
            Err(failure) => panic!("on {host}: {failure}"),
            Ok(text) => Ok(text),
        })
    }

    /// The same with `--output json`, read as `T`.
    pub fn try_json<T: DeserializeOwned>(&self, host: &str, arguments: &[&str]) -> Result<T, EvFailure> {
        let text = self.ev(host, &[arguments, &["--output", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|error| EvFailure {
            arguments: arguments.join(" "),
            code: Some(0),
            message: format!("{error} in {text}"),
        })
    }

    /// The same, of a command that must succeed.
    ///
    /// # Panics
    /// With `ev`'s message.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self, host: &str, arguments: &[&str]) -> T {
        self.try_json(host, arguments).unwrap_or_else(|failure| panic!("on {host}: {failure}"))
    }

    /// Compares the replicas of a VM's disks to the end: again, when the hosts lost each other in the middle. What `ev` said of it.
    ///
    /// # Panics
    /// If no comparison comes to its end in time.
    #[track_caller]
    pub fn compare(&self, host: &str, vm: &str, more: &[&str]) -> Result<String, EvFailure> {
        eventually("a whole comparison", COMPARE_LIMIT, || {
            self.wait_in_sync(host, vm, COMPARE_LIMIT);
            let said = self.ev(host, &[&["disk-verify", vm, "--wait"], more].concat());
            let disks: Vec<DiskView> =
                self.try_json(host, &["disk-show", vm]).map_err(|failure| failure.to_string())?;
            let whole = |disk: &DiskView| disk.comparison.as_ref().is_some_and(|comparison| comparison.complete);
            if disks.iter().all(whole) { Ok(said) } else { Err(format!("{said:?} {disks:?}")) }
        })
    }

    /// One VM, as `host` sees it.
    pub fn try_vm(&self, host: &str, name: &str) -> Result<VmView, EvFailure> {
        self.try_json(host, &["pvm-show", name])
    }

    /// Waits until `fits` says of the VM that it is as wanted.
    ///
    /// # Panics
    /// If that takes longer than `limit`; the message has the VM's last state.
    #[track_caller]
    pub fn wait_vm(
        &self,
        host: &str,
        name: &str,
        what: &str,
        limit: Duration,
        fits: impl Fn(&VmView) -> bool,
    ) -> VmView {
        eventually(what, limit, || {
            let view = self.try_vm(host, name).map_err(|failure| failure.to_string())?;
            if fits(&view) { Ok(view) } else { Err(format!("{view:?}")) }
        })
    }

    /// Waits until the VM runs and all its disks are on as many hosts as its level asks for.
    ///
    /// # Panics
    /// If that takes longer than `limit`.
    #[track_caller]
    pub fn wait_in_sync(&self, host: &str, name: &str, limit: Duration) -> VmView {
        self.wait_vm(host, name, &format!("{name} to be in sync"), limit, |vm| {
            vm.power == PowerState::Running && vm.health == Health::Good && vm.disks.iter().all(|disk| disk.in_sync)
        })
    }
}
