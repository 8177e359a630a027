//! What an AM does with its guest, step by step along the diagram.

use std::time::Duration;

use super::{Action, Event, Gate, Keeper, Paused, Role};
use crate::authority::AuthorityChange;
use crate::ids::Generation;
use crate::pool::fixtures::{H1, H2, create, disk_id, pool, protected, vm_id};
use crate::pool::{Command, PoolState};
use crate::report::{EndCause, GuestState};
use crate::time::Instant;
use crate::vm::{Desired, Vm};

const LEASE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(10);

fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

/// An AM on host 1 and what the pool state says.
struct Bench {
    state: PoolState,
    keeper: Keeper,
}

impl Bench {
    fn new(state: PoolState) -> Self {
        let keeper = Keeper::new(H1, GRACE, state.vm(1).clone(), Generation::NONE);
        Self { state, keeper }
    }

    /// Level 2, to run on host 1; nothing was heard yet.
    fn ordered() -> Self {
        let mut state = protected();
        state.start(1, H1, true);
        Self::new(state)
    }

    /// The guest runs with a lease from 0 on.
    fn running() -> Self {
        let mut bench = Self::ordered();
        let since = bench.since();
        assert_eq!(guests(bench.lease(0)), [Action::Start { since }]);
        assert_eq!(guests(bench.at(100, Event::Started)), []);
        bench
    }

