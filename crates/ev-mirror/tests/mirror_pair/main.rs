//! Two disk threads with real files, a real link and a client: loss, return, delta copy, full copy, undo.

mod bad_peers;
mod client;
mod epochs;
mod lost_writes;
mod pair;
mod real_clients;
mod reflink;

use std::time::{Duration, Instant};

use client::Client;
use ev_core::ids::Generation;
use ev_core::mirror::{Health, History};
use ev_core::report::{DiskReport, ReplicaState};
use ev_mirror::metadata::{MetadataFile, Superblock};
use ev_mirror::undo::{self, UndoIdentity, UndoPaths};
use ev_mirror::{Disk, DiskRole, DiskSpec, Initial, Reverted};
use pair::{A, B, Pair};

const SIZE_BYTES: u64 = 256 << 20;
const MIB: u64 = 1 << 20;

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add(u8::try_from(at % 251).unwrap())).collect()
}

#[test]
fn what_is_acknowledged_is_on_both() {
    let pair = Pair::in_step(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    let data = pattern(1, 64 << 10);
    for at in 0..32 {
        client.write(at * 5 * MIB + 512, &data);
    }
    assert!(client.read(5 * MIB + 512, 64 << 10) == data);
    client.flush();
    let disk = pair.close_and_compare();
    for at in 0..32 {
        let start = usize::try_from(at * 5 * MIB + 512).unwrap();
        assert!(disk[start..start + data.len()] == data);
    }
}

#[test]
fn a_cut_link_holds_acknowledgements_until_the_record_and_a_return_copies_the_difference() {
    let mut pair = Pair::in_step_with_short_timeout(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    client.flush();
    pair.cut();
    client.start_write(10 * MIB, &pattern(2, 4096));
    client.set_timeout(Some(Duration::from_millis(300)));
    assert!(client.reply().is_err(), "no acknowledgement before the record without the partner's replica");
    client.set_timeout(None);
    pair.until_good(&[A]);
    assert_eq!(client.reply().unwrap(), 0);
    for at in 0..8 {
        client.write(100 * MIB + at * MIB, &pattern(3, 64 << 10));
    }
    pair.connect();
    pair.until_good(&[A, B]);
    let copy = pair.until_report("the end of the copy", |report| report.partner == Some(ReplicaState::Online));
    let copy = copy.copy.expect("a copy took place");
    assert!(!copy.full);
    // 8 writes of 64 KiB and one of 4 KiB; each moves at most the block that it lies in.
    assert!(copy.moved_bytes >= 8 << 16, "{copy:?}");
    assert!(copy.moved_bytes <= 9 << 16, "{copy:?}");
    assert!(copy.total_bytes <= 11 * MIB, "regions that a map names: {copy:?}");
    client.write(50 * MIB, &pattern(4, 4096));
    let disk = pair.close_and_compare();
    assert!(disk[50 << 20..][..4096] == pattern(4, 4096));
}

#[test]
fn a_disk_is_closed_although_a_write_waits_for_a_record() {
    let mut pair = Pair::in_step(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    pair.cut();
    client.start_write(10 * MIB, &pattern(2, 4096));
    client.set_timeout(Some(Duration::from_millis(300)));
    assert!(client.reply().is_err(), "no record came");
    let (closed, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        pair.a.kill();
        let _ = closed.send(());
    });
    assert!(told.recv_timeout(Duration::from_secs(10)).is_ok(), "the thread ends all the same");
}

#[test]
fn a_first_copy_is_full_moves_what_differs_and_lets_the_guest_write_on() {
    let mut pair = Pair::new(SIZE_BYTES);
    pair.a.open();
    pair.commit();
    pair.until_confirmed();
    let mut client = Client::connect(&pair.a.socket());
    for at in 0..40 {
        client.write(at * 6 * MIB, &pattern(7, 64 << 10));
    }
    pair.b.open();
    pair.commit();
    pair.connect();
    let socket = pair.a.socket();
    let writer = std::thread::spawn(move || {
        let mut client = Client::connect(&socket);
        for at in 0..200 {
            client.write((at % 250) * MIB, &pattern(9, 4096));
        }
    });
    pair.until_good(&[A, B]);
    writer.join().unwrap();
    let copy = pair.until_report("the end of the copy", |report| report.partner == Some(ReplicaState::Online));
    let copy = copy.copy.expect("a copy took place");
    assert!(copy.full);
    assert!(copy.moved_bytes < 40 * (1 << 16) + 200 * (1 << 16) + 1, "holes are not moved: {copy:?}");
    pair.close_and_compare();
}

#[test]
fn a_killed_coordinator_comes_back_by_delta_copy() {
    let mut pair = Pair::in_step(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    client.write(20 * MIB, &pattern(1, 4096));
    pair.a.kill();
    pair.b.kill();
    // An unclean start: only the last active host's replica counts.
    pair.good = [A].into();
    pair.generation = Generation(pair.generation.0 + 1);
    pair.a.open();
    pair.b.open();
    pair.commit();
    pair.connect();
    pair.until_good(&[A, B]);
    let copy = pair.until_report("the end of the copy", |report| report.partner == Some(ReplicaState::Online));
    let copy = copy.copy.expect("a copy took place");
    assert!(!copy.full && copy.total_bytes <= 2 * MIB, "{copy:?}");
    let disk = pair.close_and_compare();
    assert!(disk[20 << 20..][..4096] == pattern(1, 4096));
}

#[test]
fn blank_storage_on_the_active_side_is_filled_from_the_partner_while_the_guest_goes_on() {
    let mut pair = Pair::in_step(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    for at in 0..16 {
        client.write(at * 9 * MIB, &pattern(1, 64 << 10));
    }
    client.flush();
    pair.cut();
    pair.a.kill();
    std::fs::remove_file(&pair.a.spec.replica).unwrap();
    std::fs::remove_file(&pair.a.spec.metadata).unwrap();
    Disk::create(&pair.a.spec, Initial::Target).unwrap();
    pair.good = [B].into();
    pair.generation = pair.generation.next();
    pair.a.open();
    pair.commit();
    pair.connect();
    // Reads come from the partner, whatever the blank replica holds.
    let mut client = Client::connect(&pair.a.socket());
    assert!(client.read(9 * MIB, 64 << 10) == pattern(1, 64 << 10));
    client.write(9 * MIB, &pattern(2, 4096));
    pair.until_good(&[A, B]);
    let report = pair.until_report("the own replica", |report| report.local == ReplicaState::Online);
    let copy = report.copy.expect("a copy took place");
    assert!(copy.full && copy.total_bytes == SIZE_BYTES, "{copy:?}");
    assert!(copy.moved_bytes <= 17 << 16, "holes are not moved: {copy:?}");
    client.write(200 * MIB, &pattern(3, 4096));
    let disk = pair.close_and_compare();
    assert!(disk[9 << 20..][..4096] == pattern(2, 4096));
    assert!(disk[18 << 20..][..64 << 10] == pattern(1, 64 << 10));
    assert!(disk[200 << 20..][..4096] == pattern(3, 4096));
}

#[test]
fn the_state_before_an_interrupted_copy_can_be_had_back() {
    let mut pair = Pair::in_step_with_short_timeout(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    for at in 0..64 {
        client.write(at * MIB, &pattern(1, 64 << 10));
    }
    client.flush();
    pair.cut();
    client.start_write(0, &pattern(2, 64 << 10));
    pair.until_good(&[A]);
    assert_eq!(client.reply().unwrap(), 0);
    for at in 1..64 {
        client.write(at * MIB, &pattern(2, 64 << 10));
    }
    let before = pair.b.bytes();
    pair.a.disk().set_copy_rate_limit(Some(4 * MIB)).unwrap();
    pair.connect();
    pair.until_report("a copy half way", |report| {
        report.copy.is_some_and(|copy| copy.moved_bytes > 0 && copy.done_bytes < copy.total_bytes)
    });
    pair.cut();
    pair.a.kill();
    let b = pair.b.disk.take().unwrap();
    drop(b);
    let superblock = superblock_of(&pair.b.spec);
    assert_eq!(superblock.info.health, Health::Copying);
    let kept = superblock.kept.expect("the older state was kept");
    reflink::check(kept.method);
    // A first attempt that ends before the superblock says so.
    let identity = UndoIdentity { disk: pair.b.spec.disk, size_bytes: SIZE_BYTES, current: kept.current };
    undo::restore(&pair.b.spec.replica, &UndoPaths::beside(&pair.b.spec.replica), identity).unwrap();
    assert!(matches!(Disk::revert(&pair.b.spec), Ok(Reverted::BeforeCopy { .. })));
    assert!(pair.b.bytes() == before);
    let superblock = superblock_of(&pair.b.spec);
    assert_eq!((superblock.info.health, superblock.info.history, superblock.kept), (Health::Good, History::NONE, None));
    assert!(
        matches!(Disk::revert(&pair.b.spec), Ok(Reverted::AsItLay)),
        "again, as after a crash just before the answer"
    );
    assert!(pair.b.bytes() == before);
}

fn metadata_of(spec: &DiskSpec) -> MetadataFile {
    let identity = (spec.pool, spec.vm, spec.disk, spec.host);
    MetadataFile::open(&spec.metadata, identity, spec.size_bytes).unwrap().0
}

fn superblock_of(spec: &DiskSpec) -> Superblock {
    *metadata_of(spec).superblock()
}

/// What the write-intent log names is compared at the next start.
#[test]
fn an_end_that_is_clean_leaves_nothing_to_compare_although_the_partner_goes_then() {
    for moment_ms in (0..24).step_by(4) {
        let mut pair = Pair::in_step(SIZE_BYTES);
        let mut client = Client::connect(&pair.a.socket());
        client.write(20 * MIB, &pattern(1, 4096));
        // Both have it, as after QEMU's own flush at its end.
        client.flush();
        let disk = pair.a.disk.take().unwrap();
        let ended = std::thread::scope(|scope| {
            let ended = scope.spawn(|| disk.flush());
            std::thread::sleep(Duration::from_millis(moment_ms));
            pair.cut();
            // If it began without the partner it waits for a record, which does not come here.
            let deadline = Instant::now() + Duration::from_millis(500);
            while !ended.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            disk.role(pair.generation, DiskRole::Idle, false).unwrap();
            ended.join().unwrap()
        });
        drop(disk);
        let named = metadata_of(&pair.a.spec).load_maps().write_intent.iter().any(|word| *word != 0);
        eprintln!("{moment_ms} ms: {ended:?}, regions are named: {named}");
        assert!(ended.is_err() || !named, "cut after {moment_ms} ms");
    }
}

fn has_ended(report: &DiskReport) -> bool {
    report.comparison.is_some_and(|comparison| comparison.ended_unix_ms.is_some())
}

#[test]
fn a_comparison_repairs_what_was_changed_behind_the_partners_back() {
    use std::os::unix::fs::FileExt;
    let pair = Pair::in_step(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    client.write(20 * MIB, &pattern(1, 64 << 10));
    client.flush();
    let file = std::fs::OpenOptions::new().write(true).open(&pair.b.spec.replica).unwrap();
    file.write_all_at(&[0xdb; 512], 20 * MIB + 4096).unwrap();
    file.write_all_at(&[0xdb; 512], 200 * MIB).unwrap();
    // At this rate it lasts four seconds, and is seen on its way.
    let began = Instant::now();
    pair.a.disk().verify(true, Some(SIZE_BYTES / 4)).unwrap();
    pair.until_report("the comparison", |report| report.comparison.is_some_and(|seen| seen.compared_bytes > 0));
    client.write(100 * MIB, &pattern(2, 64 << 10));
    let report = pair.until_report("its end", has_ended);
    assert!(began.elapsed() >= Duration::from_millis(3_500), "it keeps to its rate: {:?}", began.elapsed());
    eprintln!("it took {:?}", began.elapsed());
    let compared = report.comparison.unwrap();
    assert!(compared.complete, "{compared:?}");
    assert_eq!(compared.compared_bytes, SIZE_BYTES);
    assert_eq!((compared.different_bytes, compared.repaired_bytes), (2 << 16, 2 << 16));
    assert_eq!(report.partner, Some(ReplicaState::Online));
    pair.a.disk().verify(false, None).unwrap();
    let again = pair.until_report("the next one", |report| has_ended(report) && report.comparison != Some(compared));
    assert_eq!(again.comparison.unwrap().different_bytes, 0);
    pair.close_and_compare();
}

#[test]
fn a_comparison_that_loses_its_link_is_not_complete() {
    let mut pair = Pair::in_step(SIZE_BYTES);
    pair.a.disk().verify(true, Some(16 << 20)).unwrap();
    pair.until_report("the comparison", |report| report.comparison.is_some());
    pair.cut();
    let report = pair.until_report("its end", has_ended);
    assert!(!report.comparison.unwrap().complete, "{report:?}");
}
