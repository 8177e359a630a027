//! Changes of the pool state and of the group: on the master, or handed on to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ev_core::ids::MemberId;
use ev_core::pool::{Command, Outcome, Stamped};
use ev_wire::identity::{Peer, Role};
use ev_wire::peer::{PeerRequest, PeerResponse};
use openraft::ChangeMembers;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::driver::ask_others;
use crate::membership::{self, Change, Group, Plan};
use crate::network::RouteError;
use crate::node::{PoolNode, lags};
use crate::store::json;
use crate::types::{Applied, Proposal, Raft, addresses_of, node_of};

/// Longest command (JSON); a longer one is refused.
pub const COMMAND_BYTES_MAX: usize = 128 << 10;
/// Pause before the master is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a change of the group may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a member that was handed a command works at it.
const HANDED_ON_TIMEOUT: Duration = Duration::from_secs(10);
/// Before another round; one that fails at once, of a member that ends, is not to be asked for without end.
const ROUND_PAUSE: Duration = Duration::from_millis(10);
/// Most callers confirmed in one round.
const ROUND_MAX: usize = 256;

/// Why a command has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was changed.
    #[error("no pool master within {} ms; {silence}", after.as_millis())]
    NoMaster { after: Duration, silence: Silence },
    /// It may have been committed, or may yet be.
    #[error("the pool master did not confirm the change in time: look whether it was made before trying again")]
    Unknown,
    /// Nothing was changed.
    #[error("a command of {bytes} bytes is over the limit of {COMMAND_BYTES_MAX} bytes")]
    TooLarge { bytes: usize },
    /// Nothing was changed.
    #[error("the pool master refused the command: {0}")]
    Refused(String),
    /// Nothing was changed.
    #[error("this member is no longer the pool master that it was: its decision is void")]
    OtherTerm,
    /// This member's consensus has stopped; its log says why.
    #[error("this member's part of the pool has stopped: look into its log and start it again")]
    Stopped,
}

/// Which voters gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Name, or number where no name is known.
    pub silent: Vec<String>,
    pub voters: usize,
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.voters, self.silent.as_slice()) {
            (0, _) => f.write_str("this member belongs to no pool yet"),
            (voters, []) => write!(f, "all {voters} voters answer and an election is under way: try again"),
            (voters, silent) => {
                write!(
                    f,
                    "of {voters} voters these don't answer: {}; bring them back or look at the network",
                    silent.join(", ")
                )
            }
        }
    }
}

/// Why it is not certain that this member leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmError {
    #[error("this member is not the pool master")]
    NotMaster { master: Option<MemberId> },
    #[error("no majority confirmed in time that this member is the pool master")]
    NoMajority,
}

/// Why a change of the group failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("only the pool master changes the group, and this member is not it")]
    NotMaster,
    #[error("another change of the group is under way: try again")]
    InProgress,
    #[error("member {0} is not known to the group: add it first")]
    NotKnown(MemberId),
    #[error("the group would have no voters left")]
    Empty,
    #[error("this member was initialised before")]
    Initialized,
    #[error("not confirmed within {} s: a majority of the old and of the new voters has to answer", CHANGE_TIMEOUT.as_secs())]
    Timeout,
    #[error("this member's part of the pool has stopped: look into its log and start it again")]
    Stopped,
}

/// What a look at the group led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reconciled {
    Settled,
    Changed(Change),
    /// These have to catch up or come back before they may vote.
    WaitingFor(BTreeSet<MemberId>),
    NotMaster,
}

enum Attempt {
    Done(Result<Outcome, ProposeError>),
    /// Certainly not done: look for the master again.
    Again,
}

