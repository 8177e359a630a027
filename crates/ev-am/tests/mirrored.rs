//! A guest with a mirrored disk under two AMs: copy, takeover, loss and return of the partner, of the link, of the AM.
//!
//! The guest is one boot sector. Told `w` it adds one to the first character of its second sector, on the disk, and says the
//! new one; told `r` it reads it.

mod support;

use std::time::Duration;

use ev_core::authority::AuthorityChange;
use ev_core::ids::HostId;
use ev_core::vm::{Desired, Level};
use support::path::Path;
use support::pool::{DISK, ONE, Pool, TWO};
use support::{Host, Serial, running, until, until_guest};

/// Two hosts, and between them two paths in each direction.
struct Pair {
    pool: Pool,
    one: Host,
    two: Host,
    to_one: Vec<Path>,
    to_two: Vec<Path>,
}

fn good(pool: &Pool) -> Vec<HostId> {
    pool.vm().authority.good[&DISK].iter().copied().collect()
}

async fn paths_to(host: &Host) -> Vec<Path> {
    vec![Path::to(host.link).await, Path::to(host.link).await]
}

fn addresses(paths: &[Path]) -> Vec<std::net::SocketAddr> {
    paths.iter().map(|path| path.address).collect()
}

impl Pair {
    /// A VM with an imported disk on host 1, then placed on both, and both replicas good; not started.
    async fn protected() -> Self {
        let pool = Pool::start(1).await;
        // Long enough that no partner counts as lost that only had to wait for a processor.
        pool.change_settings(|settings| settings.partner_timeout_ms = 10_000);
        let (mut one, two) = (Host::new(&pool, ONE), Host::new(&pool, TWO));
        one.import_boot_disk();
        one.configure(&pool, &[]);
        one.start_am();
        until("the replica", || one.file("disk-0.meta").exists()).await;
        pool.place(Level::Component, &[ONE, TWO]);
        let (to_one, to_two) = (paths_to(&one).await, paths_to(&two).await);
        let mut pair = Self { pool, one, two, to_one, to_two };
        pair.configure();
        pair.one.call(ev_wire::am::AmCall::Reload).await;
        pair.two.start_am();
        pair.until_in_step().await;
        pair
    }

    /// The same, running on host 1.
    async fn running() -> (Self, Serial) {
        let pair = Self::protected().await;
        pair.pool.desire(Desired::Running);
        until_guest(&pair.pool, ONE, "the guest's start", running).await;
        let mut serial = Serial::connect(&pair.one).await;
        serial.wake().await;
        (pair, serial)
    }

    fn configure(&self) {
        self.one.configure(&self.pool, &addresses(&self.to_two));
        self.two.configure(&self.pool, &addresses(&self.to_one));
    }

    async fn until_in_step(&self) {
        until("both replicas to be good", || good(&self.pool) == [ONE, TWO]).await;
    }

