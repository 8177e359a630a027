//! Talking to the pool master, wherever it is: reports that renew the lease, and proposals for the record.

mod finder;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ev_core::authority::{Authority, AuthorityChange};
use ev_core::ids::{Generation, MemberId, VmId};
use ev_core::report::AmReport;
use ev_core::time::Instant;
use ev_wire::am::MemberEndpoint;
use ev_wire::identity::Identity;
use ev_wire::peer::{Directive, PeerRequest, PeerResponse, ProposeRefusal};
use ev_wire::transport::PeerClient;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant as TokioInstant, sleep_until};

use finder::{Finder, Member};

/// Notices and proposals that may wait.
const QUEUE_MAX: usize = 16;
/// How long one proposal is tried before the AM is told that nobody answered (and decides again).
const PROPOSE_LIMIT: Duration = Duration::from_secs(2);

/// What comes from the pool master.
#[derive(Debug)]
pub enum MasterNotice {
    /// The answer to a report that was sent at `asked_at`.
    Directive { asked_at: Instant, directive: Box<Directive> },
    /// What became of a proposal.
    Proposed { change: AuthorityChange, result: Result<Authority, ProposeFailure> },
}

/// Why a proposal was not committed, as far as can be told.
#[derive(Debug, thiserror::Error)]
pub enum ProposeFailure {
    #[error(transparent)]
    Refused(#[from] ProposeRefusal),
    #[error("no pool master answered")]
    NoMaster,
}

/// A proposal to be made.
#[derive(Debug)]
struct Proposal {
    vm: VmId,
    seen: Generation,
    change: AuthorityChange,
}

/// How to reach one member.
#[derive(Clone)]
struct Endpoint {
    client: PeerClient,
    address: SocketAddr,
    member: MemberId,
}

impl Member for Endpoint {
    async fn ask(&self, request: &PeerRequest, timeout: Duration) -> Option<PeerResponse> {
        match self.client.call(self.address, Some(self.member), request.clone(), timeout).await {
            Ok(PeerResponse::Failed(text)) => {
                tracing::debug!(member = %self.member, text, "a member could not answer");
                None
            }
            Ok(response) => Some(response),
            Err(error) => {
                tracing::trace!(member = %self.member, %error, "a member did not answer");
                None
            }
        }
    }
}

type Endpoints = Vec<(MemberId, Endpoint)>;

/// The two tasks that talk to the pool master. They end when this is dropped.
pub struct MasterLink {
    client: PeerClient,
    report: watch::Sender<Option<AmReport>>,
    at_once: Arc<Notify>,
    members: watch::Sender<Endpoints>,
    interval: watch::Sender<Duration>,
    proposals: mpsc::Sender<Proposal>,
    tasks: [JoinHandle<()>; 2],
}

impl MasterLink {
    pub fn start(
        identity: &Identity,
        members: &[MemberEndpoint],
        interval: Duration,
        notices: mpsc::Sender<MasterNotice>,
    ) -> Self {
        let client = PeerClient::new(identity);
        let (report, reports) = watch::channel(None);
        let (members, members_seen) = watch::channel(endpoints(&client, members));
        let (interval, intervals) = watch::channel(interval);
        let (proposals, queue) = mpsc::channel(QUEUE_MAX);
        let at_once = Arc::new(Notify::new());
        let reporting =
            report_for_ever(reports, members_seen.clone(), intervals, Arc::clone(&at_once), notices.clone());
        let proposing = propose_for_ever(queue, members_seen, notices);
        let tasks = [tokio::spawn(reporting), tokio::spawn(proposing)];
        Self { client, report, at_once, members, interval, proposals, tasks }
    }

    /// Other members, or another interval.
    pub fn reconfigure(&self, members: &[MemberEndpoint], interval: Duration) {
        self.members.send_replace(endpoints(&self.client, members));
        self.interval.send_replace(interval);
    }

    /// The report that is sent from now on.
    pub fn set_report(&self, report: AmReport) {
        self.report.send_replace(Some(report));
    }

    /// Sends the report now rather than at the next interval.
    pub fn report_at_once(&self) {
        self.at_once.notify_one();
    }

    /// Asks for a change of the record; the answer comes as [`MasterNotice::Proposed`]. `false`: too many wait.
    pub fn propose(&self, vm: VmId, seen: Generation, change: AuthorityChange) -> bool {
        self.proposals.try_send(Proposal { vm, seen, change }).is_ok()
    }
}

impl Drop for MasterLink {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn endpoints(client: &PeerClient, members: &[MemberEndpoint]) -> Endpoints {
    let endpoint = |one: &MemberEndpoint| {
        (one.member, Endpoint { client: client.clone(), address: one.address, member: one.member })
    };
    members.iter().map(endpoint).collect()
}

async fn report_for_ever(
    reports: watch::Receiver<Option<AmReport>>,
    members: watch::Receiver<Endpoints>,
    interval: watch::Receiver<Duration>,
    at_once: Arc<Notify>,
    notices: mpsc::Sender<MasterNotice>,
) {
    let mut finder = Finder::default();
    let mut master = None;
    loop {
        let interval = *interval.borrow();
        let next = TokioInstant::now() + interval;
        let report = reports.borrow().clone();
        if let Some(report) = report {
            let members = members.borrow().clone();
            let request = PeerRequest::Report(Box::new(report));
            // A report is asked anew after two intervals at most, so that a newer one gets its turn.
            if let Some(answer) = finder.ask(&members, &request, interval * 2).await
                && let PeerResponse::Directive(directive) = answer.response
            {
                if master.replace(answer.master) != Some(answer.master) {
                    tracing::info!(master = %answer.master, "reporting to this pool master");
                }
                let asked_at = answer.asked_at;
                if notices.send(MasterNotice::Directive { asked_at, directive }).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            () = sleep_until(next) => {}
            () = at_once.notified() => {}
        }
    }
}

async fn propose_for_ever(
    mut queue: mpsc::Receiver<Proposal>,
    members: watch::Receiver<Endpoints>,
    notices: mpsc::Sender<MasterNotice>,
) {
    let mut finder = Finder::default();
    while let Some(Proposal { vm, seen, change }) = queue.recv().await {
        let request = PeerRequest::Propose { vm, seen, change: change.clone() };
        let members = members.borrow().clone();
        let answer = finder.ask(&members, &request, PROPOSE_LIMIT).await;
        let result = match answer.map(|answer| answer.response) {
            Some(PeerResponse::Proposed(result)) => result.map_err(ProposeFailure::from),
            Some(_) | None => Err(ProposeFailure::NoMaster),
        };
        if notices.send(MasterNotice::Proposed { change, result }).await.is_err() {
            return;
        }
    }
}
