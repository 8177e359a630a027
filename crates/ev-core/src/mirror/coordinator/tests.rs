//! The coordinator by itself: what it asks for and when it acknowledges, message by message.

mod ahead;

use super::super::history::{Health, History, ReplicaInfo};
use super::super::log::RegionLog;
use super::super::message::{Durability, Epochs, Hello, LocalIo, MapWord, Outcome, RegionMap, WriteKind};
use super::super::region::Geometry;
use super::*;
use crate::ids::MemberId;

const HERE: HostId = MemberId(1);
const THERE: HostId = MemberId(2);
const GUEST: OpId = OpId(1);
const WRITE: Write =
    Write { extent: Extent { offset: 0, length: 512 }, kind: WriteKind::Data, durability: Durability::AtFlush };

/// A coordinator whose own storage does at once what it is asked for, except the guest's operations.
struct Bench {
    coordinator: Coordinator,
    now: Instant,
    done: Vec<Action>,
}

impl Bench {
    fn new(history: History) -> Self {
        let geometry = Geometry::new(1 << 20, 1 << 16, 1 << 12);
        let log = RegionLog::new(geometry, &[], &[]);
        let local = LocalReplica::new(HERE, 1, ReplicaInfo { health: Health::Good, history }, log);
        let settings = Settings { partner_timeout: Duration::from_secs(1), copy_bytes_per_s: None };
        let now = Instant(0);
        Self { coordinator: Coordinator::new(local, settings, now), now, done: Vec::new() }
    }

    /// Takes an input and gives what follows from it, metadata left out.
    fn step(&mut self, input: Input) -> Vec<Action> {
        let mut inputs = std::collections::VecDeque::from([input]);
        let mut seen = Vec::new();
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            self.coordinator.step(self.now, input, &mut out);
            for action in out {
                match action {
                    Action::Commit(_) => inputs.push_back(Input::Committed { ok: true }),
                    Action::Superblock(_) => inputs.push_back(Input::SuperblockStored { ok: true }),
                    other => seen.push(other),
                }
            }
        }
        self.done.extend(seen.clone());
        seen
    }

    fn record(&mut self, generation: u64, partner: bool) -> Vec<Action> {
        let good = Required { local: true, partner };
        self.step(Input::Record(Record { generation: Generation(generation), partner: Some(THERE), good }))
    }

    /// The link comes up, and the partner says that it holds `current` and nothing that is not in step.
    fn greet(&mut self, instance: u64, current: u64) -> Vec<Action> {
        self.step(Input::LinkUp);
        let history = History { current: Generation(current), bitmap_base: Generation(current) };
        let replica = ReplicaInfo { health: Health::Good, history };
        let hello = Hello { host: THERE, instance, generation: Generation(1), replica, epochs: Epochs::None };
        let mut seen = self.step(Input::Received(Message::Hello(hello)));
        for map in [RegionMap::WriteIntent, RegionMap::OutOfSync] {
            let message = Message::Regions { map, first_word: 0, words: vec![], last: true };
            seen.extend(self.step(Input::Received(message)));
        }
        seen
    }

    fn acknowledged(&self, op: OpId) -> bool {
        self.done.iter().any(|action| matches!(action, Action::Acknowledge(proof) if proof.op() == op))
    }

    fn partner_answers(&mut self, op: OpId) -> Vec<Action> {
        self.step(Input::Received(Message::Ack { op, outcome: Outcome::Done }))
    }
}

fn shared(generation: u64) -> History {
    History { current: Generation(generation), bitmap_base: Generation(generation) }
}

fn in_step() -> Bench {
    let mut bench = Bench::new(shared(1));
    bench.record(2, true);
    bench.greet(7, 1);
    bench
}

#[test]
fn a_write_is_acknowledged_when_it_is_done_on_both() {
    let mut bench = in_step();
    let asked = bench.step(Input::Write { op: GUEST, write: WRITE });
    assert_eq!(
        asked,
        [
            Action::Send(Message::Write { op: GUEST, write: WRITE }),
            Action::Local { op: GUEST, io: LocalIo::Write(WRITE) }
        ]
    );
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    assert!(!bench.acknowledged(GUEST));
    bench.partner_answers(GUEST);
    assert!(bench.acknowledged(GUEST));
}

