//! Writing ahead of the partner: what is acknowledged, what stays in the log, and what follows from a loss.

use super::super::super::message::{CloseReason, CopyKind, MarkRefusal};
use super::*;

const SESSION: Session = Session(7);
const FLUSH: OpId = OpId(20);

fn mark(bench: &mut Bench, epoch: u64) -> Vec<Action> {
    bench.step(Input::MarkEpoch { session: SESSION, epoch: Epoch(epoch) })
}

fn end_of(epoch: u64) -> Action {
    Action::Send(Message::EpochEnd { session: SESSION, epoch: Epoch(epoch) })
}

fn ahead() -> Bench {
    let mut bench = in_step();
    assert_eq!(mark(&mut bench, 1), [end_of(1), Action::Marked(Ok(()))]);
    bench
}

fn lost(seen: u64) -> Action {
    Action::Wish(Wish::ReplicaLost { host: THERE, seen: Generation(seen) })
}

fn begins_copy(seen: &[Action]) -> bool {
    seen.iter().any(|action| matches!(action, Action::Send(Message::CopyBegin { .. })))
}

fn logged(bench: &Bench) -> u64 {
    bench.coordinator.local().log().intent_count()
}

fn write_at(region: u64) -> Write {
    Write { extent: Extent { offset: region << 16, length: 512 }, ..WRITE }
}

#[test]
fn a_write_is_sent_first_and_acknowledged_when_it_is_done_here() {
    let mut bench = ahead();
    let asked = bench.step(Input::Write { op: GUEST, write: WRITE });
    let sent = Action::Send(Message::Write { op: GUEST, write: WRITE });
    assert_eq!(asked, [sent, Action::Local { op: GUEST, io: LocalIo::Write(WRITE) }]);
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    assert!(bench.acknowledged(GUEST));
    assert_eq!(bench.coordinator.ops_in_flight(), 0, "the partner does not answer what it holds back");
    assert_eq!(mark(&mut bench, 2), [end_of(2), Action::Marked(Ok(()))]);
}

#[test]
fn a_region_is_still_logged_before_it_is_written() {
    let mut bench = ahead();
    let mut out = Vec::new();
    bench.coordinator.step(bench.now, Input::Write { op: GUEST, write: WRITE }, &mut out);
    assert_eq!(out, [Action::Commit(vec![MapWord { map: RegionMap::WriteIntent, word: 0, bits: 1 }])]);
}

#[test]
fn a_write_that_was_under_way_at_the_first_mark_waits_for_the_partner_no_longer() {
    let mut bench = in_step();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    assert!(!bench.acknowledged(GUEST));
    mark(&mut bench, 1);
    assert!(bench.acknowledged(GUEST));
    assert_eq!(bench.partner_answers(GUEST), [], "its answer comes late");
}

#[test]
fn the_log_is_thinned_out_when_the_partner_has_applied_the_flush() {
    let mut bench = ahead();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    let asked = bench.step(Input::Flush { op: FLUSH });
    assert_eq!(asked, [Action::Send(Message::Flush { op: FLUSH }), Action::Local { op: FLUSH, io: LocalIo::Flush }]);
    bench.step(Input::LocalDone { op: FLUSH, ok: true });
    assert!(bench.acknowledged(FLUSH));
    assert_eq!(bench.coordinator.guest_ops_in_flight(), 0, "the guest has its answer");
    bench.step(Input::Tidy);
    assert_eq!(logged(&bench), 1, "the partner may lose the write");
    assert!(!bench.coordinator.is_tidy());
    bench.partner_answers(FLUSH);
    bench.step(Input::Tidy);
    assert_eq!(logged(&bench), 0);
    assert_eq!(bench.coordinator.ops_in_flight(), 0);
}

#[test]
fn a_region_that_was_written_after_the_flush_stays_in_the_log() {
    let mut bench = ahead();
    for (number, region) in [(1, 0), (2, 1)] {
        bench.step(Input::Write { op: OpId(number), write: write_at(region) });
        bench.step(Input::LocalDone { op: OpId(number), ok: true });
    }
    bench.step(Input::Flush { op: FLUSH });
    bench.step(Input::Write { op: OpId(3), write: write_at(1) });
    bench.step(Input::LocalDone { op: OpId(3), ok: true });
    bench.step(Input::LocalDone { op: FLUSH, ok: true });
    bench.partner_answers(FLUSH);
    bench.step(Input::Tidy);
    let left: Vec<u64> = bench.coordinator.local().log().intent().iter().collect();
    assert_eq!(left, [1]);
}

