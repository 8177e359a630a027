//! Level 3: no lease while the standby holds the memory, going on from it, and what a new process must assume.

use std::time::Duration;

use super::{Action, Event, Gate, Keeper, Paused};
use crate::authority::{AuthorityChange, Power};
use crate::ids::{Generation, HostId};
use crate::pool::PoolState;
use crate::pool::fixtures::{H1, H2, disk_id, memory_held, place, protected};
use crate::report::{EndCause, GuestState};
use crate::time::Instant;
use crate::vm::{Desired, Level};

const LEASE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(10);

fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

/// An AM and what the pool state says.
struct Bench {
    state: PoolState,
    keeper: Keeper,
}

impl Bench {
    fn new(host: HostId, state: PoolState) -> Self {
        let keeper = Keeper::new(host, GRACE, state.vm(1).clone(), Generation::NONE);
        Self { state, keeper }
    }

    /// The guest runs on host 1 with a lease from 0 on; since 100 ms host 2 holds its memory.
    fn held() -> Self {
        let mut state = protected();
        state.must(place(1, Level::System, &[H1, H2]));
        state.start(1, H1, true);
        let mut bench = Self::new(H1, state);
        bench.lease(0);
        bench.at(50, Event::Started);
        let held = AuthorityChange::MemoryHeld { host: H2 };
        assert_eq!(bench.proposed(90, Event::MemoryHeld { host: H2 }), std::slice::from_ref(&held));
        bench.state.must(bench.state.change(1, held));
        let told = bench.tell(100);
        assert_eq!(gates(&told), [Gate::Open]);
        bench
    }

    /// Host 2's AM as standby, a master heard.
    fn standby() -> Self {
        let mut bench = Self::new(H2, memory_held());
        assert_eq!(guests(bench.at(0, Event::Directive { asked_at: at(0), lease: None })), []);
        bench
    }

    /// The same, told at `ms` that the guest goes on here.
    fn going_on(ms: u64) -> Self {
        let mut bench = Self::standby();
        bench.state.must(bench.state.change(1, AuthorityChange::Continue { host: H2 }));
        let told = bench.tell(ms);
        assert_eq!(guests(told.clone()), [Action::Continue { since: bench.state.generation(1) }], "without a lease");
        assert_eq!(gates(&told), []);
        bench
    }

    fn at(&mut self, ms: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.keeper.step(at(ms), event, &mut out);
        out
    }

    fn tick(&mut self, ms: u64) -> Vec<Action> {
        self.at(ms, Event::Tick)
    }

    fn lease(&mut self, ms: u64) -> Vec<Action> {
        self.at(ms, Event::Directive { asked_at: at(ms), lease: Some(LEASE) })
    }

    fn tell(&mut self, ms: u64) -> Vec<Action> {
        let vm = Box::new(self.state.vm(1).clone());
        self.at(ms, Event::Vm(vm))
    }

    fn proposed(&mut self, ms: u64, event: Event) -> Vec<AuthorityChange> {
        let actions = self.at(ms, event);
        let newest = self.keeper.vm().authority.generation;
        let proposal = |action| match action {
            Action::Propose { seen, change } => {
                assert_eq!(seen, newest);
                Some(change)
            }
            _ => None,
        };
        actions.into_iter().filter_map(proposal).collect()
    }
}

fn guests(actions: Vec<Action>) -> Vec<Action> {
    let about_guest = |action: &Action| !matches!(action, Action::Gate(_) | Action::SetRoles { .. });
    actions.into_iter().filter(about_guest).collect()
}

fn gates(actions: &[Action]) -> Vec<Gate> {
    let gate = |action: &Action| if let Action::Gate(gate) = action { Some(*gate) } else { None };
    actions.iter().filter_map(gate).collect()
}

