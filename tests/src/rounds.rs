//! The main job as a sequence of steps, for scenarios, demo and benchmarks: the active host dies in the middle of writes, the
//! guest comes back on the other one, the dead host returns and is brought in sync.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ev_api::vm::{CopyView, DiskView, VmView};

use crate::client::{ClientError, in_client};
use crate::guests::TinyImage;
use crate::lab::TestLab;
use crate::load::{Load, LoadReport, Service};
use crate::pool::{EvFailure, Pool};
use crate::tiny::TinyGuest;
use crate::wait::eventually;

/// A real guest boots in 20 s on an emulated processor that it has for itself; it may have to share.
const SERVICE_LIMIT: Duration = Duration::from_secs(180);
const SYNC_LIMIT: Duration = Duration::from_secs(300);
/// An AM reports twice a second.
const REPORT_LIMIT: Duration = Duration::from_secs(20);
/// Writes before a host dies, and after the guest is back.
const WRITES_EACH_SIDE: u64 = 50;

/// One VM at Level 2 in a lab of two hosts, under load.
#[derive(Debug, Clone, Copy)]
pub struct Protected<'a> {
    pub lab: &'a TestLab,
    pub pool: Pool<'a>,
    pub vm: &'a str,
}

/// What happened when a host died.
#[derive(Debug, Clone)]
pub struct Takeover {
    pub dead: String,
    pub active: String,
    /// From the host's death to the first write that was acknowledged again.
    pub service_back: Duration,
    pub generation: u64,
}

/// What happened when it came back.
#[derive(Debug, Clone)]
pub struct Return {
    /// From switching it on until both replicas of every disk were good.
    pub in_sync: Duration,
    pub copies: Vec<CopyView>,
    pub disk_bytes: u64,
}

impl Return {
    /// Whether no disk was copied as a whole.
    pub fn by_delta_copy(&self) -> bool {
        self.copies.iter().all(|copy| !copy.full)
    }

    /// Bytes that crossed the link for the copies.
    pub fn moved_bytes(&self) -> u64 {
        self.copies.iter().map(|copy| copy.moved_bytes).sum()
    }
}

impl<'a> Protected<'a> {
    /// The tiny guest at Level 2 in a new pool of the lab's machines, running, and a client that writes to it.
    ///
    /// # Panics
    /// If any step fails.
    #[track_caller]
    pub fn tiny(lab: &'a TestLab) -> (Self, Load) {
        Self::tiny_on(lab, "h1")
    }

    /// The same, running on that host first.
    ///
    /// # Panics
    /// If any step fails.
    #[track_caller]
    pub fn tiny_on(lab: &'a TestLab, host: &str) -> (Self, Load) {
        let pool = Pool::create(lab);
        let mut arguments = TinyImage::find().create_arguments("tiny", "256M", TinyImage::ADDRESS);
        arguments.extend(["--host", host].map(str::to_owned));
        pool.ok("h1", &arguments);
        pool.ok("h1", &["pvm-protect", "tiny", "--level", "2", "--wait"]);
        pool.ok("h1", &["pvm-start", "tiny"]);
        let load = Load::start(lab, 0, || TinyGuest::connect(TinyImage::ADDRESS));
        load.wait_for_more(WRITES_EACH_SIDE, SERVICE_LIMIT);
        let protected = Self { lab, pool, vm: "tiny" };
        protected.in_sync("h1");
        (protected, load)
    }

    /// The tiny guest's present boot.
    ///
    /// # Panics
    /// If it does not answer in time.
    #[track_caller]
    pub fn boot_id(&self) -> String {
        in_client(self.lab, || {
            eventually("the guest's boot id", SERVICE_LIMIT, || TinyGuest::connect(TinyImage::ADDRESS)?.boot_id())
        })
    }

    /// Fills `count` MiB of the tiny guest's disk from `first` MiB on.
    ///
    /// # Panics
    /// If the guest does not answer that it did.
    #[track_caller]
    pub fn fill(&self, first: u64, count: u64, seed: u64) {
        self.ask(|guest| guest.fill(first, count, seed)).expect("it fills");
    }

