//! The pool master's work: one task owns the engine of `ev_core::availability::master`, tells it what happened, and
//! proposes what it decides. On hosts that do not lead it only listens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ev_core::availability::master::{Master, Path};
use ev_core::ids::{Generation, HostId, MemberId, VmId};
use ev_core::pool::{Command, Outcome};
use ev_core::report::AmReport;
use ev_core::time::Instant;
use ev_pool::Leadership;
use ev_wire::peer::Directive;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::member::Member;
use crate::{clock, view};

/// How often the engine looks at everything.
const TICK: Duration = Duration::from_millis(25);
/// Reports that wait for the engine; more are refused (the AM reports again within half a second).
const REPORTS_WAITING_MAX: usize = 256;
/// How long one proposal may take; the engine makes it again.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A new host may take so long until its first heartbeat.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How often the voters are asked whether they are there.
const VOTERS_INTERVAL: Duration = Duration::from_secs(1);
/// Proposals under way; while there are more, no further ones are made.
const PROPOSALS_MAX: usize = 64;

/// A change of a record that was refused, with the generation that it was against.
struct Refused {
    vm: VmId,
    seen: Generation,
}

struct Question {
    report: AmReport,
    answer: oneshot::Sender<Directive>,
}

/// Puts reports before the engine.
#[derive(Clone)]
pub struct MasterHandle(mpsc::Sender<Question>);

/// The engine's end of a [`MasterHandle`].
pub struct Engine(mpsc::Receiver<Question>);

/// A handle and its engine's end.
#[must_use]
pub fn handle() -> (MasterHandle, Engine) {
    let (sender, receiver) = mpsc::channel(REPORTS_WAITING_MAX);
    (MasterHandle(sender), Engine(receiver))
}

impl MasterHandle {
    /// The engine's answer to a report. To be asked only after this member has confirmed, since the report came in,
    /// that it still leads. `None`: there are too many reports.
    pub async fn report(&self, report: AmReport) -> Option<Directive> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Question { report, answer }).ok()?;
        answered.await.ok()
    }
}

/// Runs until the task is ended.
pub async fn run(member: Arc<Member>, engine: Engine) {
    let mut work = Work {
        engine: Master::new(member.host),
        term: 0,
        proposals: JoinSet::new(),
        alerts: JoinSet::new(),
        awaited: BTreeMap::new(),
        voters: JoinSet::new(),
        voters_asked: None,
        member,
    };
    work.run(engine.0).await;
}

struct Work {
    engine: Master,
    /// The term for which the engine was told that it leads.
    term: u64,
    /// Changes of records; one that the state has refused comes back.
    proposals: JoinSet<Option<Refused>>,
    /// Alerts; the engine asks for them again until they are committed, so one batch goes at a time.
    alerts: JoinSet<()>,
    /// Since when hosts that were never heard are waited for.
    awaited: BTreeMap<HostId, Instant>,
    /// The question to the voters whether they are there.
    voters: JoinSet<BTreeSet<MemberId>>,
    voters_asked: Option<Instant>,
    member: Arc<Member>,
}

