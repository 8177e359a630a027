//! When to stand for election: decided here, carried out by the private module `driver`.
//!
//! The consensus library's own election timer is off. It would wait for a lease and a random time one after the
//! other, and a member that was cut off would come back with a higher term and unseat a working leader. Instead a
//! member that hears no leader asks the other voters first and stands only when a majority hears none either.
//!
//! ```text
//!             silent for the detection time
//!   Following ─────────────────────────────► ask the others ── majority agrees ──► stand for election
//!       ▲                                          │                                     │
//!       └── a leader is heard ◄────────────────────┴── no majority: again later ◄── lost ┘
//! ```
//!
//! A quorum server runs no VMs and must not be pool master, but it may hold entries that no living host has (the
//! dead one and the quorum server agreed on them). It then stands as well, after a longer silence and only when
//! every host that answers lacks entries that it has; leads until one host has them all; and falls silent, so that
//! this host takes over.

use std::collections::BTreeSet;
use std::time::Duration;

use ev_core::ids::MemberId;
use ev_wire::identity::Role;
use ev_wire::peer::{LogPosition, Standing};

/// Times of elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElectionTimes {
    /// How long the leader may be silent.
    pub detection: Duration,
    /// Up to this much is added at random, so that two members seldom stand at once.
    pub spread: Duration,
    /// How long the leader may be silent before a quorum server stands: hosts had their chance by then. It stands
    /// only where no host that answers could.
    pub rescue: Duration,
}

/// Voters refuse candidates for almost this long after they heard a leader, whatever the settings say.
pub const DETECTION_MIN: Duration = Duration::from_millis(400);
/// See [`ElectionTimes::spread`].
const SPREAD: Duration = Duration::from_millis(100);
/// How long one without a vote hears no leader before it asks the voters: nobody waits for it.
const LEARNERS_PATIENCE: Duration = Duration::from_secs(2);
/// What hosts have ahead of quorum servers, beside the spread.
const RESCUE_LATER: Duration = Duration::from_millis(300);

impl ElectionTimes {
    /// A leader that is silent for the pool's detection time is gone, as a host is.
    #[must_use]
    pub fn of(detection: Duration) -> Self {
        let detection = detection.max(DETECTION_MIN);
        Self { detection, spread: SPREAD, rescue: detection + SPREAD + RESCUE_LATER }
    }
}

/// What a member knows of itself.
#[derive(Debug, Clone)]
pub struct Situation {
    pub role: Role,
    pub member: MemberId,
    pub leading: bool,
    /// Voter sets, of which each needs a majority: two while the membership changes.
    pub voter_sets: Vec<BTreeSet<MemberId>>,
    /// Since a leader was heard, or a vote given to a candidate, or an election tried.
    pub silent: Duration,
    /// This turn's random part, below [`ElectionTimes::spread`].
    pub spread: Duration,
}

impl Situation {
    fn votes(&self) -> bool {
        self.voter_sets.iter().any(|set| set.contains(&self.member))
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Wait,
    /// Nobody else has a say.
    Stand,
    /// Ask the other voters how they stand, then [`may_stand`]. One that was removed while it was away hears it in this way.
    Ask,
}

/// What the situation calls for.
#[must_use]
pub fn step(situation: &Situation, times: &ElectionTimes) -> Step {
    let me = &situation.member;
    if situation.leading {
        return Step::Wait;
    }
    if !situation.voter_sets.is_empty() && situation.voter_sets.iter().all(|set| set.len() == 1 && set.contains(me)) {
        return Step::Stand;
    }
    let patience = match situation.role {
        _ if !situation.votes() => LEARNERS_PATIENCE,
        Role::Host => times.detection,
        Role::Quorum => times.rescue,
    };
    if situation.silent < patience + situation.spread { Step::Wait } else { Step::Ask }
}

/// How another voter answered; voters that did not answer are left out.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub member: MemberId,
    pub role: Role,
    pub standing: Standing,
}

