//! Who is to vote: decided from the pool state, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ev_core::ids::MemberId;
use ev_core::pool::{Member, PoolState};

/// Most hosts that vote; the rest learn.
pub const HOST_VOTERS_MAX: usize = 5;
/// A learner that lags behind by at most this many entries may vote.
pub const CAUGHT_UP_ENTRIES_MAX: u64 = 20;

/// All addresses at which a member's peer port is reached: management first, then the private links.
#[must_use]
pub fn addresses(member: &Member) -> Vec<SocketAddr> {
    let port = member.peer.port();
    let private = member.private.iter().map(|address| SocketAddr::new(*address, port));
    std::iter::once(member.peer).chain(private).collect()
}

/// Who votes, by the table in `docs/internals/arbitration.md`: the hosts, and one quorum server where it makes an
/// even number odd. Two hosts alone: only one votes (two would both be needed); the pool master, so that it is the
/// other one's death that is survived.
#[must_use]
pub fn target_voters(state: &PoolState, master: MemberId) -> BTreeSet<MemberId> {
    let mut hosts: Vec<MemberId> = state.hosts().map(|host| host.id).collect();
    // The master first: it stays a voter however many hosts there are.
    hosts.sort_by_key(|id| (*id != master, *id));
    hosts.truncate(HOST_VOTERS_MAX);
    let quorum_server = state.quorum_servers().map(|server| server.id).next();
    if hosts.len().is_multiple_of(2) {
        match quorum_server {
            Some(server) => hosts.push(server),
            None if hosts.len() == 2 => hosts.truncate(1),
            None => {}
        }
    }
    hosts.into_iter().collect()
}

/// The consensus group as the leader sees it.
#[derive(Debug, Clone, Default)]
pub struct Group {
    pub voters: BTreeSet<MemberId>,
    /// All members, voters and learners, and where the group reaches them.
    pub members: BTreeMap<MemberId, Vec<SocketAddr>>,
    /// By how many entries each lags behind; who was not heard yet is left out.
    pub lag: BTreeMap<MemberId, u64>,
}

/// One change of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It learns, as the first step.
    AddLearner(MemberId, Vec<SocketAddr>),
    /// It moved.
    SetAddresses(MemberId, Vec<SocketAddr>),
    SetVoters(BTreeSet<MemberId>),
    /// Members that the pool state does not have any more.
    Forget(BTreeSet<MemberId>),
}

/// What the group still lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It is as it should be.
    Settled,
    /// Make this change and ask again.
    Change(Change),
    /// These have to catch up (or to come back) before they may vote.
    WaitFor(BTreeSet<MemberId>),
}

/// The next step from the group as it is to the group that the pool state calls for.
#[must_use]
pub fn plan(state: &PoolState, master: MemberId, group: &Group) -> Plan {
    if !state.members.contains_key(&master) {
        // Before the pool exists in the state, or after the master was removed: nothing can be told from it.
        return Plan::Settled;
    }
    for member in state.members.values() {
        let wanted = addresses(member);
        match group.members.get(&member.id) {
            None => return Plan::Change(Change::AddLearner(member.id, wanted)),
            Some(present) if *present != wanted => return Plan::Change(Change::SetAddresses(member.id, wanted)),
            Some(_) => {}
        }
    }
    let target = target_voters(state, master);
    if target != group.voters {
        let ready = |id: &MemberId| group.lag.get(id).is_some_and(|lag| *lag <= CAUGHT_UP_ENTRIES_MAX);
        let waiting: BTreeSet<_> = target.difference(&group.voters).filter(|id| !ready(id)).copied().collect();
        if waiting.is_empty() {
            return Plan::Change(Change::SetVoters(target));
        }
        return Plan::WaitFor(waiting);
    }
    let gone: BTreeSet<_> = group.members.keys().filter(|id| !state.members.contains_key(id)).copied().collect();
    if gone.is_empty() { Plan::Settled } else { Plan::Change(Change::Forget(gone)) }
}
