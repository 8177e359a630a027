//! No written page is missed: an image that is kept by tracked pages alone is the same as the memory, byte by byte,
//! whoever wrote it: the emulator, a processor under KVM, or QEMU's own devices.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ev_vm::ram::{PAGE_BYTES, PageNumber, PartlyDone, RamTracker, Staging, TrackError, Writes, try_tracking};
use ev_vm::{Accelerator, Guest, Qemu, Qmp, StartState};
use serde_json::json;
use support::tracked::{Image, library, machines, running_tiny, said, tiny, tracked, until_said};
use support::{DISK_BYTES, DiskServer, Ending, Folders, PATIENCE, USER, assemble, tcg, until};
use tokio::time::{sleep, timeout};

/// Looks at the whole memory, each after some passes while the guest ran on.
const LOOKS: u32 = 25;
const THREADS: usize = 2;

/// Follows a running guest's memory, and stops it now and then to compare. Returns how many changed pages there were.
async fn follow(guest: &Guest) -> usize {
    let qmp = guest.qmp().await.unwrap();
    let tracker = RamTracker::open(guest.pid()).unwrap();
    let mut staging = Staging::new(&tracker.memory().layout(), THREADS).unwrap();
    let mut image = Image::of(tracker.memory());
    let (mut changed, mut parts) = (0, 0);
    for look in 0..LOOKS {
        for pass in 0..look % 4 {
            if pass == 1 {
                parts += copy_in_parts(&tracker, &mut staging, &qmp).await;
            } else {
                tracker.copy_written(&mut staging).unwrap();
            }
            // The guest is to write for different times; nothing is waited for.
            sleep(Duration::from_millis(u64::from(look * pass % 7))).await;
        }
        // A last pass finds all, if there was no page fault from its begin until the guest stood still.
        let before_pass = tracker.now().unwrap();
        let has_looked = look % 2 == 0;
        if has_looked {
            tracker.copy_written(&mut staging).unwrap();
        }
        qmp.stop().await.unwrap();
        let instant = tracker.now().unwrap();
        if !has_looked || tracker.processors_writes_since(before_pass).unwrap() == Writes::Possible {
            tracker.copy_written(&mut staging).unwrap();
        }
        // QEMU itself may write memory when it saves its devices; if it had no page fault, it did not.
        let save = json!({ "filename": "device-state", "live": false });
        qmp.execute("xen-save-devices-state", save).await.unwrap();
        if tracker.writes_since(instant).unwrap() == Writes::Possible {
            tracker.copy_written(&mut staging).unwrap();
        }
        changed += image.apply(&staging);
        staging.clear();
        let differences = image.differences(&tracker);
        assert!(differences.is_empty(), "look {look}: {} pages were missed: {differences:?}", differences.len());
        qmp.cont().await.unwrap();
    }
    assert!(parts > LOOKS, "{parts} parts: the passes were not cut into pieces");
    changed
}

/// A pass in the smallest parts there are; the guest stands still during each, and runs between two.
async fn copy_in_parts(tracker: &RamTracker, staging: &mut Staging, qmp: &Qmp) -> u32 {
    let (mut at, mut parts) = (PartlyDone::default(), 0);
    while !tracker.is_over(at) {
        qmp.stop().await.unwrap();
        tracker.copy_written_until(staging, &mut at, Some(Instant::now())).unwrap();
        qmp.cont().await.unwrap();
        parts += 1;
    }
    parts
}

#[tokio::test]
async fn no_page_that_the_emulator_writes_is_missed() {
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let spec = tiny(&folders, machine, 192, "ev.memory=24");
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        // From the first instructions on, through the kernel's start.
        let early = follow(&guest).await;
        until_said(&folders, "memory 1 round").await;
        let late = follow(&guest).await;
        assert!(early > 1000 && late > 1000, "{early} and {late} pages: the guest did too little for a test");
        assert!(!said(&folders).contains("BAD"));
    }
}

