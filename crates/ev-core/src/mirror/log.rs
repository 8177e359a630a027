//! The two maps of a replica: what they are to say, and what is surely on disk.
//!
//! Commits go one at a time and may tear or be lost by a crash. So a bit counts as surely set only if the last finished commit
//! set it and no commit since then, finished or not, clears it. The order of pages within a commit is not known either: a bit must
//! not move from one map to the other within one commit, which [`RegionLog::clear_intent`] sees to.

use std::collections::BTreeSet;

use super::extent::Extent;
use super::message::{MapWord, RegionMap};
use super::region::{Geometry, RegionSet};

/// Most regions in the write-intent log before it is thinned out by a flush of both replicas. Bounds what a delta copy has to
/// compare after a crash: 1 GiB with regions of 1 MiB.
pub const INTENT_REGIONS_MAX: u64 = 1024;

#[derive(Debug, Clone)]
struct Map {
    /// What is to be on disk after the next commit.
    wanted: RegionSet,
    /// Set on disk, whatever happens to commits under way.
    sure: RegionSet,
    /// Words of `wanted` that no commit has carried yet.
    changed: BTreeSet<usize>,
}

impl Map {
    fn new(words: RegionSet) -> Self {
        Self { wanted: words.clone(), sure: words, changed: BTreeSet::new() }
    }

    fn word_of(region: u64) -> usize {
        usize::try_from(region / 64).expect("a region map fits memory")
    }

    fn set(&mut self, region: u64) {
        if self.wanted.insert(region) {
            self.changed.insert(Self::word_of(region));
        }
    }

    fn clear(&mut self, region: u64) {
        if self.wanted.remove(region) {
            self.changed.insert(Self::word_of(region));
        }
    }

    fn union(&mut self, other: &RegionSet) {
        for (word, bits) in other.words().iter().enumerate() {
            if bits & !self.wanted.words()[word] != 0 {
                self.wanted.union_word(word, *bits);
                self.changed.insert(word);
            }
        }
    }

    fn is_sure(&self, region: u64) -> bool {
        self.wanted.contains(region) && self.sure.contains(region)
    }
}

/// Write-intent log and out-of-sync map of this host's replica.
#[derive(Debug, Clone)]
pub struct RegionLog {
    geometry: Geometry,
    intent: Map,
    out_of_sync: Map,
    intent_count: u64,
    committing: Vec<MapWord>,
    busy: bool,
    commit_wanted: bool,
}

impl RegionLog {
    /// As read from the metadata file, where an unreadable page counts as all set.
    #[must_use]
    pub fn new(geometry: Geometry, write_intent: &[u64], out_of_sync: &[u64]) -> Self {
        let intent = RegionSet::from_words(geometry.regions(), write_intent);
        let out_of_sync = RegionSet::from_words(geometry.regions(), out_of_sync);
        Self {
            geometry,
            intent_count: intent.count(),
            intent: Map::new(intent),
            out_of_sync: Map::new(out_of_sync),
            committing: Vec::new(),
            busy: false,
            commit_wanted: false,
        }
    }

    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[must_use]
    pub fn intent(&self) -> &RegionSet {
        &self.intent.wanted
    }

    #[must_use]
    pub fn out_of_sync(&self) -> &RegionSet {
        &self.out_of_sync.wanted
    }