impl Work {
    async fn run(&mut self, mut questions: mpsc::Receiver<Question>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut states = self.member.states();
        let mut leadership = self.member.node.leadership();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = states.changed() => if changed.is_err() { return },
                changed = leadership.changed() => if changed.is_err() { return },
                question = questions.recv() => {
                    let Some(question) = question else { return };
                    self.answer(question);
                }
            }
            let known = *leadership.borrow_and_update();
            self.follow_leadership(known);
            self.look();
        }
    }

    /// Another term is another master, even if it is this host again: others may have granted leases in between.
    fn follow_leadership(&mut self, known: Leadership) {
        let leads = self.engine.leads();
        if known.is_me && !(leads && self.term == known.term) {
            tracing::info!(term = known.term, "this host is pool master now");
            self.term = known.term;
            self.engine.elected(clock::now());
        } else if leads && !known.is_me {
            tracing::info!("this host is no longer pool master");
            self.engine.deposed();
        }
    }

    fn answer(&mut self, question: Question) {
        let state = self.member.state();
        let vm = question.report.vm;
        self.member.live.report(question.report.clone());
        let lease = self.engine.report(clock::now(), question.report, &state);
        let directive = Directive {
            vm: state.vms.get(&vm).cloned(),
            lease_ms: lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)),
        };
        // An asker that is gone asks again.
        let _ = question.answer.send(directive);
    }

    /// A host that has just joined and was never heard is not down: it is still on its way.
    fn is_early(&mut self, command: &Command) -> bool {
        let state = self.member.state();
        let heard = self.member.ear.last();
        let now = clock::now();
        self.awaited.retain(|host, _| state.members.contains_key(host) && !heard.keys().any(|(from, _)| from == host));
        let Command::AlertRaise { key, .. } = command else { return false };
        state.hosts().filter(|host| *key == format!("host-down/{}", host.id)).any(|host| {
            let never_heard = !heard.keys().any(|(from, _)| *from == host.id);
            never_heard && now.since(*self.awaited.entry(host.id).or_insert(now)) < ARRIVAL
        })
    }

    fn ask_voters(&mut self) {
        let now = clock::now();
        while let Some(answered) = self.voters.try_join_next() {
            if let Ok(silent) = answered {
                self.engine.voters_asked(now, &silent);
            }
        }
        let due = self.voters_asked.is_none_or(|at| now.since(at) >= VOTERS_INTERVAL);
        if self.engine.leads() && self.voters.is_empty() && due {
            self.voters_asked = Some(now);
            let node = self.member.node.clone();
            self.voters.spawn(async move { node.silent_voters().await });
        }
    }

    fn look(&mut self) {
        for ((host, path), at) in self.member.ear.last() {
            if let Ok(path) = u8::try_from(path) {
                self.engine.heartbeat(at, host, Path(path));
            }
        }
        while let Some(done) = self.proposals.try_join_next() {
            if let Ok(Some(Refused { vm, seen })) = done {
                self.engine.proposal_refused(vm, seen);
            }
        }
        while self.alerts.try_join_next().is_some() {}
        self.ask_voters();
        if self.proposals.len() >= PROPOSALS_MAX {
            return;
        }
        let mut commands = Vec::new();
        self.engine.tick(clock::now(), view::unix_ms_now(), &self.member.state(), &mut commands);
        let (alerts, changes): (Vec<_>, Vec<_>) = commands
            .into_iter()
            .partition(|command| matches!(command, Command::AlertRaise { .. } | Command::AlertClear { .. }));
        let alerts: Vec<Command> = alerts.into_iter().filter(|command| !self.is_early(command)).collect();
        for change in changes {
            tracing::info!(?change, "proposing");
            self.proposals.spawn(change_record(Arc::clone(&self.member), self.term, change));
        }
        if self.alerts.is_empty() && !alerts.is_empty() {
            self.alerts.spawn(settle_alerts(Arc::clone(&self.member), self.term, alerts));
        }
    }
}

async fn change_record(member: Arc<Member>, term: u64, change: Command) -> Option<Refused> {
    let about = match &change {
        Command::VmAuthority { id, if_generation, .. } => Some(Refused { vm: *id, seen: *if_generation }),
        _ => None,
    };
    match member.node.propose_in_term(term, change, PROPOSE_TIMEOUT).await {
        Ok(Outcome::Refused(refusal)) => {
            tracing::info!(%refusal, "a proposal was refused");
            about
        }
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(%error, "a proposal was not committed; it is made again if it still holds");
            None
        }
    }
}

async fn settle_alerts(member: Arc<Member>, term: u64, alerts: Vec<Command>) {
    for alert in alerts {
        match member.node.propose_in_term(term, alert, PROPOSE_TIMEOUT).await {
            Ok(Outcome::Refused(refusal)) => tracing::warn!(%refusal, "an alert was refused"),
            Ok(_) => {}
            // The engine asks for all that is still due at its next tick.
            Err(error) => return tracing::debug!(%error, "an alert was not committed"),
        }
    }
}