#[test]
fn without_held_memory_level_3_needs_a_lease_as_level_2_does() {
    let mut state = protected();
    state.must(place(1, Level::System, &[H1, H2]));
    state.start(1, H1, true);
    let mut bench = Bench::new(H1, state);
    assert_eq!(guests(bench.at(0, Event::Directive { asked_at: at(0), lease: None })), []);
    assert_eq!(guests(bench.lease(10)), [Action::Start { since: bench.state.generation(1) }]);
    assert_eq!(guests(bench.at(20, Event::Started)), []);
    assert_eq!(guests(bench.tick(2_010)), [Action::Pause]);
}

#[test]
fn while_the_memory_is_held_the_guest_goes_on_without_a_master() {
    let mut bench = Bench::held();
    for ms in [2_000, 20_000, 3_600_000] {
        assert_eq!(bench.tick(ms), []);
    }
}

#[test]
fn a_standby_that_was_given_up_leaves_a_second_for_the_first_lease() {
    let mut bench = Bench::held();
    let change = AuthorityChange::StandbyLost { host: H2 };
    bench.state.must(bench.state.change(1, change));
    let told = bench.tell(60_000);
    assert_eq!((guests(told.clone()), gates(&told)), (vec![], vec![Gate::Closed]));
    assert_eq!(guests(bench.tick(60_999)), []);
    let mut leased = Bench { state: bench.state.clone(), keeper: Bench::held().keeper };
    leased.tell(60_000);
    assert_eq!(gates(&leased.lease(60_500)), [Gate::OpenUntil(at(62_500))]);
    assert_eq!(guests(leased.tick(61_500)), []);
    assert_eq!(guests(leased.tick(62_500)), [Action::Pause], "from then on as at level 2");
    // Without one: paused, and ended when the grace time after it is over.
    assert_eq!(guests(bench.tick(61_000)), [Action::Pause]);
    assert_eq!(guests(bench.at(61_010, Event::PausedNow)), []);
    assert_eq!(guests(bench.tick(69_990)), []);
    assert_eq!(guests(bench.tick(70_000)), [Action::End { cause: EndCause::LeaseLost }]);
}

#[test]
fn a_lost_standby_is_proposed_rather_than_its_memory() {
    let mut bench = Bench::new(H1, {
        let mut state = protected();
        state.must(place(1, Level::System, &[H1, H2]));
        state.start(1, H1, true);
        state
    });
    bench.lease(0);
    bench.at(10, Event::Started);
    assert_eq!(
        bench.proposed(20, Event::MemoryHeld { host: H2 }),
        [AuthorityChange::MemoryHeld { host: H2 }],
        "under way"
    );
    assert_eq!(bench.proposed(30, Event::StandbyLost { host: H2 }), []);
    assert_eq!(bench.proposed(40, Event::ReplicaGood { disk: disk_id(1, 0), host: H2 }), []);
    // The first one was committed all the same: the other follows at once, and under no record does the memory come back.
    bench.state.must(bench.state.change(1, AuthorityChange::MemoryHeld { host: H2 }));
    let record = Some(bench.state.record(1).clone());
    let lost = AuthorityChange::StandbyLost { host: H2 };
    assert_eq!(bench.proposed(50, Event::ProposalAnswered { record }), std::slice::from_ref(&lost));
    bench.state.must(bench.state.change(1, lost));
    let record = Some(bench.state.record(1).clone());
    assert_eq!(bench.proposed(60, Event::ProposalAnswered { record }), []);
    assert_eq!(bench.proposed(9_000, Event::Tick), []);
}

