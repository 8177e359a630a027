//! Raft messages over the peer protocol, on whichever of a member's addresses answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ev_core::ids::MemberId;
use ev_wire::peer::{PeerRequest, PeerResponse, RaftKind};
use ev_wire::transport::{CallError, PeerClient};
use openraft::BasicNode;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::store::json;
use crate::types::{NodeId, TypeConfig, addresses_of};

/// Pause before an unreachable member is tried again.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(100);

/// Reaches members on any of their addresses, and remembers which one works.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub member: MemberId,
    pub addresses: Vec<SocketAddr>,
    /// Which address to use; counted up when one fails.
    preferred: Arc<AtomicUsize>,
    client: PeerClient,
    removed: watch::Sender<bool>,
}

/// Why a member gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("member {0} has no address that can be read")]
    NoAddress(MemberId),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("member {member} refused: {reason}")]
    Refused { member: MemberId, reason: String },
    #[error("member {0} answered something else than it was asked")]
    Unexpected(MemberId),
}

impl Route {
    /// Ask on the preferred address; if that fails, the next call goes to the next one.
    pub(crate) async fn call(&self, request: PeerRequest, timeout: Duration) -> Result<PeerResponse, RouteError> {
        let turn = self.preferred.load(Ordering::Relaxed);
        let count = self.addresses.len();
        let address = turn.checked_rem(count).and_then(|index| self.addresses.get(index));
        let address = *address.ok_or(RouteError::NoAddress(self.member))?;
        let mut guard = Turn { route: self, turn, failed: true };
        let answer = self.client.call(address, Some(self.member), request, timeout).await;
        guard.failed = answer.is_err();
        if let Ok(PeerResponse::Removed) = answer {
            self.removed.send_replace(true);
        }
        Ok(answer?)
    }

    async fn raft<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: RaftKind,
        message: &Q,
        timeout: Duration,
    ) -> Result<A, RouteError> {
        match self.call(PeerRequest::Raft { kind, body: json(message) }, timeout).await? {
            PeerResponse::Raft { body } => {
                serde_json::from_slice(&body).map_err(|_| RouteError::Unexpected(self.member))
            }
            PeerResponse::Failed(reason) => Err(RouteError::Refused { member: self.member, reason }),
            _ => Err(RouteError::Unexpected(self.member)),
        }
    }
}

/// Counts up the preferred address unless the call succeeded; in `drop`, because a call that takes too long is
/// cancelled by the consensus library.
struct Turn<'a> {
    route: &'a Route,
    turn: usize,
    failed: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.failed {
            let next = self.turn.wrapping_add(1);
            // When another call has counted up meanwhile, that is enough.
            let _ = self.route.preferred.compare_exchange(self.turn, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Keeps a [`Route`] to each member, for the consensus library and for ourselves.
#[derive(Clone)]
pub(crate) struct Network {
    client: PeerClient,
    /// Whether a member said that this one was removed from the pool.
    removed: watch::Sender<bool>,
    routes: Arc<Mutex<HashMap<MemberId, Route>>>,
}

impl Network {
    pub(crate) fn new(client: PeerClient) -> Self {
        Self { client, removed: watch::Sender::new(false), routes: Arc::default() }
    }

    /// The one route to a member, which knows what address worked last. Routes to members that were removed stay,
    /// a few dozen bytes each.
    pub(crate) fn route(&self, member: MemberId, addresses: Vec<SocketAddr>) -> Route {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = routes.get(&member).filter(|route| route.addresses == addresses);
        if let Some(route) = known {
            return route.clone();
        }
        let (client, removed) = (self.client.clone(), self.removed.clone());
        let route = Route { member, addresses, preferred: Arc::default(), client, removed };
        routes.insert(member, route.clone());
        route
    }

    /// Ends when a member has said that this one was removed from the pool; `false` if this end is gone before.
    pub(crate) fn removed(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut removed = self.removed.subscribe();
        async move { removed.wait_for(|removed| *removed).await.is_ok() }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Route;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Route {
        self.route(MemberId(target), addresses_of(node))
    }
}

type RpcResult<T, E = RaftError<NodeId>> = Result<T, RPCError<NodeId, BasicNode, E>>;

impl Route {
    async fn rpc<Q, A, E>(&self, kind: RaftKind, message: &Q, option: &RPCOption) -> RpcResult<A, E>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: DeserializeOwned + std::error::Error,
    {
        let answer: Result<Result<A, E>, RouteError> = self.raft(kind, message, option.hard_ttl()).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(RPCError::RemoteError(RemoteError::new(self.member.0, error))),
            Err(RouteError::Call(error)) if !error.not_sent() => Err(RPCError::Network(NetworkError::new(&error))),
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
        }
    }
}

impl RaftNetwork<TypeConfig> for Route {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<NodeId>> {
        self.rpc(RaftKind::Append, &rpc, &option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<InstallSnapshotResponse<NodeId>, RaftError<NodeId, InstallSnapshotError>> {
        self.rpc(RaftKind::InstallSnapshot, &rpc, &option).await
    }

    async fn vote(&mut self, rpc: VoteRequest<NodeId>, option: RPCOption) -> RpcResult<VoteResponse<NodeId>> {
        self.rpc(RaftKind::Vote, &rpc, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}
