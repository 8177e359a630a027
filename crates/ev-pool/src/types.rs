//! The consensus library's types as this product uses them.

use std::io::Cursor;
use std::net::SocketAddr;

use ev_core::ids::MemberId;
use ev_core::pool::{Outcome, Stamped};
use openraft::BasicNode;
use serde::{Deserialize, Serialize};

/// One entry of the replicated log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The command is refused in any other term than this one. What a pool master has decided counts on leases that
    /// it granted, so that it must not be committed by a later one.
    pub if_term: Option<u64>,
    pub stamped: Stamped,
}

/// What applying one entry of the log led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// An entry of the consensus library itself.
    Internal,
    Command(Outcome),
    /// It was meant for another term: nothing was changed.
    OtherTerm,
}

openraft::declare_raft_types!(
    /// Member numbers, commands of the pool state, snapshots in memory (the pool state is small).
    pub TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(crate) type NodeId = u64;
pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<NodeId>;
pub(crate) type Vote = openraft::Vote<NodeId>;
pub(crate) type StoredMembership = openraft::StoredMembership<NodeId, BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<NodeId, BasicNode>;
pub(crate) type StorageError = openraft::StorageError<NodeId>;
pub(crate) type Metrics = openraft::RaftMetrics<NodeId, BasicNode>;

/// A member's addresses in the order of preference, as the consensus group remembers them: one text, with commas.
pub(crate) fn node_of(addresses: &[SocketAddr]) -> BasicNode {
    let texts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    BasicNode::new(texts.join(","))
}

/// The addresses in such a text; what is not one is left out.
pub(crate) fn addresses_of(node: &BasicNode) -> Vec<SocketAddr> {
    node.addr.split(',').filter_map(|text| text.parse().ok()).collect()
}

/// A member and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberAt {
    pub member: MemberId,
    /// In the order of preference.
    pub addresses: Vec<SocketAddr>,
}