    /// Looks whether they are still there.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn check(&self, first: u64, count: u64, seed: u64) {
        self.ask(|guest| guest.check(first, count, seed)).expect("it is there");
    }

    /// Over a connection of its own, as soon as there is one.
    fn ask<T: Send>(
        &self,
        question: impl FnOnce(&mut TinyGuest) -> Result<T, ClientError> + Send,
    ) -> Result<T, ClientError> {
        in_client(self.lab, || {
            let connect = || TinyGuest::connect(TinyImage::ADDRESS);
            question(&mut eventually("the guest to be reached", SERVICE_LIMIT, connect))
        })
    }

    /// Stops the client and looks for everything that was acknowledged to it.
    ///
    /// # Panics
    /// If anything is missing, or the guest does not answer in time.
    #[track_caller]
    pub fn assert_nothing_lost(&self, load: Load) -> LoadReport {
        let report = load.stop();
        let missing = in_client(self.lab, || {
            eventually("the guest to answer", SERVICE_LIMIT, || {
                TinyGuest::connect(TinyImage::ADDRESS)?.missing(report.acknowledged)
            })
        });
        assert!(missing.is_empty(), "acknowledged and lost: {missing:?} of {report:?}");
        println!("{report:?}");
        report
    }

    /// Looks at which hosts the guest was seen to speak from, and that it never went back to one without having been started
    /// there again.
    ///
    /// # Panics
    /// If it moved more often or less often.
    #[track_caller]
    pub fn assert_owner_moved(&self, times: RangeInclusive<usize>) {
        let owners = self.lab.owners_seen();
        println!("the guest spoke from {owners:?}");
        assert!(times.contains(&owners.len().saturating_sub(1)), "expected {times:?} moves: {owners:?}");
    }

    /// Waits until one QEMU runs in the whole lab.
    ///
    /// # Panics
    /// If there are more or fewer at the end of the time.
    #[track_caller]
    pub fn one_guest_process(&self) {
        eventually("one guest in the lab", SERVICE_LIMIT, || {
            let status = self.lab.status().map_err(|error| error.to_string())?;
            let programs = status.iter().flat_map(|machine| &machine.processes).map(|process| &process.program);
            match programs.filter(|program| program.starts_with("qemu-system")).count() {
                1 => Ok(()),
                count => Err(format!("{count} guests run")),
            }
        });
    }

    /// The VM, once both replicas of all its disks are good; asked from a host that lives.
    ///
    /// # Panics
    /// If that does not come about in time.
    #[track_caller]
    pub fn in_sync(&self, asked: &str) -> VmView {
        self.pool.wait_in_sync(asked, self.vm, SYNC_LIMIT)
    }

    /// Kills the active host in the middle of writes and waits until the service is back.
    ///
    /// # Panics
    /// If the service does not come back in time.
    #[track_caller]
    pub fn kill_active(&self, load: &Load, asked: &str) -> Takeover {
        let dead = self.in_sync(asked).active.expect("a running guest has an active host");
        let active = self.other_than(&dead);
        load.wait_for_more(WRITES_EACH_SIDE, SERVICE_LIMIT);
        // Still.
        self.in_sync(asked);
        self.lab.kill(&dead).expect("the host dies");
        let death = Instant::now();
        load.wait_for_more(1, SERVICE_LIMIT);
        // An answer of the dead host may still have been on its way when it died: it is the second that counts.
        load.wait_for_more(1, SERVICE_LIMIT);
        let service_back = death.elapsed();
        load.wait_for_more(WRITES_EACH_SIDE, SERVICE_LIMIT);
        let view = self.pool.wait_vm(&active, self.vm, "the guest on the other host", SERVICE_LIMIT, |vm| {
            vm.active.as_deref() == Some(active.as_str())
        });
        Takeover { dead, active, service_back, generation: view.generation }
    }

    /// Switches the dead host on and waits until it is in sync.
    ///
    /// # Panics
    /// If it does not get there in time.
    #[track_caller]
    pub fn bring_back(&self, takeover: &Takeover) -> Return {
        let start = Instant::now();
        self.lab.start(&takeover.dead).expect("the host starts");
        let view = self.in_sync(&takeover.active);
        let in_sync = start.elapsed();
        // The record may say that the replicas are good before the AM's next report has the copy's figures.
        let copies = eventually("the figures of the copies", REPORT_LIMIT, || {
            let disks: Vec<DiskView> = self.disks(&takeover.active).map_err(|failure| failure.to_string())?;
            let copies: Vec<CopyView> = disks.iter().filter_map(|disk| disk.copy.clone()).collect();
            let ended = copies.len() == disks.len() && copies.iter().all(|copy| !copy.running);
            if ended { Ok(copies) } else { Err(format!("{disks:?}")) }
        });
        Return { in_sync, copies, disk_bytes: view.disks.iter().map(|disk| disk.size_bytes).sum() }
    }

    fn disks(&self, asked: &str) -> Result<Vec<DiskView>, EvFailure> {
        self.pool.try_json(asked, &["disk-show", self.vm])
    }

    /// The host that is not this one, of two.
    ///
    /// # Panics
    /// If there is only one.
    pub fn other_than(&self, host: &str) -> String {
        let names = self.lab.plan().nodes.iter().map(|node| node.name.to_string());
        names.into_iter().find(|name| name.starts_with('h') && name != host).expect("there are two hosts")
    }
}
