//! The master's decisions, one by one. That they hold together is shown by the simulation (`ev-sim`).

use std::time::Duration;

use super::{HostView, Master, Path};
use crate::authority::{AuthorityChange, Power};
use crate::ids::{Generation, HostId, MemberId};
use crate::pool::fixtures::{H1, H2, QUORUM, create, disk_id, pool, protect, protected, vm_id};
use crate::pool::{Command, PoolState};
use crate::report::{AmReport, EndCause, GuestState};
use crate::time::Instant;
use crate::vm::Desired;

pub(super) fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

/// The master on host 2, elected at 0; time passes in its ticks.
pub(super) struct Bench {
    pub(super) state: PoolState,
    pub(super) master: Master,
    pub(super) now_ms: u64,
    /// Hosts that beat, and VMs whose AM on host 1 reports a guest.
    pub(super) beating: Vec<HostId>,
    pub(super) reporting: Vec<(u8, GuestState)>,
}

impl Bench {
    pub(super) fn new(state: PoolState) -> Self {
        let mut master = Master::new(H2);
        master.elected(at(0));
        Self { state, master, now_ms: 0, beating: vec![H1, H2], reporting: Vec::new() }
    }

    /// A VM at level 2 that runs on host 1, which beats and reports; the first leases are granted.
    fn running() -> Self {
        let mut state = protected();
        state.start(1, H1, true);
        let since = since(&state, 1);
        let mut bench = Self::new(state);
        bench.reporting = vec![(1, GuestState::Running { since })];
        assert_eq!(bench.pass(5_000), []);
        bench
    }

    pub(super) fn report(&mut self, vm: u8, guest: GuestState) -> Option<Duration> {
        let report = report(&self.state, vm, H1, guest);
        self.master.report(at(self.now_ms), report, &self.state)
    }

    /// Lets time pass until the first changes of records are proposed, at most `ms`.
    pub(super) fn pass(&mut self, ms: u64) -> Vec<(u8, AuthorityChange)> {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += 50;
            for host in self.beating.clone() {
                self.master.heartbeat(at(self.now_ms), host, Path(1));
            }
            for (vm, guest) in self.reporting.clone() {
                self.report(vm, guest);
            }
            let mut out = Vec::new();
            self.master.tick(at(self.now_ms), 0, &self.state, &mut out);
            let changes: Vec<_> = out.into_iter().filter_map(change_of).collect();
            if !changes.is_empty() {
                return changes;
            }
        }
        Vec::new()
    }

    pub(super) fn host_1_dies(&mut self) {
        self.beating = vec![H2];
        self.reporting.clear();
    }

    pub(super) fn commit(&mut self, (vm, change): (u8, AuthorityChange)) {
        self.state.must(self.state.change(vm, change));
    }
}

pub(super) fn report(state: &PoolState, vm: u8, host: HostId, guest: GuestState) -> AmReport {
    AmReport {
        vm: vm_id(vm),
        host,
        generation: state.generation(vm),
        power: state.record(vm).power,
        guest,
        disks: Vec::new(),
        accelerator: None,
        level3: None,
        troubles: Vec::new(),
    }
}

fn change_of(command: Command) -> Option<(u8, AuthorityChange)> {
    let Command::VmAuthority { id, change, .. } = command else { return None };
    let number = (1..=9).find(|number| vm_id(*number) == id)?;
    Some((number, change))
}

pub(super) fn since(state: &PoolState, vm: u8) -> Generation {
    match state.record(vm).power {
        Power::On { since } => since,
        Power::Off => panic!("it is off"),
    }
}

pub(super) const TAKEOVER: AuthorityChange = AuthorityChange::Start { host: H2, clean: false };

#[test]
fn a_dead_hosts_guest_goes_to_the_other_one_when_its_lease_is_surely_over() {
    let mut bench = Bench::running();
    let died_ms = bench.now_ms;
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, TAKEOVER)]);
    let waited = Duration::from_millis(bench.now_ms - died_ms);
    let lease = Duration::from_millis(bench.state.settings.lease_ms);
    assert!(waited >= lease + lease * 5 / 100, "{waited:?}");
    assert!(waited <= lease + lease * 5 / 100 + Duration::from_millis(100), "{waited:?}");
}

#[test]
fn any_sign_of_life_keeps_a_guest_where_it_is() {
    let mut beats = Bench::running();
    beats.reporting.clear();
    assert_eq!(beats.pass(14_000), [], "the host beats: its AM has time");
    assert_eq!(beats.pass(5_000), [(1, TAKEOVER)], "but not for ever");

    let mut reports = Bench::running();
    reports.beating = vec![H2];
    assert_eq!(reports.pass(60_000), [], "the AM reports");
}

