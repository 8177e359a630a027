//! The pool state: one Raft state machine that every member applies, command by command, to the same result.
//!
//! `state` says what it holds, `command` what can be asked, `apply` what then happens, `authority` which changes of a
//! VM's record are allowed. Times and random identities come inside the commands: applying reads no clock.

mod apply;
mod authority;
mod command;
mod events;
#[cfg(test)]
pub(crate) mod fixtures;
mod state;
#[cfg(test)]
mod tests;

pub use command::{Command, Outcome, Refusal, SettingsFault, Stamped};
pub use state::{
    ADMIN_TOKENS_MAX, ALERTS_MAX, AdminTokenInfo, Alert, Compared, CpuFacts, EVENTS_MAX, Event, MEMBERS_MAX, Member,
    MemberKind, MemoryTracking, NETWORKS_MAX, Network, PoolInfo, PoolState, Settings, Severity, TOKENS_MAX, Token,
    TokenPurpose, VMS_MAX,
};
