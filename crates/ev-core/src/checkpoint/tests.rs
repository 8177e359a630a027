//! Single rules of the engines. That they hold together is shown by the simulation (`ev-sim`).

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::ids::DiskId;
use crate::time::Instant;

const SESSION: Session = Session(7);
const DISK: DiskId = DiskId(Uuid::from_u128(1));
const PAUSE: Duration = Duration::from_millis(5);

fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

fn step(engine: &mut Primary, ms: u64, event: Event) -> Vec<Action> {
    let mut out = Vec::new();
    engine.step(at(ms), event, &mut out);
    out
}

fn confirm(epoch: u64, echo_ms: u64) -> Event {
    Event::Confirmed { session: SESSION, epoch: Epoch(epoch), echo: at(echo_ms) }
}

fn let_out_until(ms: u64) -> Action {
    Action::LetOutUntil(at(ms))
}

/// The first checkpoint is captured at 20 ms.
fn joining() -> Primary {
    let mut engine = Primary::new(PaceLimits::default(), at(0));
    assert_eq!(step(&mut engine, 0, Event::LinkUp), []);
    assert_eq!(step(&mut engine, 0, Event::Wanted { session: Some(SESSION) }), [Action::Begin { session: SESSION }]);
    assert_eq!(step(&mut engine, 5, Event::Tick), [], "the standby has not opened the session");
    assert_eq!(step(&mut engine, 8, confirm(0, 0)), [], "its memory is empty");
    let other = Event::Filled { session: Session(8) };
    assert_eq!(step(&mut engine, 9, other), []);
    assert_eq!(step(&mut engine, 10, Event::Filled { session: SESSION }), [Action::Capture { epoch: Epoch::FIRST }]);
    assert_eq!(step(&mut engine, 20, Event::Captured { epoch: Epoch::FIRST, pause: PAUSE }), []);
    assert_eq!((engine.phase(), engine.running()), (Phase::Joining, Epoch(2)));
    engine
}

fn protected() -> Primary {
    let mut engine = joining();
    let first = step(&mut engine, 30, confirm(1, 20));
    assert_eq!(
        first,
        [let_out_until(520), Action::Release(Output::Through(Epoch::FIRST)), Action::Propose(Proposal::StandbyHolds)],
        "the memory is there before the record says so"
    );
    assert_eq!(step(&mut engine, 40, Event::Record(Standing::MayGoOn)), []);
    assert_eq!(engine.phase(), Phase::Protected);
    engine
}

#[test]
fn what_the_standby_can_not_have_decided_releases_nothing() {
    let mut engine = protected();
    let other = Event::Confirmed { session: Session(8), epoch: Epoch(2), echo: at(40) };
    for wrong in [other, confirm(2, 40), confirm(9, 40), confirm(0, 40)] {
        assert_eq!(step(&mut engine, 41, wrong), [], "{wrong:?}");
    }
}

#[test]
fn what_was_released_may_leave_for_as_long_as_the_standby_is_heard_and_a_moment_more() {
    let mut engine = protected();
    assert_eq!(step(&mut engine, 450, confirm(1, 400)), [let_out_until(900)], "said again");
    assert_eq!(step(&mut engine, 901, confirm(1, 400)), [], "it stood still: the standby may have gone on meanwhile");
}

#[test]
fn a_confirmation_of_old_is_not_acted_on_until_a_fresh_one_comes() {
    let mut engine = protected();
    assert_eq!(step(&mut engine, 100, Event::OutputWaits), [Action::Capture { epoch: Epoch(2) }]);
    assert_eq!(step(&mut engine, 105, Event::Captured { epoch: Epoch(2), pause: PAUSE }), []);
    assert_eq!(step(&mut engine, 650, confirm(2, 100)), []);
    let fresh = step(&mut engine, 660, confirm(2, 600));
    assert_eq!(fresh, [let_out_until(1_100), Action::Release(Output::Through(Epoch(2)))]);
}

