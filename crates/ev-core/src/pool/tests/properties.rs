//! What holds whatever is asked, in whatever order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::fixtures::{H1, H2, config, disk_id, pool, vm_id};
use super::super::*;
use crate::authority::{AuthorityChange, Origin, Power};
use crate::ids::{Generation, HostId, MemberId};
use crate::vm::{Desired, Level};

/// A command in outline: generations and identities are filled in from the state that it meets.
#[derive(Debug, Clone)]
enum Ask {
    Create(u8, HostId),
    Delete(u8),
    Desire(u8, Desired),
    Place(u8, Level, BTreeSet<HostId>),
    Change(u8, u64, AuthorityChange),
    Remove(MemberId),
}

fn host() -> impl Strategy<Value = HostId> {
    (1_u64..=4).prop_map(MemberId)
}

fn vm() -> impl Strategy<Value = u8> {
    1_u8..=3
}

fn change(number: u8) -> impl Strategy<Value = AuthorityChange> {
    let disk = move || (1..=number.max(2)).prop_map(|number| disk_id(number, 0));
    prop_oneof![
        1 => (disk(), host()).prop_map(|(disk, host)| AuthorityChange::ReplicaLost { disk, host }),
        3 => (disk(), host()).prop_map(|(disk, host)| AuthorityChange::ReplicaGood { disk, host }),
        3 => (host(), any::<bool>()).prop_map(|(host, clean)| AuthorityChange::Start { host, clean }),
        1 => any::<bool>().prop_map(|clean| AuthorityChange::Ended { clean }),
        3 => host().prop_map(|host| AuthorityChange::MemoryHeld { host }),
        1 => host().prop_map(|host| AuthorityChange::StandbyLost { host }),
        2 => host().prop_map(|host| AuthorityChange::Continue { host }),
    ]
}

fn desired() -> impl Strategy<Value = Desired> {
    use Desired::{ForceOff, ForceReboot, Reboot, Running, Shutdown};
    prop_oneof![4 => Just(Running), 1 => Just(Shutdown), 1 => Just(ForceOff), 1 => Just(Reboot), 1 => Just(ForceReboot)]
}

fn ask() -> impl Strategy<Value = Ask> {
    let level = prop_oneof![
        1 => Just(Level::Unprotected),
        1 => Just(Level::Restart),
        1 => Just(Level::Component),
        3 => Just(Level::System),
    ];
    let hosts = prop_oneof![
        4 => Just([H1, H2].into()),
        1 => proptest::collection::btree_set(host(), 0..3),
    ];
    prop_oneof![
        1 => (vm(), host()).prop_map(|(number, host)| Ask::Create(number, host)),
        1 => vm().prop_map(Ask::Delete),
        3 => (vm(), desired()).prop_map(|(number, desired)| Ask::Desire(number, desired)),
        3 => (vm(), level, hosts).prop_map(|(number, level, hosts)| Ask::Place(number, level, hosts)),
        12 => vm().prop_flat_map(|number| (Just(number), prop_oneof![9 => Just(0_u64), 1 => 1_u64..3], change(number)))
            .prop_map(|(number, behind, change)| Ask::Change(number, behind, change)),
        1 => host().prop_map(Ask::Remove),
    ]
}

fn command(state: &PoolState, ask: Ask) -> Command {
    match ask {
        Ask::Create(number, host) => {
            let config = Box::new(config(number));
            Command::VmCreate { id: vm_id(number), name: format!("vm{number}"), config, host }
        }
        Ask::Delete(number) => Command::VmDelete { id: vm_id(number) },
        Ask::Desire(number, desired) => Command::VmDesire { id: vm_id(number), desired },
        Ask::Place(number, level, hosts) => Command::VmPlace { id: vm_id(number), level, hosts },
        Ask::Change(number, behind, change) => {
            let newest = state.vms.get(&vm_id(number)).map_or(Generation::NONE, |vm| vm.authority.generation);
            let if_generation = Generation(newest.0.saturating_sub(behind));
            Command::VmAuthority { id: vm_id(number), if_generation, change }
        }
        Ask::Remove(id) => Command::MemberRemove { id },
    }
}

