//! Carries out what [`crate::election`] decides, and publishes who leads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ev_core::ids::MemberId;
use ev_wire::identity::Role;
use ev_wire::peer::{PeerRequest, PeerResponse, Standing};
use openraft::ServerState;
use tokio::task::JoinSet;

use crate::election::{Answer, Situation, Step, may_stand, step};
use crate::node::{Leadership, Shared, position_of};
use crate::types::Metrics;

/// How often the situation is looked at.
const TICK: Duration = Duration::from_millis(25);
/// How long the others have to say how they stand.
const STANDING_TIMEOUT: Duration = Duration::from_millis(250);
/// A leader that no majority has confirmed for this long does not call itself one any more.
const CONFIRMED_MAX: Duration = Duration::from_millis(1_000);

pub(crate) async fn drive_elections(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut spread = random_below(shared.election_times().spread);
    loop {
        tick.tick().await;
        let times = shared.election_times();
        let metrics = shared.metrics();
        publish_leadership(&shared, &metrics);
        stand_down_if_rescued(&shared, &metrics);
        let situation = situation(&shared, &metrics, spread);
        let stand = match step(&situation, &times) {
            Step::Wait => continue,
            Step::Stand => true,
            Step::Ask => {
                let may =
                    |answers: &[Answer]| may_stand(&situation, shared.log.last_log_id().map(position_of), answers);
                // A host that is dead does not answer, and is not waited for.
                may(&ask_until(&shared, |answers| situation.role == Role::Host && may(answers)).await)
            }
        };
        spread = random_below(times.spread);
        // A leader may have been heard while the others were asked.
        if stand && shared.silence() >= situation.silent {
            tracing::info!(member = %shared.me.member, "no leader: standing for election");
            if shared.raft.trigger().elect().await.is_err() {
                return;
            }
            // Time for the election; then it is tried again.
            shared.hear();
        }
    }
}

fn situation(shared: &Shared, metrics: &Metrics, spread: Duration) -> Situation {
    let sets = metrics.membership_config.membership().get_joint_config();
    Situation {
        role: shared.me.role,
        member: shared.me.member,
        leading: metrics.state == ServerState::Leader,
        voter_sets: sets.iter().map(|set| set.iter().copied().map(MemberId).collect()).collect(),
        silent: shared.silence(),
        spread,
    }
}

fn publish_leadership(shared: &Shared, metrics: &Metrics) {
    let leads = metrics.state == ServerState::Leader && shared.me.role == Role::Host;
    let alone = metrics.membership_config.voter_ids().count() == 1;
    let confirmed =
        alone || metrics.millis_since_quorum_ack.is_some_and(|ms| Duration::from_millis(ms) < CONFIRMED_MAX);
    let heard = shared.silence() < CONFIRMED_MAX;
    let followed = metrics
        .current_leader
        .map(MemberId)
        .filter(|leader| heard && *leader != shared.me.member && shared.role_of(*leader) == Role::Host);
    let now = if leads && confirmed {
        Leadership { term: metrics.current_term, master: Some(shared.me.member), is_me: true }
    } else {
        Leadership { term: metrics.current_term, master: followed, is_me: false }
    };
    shared.leadership.send_if_modified(|before| {
        let changed = *before != now;
        *before = now;
        changed
    });
}

/// A quorum server that had to lead falls silent once a host has every entry, so that this host is elected.
fn stand_down_if_rescued(shared: &Shared, metrics: &Metrics) {
    if shared.me.role != Role::Quorum {
        return;
    }
    let leads = metrics.state == ServerState::Leader;
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let complete = |(id, matched): (&u64, &Option<crate::types::LogId>)| {
        *id != shared.me.member.0 && voters.contains(id) && matched.map(|id| id.index) >= metrics.last_log_index
    };
    let rescued = leads && metrics.replication.iter().flatten().any(complete);
    let standing_down = shared.standing_down.load(Ordering::Relaxed);
    if rescued && !standing_down {
        tracing::info!("a host has every entry: leaving the lead to it");
    }
    let silent = leads && (rescued || standing_down);
    shared.standing_down.store(silent, Ordering::Relaxed);
    shared.raft.runtime_config().heartbeat(!silent);
}

/// Ask every other voter how it stands; who does not answer in time is left out.
pub(crate) async fn ask_others(shared: &Shared) -> Vec<Answer> {
    ask_until(shared, |_| false).await
}

/// The same, until the answers that have come are enough.
async fn ask_until(shared: &Shared, enough: impl Fn(&[Answer]) -> bool) -> Vec<Answer> {
    let mut asked = JoinSet::new();
    let voters: BTreeSet<u64> = shared.membership().voter_ids().collect();
    for (member, addresses) in shared.others() {
        if !voters.contains(&member.0) {
            continue;
        }
        let role = shared.role_of(member);
        let route = shared.network.route(member, addresses);
        asked.spawn(async move {
            let answer = route.call(PeerRequest::Standing, STANDING_TIMEOUT).await;
            Some(Answer { member, role, standing: standing_in(answer.ok()?)? })
        });
    }
    let mut answers = Vec::new();
    while !enough(&answers) {
        match asked.join_next().await {
            Some(answer) => answers.extend(answer.ok().flatten()),
            None => break,
        }
    }
    answers
}

fn standing_in(answer: PeerResponse) -> Option<Standing> {
    match answer {
        PeerResponse::Standing(standing) => Some(standing),
        _ => None,
    }
}

/// Some duration below `limit`. Spreading elections needs no good randomness.
fn random_below(limit: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u64_pair().1 & 0xffff;
    limit.mul_f64(f64::from(u16::try_from(random).unwrap_or(0)) / f64::from(u16::MAX))
}
