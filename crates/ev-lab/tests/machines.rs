//! Bare machines of a real lab: what a power cut, a failed disk, a cut and a freeze do to them.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use ev_lab::{Direction, DiskKind, Lab, LabError, LabName, LabOptions, Network, PowerState, RepairKind};

/// Of what takes a moment.
const LIMIT: Duration = Duration::from_secs(20);

/// A lab that is removed at the end of its test, whatever the test's outcome.
struct TestLab {
    lab: Option<Lab>,
    _dir: tempfile::TempDir,
}

impl TestLab {
    fn up(test: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let options = options(test, dir.path().join("lab"));
        Self { lab: Some(Lab::up(options).expect("the lab comes up")), _dir: dir }
    }

    fn state(&self, host: &str) -> PathBuf {
        self.plan().state_dir(self.plan().node(host).expect("a host"))
    }

    /// Whether a frame of one machine reaches the other and the answer comes back.
    fn reaches(&self, from: &str, address: &str) -> bool {
        let mut ping = self.command(from, "busybox").expect("running");
        ping.args(["ping", "-c", "1", "-W", "1", address]).output().expect("busybox is installed").status.success()
    }
}

impl TestLab {
    /// The same, within a few seconds: the kernel asks for a lost neighbour, and looks at carriers, once a second.
    fn reaches_soon(&self, from: &str, address: &str) -> bool {
        (0..5).any(|_| self.reaches(from, address))
    }
}

impl std::ops::Deref for TestLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab.as_ref().expect("up until dropped")
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        self.lab.take().expect("dropped once").down().expect("the lab goes down");
    }
}