    /// Whether no region is named by either map.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.intent.wanted.is_empty() && self.out_of_sync.wanted.is_empty()
    }

    /// Whether a crash at this moment leaves `extent`'s regions marked. If not, a commit is asked for.
    pub fn protects(&mut self, extent: Extent) -> bool {
        let sure = self
            .geometry
            .regions_of(extent)
            .all(|region| self.intent.is_sure(region) || self.out_of_sync.is_sure(region));
        self.commit_wanted |= !sure;
        sure
    }

    /// Notes that `extent` is to be written while both replicas are written.
    pub fn intend(&mut self, extent: Extent) {
        for region in self.geometry.regions_of(extent) {
            if !self.out_of_sync.wanted.contains(region) {
                self.set_intent(region);
            }
        }
    }

    /// Notes that a copy is about to make this region the same on both sides.
    pub fn set_intent(&mut self, region: u64) {
        if !self.intent.wanted.contains(region) {
            self.intent_count += 1;
            self.intent.set(region);
        }
    }

    /// Number of regions in the write-intent log.
    #[must_use]
    pub fn intent_count(&self) -> u64 {
        self.intent_count
    }

    /// Whether the write-intent bit of a region survives a crash at this moment.
    #[must_use]
    pub fn intent_is_sure(&self, region: u64) -> bool {
        self.intent.is_sure(region)
    }

    /// Notes that `extent` is to be written without the partner.
    pub fn mark_out_of_sync(&mut self, extent: Extent) {
        for region in self.geometry.regions_of(extent) {
            self.out_of_sync.set(region);
        }
    }

    /// Adds what another map names.
    pub fn merge_out_of_sync(&mut self, regions: &RegionSet) {
        self.out_of_sync.union(regions);
        self.commit_wanted = true;
    }

    /// The partner is gone: what was written lately may not have become durable there.
    pub fn intent_is_out_of_sync(&mut self) {
        let Self { intent, out_of_sync, .. } = self;
        out_of_sync.union(&intent.wanted);
        self.commit_wanted |= !out_of_sync.changed.is_empty();
    }

    /// Every region differs, as far as anyone knows.
    pub fn all_out_of_sync(&mut self) {
        let mut all = RegionSet::empty(self.geometry.regions());
        all.fill();
        self.merge_out_of_sync(&all);
    }

    /// Whether all of the out-of-sync map survives a crash at this moment. If not, a commit is asked for.
    pub fn out_of_sync_is_sure(&mut self) -> bool {
        let sure = self
            .out_of_sync
            .wanted
            .words()
            .iter()
            .zip(self.out_of_sync.sure.words())
            .all(|(wanted, sure)| wanted & !sure == 0);
        self.commit_wanted |= !sure;
        sure
    }

    /// The region is the same on both sides, durably, unless it is being written (which its write-intent bit says).
    pub fn clear_out_of_sync(&mut self, region: u64) {
        self.out_of_sync.clear(region);
    }

    /// The region is the same on both sides, durably, and not being written. Nothing happens while only this bit surely
    /// says what the out-of-sync map is about to say.
    pub fn clear_intent(&mut self, region: u64) {
        let moving = self.out_of_sync.wanted.contains(region) && !self.out_of_sync.is_sure(region);
        if !moving && self.intent.wanted.contains(region) {
            self.intent_count -= 1;
            self.intent.clear(region);
        }
    }

    /// Both sides are the same, durably, in every region.
    pub fn clear_all(&mut self) {
        for region in self.out_of_sync.wanted.iter().collect::<Vec<_>>() {
            self.out_of_sync.clear(region);
        }
        for region in self.intent.wanted.iter().collect::<Vec<_>>() {
            self.clear_intent(region);
        }
        self.commit_wanted = true;
    }

    /// Whether disk and wish agree.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.busy && self.intent.changed.is_empty() && self.out_of_sync.changed.is_empty()
    }

    /// Whether a commit is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Asks for a commit although nobody waits for one.
    pub fn want_commit(&mut self) {
        self.commit_wanted = true;
    }

    /// The next commit, if one is wanted, has something to say and none is under way.
    pub fn next_commit(&mut self) -> Option<Vec<MapWord>> {
        if self.busy || !self.commit_wanted {
            return None;
        }
        self.commit_wanted = false;
        for (map, name) in [(&mut self.intent, RegionMap::WriteIntent), (&mut self.out_of_sync, RegionMap::OutOfSync)] {
            for word in std::mem::take(&mut map.changed) {
                let bits = map.wanted.words()[word];
                self.committing.push(MapWord { map: name, word, bits });
                map.sure.set_word(word, map.sure.words()[word] & bits);
            }
        }
        self.busy = !self.committing.is_empty();
        self.busy.then(|| self.committing.clone())
    }

    /// The commit under way is durable.
    pub fn committed(&mut self) {
        self.busy = false;
        for MapWord { map, word, bits } in self.committing.drain(..) {
            match map {
                RegionMap::WriteIntent => self.intent.sure.set_word(word, bits),
                RegionMap::OutOfSync => self.out_of_sync.sure.set_word(word, bits),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Extent = Extent { offset: 0, length: 1 };

    fn log() -> RegionLog {
        RegionLog::new(Geometry::new(256 * 100, 256, 64), &[], &[])
    }

    #[test]
    fn a_region_is_protected_from_the_end_of_its_commit_to_the_beginning_of_the_one_that_clears_it() {
        let mut log = log();
        log.intend(FIRST);
        assert!(!log.protects(FIRST));
        let words = log.next_commit().expect("somebody waits");
        assert_eq!(words, [MapWord { map: RegionMap::WriteIntent, word: 0, bits: 1 }]);
        assert!(!log.protects(FIRST));
        assert_eq!(log.next_commit(), None, "one at a time");
        log.committed();
        assert!(log.protects(FIRST));
        log.clear_intent(0);
        assert!(!log.protects(FIRST), "the next commit clears it");
        log.intend(FIRST);
        assert!(log.protects(FIRST), "it was not cleared on disk yet");
        log.clear_intent(0);
        log.want_commit();
        assert!(log.next_commit().is_some());
        log.intend(FIRST);
        assert!(!log.protects(FIRST), "a commit under way may have cleared it");
    }

    #[test]
    fn a_bit_that_moves_between_the_maps_stays_in_the_first_until_it_is_sure_in_the_second() {
        let mut log = log();
        log.intend(FIRST);
        assert!(!log.protects(FIRST));
        log.next_commit();
        log.committed();
        log.intent_is_out_of_sync();
        log.clear_intent(0);
        assert!(log.intent().contains(0));
        log.next_commit();
        log.committed();
        log.clear_intent(0);
        assert!(!log.intent().contains(0));
        assert!(log.protects(FIRST));
    }
}
