//! That the helpers themselves see what there is to see: real guests on a bare host, without the product, where the death of a
//! guest must show as lost time and, with a disk that forgets, as lost writes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ev_lab::Lab;
use ev_tests::{DebianGuest, Load, Postgres, Service, TestLab, TinyGuest, TinyImage, eventually, in_client};

const TINY_ADDRESS: &str = "10.10.3.30";
const BOOT_LIMIT: Duration = Duration::from_secs(90);

fn run(lab: &Lab, line: &str) {
    let mut words = line.split(' ');
    let program = words.next().expect("a program");
    let status = lab.command("h1", program).expect("h1 is on").args(words).status().expect("it is installed");
    assert!(status.success(), "{line}");
}

/// The VM network's bridge, and a TAP for one guest.
fn bridge(lab: &Lab) {
    for line in [
        "ip link add name br type bridge",
        "ip link set dev vmnet master br",
        "ip link set dev br up",
        "ip tuntap add dev tap0 mode tap",
        "ip link set dev tap0 master br up",
    ] {
        run(lab, line);
    }
}

fn qemu(lab: &Lab, disk: &Path, format: &str, more: &[String]) -> Child {
    let mut command: Command = lab.command("h1", "qemu-system-x86_64").expect("h1 is on");
    let drive = format!("file={},if=virtio,format={format}", disk.display());
    command.args(["-machine", "q35,accel=tcg", "-m", "384", "-display", "none", "-serial", "null", "-drive", &drive]);
    command.args(["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n"]);
    command.args(more).stdin(Stdio::null()).spawn().expect("QEMU is installed")
}

fn end(mut child: Child) {
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
}

#[test]
fn the_tiny_client_counts_what_is_kept_and_sees_what_is_lost() {
    let lab = TestLab::bare(1);
    bridge(&lab);
    let disk = lab.plan().state_dir(lab.plan().node("h1").expect("there")).join("vms/disk.raw");
    let empty = || std::fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("room");
    empty();
    let words = TinyImage::find().create_arguments("tiny", "64M", TINY_ADDRESS);
    let boot: Vec<String> = words[words.len() - 6..].iter().map(|word| word.replacen("--", "-", 1)).collect();

    let guest = qemu(&lab, &disk, "raw", &boot);
    let load = Load::start(&lab, 0, || TinyGuest::connect(TINY_ADDRESS));
    load.wait_for_more(200, BOOT_LIMIT);
    end(guest);
    let guest = qemu(&lab, &disk, "raw", &boot);
    load.wait_for_more(200, BOOT_LIMIT);
    let report = load.stop();
    assert!(report.longest_gap > Duration::from_secs(1), "a reboot takes time: {report:?}");
    assert!(report.reconnects >= 1);
    let missing = |acknowledged| in_client(&lab, || TinyGuest::connect(TINY_ADDRESS)?.missing(acknowledged));
    assert_eq!(missing(report.acknowledged).expect("it answers"), Vec::<u64>::new());
    end(guest);

    empty();
    let guest = qemu(&lab, &disk, "raw", &boot);
    let lost = eventually("the guest on the empty disk", BOOT_LIMIT, || missing(report.acknowledged));
    assert_eq!(lost.len(), usize::try_from(report.acknowledged).expect("few"));
    end(guest);
}

#[test]
fn the_database_client_counts_rows_across_the_death_of_its_server() {
    let lab = TestLab::bare(1);
    bridge(&lab);
    let disk = lab.plan().state_dir(lab.plan().node("h1").expect("there")).join("vms/disk.qcow2");
    let image = DebianGuest::find();
    std::fs::copy(image.image(), &disk).expect("room");
    let guest = qemu(&lab, &disk, "qcow2", &[]);
    let load = Load::start(&lab, 0, Postgres::connect);
    load.wait_for_more(100, BOOT_LIMIT);
    end(guest);
    let guest = qemu(&lab, &disk, "qcow2", &[]);
    load.wait_for_more(100, BOOT_LIMIT);
    let report = load.stop();
    println!("{report:?}");
    let missing = in_client(&lab, || Postgres::connect().and_then(|mut client| client.missing(report.acknowledged)));
    assert_eq!(missing.expect("it answers"), Vec::<u64>::new());
    let check = Postgres::check_integrity(&lab);
    assert!(check.is_ok(), "{check:?}");
    let one_lost = in_client(&lab, || {
        let mut client = Postgres::connect()?;
        client.delete(7)?;
        client.missing(report.acknowledged)
    });
    assert_eq!(one_lost.expect("it answers"), [7], "a lost row is seen");
    end(guest);
}
