//! Level 3's way of writing: ahead of the partner, which keeps whole epochs aside until they are decided.

use std::time::Duration;

use ev_core::checkpoint::{Epoch, Session};
use ev_core::report::ReplicaState;
use ev_mirror::{DiskEvent, DiskRole, MarkError};

use super::client::Client;
use super::pair::{A, B, Pair, WAIT_TIMEOUT};
use super::{MIB, SIZE_BYTES, pattern};

const SESSION: Session = Session(77);

fn mark(pair: &Pair, epoch: u64) -> Result<(), MarkError> {
    pair.a.disk().mark_epoch(SESSION, Epoch(epoch)).unwrap().wait(WAIT_TIMEOUT)
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
    let mut pair = Pair::in_step_with_short_timeout(SIZE_BYTES);
    assert!(matches!(mark(&pair, 2), Err(MarkError::OutOfOrder)), "a session begins with its first epoch");
    pair.cut();
    pair.until_good(&[A]);
    assert!(matches!(mark(&pair, 1), Err(MarkError::NotInStep)));
    assert!(matches!(
        pair.b.disk().mark_epoch(SESSION, Epoch(1)).unwrap().wait(WAIT_TIMEOUT),
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

#[test]
fn while_the_guest_is_ahead_its_answers_need_no_lease_and_afterwards_they_do() {
    let mut pair = ahead();
    let mut client = Client::connect(&pair.a.socket());
    pair.a.gate.close();
    client.write(0, &pattern(1, 4096));
    client.flush();
    assert!(client.read(0, 4096) == pattern(1, 4096));
    assert_eq!(pair.a.disk().bytes_ahead(), 4096);
    pair.good = [A].into();
    pair.generation = pair.generation.next();
    pair.commit();
    pair.a.disk().end_ahead().unwrap();
    client.start_write(MIB, &pattern(2, 4096));
    client.set_timeout(Some(Duration::from_millis(300)));
    assert!(client.reply().is_err(), "another host may be active by now");
    client.set_timeout(None);
    pair.a.gate.open_always();
    assert_eq!(client.reply().unwrap(), 0);
}

#[test]
fn what_is_sent_ahead_is_counted_from_the_first_mark_on() {
    let pair = Pair::in_step(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    mark(&pair, 1).unwrap();
    assert_eq!(pair.a.disk().bytes_ahead(), 0);
    client.write(0, &pattern(1, 4096));
    mark(&pair, 2).unwrap();
    client.write(MIB, &pattern(1, 8192));
    assert_eq!(pair.a.disk().bytes_ahead(), 4096 + 8192);
}

#[test]
fn an_end_is_not_clean_while_the_standby_lacks_what_was_acknowledged() {
    let mut pair = ahead();
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    client.flush();
    assert!(pair.a.disk().flush().is_err(), "the record would say that both replicas are the same");
    assert!(pair.b.disk().flush().is_err(), "and it is not the standby's to say");
    pair.good = [A].into();
    pair.generation = pair.generation.next();
    pair.commit();
    pair.a.disk().end_ahead().unwrap();
    pair.a.disk().flush().unwrap();
}

#[test]
fn a_guest_that_writes_more_than_the_standby_can_hold_goes_on_without_it() {
    let pair = ahead();
    let mut client = Client::connect(&pair.a.socket());
    let data = pattern(5, 4 << 20);
    for at in 0..70 {
        client.write(at % 60 * 4 * MIB, &data);
    }
    let lost = |event: &DiskEvent| matches!(event, DiskEvent::EpochsLost { session: SESSION, .. });
    pair.b.until_event("too much is staged", lost);
    client.write(0, &pattern(6, 4096));
    assert!(client.read(0, 4096) == pattern(6, 4096));
    assert!(pair.b.bytes()[..4096] == [0; 4096], "nothing was decided");
}

#[test]
fn a_standby_that_is_still_writing_makes_the_guest_wait_instead_of_being_lost() {
    let pair = ahead();
    let mut client = Client::connect(&pair.a.socket());
    let socket = pair.a.socket();
    let data = pattern(7, 4 << 20);
    for epoch in 2..6 {
        for at in 0..50 {
            client.write(at * 4 * MIB + epoch * 4096, &data);
        }
        mark(&pair, epoch).unwrap();
        staged(&pair, epoch);
        pair.b.disk().apply_epoch(SESSION, Epoch(epoch)).unwrap();
    }
    apply_told(&pair, 5);
    assert!(pair.b.bytes() == pair.a.bytes());
    drop(Client::connect(&socket));
}

fn apply_told(pair: &Pair, number: u64) {
    pair.b.until_event("the epoch is applied", |event| {
        assert!(!matches!(event, DiskEvent::EpochsLost { .. }), "{event:?}");
        matches!(event, DiskEvent::EpochApplied { epoch, .. } if *epoch == Epoch(number))
    });
}

#[test]
fn a_replica_that_holds_the_disk_is_read_by_a_client_and_not_written() {
    let mut pair = Pair::in_step(SIZE_BYTES);
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    pair.b.gate.close();
    let mut waiting = Client::connect(&pair.b.socket());
    assert!(waiting.read(0, 4096) == pattern(1, 4096), "there is no guest here that a lease would be for");
    waiting.flush();
    waiting.start_write(0, &pattern(2, 512));
    assert_ne!(waiting.reply().unwrap(), 0);
    client.write(0, &pattern(3, 4096));
    assert!(waiting.read(0, 4096) == pattern(3, 4096));
    // The coordinator's numbers of operations are not the client's.
    for at in 0..100 {
        client.start_write(at * MIB, &pattern(4, 4096));
        waiting.start_read(at * MIB, 512);
    }
    for _ in 0..100 {
        assert_eq!(client.reply().unwrap(), 0);
    }
    drop(waiting);
    pair.generation = pair.generation.next();
    pair.commit();
    let disk = pair.close_and_compare();
    assert!(disk[..4096] == pattern(4, 4096));
}

#[test]
fn a_replica_that_was_never_whole_is_not_read() {
    let mut pair = Pair::new(SIZE_BYTES);
    pair.b.open();
    pair.commit();
    let mut waiting = Client::connect(&pair.b.socket());
    waiting.start_read(0, 512);
    assert_ne!(waiting.reply().unwrap(), 0);
}

#[test]
fn no_word_of_an_epoch_is_lost_when_the_am_is_slow_and_the_role_changes() {
    let mut pair = Pair::new(SIZE_BYTES);
    pair.b.events_max = 1;
    let pair = pair.into_step();
    for epoch in 1..12 {
        mark(&pair, epoch).unwrap();
    }
    for epoch in 1..12 {
        pair.b.until_event("each epoch is told in order", |event| match event {
            DiskEvent::EpochStaged { epoch: told, .. } => {
                assert_eq!(*told, Epoch(epoch));
                true
            }
            _ => false,
        });
    }
    pair.b.disk().apply_epoch(SESSION, Epoch(11)).unwrap();
    let role = DiskRole::Coordinator { partner: Some(A), good: [B].into() };
    pair.b.disk().role(pair.generation.next(), role, false).unwrap();
    for epoch in 1..12 {
        pair.b.until_event("and so is what is applied", |event| match event {
            DiskEvent::EpochApplied { epoch: told, .. } => {
                assert_eq!(*told, Epoch(epoch));
                true
            }
            _ => false,
        });
    }
}

#[test]
fn a_process_that_takes_up_a_guest_gives_up_a_partner_that_may_be_behind() {
    for was_ahead in [false, true] {
        let mut pair = Pair::in_step(SIZE_BYTES);
        pair.a.kill();
        pair.a.open();
        if was_ahead {
            pair.a.disk().was_ahead().unwrap();
        }
        pair.commit();
        pair.connect();
        let partner = if was_ahead { ReplicaState::Stale } else { ReplicaState::Online };
        pair.until_report("what becomes of the partner", |report| report.partner == Some(partner));
        if was_ahead {
            pair.until_good(&[A]);
        }
        pair.until_good(&[A, B]);
        pair.close_and_compare();
    }
}

#[test]
fn a_block_that_cannot_be_read_makes_the_guest_wait_and_the_am_is_told() {
    let pair = ahead();
    let mut client = Client::connect(&pair.a.socket());
    client.write(0, &pattern(1, 4096));
    // As if the storage had lost it.
    std::fs::File::options().write(true).open(&pair.a.spec.replica).unwrap().set_len(0).unwrap();
    client.start_read(0, 4096);
    let stuck = |event: &DiskEvent| matches!(event, DiskEvent::AheadStuck { session: SESSION, .. });
    pair.until_event("the AM hears that the guest waits", stuck);
    client.set_timeout(Some(Duration::from_millis(300)));
    assert!(client.reply().is_err(), "neither an error nor what the standby holds");
}
