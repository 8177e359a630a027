//! One host: its storage, and the process that carries out what its engine decides.

use std::collections::BTreeMap;

use ev_core::checkpoint::{Session, Standby};
use ev_core::ids::{Generation, HostId};
use ev_core::mirror::message::MapWord;
use ev_core::mirror::{
    Action, Coordinator, Durability, Geometry, Input, LocalIo, LocalReplica, Message, OpId, Record, RegionLog,
    RegionMap, Replica, ReplicaInfo, ReplicaInput, Settings, WriteKind,
};
use ev_core::time::Instant;

use super::disk::{Disk, Sector, sectors};
use super::protect::{GoesOn, Protector};
use crate::rng::Rng;

/// An operation on storage that has not ended.
#[derive(Debug, Clone)]
pub enum Pending {
    Io { op: OpId, io: LocalIo, covers: u64 },
    Words(Vec<MapWord>),
    Superblock(ReplicaInfo),
}

/// The engine at work.
#[derive(Debug)]
pub enum Engine {
    None,
    Coordinator(Box<Coordinator>),
    Replica(Box<Replica>),
}

/// What the record makes of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Coordinator(Record),
    Replica { coordinator: HostId, generation: Generation },
}

impl Role {
    pub fn generation(self) -> Generation {
        match self {
            Self::Coordinator(record) => record.generation,
            Self::Replica { generation, .. } => generation,
        }
    }
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    pub engine: Engine,
    /// The replica, while no engine has it.
    pub local: Option<LocalReplica>,
    pub role: Option<Role>,
    pub next_role: Option<Role>,
    pub pending: Vec<Pending>,
    pub data: BTreeMap<OpId, Vec<Sector>>,
    pub next_op: u64,
    /// What the engine asked for that concerns others.
    pub outbox: Vec<Action>,
    /// What protects the guest's memory, on the active host.
    pub protector: Option<Protector>,
    /// What holds the guest's memory, on the other one; and where it lets the guest go on from, once it is told to.
    pub standby: Standby,
    pub standby_session: Option<Session>,
    pub goes_on: Option<GoesOn>,
    /// It takes up a guest that an earlier process may have answered ahead of the partner.
    pub takes_up: bool,
}

#[derive(Debug)]
pub struct Host {
    pub id: HostId,
    pub disk: Disk,
    pub process: Option<Process>,
    pub powered: bool,
    /// When its storage last failed, wholly or in a sector.
    pub trouble_at: u64,
    /// Until then nothing of it runs, as if its virtual CPUs got no time.
    pub frozen_until: u64,
    /// Until then nothing on its storage ends.
    pub disk_stalled_until: u64,
    /// When it last lost its power, and when the last copy that made its replica good began.
    pub lost_power_at: u64,
    pub good_since: u64,
}

impl Host {
    pub fn start_process(&mut self, geometry: Geometry, instance: u64) {
        let log = RegionLog::new(geometry, self.disk.map(RegionMap::WriteIntent), self.disk.map(RegionMap::OutOfSync));
        let local = LocalReplica::new(self.id, instance, self.disk.superblock(), log);
        self.process = Some(Process {
            engine: Engine::None,
            local: Some(local),
            role: None,
            next_role: None,
            pending: Vec::new(),
            data: BTreeMap::new(),
            next_op: 0,
            outbox: Vec::new(),
            protector: None,
            standby: Standby::default(),
            standby_session: None,
            goes_on: None,
            takes_up: false,
        });
    }

    /// The process ends; what it had given to the kernel may or may not be done.
    pub fn kill_process(&mut self, power: bool, rng: &mut Rng) {
        let Some(process) = self.process.take() else { return };
        for pending in process.pending {
            match pending {
                Pending::Io { op, io: LocalIo::Write(write), .. } => {
                    let count = sectors(write.extent).len();
                    let data = match write.kind {
                        WriteKind::Data => process.data.get(&op).cloned().unwrap_or_default(),
                        WriteKind::Zeroes | WriteKind::ZeroesAllocated | WriteKind::Trim => vec![0; count],
                    };
                    self.disk.write_cut_short(write.extent, &data, rng);
                }
                Pending::Io { .. } => {}
                Pending::Words(words) => self.disk.words_cut_short(&words, power, rng),
                Pending::Superblock(info) if rng.per_mille(500) => self.disk.superblock_stored(info),
                Pending::Superblock(_) => {}
            }
        }
        self.disk.settle_numbers();
    }