/// Runs a program on a machine; returns once it is that program, and no longer the lab's shell that puts it there.
fn run(lab: &Lab, host: &str, program: &str, arguments: &[&str]) -> Child {
    let child = lab.command(host, program).expect("on").args(arguments).spawn().expect("it is installed");
    let there = || lab.processes(host).expect("known").iter().any(|process| process.program == program);
    let deadline = Instant::now() + LIMIT;
    while !there() {
        assert!(Instant::now() < deadline, "{program} did not start on {host}");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn options(test: &str, dir: PathBuf) -> LabOptions {
    let name = LabName::new(&format!("t-{test}-{}", std::process::id())).expect("a short name");
    LabOptions { dir, storage_bytes: 1 << 30, ..LabOptions::new(name) }
}

#[test]
fn a_killed_host_keeps_what_was_flushed_and_loses_the_rest() {
    let lab = TestLab::up("kill");
    let vms = lab.state("h1").join("vms");
    fs::write(vms.join("flushed"), "kept").expect("writes");
    fs::File::open(vms.join("flushed")).and_then(|file| file.sync_all()).expect("flushes");
    fs::File::open(&vms).and_then(|dir| dir.sync_all()).expect("flushes the folder");
    fs::write(vms.join("unflushed"), "lost").expect("writes");
    let sleeper = run(&lab, "h1", "sleep", &["1000"]);
    // A process of another host sees the disks of this one, too, and must not keep them from going.
    let mut bystander = run(&lab, "h2", "sleep", &["1000"]);

    lab.kill("h1").expect("the power goes");
    assert_eq!(lab.power("h1").expect("known"), PowerState::Off);
    assert!(sleeper.wait_with_output().expect("it was ours").status.code().is_none(), "ended by a signal");
    assert!(matches!(lab.command("h1", "true"), Err(LabError::SwitchedOff { .. })));
    assert!(!lab.reaches("h2", "10.10.0.11"));

    lab.start("h1").expect("the power is back");
    assert_eq!(fs::read_to_string(vms.join("flushed")).expect("still there"), "kept");
    assert!(!vms.join("unflushed").exists());
    assert!(lab.reaches_soon("h2", "10.10.0.11"));

    assert!(bystander.try_wait().expect("ours").is_none(), "the other host went on");
    bystander.kill().and_then(|()| bystander.wait()).expect("ours");
}

#[test]
fn a_failed_disk_answers_with_errors_until_it_is_repaired() {
    let lab = TestLab::up("disk");
    let file = lab.state("h1").join("vms/file");
    fs::write(&file, "old").expect("writes");
    fs::File::open(&file).and_then(|file| file.sync_all()).expect("flushes");
    let held_open = fs::File::open(&file).expect("readable");
    lab.fail_disk("h1", DiskKind::Storage).expect("fails it");
    assert!(fs::read(&file).is_err());
    assert!(fs::write(lab.state("h1").join("other-disk"), "fine").is_ok());
    assert!(fs::write(lab.state("h2").join("vms/file"), "fine").is_ok());

    lab.repair_disk("h1", DiskKind::Storage, RepairKind::Same).expect("repairs it");
    assert_eq!(fs::read_to_string(&file).expect("readable"), "old");
    assert!(
        held_open.sync_all().is_err() || std::io::read_to_string(&held_open).is_err(),
        "what was open stays failed"
    );
    lab.repair_disk("h1", DiskKind::Storage, RepairKind::Blank).expect("replaces it");
    assert!(!file.exists());
    assert!(matches!(lab.fail_disk("q1", DiskKind::System), Err(LabError::NotAHost { .. })));
}

#[test]
fn a_full_disk_takes_no_more_until_it_is_emptied() {
    let lab = TestLab::up("full");
    let file = lab.state("h1").join("vms/file");
    lab.fill_disk("h1", DiskKind::Storage, 0).expect("fills it");
    let error = fs::write(&file, vec![1; 4 << 20]).expect_err("there is no room");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    lab.unfill_disk("h1", DiskKind::Storage).expect("empties it");
    fs::write(&file, vec![1; 4 << 20]).expect("there is room");
}

#[test]
fn cuts_lose_what_they_should_and_nothing_else() {
    let lab = TestLab::up("cut");
    lab.cut("h1", "h2", Some(Network::Management), Direction::BothWays).expect("cuts");
    assert!(!lab.reaches("h1", "10.10.0.12"));
    assert!(lab.reaches_soon("h1", "10.10.1.12"));
    assert!(lab.reaches_soon("h1", "10.10.0.101"), "the quorum server is still reached");
    lab.cut("h1", "h2", None, Direction::FirstToSecond).expect("cuts");
    assert!(!lab.reaches("h1", "10.10.2.12"));
    assert_eq!(lab.cuts().expect("listed").len(), 6);
    lab.heal().expect("heals");
    assert!(lab.reaches_soon("h1", "10.10.0.12"));
    assert!(matches!(lab.cut("h1", "q1", Some(Network::Vm), Direction::BothWays), Err(LabError::NotOnNetwork { .. })));

    lab.unplug("h1", Network::Private1).expect("unplugs");
    let carrier = lab.command("h1", "cat").expect("on").arg("/sys/class/net/priv1/carrier").output().expect("cat runs");
    assert_eq!(String::from_utf8_lossy(&carrier.stdout).trim(), "0");
    lab.plug("h1", Network::Private1).expect("plugs");
    assert!(lab.reaches_soon("h1", "10.10.1.12"));
}

#[test]
fn a_frozen_host_does_nothing_until_it_is_thawed() {
    let lab = TestLab::up("freeze");
    let mut child = run(&lab, "h1", "busybox", &["nc", "-l", "-p", "7"]);
    lab.freeze("h1").expect("freezes");
    assert_eq!(lab.power("h1").expect("known"), PowerState::Frozen);
    lab.kill("h1").expect("a frozen host can be killed");
    assert!(!child.wait().expect("it was ours").success());
    lab.start("h1").expect("and started");
    lab.freeze("h1").expect("freezes");
    lab.thaw("h1").expect("thaws");
    assert_eq!(lab.power("h1").expect("known"), PowerState::On);
}

#[test]
fn a_second_lab_of_the_same_name_is_refused_and_the_first_stays() {
    let lab = TestLab::up("twice");
    let other = lab.plan().dir.with_extension("other");
    for dir in [lab.plan().dir.clone(), other.clone()] {
        let error = Lab::up(options("twice", dir)).expect_err("there is one");
        assert!(matches!(error, LabError::AlreadyUp { .. }), "{error}");
    }
    assert!(!other.exists(), "nothing was made");
    assert_eq!(lab.power("h1").expect("known"), PowerState::On);
}

#[test]
fn what_a_crash_left_behind_is_removed_by_down() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("lab");
    let lab = Lab::up(options("crash", path.clone())).expect("comes up");
    let sleeper = run(&lab, "h1", "sleep", &["1000"]);
    let namespace = lab.plan().switch_namespace();
    lab.fail_disk("h2", DiskKind::Storage).expect("fails");
    drop(lab);

    Lab::open(&path).expect("the record is there").down().expect("goes down");
    assert!(!sleeper.wait_with_output().expect("ours").status.success());
    assert!(!path.exists());
    assert!(!PathBuf::from("/run/netns").join(namespace).exists());
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    assert!(!mounts.contains(path.to_str().expect("plain")));
    assert!(matches!(Lab::open(&path), Err(LabError::NoLab { .. })));
}
