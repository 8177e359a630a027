//! What the pool master has heard lately: reports of AMs and of hosts. In memory only; a new master hears it anew
//! within a second.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ev_core::ids::{HostId, VmId};
use ev_core::report::AmReport;
use ev_core::time::Instant;
use serde::{Deserialize, Serialize};

use crate::clock;

/// A report that is older says nothing about now.
pub const FRESH: Duration = Duration::from_secs(3);
/// The same for a host's status, which comes every two seconds.
const STATUS_FRESH: Duration = Duration::from_secs(6);

/// What a host's daemon says of its host (`GET /v1/local/status`, between daemons).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    pub cpus: u32,
    pub memory_mib: u64,
    /// Memory that could be had without taking it from a process.
    #[serde(default)]
    pub available_mib: Option<u64>,
    /// In words; with TCG the reason.
    pub accelerator: String,
    /// Free where replicas are kept.
    pub free_bytes: Option<u64>,
    /// When each host was last heard on each path, in milliseconds ago.
    pub heard: Vec<Heard>,
    /// What is wrong on this host.
    pub troubles: Vec<String>,
}

/// A path, as the host at its end hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    pub from: HostId,
    pub path: u16,
    pub ago_ms: u64,
}

#[derive(Debug)]
struct Noted<T> {
    what: T,
    at: Instant,
}

impl<T> Noted<T> {
    fn fresh(&self, for_time: Duration) -> Option<&T> {
        (clock::now().since(self.at) < for_time).then_some(&self.what)
    }
}

/// The notes.
#[derive(Debug, Default)]
pub struct Live {
    reports: Mutex<BTreeMap<(VmId, HostId), Noted<AmReport>>>,
    hosts: Mutex<BTreeMap<HostId, Noted<HostStatus>>>,
}

impl Live {
    /// Notes an AM's report.
    pub fn report(&self, report: AmReport) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert((report.vm, report.host), Noted { what: report, at: clock::now() });
    }

    /// Notes a host's status.
    pub fn host(&self, host: HostId, status: HostStatus) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.insert(host, Noted { what: status, at: clock::now() });
    }

    /// The fresh reports of a VM's AMs.
    #[must_use]
    pub fn reports_of(&self, vm: VmId) -> BTreeMap<HostId, AmReport> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let of_vm = reports.iter().filter(|((of, _), _)| *of == vm);
        of_vm.filter_map(|((_, host), noted)| Some((*host, noted.fresh(FRESH)?.clone()))).collect()
    }

    /// The fresh status of a host.
    #[must_use]
    pub fn status_of(&self, host: HostId) -> Option<HostStatus> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(&host)?.fresh(STATUS_FRESH).cloned()
    }

    /// Forgets what is gone.
    pub fn sweep(&self) {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, noted| noted.fresh(FRESH).is_some());
        self.hosts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, noted| noted.fresh(STATUS_FRESH).is_some());
    }
}
