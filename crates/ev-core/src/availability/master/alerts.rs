//! What a person should know, and do: raised when it becomes so, cleared when it is over.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Master;
use super::hosts::{HostView, Path};
use crate::authority::Power;
use crate::ids::HostId;
use crate::pool::{Alert, Command, Member, MemberKind, PoolState, Severity};
use crate::report::{EndCause, GuestState, Level3State};
use crate::time::Instant;
use crate::vm::{Desired, Level, Vm};

/// Failures in a row from which on a guest's restarts are an alert.
const FAILURES_WORTH_AN_ALERT: u32 = 3;

/// A network or a quorum server of which nothing was heard for so long is an alert; shorter gaps happen.
const SILENCE: Duration = Duration::from_secs(3);

/// A guest at level 3 whose memory no other host holds for so long is an alert; each start and takeover is followed by a shorter gap.
const WITHOUT_MEMORY: Duration = Duration::from_secs(10);

type Alerts = BTreeMap<String, Alert>;

/// What is wrong now.
struct Wanted {
    unix_ms: u64,
    alerts: Alerts,
}

impl Wanted {
    fn add(&mut self, key: String, severity: Severity, object: &str, text: String, action: &str) {
        let (object, action) = (object.to_owned(), action.to_owned());
        self.alerts.insert(key, Alert { since_unix_ms: self.unix_ms, severity, object, text, action });
    }
}

