//! The AM's disk thread: tells the mirror's engine what happens, and does what it wants.

use ev_core::availability::keeper::{Event as KeeperEvent, Gate};
use ev_core::checkpoint::StandbyEvent;
use ev_core::mirror::{Action, Geometry, Input, OpId, ReplicaInput, Required, Settings, Wish};
use std::time::Duration;

use super::host::Life;
use super::world::{BLOCK_SECTORS, DISK, REGION_SECTORS, SECTORS, World};
use crate::mirror::disk::SECTOR_BYTES;
use crate::mirror::host::{Engine, Role, data_op};
use crate::mirror::link::Packet;
use ev_core::mirror::Record;

/// The engine is told the time so often.
const TICK_MS: u64 = 50;
/// Operations on storage that may end in one step.
const ENDS_MAX: usize = 6;

fn settings() -> Settings {
    Settings { partner_timeout: Duration::from_millis(1_000), copy_bytes_per_s: None }
}

pub(super) fn geometry() -> Geometry {
    let size = u64::try_from(SECTORS).expect("small") * u64::from(SECTOR_BYTES);
    Geometry::new(size, REGION_SECTORS * SECTOR_BYTES, BLOCK_SECTORS * SECTOR_BYTES)
}

impl World {
    /// Tells the engine something, and carries out what it asks for.
    pub(super) fn tell_disk(&mut self, index: usize, input: Input) {
        let now = self.nodes[index].clock(self.now_ms);
        let storage = &mut self.nodes[index].storage;
        if let Some(process) = &mut storage.process {
            process.tell(now, &storage.disk, input);
        }
        self.after_disk(index);
    }

    pub(super) fn tell_replica(&mut self, index: usize, input: ReplicaInput) {
        let storage = &mut self.nodes[index].storage;
        if let Some(process) = &mut storage.process {
            process.tell_replica(&storage.disk, input);
        }
        self.after_disk(index);
    }

    /// What the newest record that this host knows makes of its replica.
    pub(super) fn set_disk_role(&mut self, index: usize) {
        let (here, there) = (self.nodes[index].id, self.nodes[1 - index].id);
        let now = self.nodes[index].clock(self.now_ms);
        let node = &mut self.nodes[index];
        let Some(am) = &node.am else { return };
        let record = &am.keeper.vm().authority;
        let Some(active) = record.active else { return };
        let generation = record.generation;
        let counts = |host| record.good.get(&DISK).is_some_and(|good| good.contains(&host));
        let role = if active == here {
            let good = Required { local: counts(here), partner: counts(there) };
            Role::Coordinator(Record { generation, partner: Some(there), good })
        } else {
            Role::Replica { coordinator: active, generation }
        };
        let Some(process) = &mut node.storage.process else { return };
        if process.take_role(now, &node.storage.disk, role) {
            self.drop_disk_link(index);
        }
        self.after_disk(index);
    }

    pub(super) fn packet_arrives(&mut self, to: usize, packet: Packet) {
        if let (Some(op), Some(data)) = (data_op(&packet.message), packet.data)
            && let Some(process) = &mut self.nodes[to].storage.process
        {
            process.data.insert(op, data);
        }
        self.tell_disk(to, Input::Received(packet.message));
    }

    /// Something on the host's storage ends, and time passes.
    pub(super) fn run_disk(&mut self, index: usize) {
        for _ in 0..ENDS_MAX {
            let node = &mut self.nodes[index];
            let now = node.clock(self.now_ms);
            let Some(process) = &mut node.storage.process else { return };
            if process.pending.is_empty() || !self.rng.per_mille(700) {
                break;
            }
            let count = u64::try_from(process.pending.len()).expect("few");
            let which = usize::try_from(self.rng.within(0..count)).expect("few");
            process.complete(which, now, &mut node.storage.disk, usize::try_from(BLOCK_SECTORS).expect("small"));
            self.after_disk(index);
        }
        if self.now_ms.is_multiple_of(TICK_MS) {
            self.tell_disk(index, Input::Tick);
        }
        self.answer_guest(index);
    }

