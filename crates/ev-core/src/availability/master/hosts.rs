//! Who is alive.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Master;
use crate::ids::HostId;
use crate::pool::PoolState;
use crate::time::Instant;
use crate::vm::Vm;

/// A path on which hosts hear each other: 0 is the management network, 1 and up the private ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Path(pub u8);

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("the management network"),
            number => write!(f, "private link {number}"),
        }
    }
}

/// A host as the pool master sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostView {
    Alive,
    /// Silent on every path for the detection time.
    Dead,
}

/// An active AM that says nothing for this long, on a host that lives, is as good as dead: beyond lease and grace its
/// guest has ended by itself.
const STUCK_AM: Duration = Duration::from_secs(15);

impl Master {
    /// Whether a host counts as dead. The master itself is alive; so is everyone for the detection time after it began, or stood
    /// still itself.
    #[must_use]
    pub fn host_view(&self, now: Instant, host: HostId, state: &PoolState) -> HostView {
        let detection = Duration::from_millis(state.settings.detection_ms);
        let last = self.heard.iter().filter(|((heard, _), _)| *heard == host).map(|(_, at)| *at).max();
        let last = last.max(self.awake_since);
        match last {
            _ if host == self.me => HostView::Alive,
            Some(last) if now.since(last) < detection => HostView::Alive,
            Some(_) | None => HostView::Dead,
        }
    }

    /// The paths on which a host is heard now.
    #[must_use]
    pub fn paths_heard(&self, now: Instant, host: HostId, state: &PoolState) -> Vec<Path> {
        let detection = Duration::from_millis(state.settings.detection_ms);
        self.heard
            .iter()
            .filter(|((heard, _), at)| *heard == host && now.since(**at) < detection)
            .map(|((_, path), _)| *path)
            .collect()
    }

    /// Whether the VM's active side shows no life: its AM does not report, and its host is dead or has been silent about
    /// this VM for so long that it must be stuck.
    pub(super) fn active_is_dead(&self, now: Instant, vm: &Vm, active: HostId, state: &PoolState) -> bool {
        let detection_ms = match vm.authority.memory {
            // Who goes on elsewhere in error loses nothing but time, so a report that is late is not waited for.
            Some(_) => state.settings.detection_ms,
            None => state.settings.detection_ms.max(state.settings.report_interval_ms * 2),
        };
        let detection = Duration::from_millis(detection_ms);
        let last_report = self.reports.get(&(vm.id, active)).map(|(at, _)| *at).max(self.awake_since);
        let silence = |last: Option<Instant>| last.map_or(Duration::MAX, |at| now.since(at));
        match self.host_view(now, active, state) {
            HostView::Dead => silence(last_report) >= detection,
            // To a master before this one it may have reported.
            HostView::Alive => silence(last_report.max(self.leader_since)) >= STUCK_AM,
        }
    }
}