impl PoolNode {
    /// Have a command committed and applied, by the master wherever it is. If there is none for now it is waited
    /// for, up to `timeout`.
    ///
    /// # Errors
    /// See [`ProposeError`]: after [`ProposeError::Unknown`] the command may or may not have been carried out.
    pub async fn propose(&self, command: Command, timeout: Duration) -> Result<Outcome, ProposeError> {
        let bytes = json(&command).len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes });
        }
        let deadline = Instant::now() + timeout;
        loop {
            let attempt = if self.is_leader() {
                self.commit(command.clone(), None, deadline).await
            } else {
                self.hand_on(&command, deadline).await
            };
            match attempt {
                Attempt::Done(result) => return result,
                Attempt::Again if Instant::now() + LOOK_AGAIN < deadline => tokio::time::sleep(LOOK_AGAIN).await,
                Attempt::Again => {
                    return Err(ProposeError::NoMaster { after: timeout, silence: self.silence().await });
                }
            }
        }
    }

    /// Have a command committed by this member as pool master of `term`, and by no other: for decisions that hold only
    /// as long as nobody else has granted leases.
    ///
    /// # Errors
    /// See [`ProposeError`]; [`ProposeError::OtherTerm`] when this member is not master of that term.
    pub async fn propose_in_term(
        &self,
        term: u64,
        command: Command,
        timeout: Duration,
    ) -> Result<Outcome, ProposeError> {
        let bytes = json(&command).len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes });
        }
        match self.commit(command, Some(term), Instant::now() + timeout).await {
            Attempt::Done(result) => result,
            Attempt::Again => Err(ProposeError::OtherTerm),
        }
    }

    async fn commit(&self, command: Command, if_term: Option<u64>, deadline: Instant) -> Attempt {
        // The master's clock stamps what is committed.
        let proposal = Proposal { if_term, stamped: Stamped { unix_ms: unix_ms(), command } };
        let written = tokio::time::timeout_at(deadline, self.shared.raft.client_write(proposal)).await;
        match written {
            Err(_) => Attempt::Done(Err(ProposeError::Unknown)),
            Ok(Ok(response)) => match response.data {
                Applied::Command(outcome) => Attempt::Done(Ok(outcome)),
                Applied::OtherTerm => Attempt::Done(Err(ProposeError::OtherTerm)),
                Applied::Internal => unreachable!("a command's entry leads to a command's outcome"),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Attempt::Again,
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(_)))) => {
                unreachable!("a command changes no membership")
            }
            Ok(Err(RaftError::Fatal(_))) => Attempt::Done(Err(ProposeError::Stopped)),
        }
    }

    async fn hand_on(&self, command: &Command, deadline: Instant) -> Attempt {
        let Some(master) = self.leader().filter(|master| master.member != self.shared.me.member) else {
            return Attempt::Again;
        };
        let route = self.shared.network.route(master.member, master.addresses);
        let left = deadline.saturating_duration_since(Instant::now());
        match route.call(PeerRequest::Command { body: json(command) }, left).await {
            Ok(PeerResponse::Command { body }) => {
                let outcome = serde_json::from_slice::<Result<Outcome, bool>>(&body);
                match outcome {
                    Ok(Ok(outcome)) => Attempt::Done(Ok(outcome)),
                    Ok(Err(_)) | Err(_) => Attempt::Done(Err(ProposeError::Unknown)),
                }
            }
            Ok(PeerResponse::NotMaster { .. }) => Attempt::Again,
            Ok(PeerResponse::Failed(reason)) => Attempt::Done(Err(ProposeError::Refused(reason))),
            Err(RouteError::Call(error)) if !error.not_sent() => Attempt::Done(Err(ProposeError::Unknown)),
            Err(_) => Attempt::Again,
            Ok(_) => Attempt::Done(Err(ProposeError::Unknown)),
        }
    }

    pub(crate) async fn answer_command(&self, from: Peer, body: &[u8]) -> PeerResponse {
        if from.role != Role::Host {
            return PeerResponse::Failed("only hosts may change the pool state".to_owned());
        }
        let Ok(command) = serde_json::from_slice::<Command>(body) else {
            return PeerResponse::Failed("the command can't be read: upgrade Evenkeel on the older host".to_owned());
        };
        let not_master = PeerResponse::NotMaster { master: self.leader().map(|leader| leader.member) };
        if !self.is_leader() {
            return not_master;
        }
        match self.commit(command, None, Instant::now() + HANDED_ON_TIMEOUT).await {
            Attempt::Done(Ok(outcome)) => PeerResponse::Command { body: json(&Ok::<_, bool>(outcome)) },
            Attempt::Done(Err(_)) => PeerResponse::Command { body: json(&Err::<Outcome, _>(false)) },
            Attempt::Again => not_master,
        }
    }

    /// Asks the other voters; which of them give no answer.
    pub async fn silent_voters(&self) -> BTreeSet<MemberId> {
        let answered: BTreeSet<MemberId> = ask_others(&self.shared).await.iter().map(|one| one.member).collect();
        let voters = self.shared.membership().voter_ids().map(MemberId).collect::<BTreeSet<_>>();
        voters.into_iter().filter(|id| !answered.contains(id) && *id != self.shared.me.member).collect()
    }

    /// Since when no leader was heard, as far as this member can tell.
    #[must_use]
    pub fn leaderless_for(&self) -> Duration {
        self.shared.silence()
    }

    /// Which voters don't answer just now, by name.
    pub async fn silence(&self) -> Silence {
        let silent = self.silent_voters().await;
        let voters = self.shared.membership().voter_ids().count();
        let state = self.shared.state.borrow();
        Silence { silent: silent.into_iter().map(|id| state.member_name(id)).collect(), voters }
    }

    /// Make certain that this member is pool master now and has applied all that was committed before the call.
    /// Callers at the same time share one round of messages. A round ends without an answer after a heartbeat's time: then there
    /// is another one, up to `timeout`.
    ///
    /// # Errors
    /// See [`ConfirmError`].
    pub async fn ensure_linearizable(&self, timeout: Duration) -> Result<(), ConfirmError> {
        let rounds = async {
            loop {
                match self.confirm_once().await {
                    Err(ConfirmError::NoMajority) => tokio::time::sleep(ROUND_PAUSE).await,
                    known => return known,
                }
            }
        };
        tokio::time::timeout(timeout, rounds).await.unwrap_or(Err(ConfirmError::NoMajority))
    }

    async fn confirm_once(&self) -> Result<(), ConfirmError> {
        if !self.is_leader() {
            return Err(ConfirmError::NotMaster { master: self.leader().map(|leader| leader.member) });
        }
        let (done, confirmed) = oneshot::channel();
        self.shared.confirmations.send(done).await.map_err(|_| ConfirmError::NoMajority)?;
        confirmed.await.unwrap_or(Err(ConfirmError::NoMajority))
    }

    /// Found the group with this member alone, reached at `addresses`.
    ///
    /// # Errors
    /// [`ChangeError::Initialized`] when the folder already holds a group.
    pub async fn initialize(&self, addresses: &[SocketAddr]) -> Result<(), ChangeError> {
        let members = BTreeMap::from([(self.shared.me.member.0, node_of(addresses))]);
        match self.shared.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(_)) => Err(ChangeError::Initialized),
            Err(RaftError::Fatal(_)) => Err(ChangeError::Stopped),
        }
    }

    /// Add a member that learns and does not vote. Returns when the change is committed, not when it caught up.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn add_learner(&self, member: MemberId, addresses: &[SocketAddr]) -> Result<(), ChangeError> {
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(member.0, node_of(addresses))]))).await
    }

    /// Let a learner vote.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn promote(&self, member: MemberId) -> Result<(), ChangeError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([member.0]))).await
    }

    /// Take a member out of the group altogether.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn remove(&self, member: MemberId) -> Result<(), ChangeError> {
        if self.shared.membership().voter_ids().any(|id| id == member.0) {
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([member.0]))).await?;
        }
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([member.0]))).await
    }

    /// On the master: bring the group one step nearer to what the pool state calls for. To be called now and then,
    /// and again at once after [`Reconciled::Changed`].
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn reconcile_membership(&self) -> Result<Reconciled, ChangeError> {
        if !self.is_leader() {
            return Ok(Reconciled::NotMaster);
        }
        let metrics = self.shared.metrics();
        let membership = metrics.membership_config.membership();
        let group = Group {
            voters: membership.voter_ids().map(MemberId).collect(),
            members: membership.nodes().map(|(id, node)| (MemberId(*id), addresses_of(node))).collect(),
            lag: lags(&metrics),
        };
        let state = self.shared.state.borrow().clone();
        let change = match membership::plan(&state, self.shared.me.member, &group) {
            Plan::Settled => return Ok(Reconciled::Settled),
            Plan::WaitFor(members) => return Ok(Reconciled::WaitingFor(members)),
            Plan::Change(change) => change,
        };
        tracing::info!(?change, "changing the consensus group");
        match change.clone() {
            Change::AddLearner(member, addresses) => self.add_learner(member, &addresses).await?,
            Change::SetAddresses(member, addresses) => {
                self.change(ChangeMembers::SetNodes(BTreeMap::from([(member.0, node_of(&addresses))]))).await?;
            }
            Change::SetVoters(voters) => {
                self.change(ChangeMembers::ReplaceAllVoters(voters.iter().map(|id| id.0).collect())).await?;
            }
            Change::Forget(gone) => {
                self.change(ChangeMembers::RemoveNodes(gone.iter().map(|id| id.0).collect())).await?;
            }
        }
        Ok(Reconciled::Changed(change))
    }

    async fn change(&self, change: ChangeMembers<u64, openraft::BasicNode>) -> Result<(), ChangeError> {
        // Voters that are not to vote any more go on as learners until they are removed.
        let changed = self.shared.raft.change_membership(change, true);
        match tokio::time::timeout(CHANGE_TIMEOUT, changed).await {
            Err(_) => Err(ChangeError::Timeout),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::Fatal(_))) => Err(ChangeError::Stopped),
            Ok(Err(RaftError::APIError(error))) => Err(change_error(error)),
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn change_error(error: ClientWriteError<u64, openraft::BasicNode>) -> ChangeError {
    use openraft::error::ChangeMembershipError as Refused;
    match error {
        ClientWriteError::ForwardToLeader(_) => ChangeError::NotMaster,
        ClientWriteError::ChangeMembershipError(Refused::InProgress(_)) => ChangeError::InProgress,
        ClientWriteError::ChangeMembershipError(Refused::EmptyMembership(_)) => ChangeError::Empty,
        ClientWriteError::ChangeMembershipError(Refused::LearnerNotFound(one)) => {
            ChangeError::NotKnown(MemberId(one.node_id))
        }
    }
}

/// Confirm leadership for whoever asks. Those who ask while a round is under way share the next one: a round that
/// began before the question proves nothing for it.
pub(crate) async fn confirm_in_rounds(
    raft: Raft,
    mut waiting: mpsc::Receiver<oneshot::Sender<Result<(), ConfirmError>>>,
) {
    let mut round = Vec::new();
    while waiting.recv_many(&mut round, ROUND_MAX).await > 0 {
        let result = match raft.ensure_linearizable().await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(openraft::error::CheckIsLeaderError::ForwardToLeader(forward))) => {
                Err(ConfirmError::NotMaster { master: forward.leader_id.map(MemberId) })
            }
            Err(_) => Err(ConfirmError::NoMajority),
        };
        for one in round.drain(..) {
            // Whoever lost patience is gone.
            let _ = one.send(result);
        }
    }
}