#[test]
fn a_standby_that_is_lost_in_the_first_pause_needs_a_record_before_output_is_free() {
    let mut engine = Primary::new(PaceLimits::default(), at(0));
    step(&mut engine, 0, Event::LinkUp);
    step(&mut engine, 0, Event::Wanted { session: Some(SESSION) });
    step(&mut engine, 9, confirm(0, 0));
    assert_eq!(step(&mut engine, 10, Event::Filled { session: SESSION }), [Action::Capture { epoch: Epoch::FIRST }]);
    let lost = step(&mut engine, 11, Event::LinkDown);
    assert_eq!(lost, [Action::End, Action::Propose(Proposal::StandbyLost)]);
    assert_eq!(step(&mut engine, 12, Event::Record(Standing::Nothing)), [], "the pause is not over");
    let over = step(&mut engine, 15, Event::Captured { epoch: Epoch::FIRST, pause: PAUSE });
    assert_eq!(over, [Action::Release(Output::Free)]);
}

#[test]
fn a_lost_standby_holds_output_until_the_record_is_without_it_and_for_good_if_it_took_over() {
    for (standing, freed) in [(Standing::Nothing, true), (Standing::Everything, false)] {
        let mut engine = protected();
        let lost = step(&mut engine, 50, Event::LinkDown);
        assert_eq!(lost, [Action::End, Action::Propose(Proposal::StandbyLost)]);
        assert_eq!(step(&mut engine, 500, Event::Tick), []);
        let again = step(&mut engine, 1_060, Event::Tick);
        assert_eq!(again, [Action::Propose(Proposal::StandbyLost)], "its answer was lost");
        let after = step(&mut engine, 1_070, Event::Record(standing));
        assert_eq!(after.contains(&Action::Release(Output::Free)), freed, "{standing:?}: {after:?}");
        assert_eq!(step(&mut engine, 9_000, Event::Tick), [], "{standing:?}");
    }
}

#[test]
fn a_standby_that_the_record_drops_while_a_checkpoint_is_due_leaves_output_free() {
    let mut engine = joining();
    assert_eq!(step(&mut engine, 25, confirm(1, 20)).len(), 3);
    assert_eq!(step(&mut engine, 26, Event::Record(Standing::Nothing)), [Action::End]);
    assert_eq!(step(&mut engine, 27, Event::Tick), [Action::Release(Output::Free)]);
    let mut engine = joining();
    step(&mut engine, 21, Event::OutputWaits);
    step(&mut engine, 22, Event::Record(Standing::Nothing));
    let confirmed = step(&mut engine, 80, confirm(1, 70));
    assert_eq!(confirmed, [let_out_until(570), Action::Release(Output::Through(Epoch::FIRST)), Action::End]);
    assert_eq!(step(&mut engine, 81, Event::Tick), [Action::Release(Output::Free)]);
}

#[test]
fn a_silent_standby_is_given_up() {
    let mut engine = protected();
    assert_eq!(step(&mut engine, 729, Event::Tick), []);
    let lost = step(&mut engine, 731, Event::Tick);
    assert_eq!(lost, [Action::End, Action::Propose(Proposal::StandbyLost)]);
}

#[test]
fn a_standby_that_prepares_itself_is_given_time() {
    let mut engine = Primary::new(PaceLimits::default(), at(0));
    step(&mut engine, 0, Event::LinkUp);
    assert_eq!(step(&mut engine, 0, Event::Wanted { session: Some(SESSION) }), [Action::Begin { session: SESSION }]);
    assert_eq!(step(&mut engine, 9_999, Event::Tick), []);
    assert_eq!(step(&mut engine, 10_000, Event::Tick), [Action::End]);
}

