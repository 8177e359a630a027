//! Which times may be set, and when.

use super::super::fixtures::{H1, place, protected};
use super::super::*;
use crate::authority::AuthorityChange;
use crate::vm::{Desired, Level};

fn set(change: impl FnOnce(&mut Settings)) -> Command {
    let mut settings = Settings::default();
    change(&mut settings);
    Command::SettingsSet { settings }
}

#[test]
fn times_that_would_break_a_rule_are_refused() {
    let mut state = protected();
    let fault = |state: &mut PoolState, change: fn(&mut Settings)| match state.must_refuse(set(change)) {
        Refusal::BadSettings(fault) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(&mut state, |s| s.lease_ms = 999), SettingsFault::Lease);
    assert_eq!(fault(&mut state, |s| s.lease_ms = 60_001), SettingsFault::Lease);
    assert_eq!(fault(&mut state, |s| s.report_interval_ms = 667), SettingsFault::ReportInterval);
    assert_eq!(fault(&mut state, |s| s.report_interval_ms = 99), SettingsFault::ReportInterval);
    assert_eq!(fault(&mut state, |s| s.detection_ms = 399), SettingsFault::Detection);
    assert_eq!(fault(&mut state, |s| s.heartbeat_ms = u64::MAX), SettingsFault::Detection);
    assert_eq!(fault(&mut state, |s| s.partner_timeout_ms = 199), SettingsFault::PartnerTimeout);
    state.must(set(|s| s.report_interval_ms = 666));
}

/// A new pool master waits for leases of the present length; a longer one could be out.
#[test]
fn a_lease_is_not_shortened_while_one_may_be_out() {
    let mut state = protected();
    state.must(set(|settings| settings.lease_ms = 30_000));
    state.start(1, H1, true);
    let shorter = || set(|settings| settings.lease_ms = 29_999);
    assert_eq!(state.must_refuse(shorter()), Refusal::LeasesOut("vm1".to_owned()));
    state.must(set(|settings| settings.lease_ms = 30_001));
    state.wish(1, Desired::Shutdown);
    state.must(state.change(1, AuthorityChange::Ended { clean: true }));
    state.must(shorter());
    // An unprotected VM has no lease.
    state.must(place(1, Level::Unprotected, &[H1]));
    state.start(1, H1, true);
    state.must(set(|settings| settings.lease_ms = 2_000));
}
