//! First decision: what may be acknowledged.
//!
//! A write or flush is acknowledged only when it is done on every replica that must have it: those that the record calls
//! good, and one that may be called good any moment because that was proposed. (Whether anything may reach the guest at
//! this moment is the gate's question, asked by the thread that sends the acknowledgement.)

use super::message::OpId;

/// Which replicas must have a write before it may be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Required {
    pub local: bool,
    pub partner: bool,
}

impl Required {
    /// What both ask for.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { local: self.local || other.local, partner: self.partner || other.partner }
    }
}

/// Where an operation stands on one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// It is not meant for this replica.
    Unneeded,
    /// It must be done there and can't be started now.
    Todo,
    /// Started, not yet answered.
    Running,
    Done,
    /// The replica could not do it.
    Failed,
}

/// That an operation may be acknowledged. Made nowhere but here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Proof {
    op: OpId,
}

impl Proof {
    /// Which operation.
    #[must_use]
    pub fn op(self) -> OpId {
        self.op
    }
}

/// What to do with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Tell the guest.
    Acknowledge(Proof),
    /// Something is still under way, or a record must come first.
    Wait,
    /// No replica that counts can do it.
    Fail,
}

/// The decision. A replica that takes part without counting yet (the target of a copy) is waited for as long as it
/// answers, so that it sets the pace of the writes that it gets.
#[must_use]
pub fn decide(op: OpId, required: Required, local: Leg, partner: Leg) -> Decision {
    let missing = |required: bool, leg: Leg| required && leg != Leg::Done;
    if matches!(local, Leg::Running) || matches!(partner, Leg::Running) {
        Decision::Wait
    } else if required.local && local == Leg::Failed && !required.partner {
        Decision::Fail
    } else if missing(required.local, local) || missing(required.partner, partner) {
        Decision::Wait
    } else if local == Leg::Done || partner == Leg::Done {
        Decision::Acknowledge(Proof { op })
    } else {
        Decision::Wait
    }
}

/// The decision while writing ahead: what the guest is told here is seen by nobody else before the partner's host holds its
/// epoch, or the record does without the partner. So only this host's replica counts. One that failed keeps the guest waiting: it
/// goes on elsewhere, from a moment at which it had not asked for this.
#[must_use]
pub fn decide_ahead(op: OpId, local: Leg) -> Decision {
    match local {
        Leg::Done => Decision::Acknowledge(Proof { op }),
        Leg::Unneeded | Leg::Todo | Leg::Running | Leg::Failed => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEGS: [Leg; 5] = [Leg::Unneeded, Leg::Todo, Leg::Running, Leg::Done, Leg::Failed];

    #[test]
    fn nothing_is_acknowledged_that_a_required_replica_lacks() {
        for local in LEGS {
            for partner in LEGS {
                for (must_local, must_partner) in [(true, true), (true, false), (false, true)] {
                    let required = Required { local: must_local, partner: must_partner };
                    if let Decision::Acknowledge(_) = decide(OpId(1), required, local, partner) {
                        assert!(!must_local || local == Leg::Done, "{required:?} {local:?} {partner:?}");
                        assert!(!must_partner || partner == Leg::Done, "{required:?} {local:?} {partner:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn ahead_of_the_partner_only_what_is_done_here_is_acknowledged_and_nothing_fails() {
        for local in LEGS {
            let expected = local == Leg::Done;
            assert_eq!(matches!(decide_ahead(OpId(1), local), Decision::Acknowledge(_)), expected, "{local:?}");
            assert_ne!(decide_ahead(OpId(1), local), Decision::Fail, "{local:?}");
        }
    }

    #[test]
    fn a_failed_replica_is_an_error_for_the_guest_only_when_no_other_counts() {
        let both = Required { local: true, partner: true };
        let alone = Required { local: true, partner: false };
        assert_eq!(decide(OpId(1), both, Leg::Failed, Leg::Done), Decision::Wait);
        assert_eq!(decide(OpId(1), alone, Leg::Failed, Leg::Unneeded), Decision::Fail);
    }
}
