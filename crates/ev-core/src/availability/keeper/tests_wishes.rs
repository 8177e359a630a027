//! What a disk wished for under an older record.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::{Action, Event, Keeper};
use crate::authority::{Authority, AuthorityChange, Power};
use crate::ids::{DiskId, Generation, HostId, MemberId, VmId};
use crate::time::Instant;
use crate::vm::{Boot, Desired, DiskConfig, Firmware, Level, Vm, VmConfig};

const HERE: HostId = MemberId(1);
const THERE: HostId = MemberId(2);
const DISKS: [DiskId; 2] = [DiskId(Uuid::from_u128(1)), DiskId(Uuid::from_u128(2))];

fn vm(generation: u64, good: &[HostId]) -> Vm {
    let disk = |id: &DiskId| DiskConfig { id: *id, size_bytes: 512 };
    let good: BTreeSet<HostId> = good.iter().copied().collect();
    Vm {
        id: VmId(Uuid::from_u128(9)),
        name: "vm".into(),
        number: 0,
        config: VmConfig {
            vcpus: 1,
            memory_mib: 64,
            firmware: Firmware::Bios,
            machine: "pc-q35-7.2".into(),
            cpu_model: "qemu64".into(),
            boot: Boot::Disk,
            disks: DISKS.iter().map(disk).collect(),
            nics: Vec::new(),
            start_order: 0,
        },
        level: Level::Component,
        hosts: [HERE, THERE].into(),
        desired: Desired::Shutdown,
        authority: Authority {
            generation: Generation(generation),
            active: Some(HERE),
            standby: None,
            power: Power::Off,
            clean: true,
            good: DISKS.iter().map(|disk| (*disk, good.clone())).collect(),
            ..Authority::default()
        },
    }
}

fn proposals(keeper: &mut Keeper, at_ms: u64, event: Event) -> Vec<(Generation, AuthorityChange)> {
    let mut out = Vec::new();
    keeper.step(Instant(at_ms * 1_000_000), event, &mut out);
    let proposal = |action| match action {
        Action::Propose { seen, change } => Some((seen, change)),
        _ => None,
    };
    out.into_iter().filter_map(proposal).collect()
}

fn keeper(good: &[HostId]) -> Keeper {
    Keeper::new(HERE, Duration::from_secs(10), vm(5, good), Generation::NONE)
}

#[test]
fn a_good_wish_is_not_carried_over_to_a_newer_record() {
    let mut keeper = keeper(&[HERE]);
    let [first, second] = DISKS;
    let asked = proposals(&mut keeper, 0, Event::ReplicaGood { disk: first, host: THERE });
    assert_eq!(asked, [(Generation(5), AuthorityChange::ReplicaGood { disk: first, host: THERE })]);
    assert_eq!(proposals(&mut keeper, 1, Event::ReplicaGood { disk: second, host: THERE }), []);
    let newer = Event::Vm(Box::new(vm(6, &[HERE])));
    assert_eq!(proposals(&mut keeper, 2, newer), []);
    assert_eq!(proposals(&mut keeper, 9_000, Event::Tick), []);
}

#[test]
fn a_loss_is_asked_for_under_whatever_record_still_counts_on_the_replica() {
    let mut keeper = keeper(&[HERE, THERE]);
    let [first, second] = DISKS;
    let lost = |disk| AuthorityChange::ReplicaLost { disk, host: THERE };
    assert_eq!(
        proposals(&mut keeper, 0, Event::ReplicaLost { disk: first, host: THERE }),
        [(Generation(5), lost(first))]
    );
    assert_eq!(proposals(&mut keeper, 1, Event::ReplicaLost { disk: second, host: THERE }), []);
    let mut record = vm(6, &[HERE, THERE]).authority;
    record.good.insert(first, [HERE].into());
    let answered = Event::ProposalAnswered { record: Some(record) };
    assert_eq!(proposals(&mut keeper, 2, answered), [(Generation(6), lost(second))]);
}

#[test]
fn a_loss_is_asked_for_while_a_proposal_to_call_it_good_may_still_be_committed() {
    let mut keeper = keeper(&[HERE]);
    let [disk, _] = DISKS;
    let good = AuthorityChange::ReplicaGood { disk, host: THERE };
    assert_eq!(proposals(&mut keeper, 0, Event::ReplicaGood { disk, host: THERE }), [(Generation(5), good)]);
    let lost = AuthorityChange::ReplicaLost { disk, host: THERE };
    assert_eq!(proposals(&mut keeper, 1, Event::ReplicaLost { disk, host: THERE }), []);
    // Nobody answered; the disk holds its acknowledgements until a record says how it is.
    assert_eq!(proposals(&mut keeper, 2_000, Event::ProposalAnswered { record: None }), [(Generation(5), lost)]);
    let settled = Event::Vm(Box::new(vm(6, &[HERE])));
    assert_eq!(proposals(&mut keeper, 2_001, settled), []);
    assert_eq!(proposals(&mut keeper, 9_000, Event::Tick), []);
}
