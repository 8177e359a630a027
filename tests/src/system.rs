//! Level 3 (system fault tolerance) as a sequence of steps, for scenarios, demo and benchmarks: the active host dies, and the guest goes
//! on from its memory on the other one.

use std::time::{Duration, Instant};

use ev_api::vm::{Health, PowerState};
use serde::Deserialize;

use crate::client::in_client;
use crate::guests::TinyImage;
use crate::lab::TestLab;
use crate::load::Load;
use crate::pool::Pool;
use crate::stream::{Stream, StreamReport};
use crate::tiny::TinyGuest;
use crate::wait::eventually;

/// A guest boots, or a memory is sent, on an emulated processor that has to share the machine.
const LIMIT: Duration = Duration::from_secs(180);
/// What the client gets, and the guest verifies, before and after each event.
const ANSWERS_EACH_SIDE: u64 = 100;
const ROUNDS_EACH_SIDE: u64 = 2;

/// One VM at Level 3 in a lab of two hosts.
#[derive(Debug, Clone, Copy)]
pub struct System<'a> {
    pub lab: &'a TestLab,
    pub pool: Pool<'a>,
    pub vm: &'a str,
}

/// What `ev pvm-show` says of it.
#[derive(Debug, Clone, Deserialize)]
pub struct SystemView {
    pub power: PowerState,
    pub health: Health,
    pub level: u8,
    pub active: Option<String>,
    pub standby: Option<String>,
    /// Who can go on from the guest's memory, by the authority record.
    #[serde(default)]
    pub memory: Option<String>,
    /// Of the authority record.
    pub generation: u64,
    #[serde(default)]
    pub level3: Option<Level3View>,
}

/// The part about Level 3, as far as scenarios look at it.
#[derive(Debug, Clone, Deserialize)]
pub struct Level3View {
    pub state: serde_json::Value,
    pub pause_p99_us: u64,
    pub stood_still_permille: u64,
    pub epoch_us: u64,
    pub bytes_per_s: u64,
    pub latency_median_us: u64,
}

impl SystemView {
    /// The standby can go on at any moment: by the active host's newest report, and by the record, which knows it earlier when
    /// that is over.
    pub fn is_protected(&self) -> bool {
        let state = self.level3.as_ref().map(|level3| &level3.state);
        let protected = state.is_some_and(|state| state == "protected");
        self.power == PowerState::Running && protected && self.memory.is_some()
    }

    /// The guest runs alone, and that is said.
    pub fn is_simplex(&self) -> bool {
        let state = self.level3.as_ref().map(|level3| &level3.state);
        let said = state.is_some_and(|state| state == "simplex" || state.get("simplex").is_some());
        self.power == PowerState::Running && self.health == Health::Degraded && said
    }

    /// # Panics
    /// If it is not known to run anywhere.
    #[track_caller]
    pub fn active_host(&self) -> String {
        self.active.clone().expect("a running guest has an active host")
    }
}

/// What happened when a guest went on elsewhere.
#[derive(Debug, Clone)]
pub struct GoneOn {
    pub from: String,
    pub to: String,
    /// The longest time for which the client had no answer.
    pub blackout: Duration,
}

impl<'a> System<'a> {
    /// The tiny guest, verifying its memory on two processors, at Level 3 in a new pool of the lab's machines, running on `h1`; and a
    /// client that speaks with it over one connection.
    ///
    /// # Panics
    /// If any step fails.
    #[track_caller]
    pub fn tiny(lab: &'a TestLab) -> (Self, Stream) {
        let system = Self::start_tiny(lab);
        let stream = Stream::start(lab, TinyImage::ADDRESS);
        system.goes_on(&stream);
        system.protected("h1");
        (system, stream)
    }

    /// The same guest with a client that writes to its disk, and may connect anew.
    ///
    /// # Panics
    /// If any step fails.
    #[track_caller]
    pub fn tiny_with_writes(lab: &'a TestLab) -> (Self, Load) {
        let system = Self::start_tiny(lab);
        let load = Load::start(lab, 0, || TinyGuest::connect(TinyImage::ADDRESS));
        load.wait_for_more(ANSWERS_EACH_SIDE, LIMIT);
        system.protected("h1");
        (system, load)
    }

    /// A VM made by `ev` with these arguments, at Level 3 later, running on `h1` without protection.
    ///
    /// # Panics
    /// If any step fails.
    #[track_caller]
    pub fn unprotected(lab: &'a TestLab, pool: Pool<'a>, vm: &'a str, arguments: &[String]) -> Self {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--host", "h1"].map(str::to_owned));
        pool.ok("h1", &arguments);
        pool.ok("h1", &["pvm-start", vm]);
        Self { lab, pool, vm }
    }

    /// The VM's UUID, by which its folders are named.
    ///
    /// # Panics
    /// If the pool does not tell it.
    pub fn uuid(&self) -> String {
        let view: serde_json::Value = self.pool.json("h1", &["pvm-show", self.vm]);
        view.get("uuid").and_then(serde_json::Value::as_str).expect("a VM has a UUID").to_owned()
    }

    pub fn start_tiny(lab: &'a TestLab) -> Self {
        let pool = Pool::create(lab);
        let mut arguments = TinyImage::find().create_verifying_arguments("tiny", "256M", TinyImage::ADDRESS);
        arguments.extend(["--host", "h1"].map(str::to_owned));
        pool.ok("h1", &arguments);
        pool.ok("h1", &["pvm-protect", "tiny", "--level", "3", "--wait"]);
        pool.ok("h1", &["pvm-start", "tiny"]);
        Self { lab, pool, vm: "tiny" }
    }