/// Whether, with these answers, standing would succeed and do no harm.
#[must_use]
pub fn may_stand(situation: &Situation, last_log: Option<LogPosition>, answers: &[Answer]) -> bool {
    if !situation.votes() {
        return false;
    }
    let consents = |answer: &&Answer| answer.standing.leader.is_none() && answer.standing.last_log <= last_log;
    let mut agreed: BTreeSet<MemberId> = answers.iter().filter(consents).map(|answer| answer.member).collect();
    agreed.insert(situation.member);
    let majority = situation.voter_sets.iter().all(|set| set.intersection(&agreed).count() * 2 > set.len());
    let a_host_could = answers.iter().any(|answer| answer.role == Role::Host && answer.standing.last_log >= last_log);
    match situation.role {
        Role::Host => majority,
        Role::Quorum => majority && !a_host_could,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation(role: Role, silent_ms: u64) -> Situation {
        let voters = [MemberId(1), MemberId(2), MemberId(3)].into();
        Situation {
            role,
            member: MemberId(2),
            leading: false,
            voter_sets: vec![voters],
            silent: Duration::from_millis(silent_ms),
            spread: Duration::ZERO,
        }
    }

    fn position(index: u64) -> Option<LogPosition> {
        Some(LogPosition { term: 1, leader: MemberId(1), index })
    }

    fn answer(member: u64, role: Role, leader: Option<u64>, index: u64) -> Answer {
        let standing = Standing { leader: leader.map(MemberId), term: 1, last_log: position(index) };
        Answer { member: MemberId(member), role, standing }
    }

    #[test]
    fn a_host_asks_after_the_detection_time_and_a_quorum_server_later() {
        let times = ElectionTimes::of(Duration::from_millis(500));
        assert_eq!(step(&situation(Role::Host, 499), &times), Step::Wait);
        assert_eq!(step(&situation(Role::Host, 500), &times), Step::Ask);
        assert_eq!(step(&situation(Role::Quorum, 899), &times), Step::Wait);
        assert_eq!(step(&situation(Role::Quorum, 900), &times), Step::Ask);
        assert!(times.rescue > times.detection + times.spread, "hosts come first");
    }

    #[test]
    fn leaders_and_learners_never_stand_and_a_single_voter_at_once() {
        let times = ElectionTimes::of(Duration::from_millis(500));
        assert_eq!(step(&Situation { leading: true, ..situation(Role::Host, 9_000) }, &times), Step::Wait);
        let learner = |silent_ms| Situation { member: MemberId(9), ..situation(Role::Host, silent_ms) };
        assert_eq!(step(&learner(1_999), &times), Step::Wait);
        assert_eq!(step(&learner(2_000), &times), Step::Ask, "whether it is still a member");
        let nobody_leads = [1, 2, 3].map(|member| answer(member, Role::Host, None, 5));
        assert!(!may_stand(&learner(2_000), position(5), &nobody_leads));
        let alone = Situation { voter_sets: vec![[MemberId(2)].into()], ..situation(Role::Host, 0) };
        assert_eq!(step(&alone, &times), Step::Stand);
    }

    #[test]
    fn a_host_needs_a_majority_that_hears_no_leader_and_has_no_more_than_it() {
        let me = situation(Role::Host, 600);
        assert!(!may_stand(&me, position(5), &[]), "alone it is no majority");
        assert!(may_stand(&me, position(5), &[answer(3, Role::Quorum, None, 5)]));
        assert!(!may_stand(&me, position(5), &[answer(3, Role::Quorum, Some(1), 5)]), "the leader lives");
        assert!(!may_stand(&me, position(5), &[answer(3, Role::Quorum, None, 6)]), "it would lose");
    }

    #[test]
    fn while_the_membership_changes_both_sets_need_a_majority() {
        let both = vec![[MemberId(2)].into(), [MemberId(1), MemberId(2), MemberId(3)].into()];
        let me = Situation { voter_sets: both, ..situation(Role::Host, 600) };
        assert!(!may_stand(&me, position(5), &[]));
        assert!(may_stand(&me, position(5), &[answer(1, Role::Host, None, 5)]));
    }

    #[test]
    fn a_quorum_server_stands_only_for_what_no_host_has() {
        let me = situation(Role::Quorum, 3_000);
        assert!(!may_stand(&me, position(5), &[answer(1, Role::Host, None, 5)]), "the host can");
        assert!(may_stand(&me, position(5), &[answer(1, Role::Host, None, 4)]), "the host lacks an entry");
    }
}
