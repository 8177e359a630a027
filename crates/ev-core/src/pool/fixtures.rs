//! A small pool for tests: hosts `h1` and `h2`, a quorum server, and VMs as asked for.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use uuid::Uuid;

use super::{
    Command, CpuFacts, Member, MemberKind, MemoryTracking, Network, Outcome, PoolInfo, PoolState, Refusal, Stamped,
};
use crate::authority::{Authority, AuthorityChange};
use crate::ids::{DiskId, Generation, HostId, MacAddress, MemberId, NetworkId, PoolId, VmId};
use crate::vm::{Boot, Desired, DiskConfig, Firmware, Level, NicConfig, Vm, VmConfig};

pub(crate) const H1: HostId = MemberId(1);
pub(crate) const H2: HostId = MemberId(2);
pub(crate) const QUORUM: MemberId = MemberId(3);
pub(crate) const NETWORK: NetworkId = NetworkId(Uuid::from_u128(800));

pub(crate) fn vm_id(number: u8) -> VmId {
    VmId(Uuid::from_u128(100 + u128::from(number)))
}

/// The disk `index` of the VM `number`.
pub(crate) fn disk_id(number: u8, index: u8) -> DiskId {
    DiskId(Uuid::from_u128(10_000 + 100 * u128::from(number) + u128::from(index)))
}

pub(crate) fn member(number: u64, kind: MemberKind) -> Member {
    let address: SocketAddr = format!("192.0.2.{number}:7400").parse().expect("an address");
    let prefix = match kind {
        MemberKind::Host => "h",
        MemberKind::QuorumServer => "q",
    };
    Member {
        id: MemberId(number),
        uuid: Uuid::from_u128(u128::from(number)),
        name: format!("{prefix}{number}"),
        kind,
        peer: address,
        api: None,
        heartbeat_port: 7401,
        link_port_base: 7500,
        private: Vec::new(),
        cpu: CpuFacts {
            model: "some processor".to_owned(),
            vendor: "GenuineIntel".to_owned(),
            flags: BTreeSet::new(),
            accelerator: "kvm".to_owned(),
        },
        qemu_version: "7.2.0".to_owned(),
        machines: vec!["pc-q35-7.2".to_owned()],
        memory_tracking: MemoryTracking::Works,
    }
}

/// A configuration with one disk and one NIC.
pub(crate) fn config(number: u8) -> VmConfig {
    VmConfig {
        vcpus: 1,
        memory_mib: 64,
        firmware: Firmware::Bios,
        machine: "pc-q35-7.2".to_owned(),
        cpu_model: "qemu64".to_owned(),
        boot: Boot::Disk,
        disks: vec![DiskConfig { id: disk_id(number, 0), size_bytes: 1 << 20 }],
        nics: vec![NicConfig {
            mac: MacAddress([0x52, 0x54, 0, 0, 0, number]),
            network: NETWORK,
            bridge: "ekbr-vm".to_owned(),
        }],
        start_order: 0,
    }
}

impl PoolState {
    pub(crate) fn run(&mut self, command: Command) -> Outcome {
        self.apply(Stamped { unix_ms: 1_000, command })
    }

    /// Applies what must not be refused.
    pub(crate) fn must(&mut self, command: Command) {
        let outcome = self.run(command.clone());
        assert!(!matches!(outcome, Outcome::Refused(_)), "{command:?}: {outcome:?}");
    }

    /// Applies what must be refused, and must then change nothing.
    pub(crate) fn must_refuse(&mut self, command: Command) -> Refusal {
        let before = self.clone();
        let outcome = self.run(command.clone());
        assert_eq!(*self, before, "the refused {command:?} changed something");
        let Outcome::Refused(refusal) = outcome else { panic!("{command:?} was not refused: {outcome:?}") };
        refusal
    }

    pub(crate) fn vm(&self, number: u8) -> &Vm {
        &self.vms[&vm_id(number)]
    }

    pub(crate) fn record(&self, number: u8) -> &Authority {
        &self.vm(number).authority
    }

    pub(crate) fn generation(&self, number: u8) -> Generation {
        self.record(number).generation
    }

    /// A change of a VM's record, at its newest generation.
    pub(crate) fn change(&self, number: u8, change: AuthorityChange) -> Command {
        Command::VmAuthority { id: vm_id(number), if_generation: self.generation(number), change }
    }

    pub(crate) fn wish(&mut self, number: u8, desired: Desired) {
        self.must(Command::VmDesire { id: vm_id(number), desired });
    }

    /// Starts a VM's guest.
    pub(crate) fn start(&mut self, number: u8, host: HostId, clean: bool) {
        self.wish(number, Desired::Running);
        self.must(self.change(number, AuthorityChange::Start { host, clean }));
    }
}

/// Hosts 1 and 2 and a quorum server.
pub(crate) fn pool() -> PoolState {
    let mut state = PoolState::default();
    state.must(Command::PoolCreate {
        pool: PoolInfo { id: PoolId(Uuid::from_u128(900)), name: "pool".to_owned() },
        first: Box::new(member(1, MemberKind::Host)),
        network: Network { id: NETWORK, name: "vm".to_owned(), bridge: "ekbr-vm".to_owned() },
        admin_token: "hash".to_owned(),
    });
    state.must(Command::MemberAdd { member: Box::new(member(2, MemberKind::Host)) });
    state.must(Command::MemberAdd { member: Box::new(member(3, MemberKind::QuorumServer)) });
    state
}

pub(crate) fn create(number: u8) -> Command {
    Command::VmCreate { id: vm_id(number), name: format!("vm{number}"), config: Box::new(config(number)), host: H1 }
}

pub(crate) fn place(number: u8, level: Level, hosts: &[HostId]) -> Command {
    Command::VmPlace { id: vm_id(number), level, hosts: hosts.iter().copied().collect() }
}

/// The pool with one VM at level 2, in sync on both hosts, off.
pub(crate) fn protected() -> PoolState {
    let mut state = pool();
    protect(&mut state, 1);
    state
}

/// The pool with one VM at level 3 that runs on host 1, its memory held by host 2.
pub(crate) fn memory_held() -> PoolState {
    let mut state = protected();
    state.must(place(1, Level::System, &[H1, H2]));
    state.start(1, H1, true);
    state.must(state.change(1, AuthorityChange::MemoryHeld { host: H2 }));
    state
}

/// Creates a VM and protects it.
pub(crate) fn protect(state: &mut PoolState, number: u8) {
    state.must(create(number));
    state.must(place(number, Level::Component, &[H1, H2]));
    state.must(state.change(number, AuthorityChange::ReplicaGood { disk: disk_id(number, 0), host: H2 }));
}
