//! What pool members and AMs ask each other over the peer port (mutual TLS, pool certificate authority).
//!
//! One TLS connection carries many calls at once: each frame is a [`PeerCall`] or a [`PeerAnswer`], matched by `id`.

use ev_core::authority::{Authority, AuthorityChange};
use ev_core::ids::{Generation, MemberId, VmId};
use ev_core::report::AmReport;
use ev_core::vm::Vm;
use serde::{Deserialize, Serialize};

/// A request with the number that its answer will carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCall {
    pub id: u64,
    pub request: PeerRequest,
}

/// The answer to the call with the same `id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswer {
    pub id: u64,
    pub answer: PeerResponse,
}

/// What can be asked of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// A Raft message of the consensus library, in its own encoding.
    Raft { kind: RaftKind, body: Vec<u8> },
    /// An AM reports, renews its lease and learns the newest record, all in one. Any member takes it; only the
    /// pool master answers with a directive.
    Report(Box<AmReport>),
    /// An AM asks for a change of its VM's record.
    Propose { vm: VmId, seen: Generation, change: AuthorityChange },
    /// Give a part of a library file: up to 1 MiB from `offset`.
    LibraryRead { blake3: String, offset: u64 },
    /// A command for the pool state, already checked by the sender and encoded by `ev-pool` (hosts only).
    Command { body: Vec<u8> },
    /// How do you stand in the consensus group? Asked before an election, and to find who does not answer.
    Standing,
    /// To a quorum server, from a host: this pool needs you no more, forget it.
    Dismiss,
}

/// Which Raft message a [`PeerRequest::Raft`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RaftKind {
    Append,
    Vote,
    InstallSnapshot,
}

/// Answers, each to the request of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerResponse {
    Raft {
        body: Vec<u8>,
    },
    Directive(Box<Directive>),
    Proposed(Result<Authority, ProposeRefusal>),
    /// `None`: this host does not have the file. An empty part: the end.
    LibraryPart(Option<Vec<u8>>),
    Command {
        body: Vec<u8>,
    },
    /// This member is not the pool master; the master is (as far as it knows) the one named.
    NotMaster {
        master: Option<MemberId>,
    },
    /// The request was understood and failed; the text says what to do.
    Failed(String),
    Standing(Standing),
    Dismissed,
    /// The asking member was removed from the pool. Whoever knows its number and no longer lists it can say so for certain:
    /// numbers are never given twice.
    Removed,
}

/// How a member stands in the consensus group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The leader, if it was heard within the detection time (or is this member).
    pub leader: Option<MemberId>,
    pub term: u64,
    /// Position of the last entry in its log: term and node of the leader that wrote it, and index.
    pub last_log: Option<LogPosition>,
}

/// Position in the consensus log. A greater one is the more recent one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPosition {
    pub term: u64,
    pub leader: MemberId,
    pub index: u64,
}

/// What the pool master tells an AM in answer to its report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directive {
    /// The VM as the master's state has it, its authority record included; `None`: the VM no longer exists.
    pub vm: Option<Vm>,
    /// How long the asker may act as active, counted from the moment it sent the report; `None`: no lease.
    pub lease_ms: Option<u64>,
}

/// Why a proposal was not committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProposeRefusal {
    #[error("the record has moved on to generation {}", .0.generation)]
    Superseded(Authority),
    #[error("the VM no longer exists in the pool")]
    NoSuchVm,
    #[error("the change would break a rule: {0}")]
    Forbidden(String),
}