#[test]
fn checkpoints_come_at_once_for_output_and_seldom_without() {
    let limits = PaceLimits { run_per_pause_waiting: 3, run_per_pause_resting: 1, ..PaceLimits::default() };
    let mut pace = Pace::new(limits, at(0));
    pace.captured(at(0), PAUSE);
    assert!(!pace.is_due(at(999), 0));
    assert!(pace.is_due(at(1_000), 0), "the least that a takeover must not repeat");
    assert!(!pace.is_due(at(1_000), limits.unconfirmed), "the standby is behind");
    pace.output();
    assert!(!pace.is_due(at(14), 0), "the guest has to run as well");
    assert!(pace.is_due(at(15), 0));
    let waits_for_rest = [4, 5, 14, 15].map(|ms| pace.waits_for_rest(at(ms), 0));
    assert_eq!(waits_for_rest, [false, true, true, false]);
    assert!(!pace.waits_for_rest(at(5), limits.unconfirmed), "the standby is behind");
    pace.rested();
    assert!(!pace.is_due(at(4), 0), "it rests because it was stopped a moment ago");
    assert!(pace.is_due(at(5), 0));
    pace.captured(at(50), PAUSE);
    assert!(!pace.is_due(at(100), 0), "nobody waits any more");
    assert!(!pace.waits_for_rest(at(100), 0));
    pace.output();
    assert!(!pace.is_due(at(64), 0), "that it rested was long ago");
}

#[test]
fn a_guest_that_is_waited_for_has_its_checkpoint_when_it_rests() {
    let mut engine = protected();
    assert_eq!(step(&mut engine, 100, Event::OutputWaits), [Action::Capture { epoch: Epoch(2) }]);
    assert!(!engine.waits_for_rest(at(104)), "it is being captured");
    assert_eq!(step(&mut engine, 105, Event::Captured { epoch: Epoch(2), pause: PAUSE }), []);
    assert!(!engine.waits_for_rest(at(110)), "nobody waits");
    assert_eq!(step(&mut engine, 110, Event::OutputWaits), []);
    assert!(engine.waits_for_rest(at(111)));
    assert_eq!(step(&mut engine, 111, Event::Tick), []);
    assert_eq!(step(&mut engine, 112, Event::Rested), [Action::Capture { epoch: Epoch(3) }]);
}

#[test]
fn a_guest_that_runs_ahead_of_what_is_sent_is_slowed_until_the_standby_has_it() {
    let mut engine = protected();
    assert_eq!(step(&mut engine, 100, Event::OutputWaits), [Action::Capture { epoch: Epoch(2) }]);
    assert_eq!(step(&mut engine, 105, Event::Captured { epoch: Epoch(2), pause: PAUSE }), []);
    assert_eq!(step(&mut engine, 200, Event::OutputWaits), [Action::Capture { epoch: Epoch(3) }]);
    assert_eq!(step(&mut engine, 205, Event::Captured { epoch: Epoch(3), pause: PAUSE }), []);
    for at_ms in [600, 1_204] {
        let said_again = step(&mut engine, at_ms, confirm(1, at_ms));
        assert_eq!(said_again, [let_out_until(at_ms + 500)], "the link may just have been busy");
    }
    assert_eq!(step(&mut engine, 1_205, Event::Tick), [Action::Brake]);
    assert_eq!(step(&mut engine, 1_400, Event::Tick), [], "one at a time");
    assert_eq!(step(&mut engine, 1_401, Event::Braked), []);
    assert_eq!(step(&mut engine, 1_430, Event::Tick), [], "it runs for a while");
    assert_eq!(step(&mut engine, 1_431, Event::Tick), [Action::Brake]);
    assert_eq!(step(&mut engine, 1_500, Event::Braked), []);
    let confirmed = step(&mut engine, 1_510, confirm(2, 1_505));
    let released = [let_out_until(2_005), Action::Release(Output::Through(Epoch(2)))];
    assert_eq!(confirmed, [&released[..], &[Action::Capture { epoch: Epoch(4) }]].concat());
    assert_eq!(step(&mut engine, 1_600, Event::Tick), []);
}

#[test]
fn a_guest_that_is_taken_up_under_a_record_with_memory_holds_output_until_one_without() {
    let mut engine = Primary::taken_up(PaceLimits::default(), at(0));
    assert_eq!(step(&mut engine, 1, Event::Tick), [Action::Propose(Proposal::StandbyLost)]);
    assert_eq!(step(&mut engine, 2, Event::Record(Standing::Nothing)), [Action::Release(Output::Free)]);
}