fn check_records(state: &PoolState) {
    for vm in state.vms.values() {
        let record = &vm.authority;
        assert!(record.generation > Generation::NONE);
        assert_eq!(record.good.len(), vm.config.disks.len());
        for good in record.good.values() {
            assert!(!good.is_empty(), "no good replica: {vm:?}");
            assert!(good.is_subset(&vm.hosts), "a good replica where none belongs: {vm:?}");
        }
        assert!(vm.hosts.iter().all(|host| state.hosts().any(|member| member.id == *host)), "{vm:?}");
        assert_eq!(vm.hosts.len(), if vm.level == Level::Unprotected { 1 } else { 2 }, "{vm:?}");
        assert!(record.active.is_none_or(|active| vm.hosts.contains(&active)), "{vm:?}");
        let standby = vm.hosts.iter().find(|host| Some(**host) != record.active && record.holds_all_good(**host));
        assert_eq!(record.standby, standby.copied(), "{vm:?}");
        if let Power::On { since } = record.power {
            assert!(since <= record.generation && record.active.is_some() && !record.clean, "{vm:?}");
        }
        if let Some(holder) = record.memory {
            assert!(vm.level == Level::System && record.power != Power::Off, "{vm:?}");
            assert!(vm.hosts.contains(&holder) && record.active != Some(holder), "{vm:?}");
            let both = [Some(holder), record.active];
            assert!(both.into_iter().flatten().all(|host| record.holds_all_good(host)), "{vm:?}");
        }
    }
}

/// What one step may do to a record.
fn check_step(before: &PoolState, after: &PoolState) {
    for (id, new) in &after.vms {
        let Some(old) = before.vms.get(id) else { continue };
        let (old_record, new_record) = (&old.authority, &new.authority);
        if old_record != new_record {
            assert_eq!(new_record.generation, old_record.generation.next(), "a change without a new generation");
        }
        if (old.level, &old.hosts) != (new.level, &new.hosts) {
            assert_eq!(new_record.generation, old_record.generation.next(), "a new level under an old generation");
        }
        let moved = new_record.power != old_record.power || new_record.active != old_record.active;
        if let Power::On { since } = new_record.power
            && moved
        {
            assert_eq!(since, new_record.generation, "a guest that runs elsewhere or anew has a new `since`");
            let active = new_record.active.expect("it is on");
            assert!(old_record.holds_all_good(active), "started without all good replicas: {old:?} {new:?}");
            let goes_on = new_record.origin == Origin::Memory;
            assert!(!goes_on || old_record.memory == Some(active), "goes on without memory: {old:?} {new:?}");
        }
        // Memory ends with the standing of one side's disks: they were at different epochs.
        let ended_unclean = new_record.power == Power::Off && !new_record.clean;
        if old_record.memory.is_some() && new_record.memory.is_none() && !ended_unclean {
            assert!(new_record.good.values().all(|good| good.len() == 1), "two epochs count: {old:?} {new:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn records_stay_sound(asks in proptest::collection::vec(ask(), 1..120)) {
        let mut state = pool();
        for ask in asks {
            let before = state.clone();
            let command = command(&state, ask);
            let outcome = state.run(command.clone());
            if let Outcome::Refused(refusal) = &outcome {
                prop_assert_eq!(&state, &before, "refused ({}) and yet changed: {:?}", refusal, command);
            }
            check_records(&state);
            check_step(&before, &state);
        }
        let bytes = serde_json::to_vec(&state).unwrap();
        let copy: PoolState = serde_json::from_slice(&bytes).unwrap();
        prop_assert_eq!(copy, state);
    }
}
