//! Third decision: which replica is good, as far as an AM has a say: whose replica to give up, and which one to serve from.
//!
//! The record decides; the AM proposes. It gives up a replica that it can't reach or that failed, never the last one that can
//! still do the work, and never both.

use super::acknowledge::Required;
use super::history::{Health, ReplicaInfo};
use crate::ids::Generation;

/// How the partner looks from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartnerView {
    /// Linked, and has every write that was acknowledged.
    InStep,
    /// Not linked for less than the partner timeout.
    Waiting,
    /// Not linked for longer, or its storage failed.
    Lost,
    /// Linked, and known to lack something that was acknowledged.
    Behind,
}

/// Which replica to ask to be left out of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    Neither,
    Local,
    Partner,
}

/// Whose replica acknowledgements should no longer wait for.
#[must_use]
pub fn give_up(required: Required, local_failed: bool, partner: PartnerView) -> GiveUp {
    if !required.partner {
        GiveUp::Neither
    } else if local_failed {
        // The partner has every acknowledged write; that it can't be reached now does not make the failed disk better.
        if required.local && partner != PartnerView::Behind { GiveUp::Local } else { GiveUp::Neither }
    } else if !required.local {
        GiveUp::Neither
    } else {
        match partner {
            PartnerView::InStep | PartnerView::Waiting => GiveUp::Neither,
            PartnerView::Lost | PartnerView::Behind => GiveUp::Partner,
        }
    }
}

/// Whether a replica that the record calls good may be served from. An empty one never is: `History::NONE` with health
/// good is a new disk whose first record this is.
#[must_use]
pub fn may_serve(replica: ReplicaInfo) -> bool {
    replica.health == Health::Good
}

/// Whether the partner's replica has all that ours has, without a copy: the record calls it good, it holds the
/// same history, and nothing was under way on either side when the sides last parted.
#[must_use]
pub fn in_step(ours: ReplicaInfo, theirs: ReplicaInfo, no_map_names_a_region: bool) -> bool {
    theirs.health == Health::Good
        && theirs.history.current != Generation::NONE
        && theirs.history.current == ours.history.current
        && no_map_names_a_region
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_gives_up_the_only_replica_nor_both() {
        for partner in [PartnerView::InStep, PartnerView::Waiting, PartnerView::Lost, PartnerView::Behind] {
            for failed in [false, true] {
                let local_only = Required { local: true, partner: false };
                let partner_only = Required { local: false, partner: true };
                assert_eq!(give_up(local_only, failed, partner), GiveUp::Neither);
                assert_eq!(give_up(partner_only, failed, partner), GiveUp::Neither);
            }
        }
        let both = Required { local: true, partner: true };
        for partner in [PartnerView::InStep, PartnerView::Waiting, PartnerView::Lost] {
            assert_eq!(give_up(both, true, partner), GiveUp::Local, "a failed disk is given up, not a silent partner");
        }
        assert_eq!(give_up(both, true, PartnerView::Behind), GiveUp::Neither, "neither holds everything");
        assert_eq!(give_up(both, false, PartnerView::Behind), GiveUp::Partner);
    }
}