    /// The VM as `host` sees it now.
    ///
    /// # Panics
    /// If the host does not say.
    #[track_caller]
    pub fn view(&self, host: &str) -> SystemView {
        self.pool.json(host, &["pvm-show", self.vm])
    }

    /// The VM as `host` sees it.
    ///
    /// # Panics
    /// If that does not come to be so in time; the message has the VM's last state.
    #[track_caller]
    pub fn wait(&self, host: &str, what: &str, fits: impl Fn(&SystemView) -> bool) -> SystemView {
        eventually(what, LIMIT, || {
            let view: SystemView =
                self.pool.try_json(host, &["pvm-show", self.vm]).map_err(|failure| failure.to_string())?;
            if fits(&view) { Ok(view) } else { Err(format!("{view:?}")) }
        })
    }

    /// The VM, once its standby can go on at any moment; asked from a host that lives.
    ///
    /// # Panics
    /// If that does not come about in time.
    #[track_caller]
    pub fn protected(&self, asked: &str) -> SystemView {
        self.wait(asked, "the standby to hold the guest's memory", SystemView::is_protected)
    }

    /// The VM, once it runs on that host, and the other one can go on at any moment.
    ///
    /// # Panics
    /// If that does not come about in time.
    #[track_caller]
    pub fn protected_on(&self, active: &str) -> SystemView {
        self.wait(active, &format!("{active} to have a standby"), |view| {
            view.is_protected() && view.active.as_deref() == Some(active)
        })
    }

    /// The same as [`Self::protected`] by a later record than `before` was made of: that a standby was lost meanwhile may not be known yet.
    ///
    /// # Panics
    /// If that does not come about in time.
    #[track_caller]
    pub fn protected_anew(&self, asked: &str, before: &SystemView) -> SystemView {
        self.wait(asked, "another standby to hold the guest's memory", |view| {
            view.is_protected() && view.generation > before.generation
        })
    }

    /// The VM, once it runs without a standby and says so.
    ///
    /// # Panics
    /// If that does not come about in time.
    #[track_caller]
    pub fn simplex(&self, asked: &str) -> SystemView {
        self.wait(asked, "the guest to run without a standby", SystemView::is_simplex)
    }

    /// The client is answered, and every processor of the guest goes on verifying its memory, if it does that.
    ///
    /// # Panics
    /// If not, or if anything was wrong on the connection or in the memory.
    #[track_caller]
    pub fn goes_on(&self, stream: &Stream) {
        stream.wait_for_more(ANSWERS_EACH_SIDE, LIMIT);
        if stream.memory().threads > 0 {
            stream.wait_for_rounds(ROUNDS_EACH_SIDE, LIMIT);
        }
    }

    /// Brings `event` about on the active host, after which the guest must go on on the other one.
    ///
    /// # Panics
    /// If it does not, or if the client or the guest noticed.
    #[track_caller]
    pub fn goes_on_elsewhere_after(&self, stream: &Stream, asked: &str, event: impl FnOnce(&str)) -> GoneOn {
        let from = self.protected(asked).active_host();
        let to = self.other_than(&from);
        self.goes_on(stream);
        // Still.
        self.protected(asked);
        stream.take_longest_gap();
        event(&from);
        self.goes_on(stream);
        let blackout = stream.take_longest_gap();
        self.wait(&to, "the guest on the other host", |view| view.active.as_deref() == Some(to.as_str()));
        GoneOn { from, to, blackout }
    }

    /// The active host dies, and the guest goes on.
    ///
    /// # Panics
    /// If it does not, or if the client or the guest noticed.
    #[track_caller]
    pub fn kill_active(&self, stream: &Stream, asked: &str) -> GoneOn {
        self.goes_on_elsewhere_after(stream, asked, |active| self.lab.kill(active).expect("the host dies"))
    }

    /// The dead host is switched on, and the guest is protected again, while it runs; how long that took.
    ///
    /// # Panics
    /// If that does not come about in time, or if the client or the guest noticed.
    #[track_caller]
    pub fn bring_back(&self, stream: &Stream, gone_on: &GoneOn) -> Duration {
        let start = Instant::now();
        self.lab.start(&gone_on.from).expect("the host starts");
        self.protected_on(&gone_on.to);
        let took = start.elapsed();
        self.goes_on(stream);
        took
    }

    /// The tiny guest's present boot, asked over a connection of its own.
    ///
    /// # Panics
    /// If it does not answer in time.
    #[track_caller]
    pub fn boot_id(&self) -> String {
        in_client(self.lab, || {
            eventually("the guest's boot id", LIMIT, || TinyGuest::connect(TinyImage::ADDRESS)?.boot_id())
        })
    }

    /// Ends the client.
    ///
    /// # Panics
    /// If anything was wrong on the connection or in the memory, or if the guest was seen to speak from its hosts in another
    /// order than `owners`.
    #[track_caller]
    pub fn unnoticed(&self, stream: Stream, owners: &[&str]) -> StreamReport {
        let report = stream.stop();
        println!(
            "{} answers, latency {:?} (median) to {:?} (p99), longest gap {:?}; {:?}",
            report.answered,
            report.latency(50),
            report.latency(99),
            report.longest_gap,
            report.memory
        );
        assert_eq!(self.lab.owners_seen(), owners);
        report
    }

    /// The host that is not this one, of two.
    pub fn other_than(&self, host: &str) -> String {
        if host == "h1" { "h2".to_owned() } else { "h1".to_owned() }
    }
}
