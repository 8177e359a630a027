//! Regions: the grain in which a mirror remembers what was written.

use super::extent::Extent;

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size_bytes: u64,
    region_bytes: u32,
    /// Blocks that a copy compares by hash; a region is a whole number of them.
    block_bytes: u32,
}

impl Geometry {
    /// # Panics
    /// If a size is zero or a region is not a whole number of blocks: the metadata file was checked for that.
    #[must_use]
    pub fn new(size_bytes: u64, region_bytes: u32, block_bytes: u32) -> Self {
        assert!(size_bytes > 0 && block_bytes > 0, "a disk and its blocks have a size");
        assert!(region_bytes > 0 && region_bytes.is_multiple_of(block_bytes), "a region is a whole number of blocks");
        Self { size_bytes, region_bytes, block_bytes }
    }

    #[must_use]
    pub fn size_bytes(self) -> u64 {
        self.size_bytes
    }

    #[must_use]
    pub fn region_bytes(self) -> u32 {
        self.region_bytes
    }

    #[must_use]
    pub fn block_bytes(self) -> u32 {
        self.block_bytes
    }

    /// Number of regions; the last one may be shorter.
    #[must_use]
    pub fn regions(self) -> u64 {
        self.size_bytes.div_ceil(u64::from(self.region_bytes))
    }

    /// The regions that an extent touches.
    #[must_use]
    pub fn regions_of(self, extent: Extent) -> std::ops::Range<u64> {
        let region = u64::from(self.region_bytes);
        extent.offset / region..extent.end().min(self.size_bytes).div_ceil(region)
    }

    /// The part of the disk that is region `region`.
    #[must_use]
    pub fn extent_of(self, region: u64) -> Extent {
        let offset = region * u64::from(self.region_bytes);
        let length = self.size_bytes.saturating_sub(offset).min(u64::from(self.region_bytes));
        Extent { offset, length: u32::try_from(length).expect("at most a region") }
    }
}

/// A set of regions, one bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionSet {
    words: Vec<u64>,
    regions: u64,
}

impl RegionSet {
    /// The empty set over `regions` regions.
    #[must_use]
    pub fn empty(regions: u64) -> Self {
        let words = usize::try_from(regions.div_ceil(64)).expect("a region map fits memory");
        Self { words: vec![0; words], regions }
    }

    /// From the map's words; missing ones are empty, bits after the last region are dropped.
    #[must_use]
    pub fn from_words(regions: u64, words: &[u64]) -> Self {
        let mut set = Self::empty(regions);
        for (index, word) in words.iter().enumerate().take(set.words.len()) {
            set.union_word(index, *word);
        }
        set
    }

    fn place(region: u64) -> (usize, u64) {
        (usize::try_from(region / 64).expect("a region map fits memory"), 1 << (region % 64))
    }

    /// All bits that a word may have.
    fn mask(&self, word: usize) -> u64 {
        let used = self.regions % 64;
        if word + 1 == self.words.len() && used != 0 { (1 << used) - 1 } else { u64::MAX }
    }

    #[must_use]
    pub fn regions(&self) -> u64 {
        self.regions
    }

    /// The words: bit `n` of word `w` stands for region `64 * w + n`.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    #[must_use]
    pub fn contains(&self, region: u64) -> bool {
        let (word, bit) = Self::place(region);
        self.words[word] & bit != 0
    }

    /// Whether it was not there before.
    pub fn insert(&mut self, region: u64) -> bool {
        assert!(region < self.regions, "region {region} of {}", self.regions);
        let (word, bit) = Self::place(region);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Whether it was there before.
    pub fn remove(&mut self, region: u64) -> bool {
        let (word, bit) = Self::place(region);
        let old = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        old
    }

    /// Adds the regions of one word; bits after the last region are dropped.
    pub fn union_word(&mut self, word: usize, bits: u64) {
        let mask = self.mask(word);
        self.words[word] |= bits & mask;
    }

    pub(super) fn set_word(&mut self, word: usize, bits: u64) {
        self.words[word] = bits;
    }

    pub fn union(&mut self, other: &Self) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
    }

    /// Every region.
    pub fn fill(&mut self) {
        for word in 0..self.words.len() {
            self.words[word] = self.mask(word);
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Number of regions in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first region of the set from `from` on.
    #[must_use]
    pub fn next_from(&self, from: u64) -> Option<u64> {
        let (first, bit) = Self::place(from);
        let mut mask = !(bit - 1);
        for (word, bits) in self.words.iter().enumerate().skip(first) {
            let left = bits & mask;
            if left != 0 {
                return Some(u64::try_from(word).ok()? * 64 + u64::from(left.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }

    /// The set's regions, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let region = self.next_from(from).filter(|region| *region < self.regions)?;
            from = region + 1;
            Some(region)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_walk_in_order_over_word_borders_and_drop_what_is_beyond_the_disk() {
        let mut set = RegionSet::empty(130);
        for region in [129, 0, 63, 64] {
            assert!(set.insert(region));
        }
        assert!(!set.insert(64));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
        assert_eq!(set.next_from(65), Some(129));
        assert!(set.remove(129));
        assert_eq!(set.next_from(65), None);
        set.fill();
        assert_eq!(set.count(), 130);
        assert_eq!(RegionSet::from_words(65, &[0, u64::MAX]).count(), 1);
    }

    #[test]
    fn regions_of_an_extent_are_those_that_it_touches() {
        let geometry = Geometry::new(1000, 256, 64);
        assert_eq!(geometry.regions(), 4);
        assert_eq!(geometry.regions_of(Extent { offset: 255, length: 2 }), 0..2);
        assert_eq!(geometry.regions_of(Extent { offset: 256, length: 256 }), 1..2);
        assert_eq!(geometry.extent_of(3), Extent { offset: 768, length: 232 });
    }
}