    pub fn cut_power(&mut self, now: u64, rng: &mut Rng) {
        self.kill_process(true, rng);
        self.disk.power_cut(rng);
        self.powered = false;
        self.frozen_until = 0;
        self.lost_power_at = now;
    }
}

impl Process {
    pub fn coordinator(&self) -> Option<&Coordinator> {
        match &self.engine {
            Engine::Coordinator(engine) => Some(engine),
            Engine::None | Engine::Replica(_) => None,
        }
    }

    /// Tells the engine something that both kinds understand.
    pub fn tell(&mut self, now: Instant, disk: &Disk, input: Input) {
        let mut actions = Vec::new();
        match &mut self.engine {
            Engine::None => {}
            Engine::Coordinator(engine) => engine.step(now, input, &mut actions),
            Engine::Replica(engine) => {
                if let Some(input) = for_replica(input) {
                    engine.step(input, &mut actions);
                }
            }
        }
        self.take(actions, disk);
    }

    /// Tells a replica something that only it understands.
    pub fn tell_replica(&mut self, disk: &Disk, input: ReplicaInput) {
        let mut actions = Vec::new();
        if let Engine::Replica(engine) = &mut self.engine {
            engine.step(input, &mut actions);
        }
        self.take(actions, disk);
    }

    fn take(&mut self, actions: Vec<Action>, disk: &Disk) {
        for action in actions {
            match action {
                Action::Local { op, io } => self.pending.push(Pending::Io { op, io, covers: disk.flush_begins() }),
                Action::Commit(words) => self.pending.push(Pending::Words(words)),
                Action::Superblock(info) => self.pending.push(Pending::Superblock(info)),
                // At once: the next message may come under the same number.
                Action::Stage { op, staged } => {
                    if let Some(data) = self.data.remove(&op) {
                        self.data.insert(staged, data);
                    }
                }
                other => self.outbox.push(other),
            }
        }
    }

    pub fn is_busy(&self, op: OpId) -> bool {
        self.pending.iter().any(|pending| matches!(pending, Pending::Io { op: busy, .. } if *busy == op))
    }

    /// Ends one operation on storage.
    pub fn complete(&mut self, index: usize, now: Instant, disk: &mut Disk, block_sectors: usize) {
        let pending = self.pending.swap_remove(index);
        let failed = disk.failed;
        let input = match pending {
            Pending::Words(words) => {
                if !failed {
                    disk.words_stored(&words);
                }
                Input::Committed { ok: !failed }
            }
            Pending::Superblock(info) => {
                if !failed {
                    disk.superblock_stored(info);
                }
                Input::SuperblockStored { ok: !failed }
            }
            Pending::Io { op, io: LocalIo::Flush, covers } => {
                if !failed {
                    disk.flush_ends(covers);
                }
                Input::LocalDone { op, ok: !failed }
            }
            Pending::Io { op, io: LocalIo::Read { extent }, .. } => {
                let data = disk.read(extent);
                let ok = data.is_some();
                self.data.insert(op, data.unwrap_or_default());
                Input::LocalDone { op, ok }
            }
            Pending::Io { op, io: LocalIo::Hash { extent }, .. } => {
                let hashes = disk.read(extent).map(|data| data.chunks(block_sectors).map(hash).collect());
                Input::LocalHashes { op, hashes }
            }
            Pending::Io { op, io: LocalIo::Write(write), .. } => {
                if !failed {
                    let zeroes = vec![0; sectors(write.extent).len()];
                    let data = match write.kind {
                        WriteKind::Data => self.data.get(&op).expect("what is written has its data"),
                        WriteKind::Zeroes | WriteKind::ZeroesAllocated | WriteKind::Trim => &zeroes,
                    };
                    disk.write(write.extent, data, write.durability == Durability::BeforeReply);
                }
                Input::LocalDone { op, ok: !failed }
            }
        };
        self.tell(now, disk, input);
    }