#[test]
fn an_idle_disk_is_settled_while_writing_ahead_too() {
    let mut bench = ahead();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    bench.step(Input::Tick);
    let mut flush = None;
    for _ in 0..12 {
        bench.now = bench.now.after(Duration::from_millis(500));
        // The partner lives.
        bench.step(Input::Received(Message::KeepAlive));
        for action in bench.step(Input::Tick) {
            if let Action::Send(Message::Flush { op }) = action {
                flush = Some(op);
            }
        }
    }
    let flush = flush.expect("a flush of our own");
    bench.step(Input::LocalDone { op: flush, ok: true });
    assert_eq!(logged(&bench), 1);
    bench.partner_answers(flush);
    assert_eq!(logged(&bench), 0);
}

#[test]
fn more_flushes_than_are_followed_are_acknowledged_all_the_same() {
    let mut bench = ahead();
    let most = u64::try_from(super::super::ahead::TRAILING_MAX).expect("a small number");
    for op in (0..most + 5).map(|number| OpId(100 + number)) {
        bench.step(Input::Write { op: GUEST, write: WRITE });
        bench.step(Input::LocalDone { op: GUEST, ok: true });
        bench.step(Input::Flush { op });
        bench.step(Input::LocalDone { op, ok: true });
        assert!(bench.acknowledged(op));
    }
    assert_eq!(bench.coordinator.ops_in_flight(), super::super::ahead::TRAILING_MAX);
}

#[test]
fn a_lost_link_stops_nobody_and_the_partner_comes_back_by_a_copy_only() {
    let mut bench = ahead();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::Flush { op: FLUSH });
    bench.step(Input::LocalDone { op: FLUSH, ok: true });
    bench.step(Input::LinkDown);
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    assert!(bench.acknowledged(GUEST) && bench.acknowledged(FLUSH));
    assert_eq!(bench.coordinator.ops_in_flight(), 0, "nobody waits for the partner");
    assert_eq!(mark(&mut bench, 2), [Action::Marked(Err(MarkRefusal::NotInStep))]);
    let alone = bench.step(Input::Write { op: OpId(2), write: write_at(3) });
    assert_eq!(alone, [Action::Local { op: OpId(2), io: LocalIo::Write(write_at(3)) }]);
    bench.step(Input::LocalDone { op: OpId(2), ok: true });
    assert!(bench.acknowledged(OpId(2)));
    bench.now = bench.now.after(Duration::from_secs(9));
    let told = bench.step(Input::Tick);
    assert!(
        !told.iter().any(|action| matches!(action, Action::Wish(_))),
        "memory and disks are given up at once: {told:?}"
    );
    assert_eq!(bench.greet(7, 1), [], "the same instance lacks what was acknowledged");
    assert_eq!(logged(&bench), 2);
    let seen = bench.record(3, false);
    assert!(begins_copy(&seen) && bench.coordinator.ahead().is_none(), "{seen:?}");
    let marked: Vec<u64> = bench.coordinator.local().log().out_of_sync().iter().collect();
    assert_eq!(marked, [0, 3]);
}

#[test]
fn a_record_without_the_partner_ends_the_link_that_was_in_step() {
    let mut bench = ahead();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    let seen = bench.record(3, false);
    assert_eq!(seen, [Action::CloseLink(CloseReason::EpochsEnded)], "and no proposal that it be good again");
    let seen = bench.greet(7, 1);
    let kind = |action: &Action| matches!(action, Action::Send(Message::CopyBegin { kind: CopyKind::Delta, .. }));
    assert!(seen.iter().any(kind), "{seen:?}");
    bench.step(Input::EndAhead);
    assert!(bench.coordinator.partner.takes_part() || begins_copy(&seen), "it changes nothing any more");
}