    fn since(&self) -> Generation {
        match self.state.record(1).power {
            crate::authority::Power::On { since } => since,
            crate::authority::Power::Off => panic!("it is off"),
        }
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

    /// Tells the AM the pool state's record.
    fn tell(&mut self, ms: u64) -> Vec<Action> {
        let vm = Box::new(self.state.vm(1).clone());
        self.at(ms, Event::Vm(vm))
    }
}

/// What concerns the guest alone.
fn guests(actions: Vec<Action>) -> Vec<Action> {
    let about_guest = |action: &Action| !matches!(action, Action::Gate(_) | Action::SetRoles { .. });
    actions.into_iter().filter(about_guest).collect()
}

fn gates(actions: &[Action]) -> Vec<Gate> {
    let gate = |action: &Action| if let Action::Gate(gate) = action { Some(*gate) } else { None };
    actions.iter().filter_map(gate).collect()
}

#[test]
fn starts_only_with_a_lease_and_once() {
    let mut bench = Bench::ordered();
    assert_eq!(guests(bench.tick(0)), [], "no master was heard");
    assert_eq!(guests(bench.at(10, Event::Directive { asked_at: at(0), lease: None })), [], "heard, without a lease");
    let since = bench.since();
    assert_eq!(guests(bench.lease(20)), [Action::Start { since }]);
    assert_eq!(guests(bench.lease(30)), []);
    assert_eq!(bench.keeper.guest_state(), GuestState::Starting { since });
}

#[test]
fn level_0_needs_a_master_heard_and_no_lease() {
    let mut state = pool();
    state.must(create(1));
    state.start(1, H1, true);
    let mut bench = Bench::new(state);
    assert_eq!(guests(bench.tick(0)), []);
    let actions = bench.at(1, Event::Directive { asked_at: at(0), lease: None });
    assert_eq!(guests(actions.clone()), [Action::Start { since: bench.since() }]);
    assert_eq!(gates(&actions), [Gate::Open]);
    assert_eq!(guests(bench.tick(3_600_000)), []);
}

#[test]
fn the_gate_is_open_as_long_as_the_lease_counted_from_the_question() {
    let mut bench = Bench::ordered();
    let granted = bench.at(500, Event::Directive { asked_at: at(0), lease: Some(LEASE) });
    assert_eq!(gates(&granted), [Gate::OpenUntil(at(2_000))]);
    // An answer that was overtaken by a newer one takes nothing away.
    assert_eq!(gates(&bench.lease(700)), [Gate::OpenUntil(at(2_700))]);
    assert_eq!(gates(&bench.at(800, Event::Directive { asked_at: at(100), lease: Some(LEASE) })), []);
    assert_eq!(gates(&bench.tick(2_700)), [Gate::Closed]);
}

#[test]
fn pauses_without_a_lease_goes_on_with_one_and_ends_after_the_grace_time() {
    let mut bench = Bench::running();
    assert_eq!(guests(bench.tick(1_999)), []);
    assert_eq!(guests(bench.tick(2_000)), [Action::Pause]);
    assert_eq!(guests(bench.at(2_010, Event::PausedNow)), []);
    assert_eq!(guests(bench.lease(5_000)), [Action::Resume]);
    assert_eq!(guests(bench.at(5_010, Event::ResumedNow)), []);
    assert_eq!(guests(bench.tick(7_000)), [Action::Pause]);
    assert_eq!(guests(bench.at(7_010, Event::PausedNow)), []);
    assert_eq!(guests(bench.tick(16_999)), []);
    assert_eq!(guests(bench.tick(17_000)), [Action::End { cause: EndCause::LeaseLost }]);
    let since = bench.since();
    bench.at(17_100, Event::Ended { cause: EndCause::LeaseLost, clean: true });
    assert_eq!(bench.keeper.guest_state(), GuestState::Ended { since, cause: EndCause::LeaseLost, clean: true });
    assert_eq!(guests(bench.lease(17_200)), [], "only a newer record starts it again");
}

#[test]
fn a_guest_given_to_another_host_ends_and_its_gate_closes_at_once() {
    let mut bench = Bench::running();
    bench.state.must(bench.state.change(1, AuthorityChange::Start { host: H2, clean: false }));
    let actions = bench.tell(1_000);
    assert!(actions.contains(&Action::End { cause: EndCause::Superseded }), "{actions:?}");
    assert_eq!(gates(&actions), [Gate::Closed]);
    let replica = Role::Replica { coordinator: Some(H2) };
    assert!(actions.iter().any(|action| matches!(action, Action::SetRoles { role, .. } if *role == replica)));
    assert_eq!(gates(&bench.lease(1_100)), [], "a late lease opens nothing");
}

#[test]
fn an_older_record_changes_nothing() {
    let mut bench = Bench::running();
    let newest = bench.keeper.vm().clone();
    let old = Vm { authority: protected().record(1).clone(), ..newest.clone() };
    assert!(old.authority.generation < newest.authority.generation);
    assert_eq!(bench.at(200, Event::Vm(Box::new(old))), []);
    assert_eq!(bench.keeper.vm(), &newest);
}

#[test]
fn what_was_started_here_and_is_gone_is_not_started_again() {
    let state = Bench::ordered().state;
    let mut bench = Bench::new(state);
    let since = bench.since();
    bench.keeper = Keeper::new(H1, GRACE, bench.state.vm(1).clone(), since);
    assert_eq!(guests(bench.lease(0)), []);
    assert!(matches!(bench.keeper.guest_state(), GuestState::Ended { since: of, clean: false, .. } if of == since));
    // The master's next record starts it.
    bench.state.must(bench.state.change(1, AuthorityChange::Start { host: H1, clean: false }));
    assert_eq!(guests(bench.tell(100)), [Action::Start { since: bench.since() }]);
}

#[test]
fn an_attached_guest_is_not_ended_for_an_old_record() {
    let mut old = protected();
    old.start(1, H2, true);
    let mut bench = Bench::new(old);
    // Meanwhile the guest was started here, and this process's predecessor died before the news was on disk.
    bench.state.must(bench.state.change(1, AuthorityChange::Start { host: H1, clean: true }));
    let since = bench.since();
    assert_eq!(guests(bench.at(0, Event::Attached { since, paused: Paused::No })), [Action::Pause], "no lease yet");
    assert_eq!(guests(bench.at(10, Event::PausedNow)), []);
    assert_eq!(guests(bench.at(20, Event::Directive { asked_at: at(15), lease: Some(LEASE) })), [Action::Resume]);
    let told = bench.tell(21);
    assert_eq!(guests(told.clone()), []);
    assert_eq!(gates(&told), [Gate::OpenUntil(at(2_015))]);
}

#[test]
fn an_attached_guest_is_ended_when_the_newer_record_is_another_hosts() {
    let mut bench = Bench::ordered();
    let since = bench.since();
    bench.state.must(bench.state.change(1, AuthorityChange::Start { host: H2, clean: false }));
    bench.keeper = Keeper::new(H1, GRACE, bench.state.vm(1).clone(), Generation::NONE);
    let actions = bench.at(0, Event::Attached { since, paused: Paused::Yes });
    assert_eq!(guests(actions), [Action::End { cause: EndCause::Superseded }]);
}

#[test]
fn a_wish_to_power_down_is_repeated_until_the_guest_ends() {
    let mut bench = Bench::running();
    bench.state.wish(1, Desired::Shutdown);
    assert_eq!(guests(bench.tell(200)), [Action::PowerDown]);
    for ms in [1_000, 2_000, 3_000, 4_000, 5_000] {
        assert_eq!(guests(bench.lease(ms)), []);
    }
    assert_eq!(guests(bench.lease(5_200)), [Action::PowerDown]);
    bench.state.wish(1, Desired::ForceOff);
    assert_eq!(guests(bench.tell(5_300)), [Action::End { cause: EndCause::Forced }]);
}

#[test]
fn leaves_only_when_its_guest_has_ended() {
    let mut bench = Bench::running();
    assert_eq!(guests(bench.at(200, Event::VmGone)), [Action::End { cause: EndCause::Superseded }]);
    assert_eq!(guests(bench.tick(300)), []);
    let ended = Event::Ended { cause: EndCause::Superseded, clean: true };
    assert_eq!(guests(bench.at(400, ended)), [Action::Leave]);
    assert_eq!(bench.tick(500), []);
}

#[test]
fn a_replica_that_was_lost_is_proposed_again_until_answered() {
    let mut bench = Bench::running();
    let change = AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H2 };
    let seen = bench.state.generation(1);
    let proposal = Action::Propose { seen, change: change.clone() };
    let lost = Event::ReplicaLost { disk: disk_id(1, 0), host: H2 };
    assert_eq!(guests(bench.at(200, lost)), std::slice::from_ref(&proposal));
    assert_eq!(guests(bench.lease(1_000)), []);
    assert_eq!(guests(bench.tick(1_700)), [proposal]);
    bench.state.must(Command::VmAuthority { id: vm_id(1), if_generation: seen, change });
    assert_eq!(guests(bench.tell(1_800)), []);
    assert_eq!(guests(bench.lease(4_000)), []);
}