    pub(super) fn after_disk(&mut self, index: usize) {
        loop {
            let now = self.nodes[index].clock(self.now_ms);
            let storage = &mut self.nodes[index].storage;
            let Some(process) = &mut storage.process else { return };
            let changed = process.change_engine(now, &storage.disk, settings());
            let actions = std::mem::take(&mut process.outbox);
            if actions.is_empty() && !changed {
                return;
            }
            for action in actions {
                self.disk_action(index, action);
            }
        }
    }

    fn disk_action(&mut self, index: usize, action: Action) {
        self.trace(|| format!("host {index} disk: {action:?}"));
        match action {
            Action::Send(message) => {
                let Some(process) = &self.nodes[index].storage.process else { return };
                let data =
                    data_op(&message).map(|op| process.data.get(&op).cloned().expect("what is sent has its data"));
                self.send_packet(index, Packet { message, data });
            }
            Action::Acknowledge(proof) => self.answered(index, proof.op()),
            Action::Answer { op, .. } => self.answered(index, op),
            Action::Fail { op } => panic!("host {index} fails operation {op:?}, and no storage ever failed"),
            Action::CloseLink(_) => self.drop_disk_link(index),
            Action::Wish(Wish::ReplicaLost { host, seen }) => {
                self.wish(index, seen, KeeperEvent::ReplicaLost { disk: DISK, host });
            }
            Action::Wish(Wish::ReplicaGood { host, seen }) => {
                self.wish(index, seen, KeeperEvent::ReplicaGood { disk: DISK, host });
            }
            Action::Marked(outcome) => self.marked(index, outcome.is_ok()),
            Action::AheadStuck { .. } => panic!("host {index} is stuck, and no storage ever failed"),
            Action::EpochStaged { session, epoch, flushed } => {
                self.disk_notice(index, StandbyEvent::DiskStaged { session, disk: DISK, epoch, flushed });
            }
            Action::EpochApplied { session, epoch } => {
                self.disk_notice(index, StandbyEvent::DiskApplied { session, disk: DISK, epoch });
            }
            Action::EpochsLost { session } => self.epochs_lost(index, session),
            Action::Forget { op } => {
                if let Some(process) = self.nodes[index].storage.process.as_mut().filter(|process| !process.is_busy(op))
                {
                    process.data.remove(&op);
                }
            }
            Action::Trouble(_) | Action::Verified(_) => {}
            Action::Local { .. } | Action::Commit(_) | Action::Superblock(_) | Action::Stage { .. } => {
                unreachable!("kept by the process")
            }
        }
    }

    /// A wish that was made under an older record is not passed on.
    fn wish(&mut self, index: usize, seen: ev_core::ids::Generation, event: KeeperEvent) {
        let newest = self.nodes[index].am.as_ref().map(|am| am.keeper.vm().authority.generation);
        if newest == Some(seen) {
            self.later(index, event);
        }
    }

    fn answered(&mut self, index: usize, op: OpId) {
        if let Some(am) = &mut self.nodes[index].am {
            am.answers.push(op);
        }
    }

    /// The guest hears while the gate is open, or it is written ahead.
    fn answer_guest(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Some(am) = &node.am else { return };
        let ahead = match &node.storage.process.as_ref().map(|process| &process.engine) {
            Some(Engine::Coordinator(engine)) => engine.ahead().is_some(),
            Some(Engine::Replica(_) | Engine::None) | None => false,
        };
        let waits = am.gate == Gate::Closed || !node.gate_is_open(self.now_ms);
        if waits && !ahead || node.life != Life::Up {
            return;
        }
        let answers = self.nodes[index].am.as_mut().map(|am| std::mem::take(&mut am.answers)).unwrap_or_default();
        for op in answers {
            self.guest_hears(index, op);
        }
    }
}
