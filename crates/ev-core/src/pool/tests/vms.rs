//! VMs and networks: names, hardware, wishes.

use uuid::Uuid;

use super::super::fixtures::{H1, NETWORK, config, create, disk_id, pool, protected, vm_id};
use super::super::*;
use crate::authority::{AuthorityChange, Power};
use crate::ids::{Generation, NetworkId};
use crate::vm::{DISKS_MAX, Desired, DiskConfig, Level, NICS_MAX, VmConfig};

fn with(number: u8, change: impl FnOnce(&mut VmConfig)) -> Command {
    let mut config = config(number);
    change(&mut config);
    Command::VmCreate { id: vm_id(number), name: format!("vm{number}"), config: Box::new(config), host: H1 }
}

fn named(name: &str) -> Command {
    Command::VmCreate { id: vm_id(9), name: name.to_owned(), config: Box::new(config(9)), host: H1 }
}

#[test]
fn names_are_unique_and_fit_everywhere() {
    let mut state = protected();
    let long = "n".repeat(64);
    for bad in ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", "uuid=1", long.as_str()] {
        assert_eq!(state.must_refuse(named(bad)), Refusal::BadName(bad.to_owned()), "{bad:?}");
    }
    assert_eq!(state.must_refuse(named("vm1")), Refusal::NameTaken("vm1".to_owned()));
    for good in ["a", "9", "a.b-c_d", &long[1..]] {
        state.must(named(good));
        state.must(Command::VmDelete { id: vm_id(9) });
    }
}

#[test]
fn a_new_vm_is_off_unprotected_and_its_replica_counts() {
    let mut state = pool();
    state.must(create(1));
    let vm = state.vm(1);
    assert_eq!((vm.level, vm.desired), (Level::Unprotected, Desired::Shutdown));
    assert_eq!(vm.authority.generation, Generation(1));
    assert_eq!((vm.authority.active, vm.authority.standby), (Some(H1), None));
    assert_eq!((vm.authority.power, vm.authority.clean), (Power::Off, true));
    assert_eq!(vm.authority.good[&disk_id(1, 0)], [H1].into());
}

#[test]
fn hardware_that_makes_no_sense_is_refused() {
    let mut state = protected();
    let disk = |index: usize, size_bytes| DiskConfig { id: disk_id(5, u8::try_from(index).unwrap()), size_bytes };
    for (size_bytes, index) in [(0, 0), (511, 0), (1_000_001, 0)] {
        let refusal = state.must_refuse(with(5, |config| config.disks[0].size_bytes = size_bytes));
        assert_eq!(refusal, Refusal::DiskSize { index, size_bytes });
    }
    let too_many = with(5, |config| config.disks = (0..=DISKS_MAX).map(|index| disk(index, 512)).collect());
    assert!(matches!(state.must_refuse(too_many), Refusal::TooManyDevices { asked: 17, .. }));
    let too_many = with(5, |config| {
        config.nics = (0..=NICS_MAX)
            .map(|index| {
                let mut nic = config.nics[0].clone();
                nic.mac.0[4] = u8::try_from(index).unwrap();
                nic
            })
            .collect();
    });
    assert!(matches!(state.must_refuse(too_many), Refusal::TooManyDevices { asked: 9, .. }));
    assert!(matches!(state.must_refuse(with(5, |config| config.vcpus = 0)), Refusal::TooFewDevices(_)));
    assert!(matches!(state.must_refuse(with(5, |config| config.memory_mib = 0)), Refusal::TooFewDevices(_)));
    let foreign = with(5, |config| config.nics[0].network = NetworkId(Uuid::from_u128(1)));
    assert_eq!(state.must_refuse(foreign), Refusal::NoSuchNetwork);
}

#[test]
fn identities_are_not_given_twice() {
    let mut state = protected();
    let mac = config(1).nics[0].mac;
    assert_eq!(state.must_refuse(with(5, |config| config.nics[0].mac = mac)), Refusal::MacTaken(mac.to_string()));
    let twice = with(5, |config| config.nics.push(config.nics[0].clone()));
    assert!(matches!(state.must_refuse(twice), Refusal::MacTaken(_)));
    let disk = disk_id(1, 0);
    let taken = Refusal::DiskTaken { index: 0, disk };
    assert_eq!(state.must_refuse(with(5, |config| config.disks[0].id = disk)), taken);
    let twice = with(5, |config| config.disks.push(config.disks[0].clone()));
    assert!(matches!(state.must_refuse(twice), Refusal::DiskTaken { index: 1, .. }));
}

#[test]
fn vm_numbers_are_used_again_but_never_twice_at_a_time() {
    let mut state = pool();
    for number in 1..=3 {
        state.must(create(number));
    }
    assert_eq!([1, 2, 3].map(|number| state.vm(number).number), [0, 1, 2]);
    state.must(Command::VmDelete { id: vm_id(2) });
    state.must(create(4));
    assert_eq!(state.vm(4).number, 1);
}

#[test]
fn a_running_vm_is_not_deleted() {
    let mut state = protected();
    state.wish(1, Desired::Running);
    let runs = Refusal::VmRuns("vm1".to_owned());
    assert_eq!(state.must_refuse(Command::VmDelete { id: vm_id(1) }), runs);
    state.start(1, H1, true);
    state.wish(1, Desired::ForceOff);
    assert_eq!(state.must_refuse(Command::VmDelete { id: vm_id(1) }), runs);
    state.must(state.change(1, AuthorityChange::Ended { clean: true }));
    state.must(Command::VmDelete { id: vm_id(1) });
    assert_eq!(state.must_refuse(Command::VmDelete { id: vm_id(1) }), Refusal::NoSuchVm);
}

#[test]
fn what_is_off_is_not_rebooted() {
    let mut state = protected();
    for desired in [Desired::Reboot, Desired::ForceReboot] {
        let refusal = state.must_refuse(Command::VmDesire { id: vm_id(1), desired });
        assert_eq!(refusal, Refusal::NotRunning);
    }
}

#[test]
fn a_vm_is_renamed_to_a_free_name() {
    let mut state = protected();
    state.must(create(2));
    let rename = |name: &str| Command::VmRename { id: vm_id(2), name: name.to_owned() };
    assert_eq!(state.must_refuse(rename("vm1")), Refusal::NameTaken("vm1".to_owned()));
    state.must(rename("vm2"));
    state.must(rename("web"));
    assert_eq!(state.vm_named("web").map(|vm| vm.id), Some(vm_id(2)));
}

#[test]
fn a_network_in_use_stays() {
    let mut state = protected();
    let used = Refusal::NetworkInUse { network: "vm".to_owned(), vms: "vm1".to_owned() };
    assert_eq!(state.must_refuse(Command::NetworkRemove { id: NETWORK }), used);
    let network = |name: &str, bridge: &str| Command::NetworkAdd {
        network: Network { id: NetworkId(Uuid::from_u128(7)), name: name.to_owned(), bridge: bridge.to_owned() },
    };
    assert!(matches!(state.must_refuse(network("vm", "b")), Refusal::NameTaken(_)));
    assert!(matches!(state.must_refuse(network("lan", "ekbr-vm")), Refusal::NameTaken(_)));
    state.must(network("lan", "ekbr-lan"));
    state.must(Command::NetworkRemove { id: NetworkId(Uuid::from_u128(7)) });
}