#[tokio::test]
async fn no_page_that_a_device_writes_is_missed() {
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let disk = folders.boot_disk();
        let mut bytes = assemble(&folders.paths.state_dir, "disk_reader.s", "0x7c00");
        let mut state = 1_u64;
        bytes.resize_with(usize::try_from(DISK_BYTES).unwrap(), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        });
        std::fs::write(&disk, bytes).unwrap();
        let _server = DiskServer::start(&disk, &folders.paths.nbd(0)).await;
        let mut spec = folders.spec(machine);
        spec.memory = tracked(spec.memory_mib);
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        until_said(&folders, "rr").await;
        let before = guest.qmp().await.unwrap().disk_statistics(0).await.unwrap();
        let changed = follow(&guest).await;
        let after = guest.qmp().await.unwrap().disk_statistics(0).await.unwrap();
        assert!(after.read_bytes > before.read_bytes + DISK_BYTES, "the disk was hardly read: {before:?}, {after:?}");
        assert!(changed > 500, "{changed} pages");
        assert!(!said(&folders).contains('E'), "the guest could not read its disk");
    }
}

/// The mark that the test runs with a `/dev/kvm` that QEMU's user may open.
const WITH_KVM: &str = "EVENKEEL_TEST_WITH_KVM";

/// Runs one of this program's tests again in a mount namespace of its own, prepared by a line of shell.
fn again(test: &str, mark: &str, prepare: &str) {
    let script = format!("mount -t tmpfs none /mnt && {prepare} && exec \"$0\" --exact \"$1\" --nocapture");
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).arg(program).arg(test).env(mark, "1");
    assert!(command.status().unwrap().success(), "{test} failed in its own namespace; its output is above");
}

#[test]
fn no_page_that_two_processors_under_kvm_write_is_missed() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("not tried: this machine has no /dev/kvm");
        return;
    }
    if std::env::var_os(WITH_KVM).is_none() {
        let open = "cp -a /dev/kvm /mnt/kvm && chmod 0666 /mnt/kvm && mount --bind /mnt/kvm /dev/kvm";
        return again("no_page_that_two_processors_under_kvm_write_is_missed", WITH_KVM, open);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for (qemu, machine) in machines() {
            under_kvm(qemu, machine).await;
        }
    });
}

/// Where `bios_writer.s` has each processor write: the first page, and how many.
const KVM_PARTS: [u32; 2] = [0x10, 0x50];
const KVM_PART_PAGES: u32 = 0x40;

fn part(guest: &Guest, first: u32) -> Vec<u8> {
    let tracker = RamTracker::open(guest.pid()).unwrap();
    let read = |page: u32| {
        let mut bytes = [0; PAGE_BYTES];
        tracker.memory().read(PageNumber(page), &mut bytes).unwrap();
        bytes
    };
    (first..first + KVM_PART_PAGES).flat_map(read).collect()
}

async fn under_kvm(mut qemu: Qemu, machine: &str) {
    let folders = Folders::new();
    // Firmware of our own, found before the usual one.
    let data = folders.paths.library_dir.join("firmware");
    std::fs::create_dir(&data).unwrap();
    let firmware = assemble(&folders.paths.state_dir, "bios_writer.s", "0");
    std::fs::write(data.join("bios-256k.bin"), firmware).unwrap();
    for folder in [&data, &folders.paths.library_dir, folders.paths.library_dir.parent().unwrap()] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder, open).unwrap();
    }
    qemu.data_dirs.insert(0, data);
    let mut spec = folders.spec(machine);
    spec.disks.clear();
    spec.nics.clear();
    spec.vcpus = 2;
    spec.memory = tracked(spec.memory_mib);
    spec.start = StartState::Running;
    let guest = Ending(Guest::start(&qemu, &Accelerator::Kvm, &spec).await.unwrap());
    let before = KVM_PARTS.map(|first| part(&guest, first));
    let changed = timeout(PATIENCE, follow(&guest)).await.unwrap();
    assert!(changed > 200, "{changed} pages: the guest did too little for a test; QEMU said: {}", guest.log_tail());
    let after = KVM_PARTS.map(|first| part(&guest, first));
    assert!((0..2).all(|cpu| before[cpu] != after[cpu]), "a processor wrote nothing: {}", guest.log_tail());
}

#[tokio::test]
async fn a_guest_that_writes_has_page_faults_and_one_that_stands_still_has_none() {
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let guest = running_tiny(&folders, &qemu, machine, "ev.memory=8", "memory 1 round").await;
        let qmp = guest.qmp().await.unwrap();
        let tracker = RamTracker::open(guest.pid()).unwrap();
        let mut staging = Staging::new(&tracker.memory().layout(), THREADS).unwrap();
        let mut still = 0;
        for _ in 0..10 {
            tracker.copy_written(&mut staging).unwrap();
            let instant = tracker.now().unwrap();
            until("a write", || tracker.writes_since(instant).unwrap() == Writes::Possible).await;
            qmp.stop().await.unwrap();
            tracker.copy_written(&mut staging).unwrap();
            let instant = tracker.now().unwrap();
            qmp.status().await.unwrap();
            still += usize::from(tracker.writes_since(instant).unwrap() == Writes::None);
            qmp.cont().await.unwrap();
            staging.clear();
        }
        assert!(still > 0, "QEMU always had page faults: the last pass is never left out");
    }
}

