//! What a person should know, and do: raised when it becomes so, cleared when it is over.

use std::collections::BTreeMap;

use super::Master;
use super::hosts::HostView;
use crate::authority::Power;
use crate::pool::{Alert, Command, MemberKind, PoolState, Severity};
use crate::report::{EndCause, GuestState};
use crate::time::Instant;
use crate::vm::{Level, Vm};

/// Failures in a row from which on a guest's restarts are an alert.
const FAILURES_WORTH_AN_ALERT: u32 = 3;

type Alerts = BTreeMap<String, Alert>;

impl Master {
    pub(super) fn settle_alerts(&self, now: Instant, unix_ms: u64, state: &PoolState, out: &mut Vec<Command>) {
        let mut wanted = Alerts::new();
        let mut add = |key: String, severity, object: &str, text: String, action: &str| {
            let alert =
                Alert { since_unix_ms: unix_ms, severity, object: object.to_owned(), text, action: action.to_owned() };
            wanted.insert(key, alert);
        };
        for host in state.hosts() {
            if self.host_view(now, host.id, state) == HostView::Dead {
                let text = "the host is down or cut off from the pool master on every network".to_owned();
                add(
                    format!("host-down/{}", host.id),
                    Severity::Error,
                    &host.name,
                    text,
                    "check its power and its network cables",
                );
            }
        }
        if let Some((text, action)) = voting_gap(state) {
            let pool = state.pool.as_ref().map_or("", |pool| pool.name.as_str());
            add("quorum/none".to_owned(), Severity::Warning, pool, text, action);
        }
        for vm in state.vms.values() {
            if let Some(text) = self.failing(vm) {
                add(
                    format!("vm-failing/{}", vm.id),
                    Severity::Error,
                    &vm.name,
                    text,
                    "see ev pvm-show and the log of QEMU on its host",
                );
            }
            if let Some(text) = without_redundancy(vm, state) {
                add(
                    format!("vm-simplex/{}", vm.id),
                    Severity::Warning,
                    &vm.name,
                    text,
                    "bring the other host or its disk back; the copy then runs by itself (ev pvm-sync shows it)",
                );
            }
            for (index, trouble) in self.troubles(vm).into_iter().enumerate() {
                add(format!("vm-trouble/{}/{index}", vm.id), Severity::Warning, &vm.name, trouble, "see ev disk-show");
            }
        }
        for (key, alert) in &wanted {
            let stands =
                state.alerts.get(key).is_some_and(|old| old.text == alert.text && old.severity == alert.severity);
            if !stands {
                out.push(Command::AlertRaise { key: key.clone(), alert: alert.clone() });
            }
        }
        for key in state.alerts.keys().filter(|key| !wanted.contains_key(*key)) {
            out.push(Command::AlertClear { key: key.clone() });
        }
    }

    fn failing(&self, vm: &Vm) -> Option<String> {
        let failures = self.failures(vm.id);
        let active = vm.authority.active?;
        let (_, report) = self.reports.get(&(vm.id, active))?;
        let ended = matches!(report.guest, GuestState::Ended { .. });
        let why = match &report.guest {
            GuestState::Ended { cause: EndCause::Crashed(why) | EndCause::StartFailed(why), .. } => why.as_str(),
            GuestState::Ended { .. }
            | GuestState::Absent
            | GuestState::Starting { .. }
            | GuestState::Running { .. }
            | GuestState::Paused { .. } => "the reason of the last time is in the events",
        };
        (failures >= FAILURES_WORTH_AN_ALERT && ended).then(|| format!("it ended {failures} times in a row: {why}"))
    }

    fn troubles(&self, vm: &Vm) -> Vec<String> {
        let reports = vm.hosts.iter().filter_map(|host| self.reports.get(&(vm.id, *host)));
        reports.flat_map(|(_, report)| report.troubles.iter().cloned()).collect()
    }
}

/// A pool of two hosts in which one host's death stops everything that needs a vote.
fn voting_gap(state: &PoolState) -> Option<(String, &'static str)> {
    let hosts = state.hosts().count();
    let has_quorum_server = state.members.values().any(|member| member.kind == MemberKind::QuorumServer);
    (hosts == 2 && !has_quorum_server).then(|| {
        let text = "two hosts and no quorum server: if the first host dies, no PVM can be taken over";
        (text.to_owned(), "add a quorum server on a third machine (ev quorum-add)")
    })
}

/// Why a protected VM could not survive the loss of a host now.
fn without_redundancy(vm: &Vm, state: &PoolState) -> Option<String> {
    if vm.level == Level::Unprotected || vm.authority.standby.is_some() {
        return None;
    }
    let runs = matches!(vm.authority.power, Power::On { .. });
    let lacking: Vec<String> = vm
        .hosts
        .iter()
        .filter(|host| !vm.authority.holds_all_good(**host))
        .map(|host| state.member_name(*host))
        .collect();
    let how = if runs { "runs" } else { "is" };
    Some(format!("it {how} without redundancy: {} lacks an up-to-date replica", lacking.join(" and ")))
}
