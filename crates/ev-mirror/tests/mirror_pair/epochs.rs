//! Level 3's way of writing: ahead of the partner, which keeps whole epochs aside until they are decided.

use std::time::Duration;

use ev_core::checkpoint::{Epoch, Session};
use ev_core::report::ReplicaState;
use ev_mirror::{DiskEvent, DiskRole, MarkError};

use super::client::Client;
use super::pair::{A, B, Pair};
use super::{MIB, SIZE_BYTES, pattern};

const SESSION: Session = Session(77);
const MARK_TIME_MAX: Duration = Duration::from_secs(5);

fn mark(pair: &Pair, epoch: u64) -> Result<(), MarkError> {
    pair.a.disk().mark_epoch(SESSION, Epoch(epoch)).unwrap().wait(MARK_TIME_MAX)
}

/// Waits until all of the epoch is on the standby; whether the guest flushed in it.
fn staged(pair: &Pair, number: u64) -> bool {
    let event = pair.b.until_event(
        "the epoch is staged",
        |event| matches!(event, DiskEvent::EpochStaged { epoch, .. } if *epoch == Epoch(number)),
    );
    matches!(event, DiskEvent::EpochStaged { flushed: true, .. })
}

fn apply(pair: &Pair, number: u64) {
    pair.b.disk().apply_epoch(SESSION, Epoch(number)).unwrap();
    pair.b.until_event(
        "the epoch is applied",
        |event| matches!(event, DiskEvent::EpochApplied { epoch, .. } if *epoch == Epoch(number)),
    );
}

/// Both in step, and the first epoch over.
fn ahead() -> Pair {
    let pair = Pair::in_step(SIZE_BYTES);
    mark(&pair, 1).unwrap();
    assert!(!staged(&pair, 1));
    apply(&pair, 1);
    pair
}

#[test]
fn what_an_epoch_brings_reaches_the_standby_when_it_is_decided_and_in_the_guests_order() {
    let pair = ahead();
    let mut client = Client::connect(&pair.a.socket());
    let before = pair.b.bytes();
    for at in 0..40 {
        client.write(at * MIB, &pattern(1, 128 << 10));
        client.write(at * MIB + 4096, &pattern(2, 8192));
        client.write(at * MIB, &pattern(3, 512));
    }
    mark(&pair, 2).unwrap();
    assert!(!staged(&pair, 2), "nothing was flushed");
    client.write(MIB, &pattern(4, 64 << 10));
    client.flush();
    client.write(MIB + 512, &pattern(5, 512));
    mark(&pair, 3).unwrap();
    assert!(staged(&pair, 3));
    assert!(pair.b.bytes() == before, "nothing was decided yet");
    pair.b.disk().apply_epoch(SESSION, Epoch(2)).unwrap();
    apply(&pair, 3);
    assert!(pair.b.bytes() == pair.a.bytes());
}

#[test]
fn a_lost_link_holds_up_nobody_and_the_standby_is_brought_back_by_copy() {
    let mut pair = ahead();
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    mark(&pair, 2).unwrap();
    staged(&pair, 2);
    client.write(3 * MIB, &pattern(2, 4096));
    pair.cut();
    client.write(5 * MIB, &pattern(3, 4096));
    client.flush();
    assert!(matches!(mark(&pair, 3), Err(MarkError::NotInStep)));
    pair.connect();
    pair.b.until_event("a new link", |event| matches!(event, DiskEvent::LinkUp { .. }));
    // Decided before the link was lost, told after it.
    apply(&pair, 2);
    let at = |mib: u64| usize::try_from(mib * MIB).unwrap();
    let standby = pair.b.bytes();
    assert!(standby[..4096] == pattern(1, 4096) && standby[at(3)..at(3) + 4096] == [0; 4096]);
    pair.b.disk().discard_epochs().unwrap();
    pair.good = [A].into();
    pair.generation = pair.generation.next();
    pair.commit();
    pair.a.disk().end_ahead().unwrap();
    pair.connect();
    pair.until_good(&[A, B]);
    pair.until_report("both in step", |report| report.partner == Some(ReplicaState::Online));
    client.write(7 * MIB, &pattern(4, 4096));
    let disk = pair.close_and_compare();
    for (mib, seed) in [(0, 1), (3, 2), (5, 3), (7, 4)] {
        assert!(disk[at(mib)..at(mib) + 4096] == pattern(seed, 4096), "{mib} MiB");
    }
}

#[test]
fn a_standby_takes_over_from_what_was_decided_and_its_client_stays_connected() {
    let pair = ahead();
    let mut waiting = Client::connect(&pair.b.socket());
    assert!(waiting.read(0, 512) == [0; 512]);
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    client.flush();
    mark(&pair, 2).unwrap();
    assert!(staged(&pair, 2));
    client.write(0, &pattern(2, 4096));
    client.write(MIB, &pattern(3, 4096));
    mark(&pair, 3).unwrap();
    staged(&pair, 3);
    pair.b.disk().apply_epoch(SESSION, Epoch(2)).unwrap();
    // In this moment the old active host is dead, and the new record comes.
    let role = DiskRole::Coordinator { partner: Some(A), good: [B].into() };
    let taken = pair.generation.next();
    pair.b.disk().role(taken, role.clone(), false).unwrap();
    // As at each start of a guest: what an earlier process here may have proposed is made void first.
    pair.b.until_event(
        "a newer record is asked for",
        |event| matches!(event, DiskEvent::ReplicaLost { host: A, seen, .. } if *seen == taken),
    );
    pair.b.disk().role(taken.next(), role, false).unwrap();
    waiting.write(2 * MIB, &pattern(4, 4096));
    assert!(waiting.read(0, 4096) == pattern(1, 4096), "epoch 2 was decided");
    assert!(waiting.read(MIB, 4096) == [0; 4096], "epoch 3 was not");
    assert!(waiting.read(2 * MIB, 4096) == pattern(4, 4096));
}

#[test]
fn a_disk_that_is_not_in_step_does_not_write_ahead() {
    let mut pair = Pair::in_step(SIZE_BYTES);
    assert!(matches!(mark(&pair, 2), Err(MarkError::OutOfOrder)), "a session begins with its first epoch");
    pair.cut();
    pair.until_good(&[A]);
    assert!(matches!(mark(&pair, 1), Err(MarkError::NotInStep)));
    assert!(matches!(
        pair.b.disk().mark_epoch(SESSION, Epoch(1)).unwrap().wait(MARK_TIME_MAX),
        Err(MarkError::NotInStep)
    ));
}

#[test]
fn a_disk_that_writes_ahead_no_longer_waits_for_the_partner_again() {
    let mut pair = ahead();
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    pair.a.disk().end_ahead().unwrap();
    client.start_write(MIB, &pattern(2, 4096));
    client.set_timeout(Some(Duration::from_millis(300)));
    assert!(client.reply().is_err(), "the record still counts on the partner, which lacks the first write");
    client.set_timeout(None);
    pair.b.disk().discard_epochs().unwrap();
    pair.until_good(&[A]);
    assert_eq!(client.reply().unwrap(), 0);
}
