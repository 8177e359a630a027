//! The life of a guest without disks under one AM: start, loss of the AM, loss of QEMU, loss of the lease.

mod support;

use std::time::Duration;

use ev_core::authority::AuthorityChange;
use ev_core::report::{AmReport, EndCause, GuestState};
use ev_core::vm::{Desired, Level};
use ev_wire::am::{AmAnswer, AmCall};
use rustix::process::Signal;
use support::pool::{Answers, ONE, Pool, TWO};
use support::{Host, PATIENCE, running, signal, until, until_guest};
use tokio::time::{Instant, sleep};

/// One host with a running guest at level 1, so that it needs a lease. The other host exists only on paper.
async fn running_guest() -> (Pool, Host) {
    running_guest_with_lease(1_000).await
}

async fn running_guest_with_lease(lease_ms: u64) -> (Pool, Host) {
    let pool = Pool::start(0).await;
    pool.change_settings(|settings| {
        settings.lease_ms = lease_ms;
        settings.report_interval_ms = 200;
        settings.grace_ms = 2_000;
    });
    pool.place(Level::Restart, &[ONE, TWO]);
    pool.desire(Desired::Running);
    let mut host = Host::new(&pool, ONE);
    host.configure(&pool, &[]);
    host.start_am();
    until_guest(&pool, ONE, "the guest's start", running).await;
    (pool, host)
}