#[test]
fn the_region_is_marked_durably_before_the_write_begins() {
    let mut bench = in_step();
    let mut out = Vec::new();
    bench.coordinator.step(bench.now, Input::Write { op: GUEST, write: WRITE }, &mut out);
    assert_eq!(out, [Action::Commit(vec![MapWord { map: RegionMap::WriteIntent, word: 0, bits: 1 }])]);
    let begun = bench.step(Input::Committed { ok: true });
    assert!(begun.contains(&Action::Local { op: GUEST, io: LocalIo::Write(WRITE) }), "{begun:?}");
}

#[test]
fn a_lost_link_holds_the_acknowledgement_until_the_record_and_the_same_instance_gets_it_again() {
    for comes_back in [false, true] {
        let mut bench = in_step();
        bench.step(Input::Write { op: GUEST, write: WRITE });
        bench.step(Input::LocalDone { op: GUEST, ok: true });
        bench.step(Input::LinkDown);
        assert!(!bench.acknowledged(GUEST));
        if comes_back {
            let again = bench.greet(7, 1);
            assert!(again.contains(&Action::Send(Message::Write { op: GUEST, write: WRITE })), "{again:?}");
            bench.partner_answers(GUEST);
        } else {
            bench.now = bench.now.after(Duration::from_secs(2));
            let wished = bench.step(Input::Tick);
            let wish = Wish::ReplicaLost { host: THERE, seen: Generation(2) };
            assert!(wished.contains(&Action::Wish(wish)), "{wished:?}");
            assert!(!bench.acknowledged(GUEST));
            bench.record(3, false);
        }
        assert!(bench.acknowledged(GUEST));
    }
}

#[test]
fn another_instance_is_given_up_and_copied_to() {
    let mut bench = in_step();
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    bench.step(Input::LinkDown);
    let wish = Wish::ReplicaLost { host: THERE, seen: Generation(2) };
    let seen = bench.greet(8, 1);
    assert!(seen.contains(&Action::Wish(wish)), "it may have lost what it had confirmed: {seen:?}");
    let seen = bench.record(3, false);
    assert!(bench.acknowledged(GUEST));
    let begins = |action: &Action| matches!(action, Action::Send(Message::CopyBegin { .. }));
    assert!(seen.iter().any(begins), "{seen:?}");
}

#[test]
fn the_first_record_does_not_rule_out_that_the_partner_is_about_to_be_called_good() {
    let begins = |action: &Action| matches!(action, Action::Send(Message::CopyBegin { .. }));
    let mut bench = Bench::new(shared(1));
    let wish = Wish::ReplicaLost { host: THERE, seen: Generation(2) };
    assert_eq!(bench.record(2, false), [Action::Wish(wish)]);
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: true });
    assert_eq!(bench.greet(7, 1), [], "no copy");
    assert!(!bench.acknowledged(GUEST), "a proposal of an earlier process may call it good, and it lacks the write");
    let seen = bench.record(3, false);
    assert!(bench.acknowledged(GUEST));
    assert!(seen.iter().any(begins), "{seen:?}");
}

#[test]
fn a_record_that_was_not_seen_ends_the_link_because_the_partner_may_have_been_active_by_it() {
    let closed = Action::CloseLink(super::super::message::CloseReason::RoleChanged);
    let good = Action::Wish(Wish::ReplicaGood { host: THERE, seen: Generation(3) });
    let seen = in_step().record(3, false);
    assert!(seen.contains(&good) && !seen.contains(&closed), "{seen:?}");
    let seen = in_step().record(4, false);
    assert_eq!(seen, [closed]);
}

#[test]
fn a_coordinator_is_another_instance_than_the_replica_that_it_was() {
    let mut bench = Bench::new(shared(1));
    let before = bench.coordinator.local().hello(Generation::NONE, Epochs::None).instance;
    let local = bench.coordinator.into_local();
    bench.coordinator = Coordinator::new(
        local,
        Settings { partner_timeout: Duration::from_secs(1), copy_bytes_per_s: None },
        bench.now,
    );
    let seen = bench.step(Input::LinkUp);
    assert!(matches!(seen[..], [Action::Send(Message::Hello(hello))] if hello.instance != before), "{seen:?}");
}

