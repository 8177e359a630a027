//! A guest's NIC: plugged into its bridge, announced, and plugged in again by the next AM. In a network namespace of its own.

mod support;

use std::future::Future;
use std::process::Command;

use ev_core::ids::MacAddress;
use ev_core::vm::Desired;
use support::pool::{ONE, Pool};
use support::{Host, running, until, until_guest};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0xaa, 0xbb, 1]);

/// Runs a test in a network namespace of its own, with a bridge. It belongs to a thread; the threads and processes
/// that this one starts inherit it.
fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: a new network namespace for this thread takes away nothing that memory or descriptors rely on.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .expect("tests of the network need root");
        for arguments in ["link set lo up", "link add lan type bridge", "link set lan up"] {
            ip(&arguments.split(' ').collect::<Vec<_>>());
        }
        tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn plugged() -> bool {
    let link = ip(&["link", "show", "ev0n0"]);
    link.contains("master lan") && link.contains("UP")
}

/// Whether the bridge has heard a frame of the guest's address from the guest's TAP.
fn announced() -> bool {
    let output = Command::new("bridge").args(["fdb", "show", "dev", "ev0n0"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(&MAC.to_string())
}

#[test]
fn a_nic_is_plugged_in_and_announced() {
    in_own_network(plugged_in_and_announced);
}

async fn plugged_in_and_announced() {
    let pool = Pool::start_with(0, vec![MAC]).await;
    pool.desire(Desired::Running);
    let mut host = Host::new(&pool, ONE);
    host.configure(&pool, &[]);
    host.start_am();
    until_guest(&pool, ONE, "the guest's start", running).await;
    assert!(plugged(), "{}", ip(&["link"]));
    until("the announcement", announced).await;

    host.kill_am();
    until("the TAP to go with its AM", || !plugged()).await;
    host.start_am();
    until("the next AM's TAP", plugged).await;
    until("the new AM to take the guest up", || host.log().contains("taking up the guest")).await;

    pool.desire(Desired::ForceOff);
    until("the guest's end", || pool.since().is_none()).await;
    until("the TAP to go with its guest", || !plugged()).await;
}

#[test]
fn a_missing_bridge_is_a_trouble_and_not_the_guests_end() {
    in_own_network(missing_bridge);
}

async fn missing_bridge() {
    ip(&["link", "del", "lan"]);
    let pool = Pool::start_with(0, vec![MAC]).await;
    pool.desire(Desired::Running);
    let mut host = Host::new(&pool, ONE);
    host.configure(&pool, &[]);
    host.start_am();
    until_guest(&pool, ONE, "the guest's start", running).await;
    let in_trouble =
        || pool.report(ONE).is_some_and(|report| report.troubles.iter().any(|text| text.contains("NIC 0")));
    until("the trouble to be told", in_trouble).await;
    ip(&["link", "add", "lan", "type", "bridge"]);
    until("the NIC to be plugged in", plugged).await;
    until("the trouble to be over", || !in_trouble()).await;
}