#[tokio::test]
async fn a_guest_without_tracked_memory_says_so() {
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let mut spec = folders.spec(machine);
        spec.disks.clear();
        spec.start = StartState::Stopped;
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        let refused = RamTracker::open(guest.pid());
        assert!(matches!(refused, Err(TrackError::NotPrepared { pid }) if pid == guest.pid()), "{refused:?}");
    }
}

/// QEMU must live, whatever becomes of the library.
#[tokio::test]
async fn a_library_that_does_not_load_leaves_qemu_running_and_is_told() {
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let mut spec = folders.spec(machine);
        spec.disks.clear();
        spec.start = StartState::Stopped;
        let library = folders.paths.library_dir.join("not-a-library.so");
        std::fs::write(&library, "nothing that the loader knows").unwrap();
        let ev_vm::Memory::Tracked(mut memory) = tracked(spec.memory_mib) else { panic!("tracked") };
        memory.library = library;
        spec.memory = ev_vm::Memory::Tracked(memory);
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        let refused = RamTracker::open(guest.pid());
        assert!(matches!(refused, Err(TrackError::NotLoaded)), "{refused:?}");
        assert_eq!(guest.qmp().await.unwrap().status().await.unwrap(), ev_vm::RunState::Paused);
    }
}

/// The mark that the test runs where `/dev/userfaultfd` is something else.
const WITHOUT_DEVICE: &str = "EVENKEEL_TEST_WITHOUT_USERFAULTFD";

#[test]
fn a_kernel_that_does_not_track_is_told_and_qemu_runs() {
    if std::env::var_os(WITHOUT_DEVICE).is_none() {
        let hide = "mount --bind /dev/null /dev/userfaultfd";
        return again("a_kernel_that_does_not_track_is_told_and_qemu_runs", WITHOUT_DEVICE, hide);
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for (qemu, machine) in machines() {
            let folders = Folders::new();
            let mut spec = folders.spec(machine);
            spec.disks.clear();
            spec.memory = tracked(spec.memory_mib);
            let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
            let refused = RamTracker::open(guest.pid());
            let expected =
                matches!(&refused, Err(TrackError::Unsupported { step, .. }) if step == "userfaultfd-device");
            assert!(expected, "{refused:?}");
            assert_eq!(guest.qmp().await.unwrap().status().await.unwrap(), ev_vm::RunState::Running);
        }
    });
}

#[tokio::test]
async fn a_host_is_tried_by_following_a_guest_there_and_nothing_of_it_is_left() {
    for (qemu, _) in machines() {
        let folders = Folders::new();
        let folder = folders.paths.run_dir.join("trial");
        try_tracking(&qemu, &tcg(), USER, &folder, Some(&library())).await.unwrap();
        assert!(!folder.exists());
        // Another library loads, and tracks nothing.
        let other = Path::new("/usr/lib/x86_64-linux-gnu/libm.so.6");
        let error = try_tracking(&qemu, &tcg(), USER, &folder, Some(other)).await.unwrap_err();
        assert!(error.to_string().contains("was not loaded"), "{error}");
        assert!(!folder.exists());
    }
    let qemu = Qemu::at(Path::new("/usr/bin/qemu-system-x86_64"), None);
    let none = try_tracking(&qemu, &tcg(), USER, Path::new("/nonexistent"), None).await;
    assert!(none.unwrap_err().to_string().contains("install Evenkeel anew"));
}

#[tokio::test]
async fn a_trial_guest_that_was_left_behind_is_ended_by_the_next_trial() {
    let (qemu, machine) = machines().remove(0);
    let folders = Folders::new();
    let mut spec = folders.spec(machine);
    spec.disks.clear();
    let left = Guest::start(&qemu, &tcg(), &spec).await.unwrap();
    try_tracking(&qemu, &tcg(), USER, &folders.paths.run_dir, Some(&library())).await.unwrap();
    timeout(Duration::from_secs(5), left.exited()).await.expect("it was ended");
}
