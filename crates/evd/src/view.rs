//! The pool state and what was heard lately, put into the words of the API.

mod vm;

use ev_api::event::{AlertView, EventView, Severity};
use ev_api::pool::{AddressView, NetworkView};
use ev_core::pool::{self, Member, Network};
use jiff::Timestamp;

pub use vm::{disk_views, vm_view};

/// A time of the pool state.
#[must_use]
pub fn time(unix_ms: u64) -> Timestamp {
    i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The present time, as the pool state has it.
#[must_use]
pub fn unix_ms_now() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

fn severity(severity: pool::Severity) -> Severity {
    match severity {
        pool::Severity::Info => Severity::Info,
        pool::Severity::Warning => Severity::Warning,
        pool::Severity::Error => Severity::Critical,
    }
}

#[must_use]
pub fn event(event: &pool::Event) -> EventView {
    EventView {
        number: event.number,
        time: time(event.unix_ms),
        severity: severity(event.severity),
        object: event.object.clone(),
        message: event.text.clone(),
    }
}

#[must_use]
pub fn alert(alert: &pool::Alert) -> AlertView {
    AlertView {
        severity: severity(alert.severity),
        object: alert.object.clone(),
        message: alert.text.clone(),
        action: alert.action.clone(),
        since: time(alert.since_unix_ms),
    }
}

#[must_use]
pub fn network(network: &Network) -> NetworkView {
    NetworkView { uuid: network.id.0, name: network.name.clone(), bridge: network.bridge.clone() }
}

/// The addresses of a host by network.
#[must_use]
pub fn addresses(member: &Member) -> Vec<AddressView> {
    let all = std::iter::once(member.peer.ip()).chain(member.private.iter().copied());
    all.zip(0..).map(|(address, path)| AddressView { network: crate::heartbeats::path_name(path), address }).collect()
}