#[test]
fn memory_is_not_proposed_under_a_newer_record_unless_it_is_said_again() {
    let mut state = protected();
    state.must(place(1, Level::System, &[H1, H2]));
    state.start(1, H1, true);
    let mut bench = Bench::new(H1, state);
    bench.lease(0);
    bench.at(10, Event::Started);
    let held = Event::MemoryHeld { host: H2 };
    assert_eq!(bench.proposed(20, held.clone()).len(), 1);
    bench.state.must(bench.state.change(1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
    let record = Some(bench.state.record(1).clone());
    assert_eq!(bench.proposed(30, Event::ProposalAnswered { record }), []);
    assert_eq!(bench.proposed(9_000, Event::Tick), []);
    assert_eq!(bench.proposed(9_100, held).len(), 1);
}

#[test]
fn a_switch_is_proposed_while_the_record_names_the_host() {
    let mut bench = Bench::held();
    let switch = Event::SwitchTo { host: H2 };
    assert_eq!(bench.proposed(200, switch.clone()), [AuthorityChange::Continue { host: H2 }]);
    bench.state.must(bench.state.change(1, AuthorityChange::StandbyLost { host: H2 }));
    bench.tell(300);
    assert_eq!(bench.proposed(400, switch), []);
}

#[test]
fn when_a_disk_here_fails_the_guest_goes_on_where_the_memory_is() {
    let mut bench = Bench::held();
    let lost = Event::ReplicaLost { disk: disk_id(1, 0), host: H1 };
    assert_eq!(bench.proposed(200, lost), [AuthorityChange::Continue { host: H2 }]);
    let mut bench = Bench::held();
    let lost = Event::ReplicaLost { disk: disk_id(1, 0), host: H2 };
    assert_eq!(bench.proposed(200, lost), [AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H2 }]);
}

#[test]
fn a_standby_that_has_the_only_disks_is_not_given_up_but_starts_the_guest() {
    let mut state = protected();
    state.must(place(1, Level::System, &[H1, H2]));
    state.start(1, H1, true);
    let mut bench = Bench::new(H1, state);
    bench.lease(0);
    bench.at(10, Event::Started);
    bench.state.must(bench.state.change(1, AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H1 }));
    bench.tell(20);
    let start = AuthorityChange::Start { host: H2, clean: false };
    assert_eq!(bench.proposed(30, Event::StandbyLost { host: H2 }), std::slice::from_ref(&start));
    bench.state.must(bench.state.change(1, start));
    assert_eq!(guests(bench.tell(40)), [Action::End { cause: EndCause::Superseded }]);
}

#[test]
fn a_guest_that_goes_on_elsewhere_ends_here_and_its_gate_closes() {
    let mut bench = Bench::held();
    bench.state.must(bench.state.change(1, AuthorityChange::Continue { host: H2 }));
    let told = bench.tell(5_000);
    assert_eq!(gates(&told), [Gate::Closed]);
    assert!(told.contains(&Action::End { cause: EndCause::Superseded }), "{told:?}");
}

#[test]
fn the_standby_goes_on_without_a_lease_and_shows_nothing_before_it_has_one() {
    // Hours without a lease before are not held against it.
    let mut bench = Bench::going_on(7_200_000);
    assert_eq!(guests(bench.tick(7_200_010)), [], "once");
    let started = bench.at(7_200_050, Event::Started);
    assert_eq!((guests(started.clone()), gates(&started)), (vec![], vec![]));
    assert_eq!(guests(bench.tick(7_201_049)), []);
    assert_eq!(gates(&bench.lease(7_201_049)), [Gate::OpenUntil(at(7_203_049))]);
    assert_eq!(guests(bench.tick(7_203_049)), [Action::Pause], "from then on as at level 2");
}

#[test]
fn a_guest_that_went_on_and_gets_no_lease_is_paused_and_ended_like_any_other() {
    let mut bench = Bench::going_on(7_200_000);
    bench.at(7_200_050, Event::Started);
    assert_eq!(guests(bench.tick(7_201_050)), [Action::Pause]);
    bench.at(7_201_060, Event::PausedNow);
    assert_eq!(guests(bench.tick(7_210_040)), []);
    assert_eq!(guests(bench.tick(7_210_050)), [Action::End { cause: EndCause::LeaseLost }]);
}