#[test]
fn told_to_end_too_early_nothing_is_acknowledged_before_a_record_without_the_partner() {
    let mut bench = ahead();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    bench.step(Input::Write { op: OpId(2), write: write_at(1) });
    let seen = bench.step(Input::EndAhead);
    assert_eq!(seen, [Action::CloseLink(CloseReason::EpochsEnded), lost(2)]);
    bench.step(Input::LocalDone { op: OpId(2), ok: true });
    assert!(!bench.acknowledged(OpId(2)));
    assert_eq!(bench.greet(7, 1), [], "the same instance is not taken up with");
    assert_eq!(mark(&mut bench, 2), [Action::Marked(Err(MarkRefusal::NotInStep))]);
    assert_eq!(mark(&mut bench, 1), [Action::Marked(Err(MarkRefusal::NotInStep))]);
    let seen = bench.record(3, false);
    assert!(bench.acknowledged(OpId(2)) && begins_copy(&seen), "{seen:?}");
}

#[test]
fn a_partner_that_was_written_ahead_of_is_never_left_alone_with_the_disk() {
    let mut bench = ahead();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    bench.step(Input::EndAhead);
    bench.step(Input::Write { op: OpId(2), write: WRITE });
    let seen = bench.step(Input::LocalDone { op: OpId(2), ok: false });
    bench.now = bench.now.after(Duration::from_secs(9));
    let later = bench.step(Input::Tick);
    let gives_up_own = |a: &Action| matches!(a, Action::Wish(Wish::ReplicaLost { host: HERE, .. }));
    assert!(!seen.iter().chain(&later).any(gives_up_own), "{seen:?} {later:?}");
}

#[test]
fn a_failed_replica_holds_the_guest_without_an_error() {
    let mut bench = ahead();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    let seen = bench.step(Input::LocalDone { op: GUEST, ok: false });
    assert_eq!(seen, [Action::Trouble(Trouble::LocalFailed), Action::AheadStuck { session: SESSION }]);
    let read = OpId(2);
    assert_eq!(bench.step(Input::Read { op: read, extent: WRITE.extent }), [], "the partner's content is older");
    assert_eq!(bench.step(Input::Write { op: OpId(3), write: WRITE }), [], "behind the first one");
    assert_eq!(bench.step(Input::Write { op: OpId(4), write: write_at(5) }), [], "it has not happened");
    assert_eq!(bench.step(Input::Flush { op: FLUSH }), []);
    assert_eq!(mark(&mut bench, 2), [Action::Marked(Err(MarkRefusal::NotInStep))]);
    assert_eq!(bench.step(Input::LinkDown), []);
    // Should the standby be lost all the same, nobody is left who could do it.
    let seen = bench.record(3, false);
    for op in [GUEST, read, OpId(3), OpId(4), FLUSH] {
        assert!(seen.contains(&Action::Fail { op }), "{op:?}: {seen:?}");
    }
}

#[test]
fn a_block_that_cannot_be_read_here_is_not_read_from_the_partner() {
    let mut bench = ahead();
    bench.step(Input::Read { op: GUEST, extent: WRITE.extent });
    let seen = bench.step(Input::LocalDone { op: GUEST, ok: false });
    assert_eq!(seen, [Action::Trouble(Trouble::ReadWaits), Action::AheadStuck { session: SESSION }]);
    let other = OpId(2);
    bench.step(Input::Read { op: other, extent: write_at(1).extent });
    assert_eq!(bench.step(Input::LocalDone { op: other, ok: false }), [], "it is said once");
    let again = bench.step(Input::LinkDown);
    assert!(again.contains(&Action::Local { op: GUEST, io: LocalIo::Read { extent: WRITE.extent } }), "{again:?}");
    let seen = bench.step(Input::LocalDone { op: GUEST, ok: true });
    assert_eq!(seen, [Action::Answer { op: GUEST, source: Source::Local }]);
}

