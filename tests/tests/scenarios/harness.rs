//! That the helpers themselves see what there is to see: real guests on a bare host, without the product, where the death of a
//! guest must show as lost time and, with a disk that forgets, as lost writes.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ev_lab::Lab;
use ev_tests::{
    DebianGuest, Load, Postgres, Service, Stream, StreamFault, TestLab, TinyGuest, TinyImage, eventually, in_client,
};

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
    let missing = |acknowledged| {
        in_client(&lab, || {
            eventually("the guest to answer", BOOT_LIMIT, || TinyGuest::connect(TINY_ADDRESS)?.missing(acknowledged))
        })
    };
    assert_eq!(missing(report.acknowledged), Vec::<u64>::new());
    end(guest);

    empty();
    let guest = qemu(&lab, &disk, "raw", &boot);
    let lost = missing(report.acknowledged);
    assert_eq!(lost.len(), usize::try_from(report.acknowledged).expect("few"));
    end(guest);
}

/// A tiny guest that verifies its memory, which lies in that file.
fn verifying_guest(lab: &Lab, memory: &Path) -> Child {
    let disk = lab.plan().state_dir(lab.plan().node("h1").expect("there")).join("vms/disk.raw");
    std::fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("room");
    let words = TinyImage::find().create_verifying_arguments("tiny", "64M", TINY_ADDRESS);
    let boot = words.iter().skip_while(|word| *word != "--kernel").take(6);
    let mut more: Vec<String> = boot.map(|word| word.replacen("--", "-", 1)).collect();
    let backend = format!("memory-backend-file,id=ram,share=on,size=384M,mem-path={}", memory.display());
    more.extend(["-smp", "2", "-object", &backend, "-machine", "memory-backend=ram"].map(str::to_owned));
    qemu(lab, &disk, "raw", &more)
}

/// Words of the guest's pattern rise by this, as `guests/tiny/src/memory.rs` makes them.
const PATTERN_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Changes one word of each page that has the guest's pattern, until the guest finds one.
fn spoil_pages(memory: &Path, found: impl Fn() -> bool) {
    let file = std::fs::File::options().read(true).write(true).open(memory).expect("the guest's memory");
    let pages = file.metadata().expect("it is open").len() / 4096;
    let mut page = [0; 4096];
    for number in 0..pages {
        file.read_exact_at(&mut page, number * 4096).expect("it is there");
        let words = page.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
        if words.clone().zip(words.skip(1)).all(|(first, second)| second.wrapping_sub(first) == PATTERN_STEP) {
            file.write_all_at(&[0; 8], number * 4096 + 2048).expect("it is there");
        }
        if found() {
            return;
        }
    }
}

#[test]
fn the_stream_client_bears_a_blackout_and_sees_bad_memory_and_another_guest() {
    let lab = TestLab::bare(1);
    bridge(&lab);
    let folder = tempfile::tempdir_in("/dev/shm").expect("memory");
    let memory = folder.path().join("ram");
    let guest = verifying_guest(&lab, &memory);
    let stream = Stream::start(&lab, TINY_ADDRESS);
    // More than will wait for the end of the blackout: the median is to be one of these.
    stream.wait_for_more(600, BOOT_LIMIT);
    stream.wait_for_rounds(3, BOOT_LIMIT);
    assert_eq!((stream.memory().threads, stream.memory().bad_pages), (2, 0));

    stream.take_longest_gap();
    let blackout = Duration::from_millis(1_500);
    lab.freeze("h1").expect("freezes");
    stream.wait_for_silence(BOOT_LIMIT);
    std::thread::sleep(blackout);
    lab.thaw("h1").expect("thaws");
    stream.wait_for_more(200, BOOT_LIMIT);
    let gap = stream.take_longest_gap();
    assert!(gap >= blackout, "{gap:?}");
    let report = stream.stop();
    assert!(report.longest_gap >= gap && report.answered >= 400, "{:?} {}", report.longest_gap, report.answered);
    let (median, longest) = (report.latency(50), report.latency(100));
    assert!(longest >= blackout && median < Duration::from_millis(500), "{median:?} {longest:?}");

    let stream = Stream::start(&lab, TINY_ADDRESS);
    stream.wait_for_rounds(1, BOOT_LIMIT);
    spoil_pages(&memory, || stream.fault().is_some());
    let fault = eventually("the bad page to be seen", BOOT_LIMIT, || stream.fault().ok_or("nothing was seen"));
    assert!(matches!(fault, StreamFault::BadMemory(_)), "{fault}");
    end(guest);

    let guest = verifying_guest(&lab, &memory);
    let stream = Stream::start(&lab, TINY_ADDRESS);
    stream.wait_for_more(50, BOOT_LIMIT);
    end(guest);
    let guest = verifying_guest(&lab, &memory);
    let fault = eventually("the other guest to be seen", BOOT_LIMIT, || stream.fault().ok_or("nothing was seen"));
    assert!(matches!(fault, StreamFault::Lost(_)), "{fault}");
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
    let ask = |delete: Option<i64>| {
        in_client(&lab, || {
            eventually("the database to answer", BOOT_LIMIT, || {
                let mut client = Postgres::connect()?;
                delete.map_or(Ok(()), |number| client.delete(number))?;
                client.missing(report.acknowledged)
            })
        })
    };
    assert_eq!(ask(None), Vec::<u64>::new());
    let check = Postgres::check_integrity(&lab);
    assert!(check.is_ok(), "{check:?}");
    assert_eq!(ask(Some(7)), [7], "a lost row is seen");
    end(guest);
}