    fn replicas_are_alike(&self) -> bool {
        let read = |host: &Host| std::fs::read(host.file("disk-0.raw")).unwrap();
        read(&self.one) == read(&self.two)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_runs_on_its_own_disk_alone() {
    let pool = Pool::start(1).await;
    let mut host = Host::new(&pool, ONE);
    host.import_boot_disk();
    host.configure(&pool, &[]);
    host.start_am();
    pool.desire(Desired::Running);
    until_guest(&pool, ONE, "the guest's start", running).await;
    let mut serial = Serial::connect(&host).await;
    serial.wake().await;
    serial.ask("r", "a").await;
    serial.ask("w", "b").await;
    serial.send("s").await;
    until("the guest's end", || pool.since().is_none()).await;
    assert!(pool.vm().authority.clean, "the disk was flushed");
    assert_eq!(std::fs::read(host.file("disk-0.raw")).unwrap()[512], b'b');
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_partner_gets_a_copy_and_then_every_write() {
    let (pair, mut serial) = Pair::running().await;
    assert!(pair.replicas_are_alike());
    serial.ask("w", "b").await;
    serial.ask("w", "c").await;
    serial.send("s").await;
    until("the guest's end", || pair.pool.since().is_none()).await;
    assert!(pair.pool.vm().authority.clean);
    assert!(pair.replicas_are_alike());
    assert_eq!(std::fs::read(pair.two.file("disk-0.raw")).unwrap()[512], b'c');
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_the_partner_goes_on_and_the_lost_host_comes_back() {
    let (mut pair, mut serial) = Pair::running().await;
    serial.ask("w", "b").await;
    pair.one.power_cut();
    pair.pool.set_alive(ONE, false);
    until_guest(&pair.pool, TWO, "the guest's start on the other host", running).await;
    assert_eq!(pair.pool.vm().authority.active, Some(TWO));
    let mut serial = Serial::connect(&pair.two).await;
    serial.wake().await;
    serial.ask("r", "b").await;
    serial.ask("w", "c").await;

    pair.configure();
    pair.pool.set_alive(ONE, true);
    pair.one.start_am();
    pair.until_in_step().await;
    assert!(pair.one.qemu_pid().is_none(), "the lost host must not start its guest again");
    serial.ask("w", "d").await;

    pair.two.power_cut();
    pair.pool.set_alive(TWO, false);
    until("the takeover", || pair.pool.vm().authority.active == Some(ONE)).await;
    until_guest(&pair.pool, ONE, "the guest's start on the first host", running).await;
    let mut serial = Serial::connect(&pair.one).await;
    serial.wake().await;
    serial.ask("r", "d").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_waits_for_a_record_without_the_lost_partner() {
    let (mut pair, mut serial) = Pair::running().await;
    pair.two.kill_am();
    serial.ask("w", "b").await;
    assert_eq!(good(&pair.pool), [ONE], "it was acknowledged only under this record");
    pair.two.start_am();
    pair.until_in_step().await;
    serial.ask("w", "c").await;
    let byte = std::fs::read(pair.two.file("disk-0.raw")).unwrap()[512];
    assert_eq!(byte, b'c', "acknowledged, so it is on both");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_cut_path_is_not_noticed_by_the_guest() {
    let (pair, mut serial) = Pair::running().await;
    let before = pair.pool.history().len();
    pair.to_two[0].cut();
    serial.ask("w", "b").await;
    pair.to_two[0].heal();
    pair.to_two[1].cut();
    serial.ask("w", "c").await;
    let lost =
        pair.pool.history()[before..].iter().any(|(change, _)| matches!(change, AuthorityChange::ReplicaLost { .. }));
    assert!(!lost, "the other path was taken in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_paths_cut_and_healed() {
    let (pair, mut serial) = Pair::running().await;
    for path in &pair.to_two {
        path.cut();
    }
    serial.ask("w", "b").await;
    assert_eq!(good(&pair.pool), [ONE]);
    for path in &pair.to_two {
        path.heal();
    }
    pair.until_in_step().await;
    serial.ask("w", "c").await;
    serial.send("s").await;
    until("the guest's end", || pair.pool.since().is_none()).await;
    assert!(pair.replicas_are_alike());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_am_of_the_active_side_holds_up_the_disk_and_loses_nothing() {
    let (mut pair, mut serial) = Pair::running().await;
    serial.ask("w", "b").await;
    let (since, qemu) = (pair.pool.since(), pair.one.qemu_pid());
    pair.one.kill_am();
    serial.send("w").await;
    assert!(serial.is_silent(Duration::from_millis(300)).await, "nobody is there to take the write");
    pair.one.start_am();
    serial.expect("c").await;
    serial.ask("r", "c").await;
    assert_eq!((pair.pool.since(), pair.one.qemu_pid()), (since, qemu));
    pair.until_in_step().await;
    serial.ask("w", "d").await;
    serial.send("s").await;
    until("the guest's end", || pair.pool.since().is_none()).await;
    assert!(pair.replicas_are_alike());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_hosts_lose_power_and_come_back() {
    let (mut pair, mut serial) = Pair::running().await;
    serial.ask("w", "b").await;
    let since = pair.pool.since().unwrap();
    pair.one.power_cut();
    pair.two.kill_am();
    pair.one.start_am();
    pair.two.start_am();
    until("a new start", || pair.pool.since().is_some_and(|new| new > since)).await;
    let active = pair.pool.vm().authority.active.unwrap();
    until_guest(&pair.pool, active, "the guest's restart", running).await;
    let mut serial = Serial::connect(if active == ONE { &pair.one } else { &pair.two }).await;
    serial.wake().await;
    serial.ask("r", "b").await;
    pair.until_in_step().await;
}