#[test]
fn with_a_failed_disk_reads_wait_until_the_partner_counts() {
    let mut bench = in_step();
    bench.record(3, false);
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::LocalDone { op: GUEST, ok: false });
    let read = OpId(2);
    let asked = Action::Send(Message::Read { op: read, extent: WRITE.extent });
    let seen = bench.step(Input::Read { op: read, extent: WRITE.extent });
    assert_eq!(seen, [], "another guest might not find there what this one reads");
    let seen = bench.record(4, true);
    assert!(seen.contains(&asked), "{seen:?}");
}

#[test]
fn who_has_served_nothing_takes_the_only_good_replica_as_it_is() {
    let mut bench = Bench::new(shared(1));
    let good = Required { local: false, partner: true };
    bench.step(Input::Record(Record { generation: Generation(2), partner: Some(THERE), good }));
    let entrusts = |seen: &[Action]| seen.iter().any(|a| matches!(a, Action::Send(Message::History { .. })));
    assert!(entrusts(&bench.greet(7, 1)));
    bench.step(Input::LinkDown);
    assert!(entrusts(&bench.greet(8, 1)), "it was opened anew before it had agreed");
}

#[test]
fn it_is_not_tidy_while_something_of_the_guest_is_under_way() {
    let mut bench = in_step();
    assert!(bench.coordinator.is_tidy());
    bench.step(Input::Write { op: GUEST, write: WRITE });
    bench.step(Input::Tidy);
    assert!(!bench.coordinator.is_tidy());
}

#[test]
fn a_link_after_a_long_time_without_one_is_given_time_to_greet() {
    let mut bench = in_step();
    bench.step(Input::LinkDown);
    bench.now = bench.now.after(Duration::from_secs(5));
    bench.step(Input::LinkUp);
    let silent = Action::CloseLink(super::super::message::CloseReason::Silent);
    assert!(!bench.step(Input::Tick).contains(&silent));
    bench.now = bench.now.after(Duration::from_secs(1));
    assert!(bench.step(Input::Tick).contains(&silent));
}

/// A coordinator whose log named a region when it was opened.
fn after_unclean_end() -> Bench {
    let mut bench = Bench::new(shared(1));
    let geometry = Geometry::new(1 << 20, 1 << 16, 1 << 12);
    let info = ReplicaInfo { health: Health::Good, history: shared(1) };
    let local = LocalReplica::new(HERE, 1, info, RegionLog::new(geometry, &[1], &[]));
    let settings = bench.coordinator.settings;
    bench.coordinator = Coordinator::new(local, settings, bench.now);
    bench
}

#[test]
fn after_an_unclean_end_the_partner_is_given_up_only_for_a_guest_that_goes_on_here() {
    let mut bench = after_unclean_end();
    bench.record(2, true);
    assert_eq!(bench.greet(7, 1), [], "it may hold more than this host, if this one has lost its power");
    let wish = Wish::ReplicaLost { host: THERE, seen: Generation(2) };
    assert_eq!(bench.step(Input::Read { op: GUEST, extent: WRITE.extent }), [Action::Wish(wish)]);
}

#[test]
fn reads_go_on_when_only_one_replica_counts_after_an_unclean_start() {
    for partner in [false, true] {
        let mut bench = after_unclean_end();
        bench.record(2, true);
        assert_eq!(bench.coordinator.reads_from(), None, "which of both counts is not known yet");
        bench.greet(7, 1);
        let good = Required { local: !partner, partner };
        bench.step(Input::Record(Record { generation: Generation(3), partner: Some(THERE), good }));
        if partner {
            bench.partner_answers(OpId(OpId::OWN + 1));
        }
        let source = if partner { Source::Partner } else { Source::Local };
        assert_eq!(bench.coordinator.reads_from(), Some(source));
    }
}

