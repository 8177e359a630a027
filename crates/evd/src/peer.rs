//! What this host answers on the peer port: the consensus group, reports and proposals of AMs, library files.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ev_core::authority::AuthorityChange;
use ev_core::ids::{Generation, VmId};
use ev_core::pool::{Command, Outcome, Refusal};
use ev_core::report::AmReport;
use ev_pool::ProposeError;
use ev_wire::identity::{Peer, Role};
use ev_wire::peer::{PeerRequest, PeerResponse, ProposeRefusal};
use ev_wire::transport::{BoxFuture, PeerHandler};

use crate::member::Member;

/// How long a read index may take; then the asker is told that there is no master.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(300);
/// How long an AM's proposal may take.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Answers while the membership lasts.
pub struct Handler(Weak<Member>);

impl Handler {
    #[must_use]
    pub fn new(member: Weak<Member>) -> Self {
        Self(member)
    }
}

impl PeerHandler for Handler {
    fn call(&self, from: Peer, request: PeerRequest) -> BoxFuture<'_, PeerResponse> {
        let member = self.0.upgrade();
        Box::pin(async move {
            match member {
                Some(member) => answer(&member, from, request).await,
                None => PeerResponse::Failed("this host has left the pool".to_owned()),
            }
        })
    }
}

async fn answer(member: &Arc<Member>, from: Peer, request: PeerRequest) -> PeerResponse {
    let request = match member.node.answer(from, request).await {
        Ok(answer) => return answer,
        Err(request) => request,
    };
    if from.pool != member.pool || from.role != Role::Host {
        return PeerResponse::Failed("only hosts of the pool may ask this".to_owned());
    }
    match request {
        PeerRequest::Report(report) if report.host != from.member => {
            PeerResponse::Failed("an AM reports for its own host only".to_owned())
        }
        PeerRequest::Report(report) => take_report(member, *report).await,
        PeerRequest::Propose { vm, seen, change } => propose(member, from, vm, seen, change).await,
        PeerRequest::LibraryRead { blake3, offset } => read_library(member, blake3, offset).await,
        PeerRequest::Dismiss => PeerResponse::Failed("this is a host; only quorum servers are dismissed".to_owned()),
        PeerRequest::Raft { .. } | PeerRequest::Command { .. } | PeerRequest::Standing => {
            PeerResponse::Failed("the consensus group did not take its own request".to_owned())
        }
    }
}

fn not_master(member: &Member) -> PeerResponse {
    let master = member.node.leader().map(|leader| leader.member).filter(|master| *master != member.host);
    PeerResponse::NotMaster { master }
}

/// The lease is granted only after a read index that began when the report was here: nobody else leads since.
async fn take_report(member: &Arc<Member>, report: AmReport) -> PeerResponse {
    if member.node.ensure_linearizable(CONFIRM_TIMEOUT).await.is_err() {
        return not_master(member);
    }
    match member.master.report(report).await {
        Some(directive) => PeerResponse::Directive(Box::new(directive)),
        None => PeerResponse::Failed("too many reports wait: report again".to_owned()),
    }
}

async fn propose(
    member: &Arc<Member>,
    from: Peer,
    vm: VmId,
    seen: Generation,
    change: AuthorityChange,
) -> PeerResponse {
    if !member.is_master() {
        return not_master(member);
    }
    let state = member.state();
    let Some(known) = state.vms.get(&vm) else {
        return PeerResponse::Proposed(Err(ProposeRefusal::NoSuchVm));
    };
    if !known.hosts.contains(&from.member) {
        let why = "the asking host holds no replica of the VM".to_owned();
        return PeerResponse::Proposed(Err(ProposeRefusal::Forbidden(why)));
    }
    if let AuthorityChange::Revert { .. } = change {
        let why = "only a person gives up what was written".to_owned();
        return PeerResponse::Proposed(Err(ProposeRefusal::Forbidden(why)));
    }
    let command = Command::VmAuthority { id: vm, if_generation: seen, change };
    match member.node.propose(command, PROPOSE_TIMEOUT).await {
        Ok(Outcome::Authority(record)) => PeerResponse::Proposed(Ok(record)),
        Ok(Outcome::Refused(Refusal::Superseded(record))) => {
            PeerResponse::Proposed(Err(ProposeRefusal::Superseded(record)))
        }
        Ok(Outcome::Refused(Refusal::NoSuchVm)) => PeerResponse::Proposed(Err(ProposeRefusal::NoSuchVm)),
        Ok(Outcome::Refused(refusal)) => PeerResponse::Proposed(Err(ProposeRefusal::Forbidden(refusal.to_string()))),
        Ok(Outcome::Done | Outcome::MemberAdded(_)) => {
            PeerResponse::Failed("the change has an outcome of another kind".to_owned())
        }
        Err(ProposeError::NoMaster { .. }) => not_master(member),
        Err(error) => PeerResponse::Failed(error.to_string()),
    }
}

async fn read_library(member: &Arc<Member>, blake3: String, offset: u64) -> PeerResponse {
    let library = member.app_library().clone();
    match tokio::task::spawn_blocking(move || library.read_part(&blake3, offset)).await {
        Ok(Ok(part)) => PeerResponse::LibraryPart(part),
        Ok(Err(error)) => PeerResponse::Failed(error.to_string()),
        Err(error) => PeerResponse::Failed(error.to_string()),
    }
}