/// What the AM says once it says that the guest runs.
async fn running_again(host: &Host) -> AmReport {
    until("the new AM to answer", || std::os::unix::net::UnixStream::connect(host.file("../run/am.sock")).is_ok())
        .await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = host.status().await;
        if running(&report.guest) {
            return report;
        }
        assert!(Instant::now() < deadline, "waited in vain for the guest to go on: {report:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_am_is_replaced_and_the_guest_goes_on() {
    // A new AM waits at least so long for its lease before it pauses the guest that it takes up.
    const FIRST_LEASE_WAIT: Duration = Duration::from_millis(500);
    let (pool, mut host) = running_guest_with_lease(10_000).await;
    let (since, qemu) = (pool.since(), host.qemu_pid().unwrap());
    host.kill_am();
    let (began, log_before) = (Instant::now(), host.log().len());
    host.start_am();
    until("the new AM to take it up", || host.log().contains("taking up the guest")).await;
    let report = running_again(&host).await;
    assert!(report.accelerator.is_some(), "{report:?}");
    let paused = host.log()[log_before..].contains("the guest is paused");
    let in_time = began.elapsed() < FIRST_LEASE_WAIT;
    assert_eq!((pool.since(), host.qemu_pid()), (since, Some(qemu)), "the guest was not touched");
    assert!(!(paused && in_time), "its lease came before it had to be paused");
    // And what comes after works under the new one too.
    pool.desire(Desired::ForceOff);
    until("the guest's end", || pool.since().is_none()).await;
    assert_eq!(host.qemu_pid(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_leaves_the_guest_running() {
    let (_pool, mut host) = running_guest().await;
    let qemu = host.qemu_pid();
    assert!(host.stop_am().await);
    assert_eq!(host.qemu_pid(), qemu);
    assert!(host.log().contains("QEMU is left running"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_am_whose_log_lies_on_a_full_disk_goes_on() {
    let (pool, mut host) = running_guest_with_lease(10_000).await;
    let (since, qemu) = (pool.since(), host.qemu_pid());
    host.kill_am();
    host.start_am_logging_to(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    running_again(&host).await;
    assert!(!host.am_has_ended());
    assert_eq!((pool.since(), host.qemu_pid()), (since, qemu));
    pool.desire(Desired::ForceOff);
    until("the guest's end", || pool.since().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_am_of_the_same_vm_is_refused() {
    let (pool, mut host) = running_guest().await;
    let first = host.am_pid();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ev-am"))
        .arg("--config")
        .arg(host.file("../am.json"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&first.to_string()), "{said}");
    assert!(running(&pool.report(ONE).unwrap().guest));
    assert!(!host.am_has_ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_is_reported_and_started_again_under_a_new_record() {
    let (pool, host) = running_guest().await;
    let since = pool.since().unwrap();
    let qemu = host.qemu_pid().unwrap();
    signal(qemu, Signal::KILL);
    until("a new start", || pool.since().is_some_and(|new| new > since)).await;
    until_guest(&pool, ONE, "the guest's restart", running).await;
    assert_ne!(host.qemu_pid(), Some(qemu));
    let starts = pool.history().iter().filter(|(change, _)| matches!(change, AuthorityChange::Start { .. })).count();
    assert_eq!(starts, 2);
    assert!(host.log().contains("killed by signal 9"), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_dies_with_its_am_is_reported_by_the_next_am() {
    let (pool, mut host) = running_guest().await;
    let since = pool.since().unwrap();
    host.power_cut();
    host.start_am();
    until("a new start", || pool.since().is_some_and(|new| new > since)).await;
    until_guest(&pool, ONE, "the guest's restart", running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_the_guest_is_paused_and_goes_on_when_it_comes_back() {
    let (pool, host) = running_guest().await;
    let qemu = host.qemu_pid();
    pool.set_answers(Answers::NotMaster);
    until("the pause", || host.log().contains("state changed guest=Paused")).await;
    pool.set_answers(Answers::Yes);
    until_guest(&pool, ONE, "the guest to go on", running).await;
    until("the resumption", || host.log().contains("the lease is back")).await;
    assert_eq!(host.qemu_pid(), qemu);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_for_longer_than_the_grace_time_the_guest_is_ended() {
    let (pool, host) = running_guest().await;
    let since = pool.since().unwrap();
    pool.set_answers(Answers::NotMaster);
    until("the guest's end", || host.qemu_pid().is_none()).await;
    until("the state", || host.log().contains("LeaseLost")).await;
    pool.set_answers(Answers::Yes);
    until("a new start", || pool.since().is_some_and(|new| new > since)).await;
    until_guest(&pool, ONE, "the guest's restart", running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_thaws_after_its_guest_was_given_away_ends_it() {
    let (pool, host) = running_guest().await;
    let (am, qemu) = (host.am_pid(), host.qemu_pid().unwrap());
    signal(qemu, Signal::STOP);
    signal(am, Signal::STOP);
    pool.set_alive(ONE, false);
    until("the takeover", || pool.vm().authority.active == Some(TWO)).await;
    signal(am, Signal::CONT);
    signal(qemu, Signal::CONT);
    pool.set_alive(ONE, true);
    until("the old guest's end", || host.qemu_pid().is_none()).await;
    until("the report", || pool.report(ONE).is_some_and(|report| report.guest == GuestState::Absent)).await;
    assert!(host.log().contains("Superseded"), "{}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_socket_answers_and_quit_waits_for_the_guests_end() {
    let (pool, mut host) = running_guest().await;
    assert!(running(&host.status().await.guest));
    assert!(matches!(host.call(AmCall::Quit).await, AmAnswer::Refused(_)));
    assert_eq!(host.call(AmCall::Reload).await, AmAnswer::Done);
    let mut stranger = pool.vm();
    stranger.id.0 = uuid::Uuid::nil();
    assert!(matches!(host.call(AmCall::Vm(Box::new(stranger))).await, AmAnswer::Refused(_)));
    pool.desire(Desired::ForceOff);
    until("the guest's end", || pool.since().is_none()).await;
    until_guest(&pool, ONE, "the report", |guest| *guest == GuestState::Absent).await;
    assert_eq!(host.call(AmCall::Quit).await, AmAnswer::Done);
    until("the AM's end", || host.am_has_ended()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_is_reported_with_its_reason() {
    let pool = Pool::start(0).await;
    pool.desire(Desired::Running);
    let mut host = Host::new(&pool, ONE);
    host.configure(&pool, &[]);
    let config = host.file("../am.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"nobody\"", "\"no-such-user\"")).unwrap();
    host.start_am();
    let failed = |guest: &GuestState| matches!(guest, GuestState::Ended { cause: EndCause::StartFailed(why), .. } if why.contains("no-such-user"));
    until_guest(&pool, ONE, "the failure", failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_am_at_rest_is_small() {
    let (_pool, host) = running_guest().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.am_pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("ev-am at rest: {kib} KiB");
    assert!(kib < 30 * 1024, "{kib} KiB");
}