/// What a comparison asks the partner about, time and answers being the test's.
#[test]
fn a_comparison_keeps_to_its_rate_and_one_that_is_asked_for_meanwhile_sets_it_free() {
    let mut bench = in_step();
    let asked = |actions: &[Action]| {
        actions.iter().filter(|action| matches!(action, Action::Send(Message::HashRequest { .. }))).count()
    };
    // The disk has 1 MiB in regions of 64 KiB: at 256 KiB per second one region each quarter of a second.
    let begun = bench.step(Input::Verify { repair: true, bytes_per_s: Some(4 << 16) });
    assert_eq!(asked(&begun), 1);
    assert_eq!(bench.coordinator.copy_progress(), None, "it is no copy");
    assert!(bench.coordinator.comparison().is_some());
    bench.now = bench.now.after(Duration::from_millis(125));
    assert_eq!(asked(&bench.step(Input::Tick)), 0);
    bench.now = bench.now.after(Duration::from_millis(125));
    assert_eq!(asked(&bench.step(Input::Tick)), 1);
    bench.step(Input::Verify { repair: false, bytes_per_s: None });
    bench.now = bench.now.after(Duration::from_millis(250));
    assert!(asked(&bench.step(Input::Tick)) > 1);
}

/// Flushes, done on both replicas; whether anything was asked of them.
fn flush(bench: &mut Bench, op: u64) -> bool {
    let op = OpId(op);
    let asked = bench.step(Input::Flush { op });
    let needed = asked.contains(&Action::Local { op, io: LocalIo::Flush });
    assert_eq!(needed, asked.contains(&Action::Send(Message::Flush { op })));
    assert_eq!(needed, !bench.acknowledged(op));
    if needed {
        bench.step(Input::LocalDone { op, ok: true });
        bench.partner_answers(op);
        assert!(bench.acknowledged(op));
    }
    needed
}

fn write(bench: &mut Bench, op: u64) {
    bench.step(Input::Write { op: OpId(op), write: WRITE });
    bench.step(Input::LocalDone { op: OpId(op), ok: true });
    bench.partner_answers(OpId(op));
    assert!(bench.acknowledged(OpId(op)));
}

#[test]
fn what_was_flushed_already_is_not_flushed_again() {
    let mut bench = in_step();
    assert!(flush(&mut bench, 1), "what an earlier process wrote is not known");
    assert!(!flush(&mut bench, 2));
    write(&mut bench, 3);
    assert!(flush(&mut bench, 4));
    assert!(!flush(&mut bench, 5));
    bench.step(Input::LinkDown);
    bench.greet(7, 1);
    assert!(flush(&mut bench, 6), "who has flushed what is asked anew with each link");
}

#[test]
fn a_flush_covers_no_write_that_was_under_way_or_came_later() {
    let mut bench = in_step();
    let (held, covering, later) = (OpId(1), OpId(2), OpId(3));
    bench.step(Input::Write { op: held, write: WRITE });
    assert!(flush(&mut bench, 4), "of earlier writes");
    bench.step(Input::LocalDone { op: held, ok: true });
    bench.partner_answers(held);
    assert!(flush(&mut bench, 5), "it ended behind the flush");
    assert!(!flush(&mut bench, 6));
    write(&mut bench, 7);
    bench.step(Input::Flush { op: covering });
    bench.step(Input::Write { op: later, write: WRITE });
    for op in [covering, later] {
        bench.step(Input::LocalDone { op, ok: true });
        bench.partner_answers(op);
        assert!(bench.acknowledged(op));
    }
    assert!(flush(&mut bench, 8), "that write began behind the flush");
}

#[test]
fn a_flush_that_failed_here_covers_nothing() {
    let mut bench = in_step();
    write(&mut bench, 1);
    bench.step(Input::Flush { op: OpId(2) });
    bench.step(Input::LocalDone { op: OpId(2), ok: false });
    bench.partner_answers(OpId(2));
    let asked = bench.step(Input::Flush { op: OpId(3) });
    assert!(asked.contains(&Action::Send(Message::Flush { op: OpId(3) })), "{asked:?}");
}