fn tell(engine: &mut Standby, event: StandbyEvent) -> Vec<StandbyAction> {
    let mut out = Vec::new();
    engine.step(event, &mut out);
    out
}

fn memory(epoch: u64) -> StandbyEvent {
    StandbyEvent::MemoryStaged { session: SESSION, epoch: Epoch(epoch) }
}

fn disk(epoch: u64, flushed: bool) -> StandbyEvent {
    StandbyEvent::DiskStaged { session: SESSION, disk: DISK, epoch: Epoch(epoch), flushed }
}

fn confirmed(epoch: u64) -> StandbyAction {
    StandbyAction::Confirm { session: SESSION, epoch: Epoch(epoch), echo: Instant::default() }
}

fn opened() -> Standby {
    let mut engine = Standby::default();
    let begun = tell(&mut engine, StandbyEvent::Begin { session: SESSION, disks: BTreeSet::from([DISK]) });
    assert_eq!(begun, [StandbyAction::Discard, confirmed(0)]);
    engine
}

#[test]
fn an_epoch_is_decided_when_all_of_it_is_there_and_in_its_order() {
    let mut engine = opened();
    assert_eq!(tell(&mut engine, memory(1)), []);
    assert_eq!(tell(&mut engine, disk(2, false)), []);
    assert_eq!(tell(&mut engine, memory(2)), [], "the first is not whole yet");
    let apply = |epoch| {
        [
            StandbyAction::ApplyDisk { disk: DISK, epoch: Epoch(epoch) },
            StandbyAction::ApplyMemory { epoch: Epoch(epoch) },
        ]
    };
    assert_eq!(tell(&mut engine, disk(1, false)), [&apply(1)[..], &apply(2), &[confirmed(2)]].concat());
    assert_eq!(tell(&mut engine, disk(1, false)), [], "a repeated part changes nothing");
    let stranger = StandbyEvent::MemoryStaged { session: Session(8), epoch: Epoch(3) };
    assert_eq!(tell(&mut engine, stranger), []);
    assert_eq!(engine.decided(), Epoch(2));
}

#[test]
fn an_epoch_with_a_flush_is_confirmed_when_it_is_durable() {
    let mut engine = opened();
    tell(&mut engine, memory(1));
    assert!(!tell(&mut engine, disk(1, true)).contains(&confirmed(1)));
    let applied = StandbyEvent::DiskApplied { session: SESSION, disk: DISK, epoch: Epoch(1) };
    assert_eq!(tell(&mut engine, applied), [confirmed(1)]);
}

#[test]
fn a_takeover_waits_for_what_is_being_applied_and_hears_the_old_side_no_more() {
    let mut engine = opened();
    assert_eq!(engine.decided(), Epoch::NONE);
    tell(&mut engine, memory(1));
    tell(&mut engine, disk(1, false));
    tell(&mut engine, memory(2));
    assert_eq!(tell(&mut engine, StandbyEvent::TakeOver), []);
    assert_eq!(tell(&mut engine, disk(2, false)), [], "too late");
    let begin = StandbyEvent::Begin { session: Session(8), disks: BTreeSet::new() };
    assert_eq!(tell(&mut engine, begin), []);
    tell(&mut engine, StandbyEvent::DiskApplied { session: SESSION, disk: DISK, epoch: Epoch(1) });
    let applied = StandbyEvent::MemoryApplied { session: SESSION, epoch: Epoch(1) };
    assert_eq!(tell(&mut engine, applied), [StandbyAction::GoOn { epoch: Epoch(1) }]);
}

#[test]
fn who_has_nothing_says_so() {
    assert_eq!(tell(&mut Standby::default(), StandbyEvent::TakeOver), [StandbyAction::CannotGoOn]);
    let mut engine = opened();
    let failed = tell(&mut engine, StandbyEvent::Failed);
    assert_eq!(failed, [StandbyAction::Refuse { session: SESSION }, StandbyAction::Discard]);
    assert_eq!(tell(&mut engine, StandbyEvent::TakeOver), [StandbyAction::CannotGoOn]);
}