#[test]
fn a_new_master_waits_for_the_leases_of_its_predecessor() {
    let mut state = protected();
    state.start(1, H1, true);
    let mut bench = Bench::new(state);
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, TAKEOVER)]);
    assert!(bench.now_ms >= bench.state.settings.lease_ms * 105 / 100, "{}", bench.now_ms);
}

#[test]
fn a_guest_is_never_given_to_a_replica_that_is_not_good() {
    let mut bench = Bench::running();
    bench.commit((1, AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H2 }));
    bench.host_1_dies();
    assert_eq!(bench.pass(120_000), []);
}

#[test]
fn no_lease_is_granted_while_the_record_is_to_go() {
    let mut bench = Bench::running();
    let running = bench.reporting[0].1.clone();
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, TAKEOVER)]);
    assert_eq!(bench.report(1, running.clone()), None, "it may be committed however late");
    bench.master.proposal_refused(vm_id(1), bench.state.generation(1));
    assert!(bench.report(1, running.clone()).is_some());

    bench.now_ms += 20_000;
    assert_eq!(bench.pass(60_000), [(1, TAKEOVER)]);
    bench.commit((1, TAKEOVER));
    assert_eq!(bench.report(1, running), None, "it is another host's now");
}

#[test]
fn a_proposal_without_a_result_is_made_again_the_same() {
    let mut bench = Bench::running();
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, TAKEOVER)]);
    bench.beating = vec![H1, H2];
    assert_eq!(bench.pass(900), []);
    assert_eq!(bench.pass(200), [(1, TAKEOVER)]);
}

#[test]
fn a_master_that_stood_still_does_not_take_it_for_the_others_silence() {
    let mut bench = Bench::running();
    bench.now_ms += 30_000;
    let mut out = Vec::new();
    bench.master.tick(at(bench.now_ms), 0, &bench.state, &mut out);
    assert_eq!(out.into_iter().filter_map(change_of).collect::<Vec<_>>(), []);
    assert_eq!(bench.master.host_view(at(bench.now_ms), H1, &bench.state), HostView::Alive);
    assert_eq!(bench.pass(5_000), [], "it goes on");
}

#[test]
fn a_deposed_master_decides_and_grants_nothing() {
    let mut bench = Bench::running();
    let running = bench.reporting[0].1.clone();
    bench.master.deposed();
    assert_eq!(bench.report(1, running), None);
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), []);
}

#[test]
fn an_ended_guest_is_restarted_at_once_then_later_then_elsewhere() {
    let mut bench = Bench::running();
    let mut pauses_ms = Vec::new();
    let mut hosts = Vec::new();
    for _ in 0..4 {
        let since = since(&bench.state, 1);
        let ended = GuestState::Ended { since, cause: EndCause::Crashed("killed".to_owned()), clean: true };
        bench.reporting = vec![(1, ended)];
        let from_ms = bench.now_ms;
        let change = bench.pass(60_000).remove(0);
        pauses_ms.push(bench.now_ms - from_ms);
        let AuthorityChange::Start { host, .. } = &change.1 else { panic!("{change:?}") };
        hosts.push(*host);
        if *host == H2 {
            break;
        }
        bench.commit(change);
    }
    assert_eq!(hosts, [H1, H1, H2]);
    assert_eq!(pauses_ms, [50, 1_050, 2_050]);
}

#[test]
fn a_guest_that_was_to_end_is_recorded_off() {
    let ended = |bench: &Bench, cause| GuestState::Ended { since: since(&bench.state, 1), cause, clean: true };
    let mut itself = Bench::running();
    itself.reporting = vec![(1, ended(&itself, EndCause::GuestShutdown))];
    assert_eq!(itself.pass(1_000), [(1, AuthorityChange::Ended { clean: true })]);

    let mut dead = Bench::running();
    dead.state.wish(1, Desired::Shutdown);
    dead.host_1_dies();
    assert_eq!(dead.pass(60_000), [(1, AuthorityChange::Ended { clean: false })], "not restarted to be shut down");
}

