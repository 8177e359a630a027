//! What strangers and damage bring: wrong secrets, another pool's certificates, rubbish on every port, garbage in a replica's
//! metadata, full disks. Nothing changes, nothing is lost, nothing dies.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ev_api::pool::{JoinToken, PoolView};
use ev_lab::{DiskKind, Lab};
use ev_tests::{BESIDE_LOAD, Pool, Protected, TestLab, eventually};

const LIMIT: Duration = Duration::from_secs(120);
/// Rubbish for each port.
const RUBBISH: [&str; 4] = [
    "head -c 100000 /dev/urandom",
    "printf 'GET / HTTP/1.0\\r\\n\\r\\n'",
    "printf '\\026\\003\\001\\002\\000\\001\\000\\001\\374\\003\\003'",
    "head -c 16 /dev/zero",
];

#[test]
fn strangers_with_wrong_secrets_or_another_pools_certificates_get_nothing() {
    let lab = TestLab::up(3, 0);
    let pool = Pool::of(&lab);
    for (host, name) in [("h1", "office"), ("h3", "other")] {
        eventually("evd", Duration::from_secs(20), || pool.ev(host, &["pool-create", name]));
    }
    let own = pool.ok("h1", &["token-create"]);
    let foreign = pool.ok("h3", &["token-create"]);
    let with = |token: &str| pool.ev("h2", &["--pool", "10.10.0.11", "--token", token, "pool-show"]);
    with(&own).unwrap_or_else(|failure| panic!("the right token: {failure}"));
    let secret_at = own.len() - 4;
    let guessed = format!("{}{}", &own[..secret_at], if own.ends_with("0000") { "1111" } else { "0000" });
    for token in [foreign.as_str(), &guessed, "EKA1-rubbish", ""] {
        let failure = with(token).expect_err("it is refused");
        println!("{failure}");
        assert!(failure.message.len() > 20 && !failure.message.contains("office"), "{failure}");
    }
    // A host of one pool does not join another.
    let token: JoinToken = pool.json("h1", &["host-token"]);
    let failure = pool.ev("h3", &["host-join", &token.token]).expect_err("it is in a pool");
    println!("{failure}");
    let office: PoolView = pool.json("h1", &["pool-show"]);
    let other: PoolView = pool.json("h3", &["pool-show"]);
    assert_eq!((office.members.len(), other.members.len()), (1, 1));
}

/// Process ids of the product on all machines, but for those of QEMU, which an AM may start anew.
fn daemons(lab: &Lab) -> Vec<u32> {
    let status = lab.status().expect("the lab is up");
    let of_product = |program: &str| program == "evd" || program.starts_with("ev-");
    let all = status.iter().flat_map(|machine| &machine.processes);
    all.filter(|process| of_product(&process.program)).map(|process| process.pid).collect()
}

#[test]
fn rubbish_on_every_port_disturbs_nobody() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let (boot_id, before) = (protected.boot_id(), daemons(&lab));
    let mut sent = 0;
    for (address, ports) in [("10.10.0.11", "7411 7412 7500"), ("10.10.1.12", "7412 7500"), ("10.10.0.101", "7412")] {
        for rubbish in RUBBISH {
            let tcp = format!("for p in {ports}; do {rubbish} > /dev/tcp/{address}/$p && echo sent; done");
            // Some close the connection before all of it is sent.
            let from = if address.starts_with("10.10.1") { "h1" } else { "h2" };
            let output = lab.command(from, "bash").expect("on").args(["-c", &tcp]).output().expect("bash is there");
            sent += String::from_utf8_lossy(&output.stdout).lines().count();
            let udp = format!("{rubbish} | head -c 1400 > /dev/udp/{address}/7413");
            lab.command(from, "bash").expect("on").args(["-c", &udp]).output().expect("bash is there");
        }
    }
    assert!(sent >= RUBBISH.len() * 2, "only {sent} were taken: do the ports fit?");
    load.wait_for_more(100, LIMIT);
    assert_eq!(daemons(&lab), before, "a daemon ended");
    assert_eq!(protected.boot_id(), boot_id);
    protected.in_sync("h1");
    protected.assert_nothing_lost(load);
    protected.assert_owner_moved(0..=0);
}

#[test]
fn a_full_disk_of_the_partner_is_left_out_and_taken_back_when_there_is_room() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let boot_id = protected.boot_id();
    let active = protected.in_sync("h1").active.expect("it runs");
    let other = protected.other_than(&active);
    lab.fill_disk(&other, DiskKind::Storage, 0).expect("fills");
    // In case what the load writes has its room already.
    protected.fill(BESIDE_LOAD.0, BESIDE_LOAD.1, 7);
    load.wait_for_more(100, LIMIT);
    lab.unfill_disk(&other, DiskKind::Storage).expect("empties");
    protected.in_sync(&active);
    assert_eq!(protected.boot_id(), boot_id, "the guest did not notice");
    lab.kill(&active).expect("dies");
    load.wait_for_more(50, LIMIT);
    protected.check(BESIDE_LOAD.0, BESIDE_LOAD.1, 7);
    protected.assert_nothing_lost(load);
}

/// Writes garbage into a file of the only VM on a host's storage disk, while the host is off.
fn spoil(lab: &Lab, host: &str, file: &str, offset: u64, bytes: usize) {
    // Below the lab's folder, so that the lab's end unmounts it in any case.
    let mount_point = lab.plan().node_dir(lab.plan().node(host).expect("there")).join("opened");
    std::fs::create_dir_all(&mount_point).expect("room");
    let image = lab.plan().image(lab.plan().node(host).expect("there"), DiskKind::Storage);
    let run = |program: &str, arguments: &[&Path]| {
        let status = Command::new(program).args(arguments).status().expect("it is installed");
        assert!(status.success(), "{program} {arguments:?}");
    };
    run("mount", &[Path::new("-oloop,nouuid"), &image, &mount_point]);
    let mut vms = std::fs::read_dir(&mount_point).expect("mounted").flatten().map(|entry| entry.path().join(file));
    let path = vms.find(|path| path.exists()).expect("the VM's file");
    let garbage: Vec<u8> = (0..bytes).map(|index| u8::try_from(index * 37 % 251).expect("small")).collect();
    let opened = std::fs::OpenOptions::new().write(true).open(&path).expect("there");
    opened.write_all_at(&garbage, offset).and_then(|()| opened.sync_all()).expect("room");
    drop((opened, vms));
    run("umount", &[&mount_point]);
}

#[test]
fn garbage_in_metadata_costs_a_copy_at_most() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let boot_id = protected.boot_id();
    let active = protected.in_sync("h1").active.expect("it runs");
    let other = protected.other_than(&active);
    // One slot of the superblock, then the other, then both, then everything.
    for (offset, bytes) in [(0, 4096), (4096, 4096), (0, 8192), (0, 65536)] {
        lab.kill(&other).expect("dies");
        load.wait_for_more(50, LIMIT);
        spoil(&lab, &other, "disk-0.meta", offset, bytes);
        lab.start(&other).expect("starts");
        load.wait_for_more(50, LIMIT);
        let view = protected.in_sync(&active);
        println!("{bytes} bytes of garbage at {offset}: {:?}", view.disks[0].copy);
    }
    assert_eq!(protected.boot_id(), boot_id, "the guest did not notice");
    lab.kill(&active).expect("dies");
    load.wait_for_more(50, LIMIT);
    protected.assert_nothing_lost(load);
}