    /// The record says this. The engine changes only when nothing is under way.
    pub fn take_role(&mut self, now: Instant, disk: &Disk, role: Role) -> bool {
        if self.role.or(self.next_role).is_some_and(|known| known.generation() >= role.generation()) {
            return false;
        }
        let same = match (self.role, role) {
            (Some(Role::Coordinator(_)), Role::Coordinator(_)) => self.next_role.is_none(),
            (Some(Role::Replica { coordinator: old, .. }), Role::Replica { coordinator: new, .. }) => {
                old == new && self.next_role.is_none()
            }
            _ => false,
        };
        self.role = Some(role);
        if same {
            self.hand_over(now, disk, role);
            return false;
        }
        self.next_role = Some(role);
        true
    }

    fn hand_over(&mut self, now: Instant, disk: &Disk, role: Role) {
        match role {
            Role::Coordinator(record) => self.tell(now, disk, Input::Record(record)),
            Role::Replica { generation, .. } => self.tell_replica(disk, ReplicaInput::Record { generation }),
        }
    }

    /// Whether the engine has just become that of the new role.
    pub fn change_engine(&mut self, now: Instant, disk: &Disk, settings: Settings) -> bool {
        let Some(role) = self.next_role else { return false };
        let idle = match &self.engine {
            Engine::None => true,
            Engine::Coordinator(engine) => engine.is_idle(),
            Engine::Replica(engine) => engine.is_idle(),
        };
        if !idle || !self.pending.is_empty() || !self.outbox.is_empty() {
            return false;
        }
        self.next_role = None;
        let local = match std::mem::replace(&mut self.engine, Engine::None) {
            Engine::None => self.local.take(),
            Engine::Coordinator(engine) => Some(engine.into_local()),
            Engine::Replica(engine) => Some(engine.into_local()),
        };
        let local = local.expect("an engine or the process has the replica");
        self.data.clear();
        self.engine = match role {
            Role::Coordinator(_) => Engine::Coordinator(Box::new(Coordinator::new(local, settings, now))),
            Role::Replica { coordinator, generation } => {
                Engine::Replica(Box::new(Replica::new(local, coordinator, generation)))
            }
        };
        if let Role::Coordinator(_) = role {
            if self.takes_up {
                self.tell(now, disk, Input::WasAhead);
            }
            self.hand_over(now, disk, role);
        }
        true
    }
}

/// Equal contents have equal hashes, others different ones.
fn hash(block: &[Sector]) -> [u8; 32] {
    let mut hash = [0; 32];
    for (index, sector) in block.iter().enumerate() {
        for (byte, value) in hash[(index % 4) * 8..].iter_mut().zip(sector.to_le_bytes()) {
            *byte ^= value.rotate_left(u32::try_from(index / 4 % 8).expect("below 8"));
        }
    }
    hash
}

fn for_replica(input: Input) -> Option<ReplicaInput> {
    match input {
        Input::LocalDone { op, ok } => Some(ReplicaInput::LocalDone { op, ok }),
        Input::LocalHashes { op, hashes } => Some(ReplicaInput::LocalHashes { op, hashes }),
        Input::Committed { ok } => Some(ReplicaInput::Committed { ok }),
        Input::SuperblockStored { ok } => Some(ReplicaInput::SuperblockStored { ok }),
        Input::LinkUp => Some(ReplicaInput::LinkUp),
        Input::LinkDown => Some(ReplicaInput::LinkDown),
        Input::Received(message) => Some(ReplicaInput::Received(message)),
        Input::Write { .. }
        | Input::Flush { .. }
        | Input::Read { .. }
        | Input::Record(_)
        | Input::Tick
        | Input::Verify { .. }
        | Input::MarkEpoch { .. }
        | Input::EndAhead
        | Input::WasAhead
        | Input::Tidy => None,
    }
}

/// The operation whose data goes with a message.
pub fn data_op(message: &Message) -> Option<OpId> {
    match message {
        Message::Write { op, write } if write.kind == WriteKind::Data => Some(*op),
        Message::ReadData { op } | Message::CopyData { op, .. } => Some(*op),
        _ => None,
    }
}
