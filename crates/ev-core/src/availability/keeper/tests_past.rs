//! What the process before asked for may be committed late: nothing is let out before that can do no harm.

use std::time::Duration;

use super::{Action, Event, Gate, Keeper, Paused};
use crate::authority::{AuthorityChange, Power};
use crate::ids::Generation;
use crate::pool::fixtures::{H1, H2, disk_id, protected};
use crate::pool::{Command, PoolState};
use crate::time::Instant;
use crate::vm::Vm;

const LEASE: Duration = Duration::from_secs(2);
const LOST: fn() -> AuthorityChange = || AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H2 };
const GOOD: fn() -> AuthorityChange = || AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 };

fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

/// Level 2, running on host 1; host 2's replica is being copied to.
fn copying() -> PoolState {
    let mut state = protected();
    state.start(1, H1, true);
    state.must(state.change(1, LOST()));
    state
}

struct Heir {
    keeper: Keeper,
    out: Vec<Action>,
}

impl Heir {
    fn of(state: &PoolState) -> Self {
        let Power::On { since } = state.record(1).power else { panic!("it is on") };
        let keeper = Keeper::new(H1, Duration::from_secs(10), state.vm(1).clone(), Generation::NONE);
        let mut heir = Self { keeper, out: Vec::new() };
        heir.tell(0, Event::Attached { since, paused: Paused::No });
        heir
    }

    fn tell(&mut self, ms: u64, event: Event) {
        self.out.clear();
        self.keeper.step(at(ms), event, &mut self.out);
    }

    /// A master's answer to a report.
    fn hear(&mut self, ms: u64, vm: &Vm) {
        self.keeper.step(at(ms), Event::Vm(Box::new(vm.clone())), &mut Vec::new());
        self.tell(ms, Event::Directive { asked_at: at(ms), lease: Some(LEASE) });
    }

    fn gates(&self) -> Vec<Gate> {
        let gate = |action: &Action| if let Action::Gate(gate) = action { Some(*gate) } else { None };
        self.out.iter().filter_map(gate).collect()
    }

    fn proposed(&self) -> Vec<(Generation, AuthorityChange)> {
        let proposal = |action: &Action| match action {
            Action::Propose { seen, change } => Some((*seen, change.clone())),
            _ => None,
        };
        self.out.iter().filter_map(proposal).collect()
    }
}

#[test]
fn a_replica_that_counts_at_level_2_is_in_step_whatever_was_asked_for() {
    let mut state = protected();
    state.start(1, H1, true);
    let mut heir = Heir::of(&state);
    heir.hear(10, state.vm(1));
    assert_eq!((heir.gates(), heir.proposed()), (vec![Gate::OpenUntil(at(2_010))], vec![]));
}

#[test]
fn a_replica_that_may_yet_be_called_good_is_waited_for_with_a_newer_record() {
    let mut state = copying();
    let mut heir = Heir::of(&state);
    let seen = state.generation(1);
    heir.hear(10, state.vm(1));
    assert_eq!((heir.gates(), heir.proposed()), (vec![], vec![(seen, LOST())]));
    state.must(state.change(1, LOST()));
    assert!(state.generation(1) > seen, "it changes nothing but the generation");
    heir.tell(20, Event::ProposalAnswered { record: Some(state.record(1).clone()) });
    assert_eq!((heir.gates(), heir.proposed()), (vec![Gate::OpenUntil(at(2_010))], vec![]));
    let late = Command::VmAuthority { id: state.vm(1).id, if_generation: seen, change: GOOD() };
    state.must_refuse(late);
}

#[test]
fn a_replica_that_was_called_good_in_the_meantime_is_good() {
    let mut state = copying();
    let mut heir = Heir::of(&state);
    heir.hear(10, state.vm(1));
    state.must(state.change(1, GOOD()));
    heir.tell(20, Event::ProposalAnswered { record: Some(state.record(1).clone()) });
    assert_eq!(heir.gates(), [Gate::OpenUntil(at(2_010))], "nothing was acknowledged since");
    heir.tell(5_000, Event::Tick);
    assert_eq!(heir.proposed(), []);
}

#[test]
fn an_old_configuration_does_not_count_as_heard() {
    let old = copying();
    let mut state = old.clone();
    state.must(state.change(1, LOST()));
    let mut heir = Heir::of(&old);
    heir.hear(10, state.vm(1));
    assert_eq!(heir.gates(), []);
    heir.tell(2_000, Event::Tick);
    assert_eq!(heir.proposed(), [(state.generation(1), LOST())], "under the record that was heard first");
}
