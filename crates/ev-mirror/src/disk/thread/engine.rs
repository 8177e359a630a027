//! Which engine decides for this disk now, and what all engines are told alike.

use ev_core::mirror::{
    Action, BlockHash, Coordinator, Health, Input, LocalReplica, Message, OpId, Replica, ReplicaInput,
};
use ev_core::report::ReplicaState;
use ev_core::time::Instant;

/// What both engines are told.
pub enum Told {
    LocalDone { op: OpId, ok: bool },
    LocalHashes { op: OpId, hashes: Option<Vec<BlockHash>> },
    Committed { ok: bool },
    SuperblockStored { ok: bool },
    LinkUp,
    LinkDown,
    Received(Message),
    Tick,
}

pub enum Engine {
    /// No record is known yet.
    Idle(Box<LocalReplica>),
    Coordinator(Box<Coordinator>),
    Replica(Box<Replica>),
}

impl Engine {
    pub fn local(&self) -> &LocalReplica {
        match self {
            Self::Idle(local) => local,
            Self::Coordinator(coordinator) => coordinator.local(),
            Self::Replica(replica) => replica.local(),
        }
    }

    /// Whether nothing of the replica is under way, so that another engine can take over.
    pub fn is_idle(&self) -> bool {
        match self {
            Self::Idle(_) => true,
            Self::Coordinator(coordinator) => coordinator.is_idle(),
            Self::Replica(replica) => replica.is_idle(),
        }
    }

    pub fn into_local(self) -> LocalReplica {
        match self {
            Self::Idle(local) => *local,
            Self::Coordinator(coordinator) => coordinator.into_local(),
            Self::Replica(replica) => replica.into_local(),
        }
    }

    pub fn tell(&mut self, now: Instant, told: Told, out: &mut Vec<Action>) {
        match self {
            Self::Idle(_) => {}
            Self::Coordinator(coordinator) => coordinator.step(now, for_coordinator(told), out),
            Self::Replica(replica) => {
                if let Some(input) = for_replica(told) {
                    replica.step(input, out);
                }
            }
        }
    }

    /// For people.
    pub fn local_state(&self) -> ReplicaState {
        let by_itself = |local: &LocalReplica| match local.info().health {
            _ if local.is_failed() => ReplicaState::Failed,
            Health::Good => ReplicaState::Online,
            Health::Copying => ReplicaState::Copying,
            Health::Empty => ReplicaState::Stale,
            Health::Failed => ReplicaState::Failed,
        };
        match self {
            Self::Idle(local) => by_itself(local),
            Self::Coordinator(coordinator) => coordinator.local_state(),
            Self::Replica(replica) => by_itself(replica.local()),
        }
    }
}

fn for_coordinator(told: Told) -> Input {
    match told {
        Told::LocalDone { op, ok } => Input::LocalDone { op, ok },
        Told::LocalHashes { op, hashes } => Input::LocalHashes { op, hashes },
        Told::Committed { ok } => Input::Committed { ok },
        Told::SuperblockStored { ok } => Input::SuperblockStored { ok },
        Told::LinkUp => Input::LinkUp,
        Told::LinkDown => Input::LinkDown,
        Told::Received(message) => Input::Received(message),
        Told::Tick => Input::Tick,
    }
}

fn for_replica(told: Told) -> Option<ReplicaInput> {
    Some(match told {
        Told::LocalDone { op, ok } => ReplicaInput::LocalDone { op, ok },
        Told::LocalHashes { op, hashes } => ReplicaInput::LocalHashes { op, hashes },
        Told::Committed { ok } => ReplicaInput::Committed { ok },
        Told::SuperblockStored { ok } => ReplicaInput::SuperblockStored { ok },
        Told::LinkUp => ReplicaInput::LinkUp,
        Told::LinkDown => ReplicaInput::LinkDown,
        Told::Received(message) => ReplicaInput::Received(message),
        Told::Tick => return None,
    })
}
