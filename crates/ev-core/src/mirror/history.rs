//! Second decision: what must be copied. Histories of data, by generations (ADR 4).
//!
//! Each replica's superblock names the history of its bytes (`current`: the generation of the record under which this
//! history began) and the partner's history that the out-of-sync map counts from (`bitmap_base`). At every moment
//!
//! > a region in which the partner's bytes may differ from ours is in our write-intent log, in our out-of-sync map, or
//! > in one of the partner's two maps, if the partner's `current` is our `current` or our `bitmap_base`.
//!
//! `bitmap_base == current` says: the partner may hold our own history. When the record then goes on without the partner, a new
//! history begins, so that a partner that comes back is told from one that was never away.

use crate::ids::Generation;

use super::message::CopyKind;

/// What a replica's bytes are worth by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Just created; nothing was ever written.
    Empty,
    /// A consistent state of the disk.
    Good,
    /// A copy is, or was, overwriting it.
    Copying,
    /// Its storage failed.
    Failed,
}

/// Which history a replica holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Generation of the record under which it began; `NONE`: no history yet.
    pub current: Generation,
    /// The partner's `current` that the out-of-sync map counts from; `NONE`: the map says nothing.
    pub bitmap_base: Generation,
}

impl History {
    /// No history.
    pub const NONE: Self = Self { current: Generation::NONE, bitmap_base: Generation::NONE };

    /// The partner holds, or may hold, this history too.
    #[must_use]
    pub fn is_shared(self) -> bool {
        self.bitmap_base == self.current
    }

    /// The same history, held by the partner as well.
    #[must_use]
    pub fn shared(self) -> Self {
        Self { bitmap_base: self.current, ..self }
    }
}

/// A replica's superblock, as far as decisions need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaInfo {
    pub health: Health,
    pub history: History,
}

/// How the record sees the partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartnerStanding {
    /// There is none.
    None,
    /// There is one, and its replica does not count.
    Lacking,
    /// Its replica is good.
    Good,
}

/// The history of a good local replica under the record of `generation`.
#[must_use]
pub fn under_record(history: History, generation: Generation, partner: PartnerStanding) -> History {
    let begun = history.current != Generation::NONE;
    match partner {
        // Nothing is tracked from here on: whoever held our history or its base must not be taken for close to us.
        PartnerStanding::None if begun && history.bitmap_base == Generation::NONE => history,
        PartnerStanding::None => History { current: generation, bitmap_base: Generation::NONE },
        PartnerStanding::Lacking if begun && history.is_shared() => {
            History { current: generation, bitmap_base: history.current }
        }
        PartnerStanding::Lacking | PartnerStanding::Good if begun => history,
        PartnerStanding::Lacking | PartnerStanding::Good => {
            History { current: generation, bitmap_base: Generation::NONE }
        }
    }
}

/// How the partner's replica can be brought in step with ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resync {
    /// Only regions that a map of either side names can differ.
    Delta,
    /// Any region can differ.
    Full,
    /// It can't be written.
    Impossible,
}

/// What must be copied to the partner.
#[must_use]
pub fn resync(ours: History, theirs: ReplicaInfo) -> Resync {
    let known =
        |theirs: Generation| theirs != Generation::NONE && (theirs == ours.current || theirs == ours.bitmap_base);
    match theirs.health {
        Health::Failed => Resync::Impossible,
        Health::Empty => Resync::Full,
        Health::Good | Health::Copying if known(theirs.history.current) => Resync::Delta,
        Health::Good | Health::Copying => Resync::Full,
    }
}

/// The source's history before it tells the target to begin a copy. A full copy disowns whoever shares or precedes the present
/// history: its maps no longer count from them.
#[must_use]
pub fn before_copy(history: History, kind: CopyKind, generation: Generation) -> History {
    match kind {
        CopyKind::Delta => history,
        CopyKind::Full if history.bitmap_base == Generation::NONE => history.shared(),
        CopyKind::Full => History { current: history.current.max(generation), bitmap_base: Generation::NONE }.shared(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(current: u64, bitmap_base: u64) -> History {
        History { current: Generation(current), bitmap_base: Generation(bitmap_base) }
    }

    #[test]
    fn a_history_begins_when_one_that_is_shared_goes_on_alone() {
        use PartnerStanding::{Good, Lacking, None};
        for (before, partner, after) in [
            (History::NONE, None, history(9, 0)),
            (History::NONE, Lacking, history(9, 0)),
            (history(3, 3), Good, history(3, 3)),
            (history(3, 3), Lacking, history(9, 3)),
            (history(5, 3), Lacking, history(5, 3)),
            (history(5, 3), None, history(9, 0)),
            (history(5, 0), None, history(5, 0)),
        ] {
            assert_eq!(under_record(before, Generation(9), partner), after, "{before:?} {partner:?}");
        }
    }

    #[test]
    fn a_known_history_is_delta_and_any_other_full() {
        let replica = |health, current| ReplicaInfo { health, history: history(current, 0) };
        let ours = history(5, 3);
        assert_eq!(resync(ours, replica(Health::Good, 5)), Resync::Delta);
        assert_eq!(resync(ours, replica(Health::Good, 3)), Resync::Delta);
        assert_eq!(resync(ours, replica(Health::Copying, 3)), Resync::Delta);
        assert_eq!(resync(ours, replica(Health::Good, 4)), Resync::Full);
        assert_eq!(resync(ours, replica(Health::Empty, 0)), Resync::Full);
        assert_eq!(resync(history(5, 0), replica(Health::Good, 0)), Resync::Full, "nothing is no history");
        assert_eq!(resync(ours, replica(Health::Failed, 5)), Resync::Impossible);
    }
}
