//! The pool's replicated state on one member: consensus (openraft) over redb and the peer protocol.
//!
//! [`PoolNode`] is what `evd` and `ev-quorumd` use. Decisions are apart from doing: [`election`] says when to stand
//! for election, [`membership`] who is to vote, `ev-core` what a command does to the state.

mod driver;
pub mod election;
mod log;
mod machine;
pub mod membership;
mod network;
mod node;
mod propose;
pub mod quorum;
mod store;
mod types;

pub use node::{Leadership, MemberStatus, PoolNode, PoolNodeConfig, PoolStatus, RaftTimes, StartError, VoterRole};
pub use propose::{ChangeError, ConfirmError, ProposeError, Reconciled};
pub use store::OpenError;
pub use types::MemberAt;

/// Log filter for daemons: the consensus library calls each message that it could not send an error.
pub const DEFAULT_LOG_FILTER: &str = "info,openraft=off";