#[test]
fn it_goes_on_once_and_only_when_a_master_was_heard() {
    let mut state = memory_held();
    state.must(state.change(1, AuthorityChange::Continue { host: H2 }));
    let since = state.generation(1);
    let mut bench = Bench::new(H2, state);
    assert_eq!(guests(bench.tick(0)), [], "the configuration may be old");
    let heard = Event::Directive { asked_at: at(0), lease: None };
    assert_eq!(guests(bench.at(10, heard.clone())), [Action::Continue { since }]);
    // A process later: it was tried here, and the memory is gone with the one before.
    bench.keeper = Keeper::new(H2, GRACE, bench.state.vm(1).clone(), since);
    assert_eq!(guests(bench.at(20, heard)), []);
    assert!(matches!(bench.keeper.guest_state(), GuestState::Ended { since: of, .. } if of == since));
    // The master's answer to that is a start from the disks, which waits for a lease again.
    bench.state.must(bench.state.change(1, AuthorityChange::Start { host: H2, clean: false }));
    assert_eq!(guests(bench.tell(30)), []);
    assert_eq!(guests(bench.lease(40)), [Action::Start { since: bench.state.generation(1) }]);
}

#[test]
fn what_is_wished_off_by_force_does_not_go_on() {
    let mut bench = Bench::standby();
    bench.state.must(bench.state.change(1, AuthorityChange::Continue { host: H2 }));
    bench.state.wish(1, Desired::ForceReboot);
    assert_eq!(guests(bench.tell(100)), []);
    assert!(matches!(bench.keeper.guest_state(), GuestState::Ended { cause: EndCause::Forced, .. }));
}

/// A new process finds the guest of an earlier one running on host 1.
fn taken_up(state: PoolState) -> Bench {
    let Power::On { since } = state.record(1).power else { panic!("it is on") };
    let mut bench = Bench::new(H1, state);
    let actions = bench.at(0, Event::Attached { since, paused: Paused::Yes });
    assert_eq!(gates(&actions), [], "no master was heard");
    bench
}

#[test]
fn a_process_that_takes_a_guest_up_gives_the_standby_up_before_anything_leaves() {
    let running_only = {
        let mut state = protected();
        state.must(place(1, Level::System, &[H1, H2]));
        state.start(1, H1, true);
        state
    };
    // Whether the memory is on record or may be by a proposal of the process before.
    for state in [memory_held(), running_only] {
        let mut bench = taken_up(state);
        let lease = bench.lease(10);
        assert_eq!((guests(lease.clone()), gates(&lease)), (vec![Action::Resume], vec![]));
        let lost = AuthorityChange::StandbyLost { host: H2 };
        assert_eq!(bench.proposed(2_000, Event::Tick), std::slice::from_ref(&lost), "asked for again");
        assert_eq!(gates(&bench.lease(2_010)), []);
        bench.at(2_015, Event::ResumedNow);
        bench.state.must(bench.state.change(1, lost));
        assert_eq!(gates(&bench.tell(2_020)), [Gate::OpenUntil(at(4_010))]);
        // Held anew under this process, all is as ever.
        bench.state.must(bench.state.change(1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
        assert_eq!(guests(bench.tell(2_030)), []);
        bench.state.must(bench.state.change(1, AuthorityChange::MemoryHeld { host: H2 }));
        assert_eq!(gates(&bench.tell(2_040)), [Gate::Open]);
    }
}

#[test]
fn a_guest_that_is_taken_up_and_finds_no_master_is_ended_as_at_level_2() {
    let mut bench = taken_up(memory_held());
    assert_eq!(guests(bench.tick(10_000)), [Action::End { cause: EndCause::LeaseLost }]);
}

#[test]
fn a_guest_at_level_2_is_taken_up_as_ever_and_may_be_raised_to_level_3() {
    let mut state = protected();
    state.start(1, H1, true);
    let mut bench = taken_up(state);
    assert_eq!(gates(&bench.lease(10)), [Gate::OpenUntil(at(2_010))]);
    bench.at(15, Event::ResumedNow);
    bench.state.must(place(1, Level::System, &[H1, H2]));
    let told = bench.tell(20);
    assert_eq!((guests(told.clone()), gates(&told)), (vec![], vec![]));
    bench.state.must(bench.state.change(1, AuthorityChange::MemoryHeld { host: H2 }));
    assert_eq!(gates(&bench.tell(30)), [Gate::Open]);
}