#[test]
fn guests_start_in_their_order_and_after_half_a_minute_all_the_same() {
    let mut state = pool();
    for number in [1, 2] {
        state.must(create(number));
        state.wish(number, Desired::Running);
    }
    let mut config = state.vm(2).config.clone();
    config.start_order = 5;
    if let Some(vm) = state.vms.get_mut(&vm_id(2)) {
        vm.config = config;
    }
    let mut bench = Bench::new(state);
    let start = AuthorityChange::Start { host: H1, clean: true };
    assert_eq!(bench.pass(1_000), [(1, start.clone())]);
    bench.commit((1, start.clone()));
    assert_eq!(bench.pass(10_000), [], "the first one does not run yet");
    bench.reporting = vec![(1, GuestState::Running { since: since(&bench.state, 1) })];
    assert_eq!(bench.pass(1_000), [(2, start.clone())]);

    bench.reporting.clear();
    bench.master.elected(at(bench.now_ms));
    let from_ms = bench.now_ms;
    assert_eq!(bench.pass(60_000), [(2, start)]);
    assert!((30_000..31_000).contains(&(bench.now_ms - from_ms)), "{}", bench.now_ms - from_ms);
}

#[test]
fn a_takeover_keeps_the_start_order_too() {
    let mut state = protected();
    protect(&mut state, 2);
    if let Some(vm) = state.vms.get_mut(&vm_id(1)) {
        vm.config.start_order = 5;
    }
    state.start(1, H1, true);
    state.start(2, H1, true);
    let running = |number| (number, GuestState::Running { since: since(&state, number) });
    let reporting = vec![running(1), running(2)];
    let mut bench = Bench::new(state);
    bench.reporting = reporting;
    assert_eq!(bench.pass(5_000), []);
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(2, TAKEOVER)]);
    bench.commit((2, TAKEOVER));
    assert_eq!(bench.pass(5_000), []);
    let since = since(&bench.state, 2);
    let report = report(&bench.state, 2, H2, GuestState::Running { since });
    bench.master.report(at(bench.now_ms), report, &bench.state);
    assert_eq!(bench.pass(1_000), [(1, TAKEOVER)]);
}

#[test]
fn a_silent_network_and_a_silent_quorum_server_are_alerts_until_they_are_heard() {
    let mut state = pool();
    for member in state.members.values_mut().filter(|member| member.id == H1) {
        member.private = vec!["10.0.1.1".parse().unwrap(), "10.0.2.1".parse().unwrap()];
    }
    let mut master = Master::new(H2);
    master.elected(at(0));
    let alerts = |master: &mut Master, from_ms: u64, to_ms: u64, paths: &[u8], silent: &[MemberId]| {
        let mut last = Vec::new();
        for now_ms in (from_ms..to_ms).step_by(50) {
            for path in paths {
                master.heartbeat(at(now_ms), H1, Path(*path));
            }
            master.voters_asked(at(now_ms), &silent.iter().copied().collect());
            last.clear();
            master.tick(at(now_ms), 0, &state, &mut last);
        }
        let keys = last.into_iter().filter_map(|command| match command {
            Command::AlertRaise { key, .. } => Some(key),
            _ => None,
        });
        keys.collect::<Vec<_>>()
    };
    assert_eq!(alerts(&mut master, 0, 5_000, &[0, 1, 2], &[]), [""; 0]);
    assert_eq!(alerts(&mut master, 5_000, 7_900, &[0, 2], &[QUORUM]), [""; 0], "short gaps happen");
    let both = [format!("path-silent/{H1}/1"), format!("quorum-silent/{QUORUM}")];
    assert_eq!(alerts(&mut master, 7_900, 8_200, &[0, 2], &[QUORUM]), both);
    assert_eq!(alerts(&mut master, 8_200, 8_300, &[0, 1, 2], &[]), [""; 0]);
    assert_eq!(alerts(&mut master, 8_300, 20_000, &[], &[]), [format!("host-down/{H1}")], "one alert, not four");
}

#[test]
fn a_guest_whose_newest_state_is_on_a_dead_host_is_an_alert_until_that_host_is_back() {
    let mut bench = Bench::running();
    bench.state.must(bench.state.change(1, AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H2 }));
    let stranded = |bench: &mut Bench| {
        let mut out = Vec::new();
        bench.master.tick(at(bench.now_ms), 0, &bench.state, &mut out);
        let key = format!("vm-stranded/{}", vm_id(1));
        out.iter().any(|command| matches!(command, Command::AlertRaise { key: raised, .. } if *raised == key))
    };
    assert_eq!(bench.pass(1_000), []);
    assert!(!stranded(&mut bench), "it runs");
    bench.beating = vec![H2];
    bench.reporting.clear();
    assert_eq!(bench.pass(5_000), [], "nobody else may start it");
    assert!(stranded(&mut bench));
    bench.beating = vec![H1, H2];
    assert_eq!(bench.pass(1_000), []);
    assert!(!stranded(&mut bench));
}