impl Master {
    pub(super) fn settle_alerts(&self, now: Instant, unix_ms: u64, state: &PoolState, out: &mut Vec<Command>) {
        let mut wanted = Wanted { unix_ms, alerts: Alerts::new() };
        self.alerts_of_members(now, state, &mut wanted);
        self.alerts_of_vms(now, state, &mut wanted);
        let wanted = wanted.alerts;
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

    fn alerts_of_members(&self, now: Instant, state: &PoolState, wanted: &mut Wanted) {
        for host in state.hosts() {
            if self.host_view(now, host.id, state) == HostView::Dead {
                let text = "the host is down or cut off from the pool master on every network".to_owned();
                let action = "check its power and its network cables";
                wanted.add(format!("host-down/{}", host.id), Severity::Error, &host.name, text, action);
                continue;
            }
            for path in self.silent_paths(now, host) {
                let text = format!("nothing has come from this host on {path} for {} s", SILENCE.as_secs());
                let action = "check this network's cables, switches and addresses (ev host-list shows what is heard)";
                wanted.add(format!("path-silent/{}/{}", host.id, path.0), Severity::Warning, &host.name, text, action);
            }
        }
        if let Some((text, action)) = voting_gap(state) {
            let pool = state.pool.as_ref().map_or("", |pool| pool.name.as_str());
            wanted.add("quorum/none".to_owned(), Severity::Warning, pool, text, action);
        }
        let quorum_servers = state.members.values().filter(|member| member.kind == MemberKind::QuorumServer);
        let silent_for_long =
            |server: &&Member| self.silent_voters.get(&server.id).is_some_and(|since| now.since(*since) >= SILENCE);
        for server in quorum_servers.filter(silent_for_long) {
            let text = "the quorum server does not answer: the death of a host now stops what needs a vote".to_owned();
            let action = "start it again, or check the network to it";
            wanted.add(format!("quorum-silent/{}", server.id), Severity::Warning, &server.name, text, action);
        }
    }

    fn alerts_of_vms(&self, now: Instant, state: &PoolState, wanted: &mut Wanted) {
        for vm in state.vms.values() {
            if let Some(text) = self.failing(vm) {
                let action = "see ev pvm-show and the log of QEMU on its host";
                wanted.add(format!("vm-failing/{}", vm.id), Severity::Error, &vm.name, text, action);
            }
            if let Some(text) = self.stranded(now, vm, state) {
                let action = "bring that host back; only if it is lost for good, and with it what was written last: ev pvm-revert";
                wanted.add(format!("vm-stranded/{}", vm.id), Severity::Error, &vm.name, text, action);
            } else if let Some(text) = without_redundancy(vm, state) {
                let action =
                    "bring the other host or its disk back; the copy then runs by itself (ev pvm-sync shows it)";
                wanted.add(format!("vm-simplex/{}", vm.id), Severity::Warning, &vm.name, text, action);
            } else if let Some((text, action)) = self.without_memory(now, vm, state) {
                wanted.add(format!("vm-simplex/{}", vm.id), Severity::Warning, &vm.name, text, action);
            }
            for (index, trouble) in self.troubles(vm).into_iter().enumerate() {
                let key = format!("vm-trouble/{}/{index}", vm.id);
                wanted.add(key, Severity::Warning, &vm.name, trouble, "see ev pvm-show and ev disk-show");
            }
        }
    }

    /// The networks on which a host, though alive, has not been heard for long.
    fn silent_paths(&self, now: Instant, host: &Member) -> Vec<Path> {
        let Some(awake) = self.awake_since.filter(|_| host.id != self.me) else { return Vec::new() };
        let could_be_heard_since = self.first_heard.get(&host.id).copied().map_or(awake, |first| first.max(awake));
        let paths = (0..=u8::try_from(host.private.len()).unwrap_or(u8::MAX)).map(Path);
        paths
            .filter(|path| {
                let last = self.heard.get(&(host.id, *path)).copied().unwrap_or_default();
                now.since(last.max(could_be_heard_since)) >= SILENCE
            })
            .collect()
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

    /// Why a guest that is to run can't: those who have the newest state of its disks are away.
    fn stranded(&self, now: Instant, vm: &Vm, state: &PoolState) -> Option<String> {
        let dead = |host: HostId| self.host_view(now, host, state) == HostView::Dead;
        let wished = matches!(vm.desired, Desired::Running | Desired::Reboot | Desired::ForceReboot);
        let holders: Vec<HostId> = vm.hosts.iter().copied().filter(|host| vm.authority.holds_all_good(*host)).collect();
        if !wished || vm.level == Level::Unprotected || !holders.iter().all(|host| dead(*host)) {
            return None;
        }
        let names: Vec<String> = holders.iter().map(|host| state.member_name(*host)).collect();
        Some(match names.as_slice() {
            [] => "it can't run: no single host has the newest state of all its disks".to_owned(),
            names => {
                format!("it can't run: the newest state of its disks is on {}, which is down", names.join(" and "))
            }
        })
    }

    pub(super) fn note_lacking_memory(&mut self, now: Instant, state: &PoolState) {
        let lacks = |vm: &&Vm| {
            let runs = matches!(vm.authority.power, Power::On { .. });
            vm.level == Level::System && runs && vm.authority.memory.is_none()
        };
        let since = |id| self.without_memory_since.get(&id).copied().unwrap_or(now);
        self.without_memory_since = state.vms.values().filter(lacks).map(|vm| (vm.id, since(vm.id))).collect();
    }

    /// Why a guest at level 3 would be restarted, and not go on, if its host died now; and what to do.
    fn without_memory(&self, now: Instant, vm: &Vm, state: &PoolState) -> Option<(String, &'static str)> {
        let since = self.without_memory_since.get(&vm.id)?;
        if now.since(*since) < WITHOUT_MEMORY {
            return None;
        }
        let active = vm.authority.active?;
        let level3 = self.reports.get(&(vm.id, active)).and_then(|(_, report)| report.level3.as_ref());
        let standby = vm.authority.standby.map(|host| state.member_name(host)).unwrap_or_default();
        let (why, action) = match level3.map(|report| &report.state) {
            Some(Level3State::Synchronising | Level3State::Joining | Level3State::Protected) => (
                format!("{standby} is being given its memory"),
                "wait: ev pvm-show says how far it is; if this does not end, see the link between the hosts (ev host-list)",
            ),
            // Nothing is wrong: `ev pvm-show` says so too.
            Some(Level3State::Queued { .. }) => return None,
            Some(Level3State::Simplex(why)) => {
                (why.clone(), "mend what it names; the rest goes by itself (ev pvm-show)")
            }
            Some(Level3State::Parting) | None => (
                format!("{standby} does not hold its memory"),
                "see ev pvm-show and the links between the hosts (ev host-list); the rest goes by itself",
            ),
        };
        Some((format!("it would be restarted from its disks if its host died now, and not go on: {why}"), action))
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
