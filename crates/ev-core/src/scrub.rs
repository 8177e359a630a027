//! When the replicas of a VM's disks are compared in the background.
//!
//! Storage rots silently, and a replica that is not read for months is found bad on the day when it is needed. So each pair is
//! compared now and then, gently, and a difference is repaired from the active side.

use crate::ids::{HostId, VmId};
use crate::pool::PoolState;
use crate::vm::{Level, Vm};

/// Bytes a second that a comparison in the background looks at: a tenth of a plain SSD, a terabyte in nine hours.
pub const SCRUB_BYTES_PER_S: u64 = 32 << 20;
/// VMs are spread over this part of the interval, so that those made together are not all compared together.
const SPREAD_PART: u64 = 8;

/// The VM that `host` should compare next: it is active for it, all replicas count, and it was not compared for longest.
#[must_use]
pub fn due(state: &PoolState, host: HostId, unix_ms: u64) -> Option<VmId> {
    let interval_ms = state.settings.scrub_interval_s.checked_mul(1_000).filter(|ms| *ms > 0)?;
    let mine = state.vms.values().filter(|vm| vm.authority.active == Some(host) && is_whole(vm));
    let due = mine.filter_map(|vm| {
        let last = last_ms(state, vm)?;
        let at = last.saturating_add(interval_ms).saturating_add(spread(vm.id, interval_ms));
        (at <= unix_ms).then_some((at, vm.id))
    });
    due.min().map(|(_, vm)| vm)
}

/// Not while the guest is protected by checkpoints: then the standby's replicas are always a little older.
fn is_whole(vm: &Vm) -> bool {
    vm.authority.memory.is_none()
        && vm.level != Level::Unprotected
        && vm.hosts.iter().all(|host| vm.authority.holds_all_good(*host))
}

/// When the disk that was not compared for longest was; `None` without disks.
fn last_ms(state: &PoolState, vm: &Vm) -> Option<u64> {
    let times = vm.config.disks.iter().map(|disk| state.compared.get(&disk.id).map_or(0, |compared| compared.unix_ms));
    times.min()
}

fn spread(vm: VmId, interval_ms: u64) -> u64 {
    let (high, low) = vm.0.as_u64_pair();
    (high ^ low) % (interval_ms / SPREAD_PART).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::AuthorityChange;
    use crate::pool::fixtures::{H1, H2, disk_id, memory_held, protected, vm_id};
    use crate::pool::{Command, Compared};

    const HOUR_MS: u64 = 3_600_000;
    const WEEK_MS: u64 = 7 * 24 * HOUR_MS;

    fn compared(state: &mut PoolState, unix_ms: u64, different_bytes: u64) {
        let outcome = Compared { unix_ms, compared_bytes: 1 << 20, different_bytes, repaired_bytes: different_bytes };
        state.must(Command::DiskCompared { vm: vm_id(1), disk: disk_id(1, 0), outcome });
    }

    #[test]
    fn a_pair_is_compared_once_a_week_on_the_active_host_while_both_count() {
        let mut state = protected();
        state.start(1, H1, true);
        compared(&mut state, 1_000, 0);
        assert_eq!(due(&state, H1, WEEK_MS), None, "not yet");
        let late = 1_000 + WEEK_MS + WEEK_MS / SPREAD_PART;
        assert_eq!(due(&state, H1, late), Some(vm_id(1)));
        assert_eq!(due(&state, H2, late), None, "the other host's turn");
        state.must(state.change(1, AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H2 }));
        assert_eq!(due(&state, H1, late), None, "there is nothing to compare with");
        state.must(state.change(1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
        compared(&mut state, late, 0);
        assert_eq!(due(&state, H1, late + WEEK_MS - 1), None);
        state.settings.scrub_interval_s = 0;
        assert_eq!(due(&state, H1, u64::MAX), None, "never");
    }

    #[test]
    fn a_guest_whose_memory_is_held_is_not_compared_with_a_replica_that_is_older() {
        let mut state = memory_held();
        assert_eq!(due(&state, H1, WEEK_MS * 2), None);
        state.must(state.change(1, AuthorityChange::StandbyLost { host: H2 }));
        state.must(state.change(1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
        assert_eq!(due(&state, H1, WEEK_MS * 2), Some(vm_id(1)));
    }

    #[test]
    fn an_outcome_is_an_event_once_and_a_warning_if_the_replicas_differed() {
        let mut state = protected();
        let events = state.events.len();
        compared(&mut state, 5_000, 4096);
        compared(&mut state, 5_000, 4096);
        assert_eq!(state.events.len(), events + 1);
        let last = state.events.back().expect("there is one");
        assert!(last.severity == crate::pool::Severity::Warning && last.text.contains("4096"), "{last:?}");
        compared(&mut state, 4_000, 0);
        assert_eq!(state.compared[&disk_id(1, 0)].unix_ms, 5_000, "an older one does not count");
    }
}