#[test]
fn what_cannot_be_marked_is_refused_and_changes_nothing() {
    let refused = |bench: &mut Bench, epoch| mark(bench, epoch);
    let no = |why| vec![Action::Marked(Err(why))];
    assert_eq!(refused(&mut in_step(), 2), no(MarkRefusal::OutOfOrder), "a session begins with its first epoch");
    for epoch in [0, 1, 3] {
        assert_eq!(refused(&mut ahead(), epoch), no(MarkRefusal::OutOfOrder));
    }
    let other = Input::MarkEpoch { session: Session(8), epoch: Epoch(2) };
    assert_eq!(ahead().step(other), no(MarkRefusal::OutOfOrder));
    let mut apart = in_step();
    apart.step(Input::LinkDown);
    assert_eq!(refused(&mut apart, 1), no(MarkRefusal::NotInStep));
    let mut without = in_step();
    without.record(3, false);
    assert_eq!(refused(&mut without, 1), no(MarkRefusal::NotInStep));
    let mut failed = in_step();
    failed.step(Input::Write { op: GUEST, write: WRITE });
    failed.step(Input::LocalDone { op: GUEST, ok: false });
    assert_eq!(refused(&mut failed, 1), no(MarkRefusal::NotInStep));
    assert_eq!(refused(&mut Bench::new(shared(1)), 1), no(MarkRefusal::NotInStep), "there is no record");
}

#[test]
fn a_copy_is_waited_for_and_a_comparison_is_not() {
    let mut copying = in_step();
    copying.step(Input::LinkDown);
    copying.record(3, false);
    copying.step(Input::Write { op: GUEST, write: WRITE });
    copying.step(Input::LocalDone { op: GUEST, ok: true });
    assert!(begins_copy(&copying.greet(7, 1)));
    copying.partner_answers(OpId(OpId::OWN + 1));
    assert!(copying.coordinator.is_copying());
    assert_eq!(mark(&mut copying, 1), [Action::Marked(Err(MarkRefusal::Copying))]);
    let mut comparing = in_step();
    comparing.step(Input::Verify { repair: true, bytes_per_s: None });
    let seen = mark(&mut comparing, 1);
    let stops = |action: &Action| matches!(action, Action::Verified(Verified { complete: false, .. }));
    assert!(seen.iter().any(stops) && seen.ends_with(&[end_of(1), Action::Marked(Ok(()))]), "{seen:?}");
    let seen = comparing.step(Input::Verify { repair: false, bytes_per_s: None });
    assert!(seen.iter().all(stops) && seen.len() == 1, "both differ, by as much as is written ahead: {seen:?}");
}

#[test]
fn a_partner_that_holds_epochs_is_not_taken_up_with() {
    for epochs in [Epochs::None, Epochs::Held] {
        // This process has written nothing, and both logs are empty: a clean start.
        let mut bench = Bench::new(shared(1));
        bench.record(2, true);
        bench.step(Input::LinkUp);
        let replica = ReplicaInfo { health: Health::Good, history: shared(1) };
        let hello = Hello { host: THERE, instance: 7, generation: Generation(1), replica, epochs };
        let mut seen = bench.step(Input::Received(Message::Hello(hello)));
        for map in [RegionMap::WriteIntent, RegionMap::OutOfSync] {
            let message = Message::Regions { map, first_word: 0, words: vec![], last: true };
            seen.extend(bench.step(Input::Received(message)));
        }
        let expected = if epochs == Epochs::Held { vec![lost(2)] } else { vec![] };
        assert_eq!(seen, expected, "somebody may still go on from them");
    }
}

#[test]
fn a_record_that_names_the_memorys_keeper_changes_nothing() {
    let mut bench = ahead();
    assert_eq!(bench.record(3, true), []);
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    assert!(bench.acknowledged(GUEST));
    assert_eq!(mark(&mut bench, 2), [end_of(2), Action::Marked(Ok(()))]);
}

#[test]
fn what_is_flushed_here_is_not_flushed_again_ahead_of_the_partner_and_is_when_it_is_waited_for() {
    let mut bench = ahead();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    bench.step(Input::Flush { op: FLUSH });
    bench.step(Input::LocalDone { op: FLUSH, ok: true });
    assert!(bench.acknowledged(FLUSH));
    assert_eq!(mark(&mut bench, 2), [end_of(2), Action::Marked(Ok(()))]);
    // QEMU flushes at the next stop.
    let again = OpId(21);
    assert!(matches!(bench.step(Input::Flush { op: again })[..], [Action::Acknowledge(_)]));
    bench.step(Input::EndAhead);
    let last = OpId(22);
    let asked = bench.step(Input::Flush { op: last });
    assert!(!bench.acknowledged(last), "{asked:?}");
}
