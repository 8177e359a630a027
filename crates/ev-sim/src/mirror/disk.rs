//! A replica's storage that loses, tears and reorders whatever was not flushed.

use std::collections::BTreeSet;

use ev_core::mirror::message::MapWord;
use ev_core::mirror::{Extent, RegionMap, ReplicaInfo};

use crate::rng::Rng;

/// Bytes of a sector: what a device writes as one.
pub const SECTOR_BYTES: u32 = 512;

/// The sectors of an extent.
pub fn sectors(extent: Extent) -> std::ops::Range<usize> {
    let at = |bytes: u64| usize::try_from(bytes / u64::from(SECTOR_BYTES)).expect("a small disk");
    at(extent.offset)..at(extent.end())
}

/// One value stands for a sector's content; 0 is all zeroes.
pub type Sector = u64;

#[derive(Debug, Clone)]
struct Unflushed {
    sector: usize,
    value: Sector,
    /// Number of the write; a flush covers those that had ended when it began.
    number: u64,
}

/// Replica and metadata of one host.
#[derive(Debug, Clone)]
pub struct Disk {
    durable: Vec<Sector>,
    /// What reads see: with the writes that are only in the page cache.
    cache: Vec<Sector>,
    unflushed: Vec<Unflushed>,
    next_number: u64,
    /// Sectors that can't be read until they are written.
    pub bad: BTreeSet<usize>,
    /// Every write, flush and read fails.
    pub failed: bool,
    superblock: ReplicaInfo,
    maps: [Vec<u64>; 2],
    /// Words of a map that stand in one page together.
    page_words: usize,
    /// Bits that a word may have.
    masks: Vec<u64>,
    /// A page was torn and reads as all set.
    pub torn: bool,
}

fn index(map: RegionMap) -> usize {
    match map {
        RegionMap::WriteIntent => 0,
        RegionMap::OutOfSync => 1,
    }
}

impl Disk {
    pub fn new(sectors: usize, regions: u64, superblock: ReplicaInfo) -> Self {
        let words = usize::try_from(regions.div_ceil(64)).expect("a small disk");
        let masks = (0..words).map(|word| {
            let used = regions - 64 * u64::try_from(word).expect("a small disk");
            if used >= 64 { u64::MAX } else { (1 << used) - 1 }
        });
        Self {
            durable: vec![0; sectors],
            cache: vec![0; sectors],
            unflushed: Vec::new(),
            next_number: 0,
            bad: BTreeSet::new(),
            failed: false,
            superblock,
            maps: [vec![0; words], vec![0; words]],
            page_words: 1,
            masks: masks.collect(),
            torn: false,
        }
    }

    pub fn superblock(&self) -> ReplicaInfo {
        self.superblock
    }

    pub fn map(&self, map: RegionMap) -> &[u64] {
        &self.maps[index(map)]
    }

    /// What a reader sees.
    pub fn content(&self) -> &[Sector] {
        &self.cache
    }

    pub fn read(&self, extent: Extent) -> Option<Vec<Sector>> {
        let range = sectors(extent);
        let readable = !self.failed && self.bad.range(range.clone()).next().is_none();
        readable.then(|| self.cache[range].to_vec())
    }

    /// The number that a flush beginning now covers.
    pub fn flush_begins(&self) -> u64 {
        self.next_number
    }

    pub fn write(&mut self, extent: Extent, data: &[Sector], durable: bool) {
        self.next_number += 1;
        let number = self.next_number;
        for (sector, value) in sectors(extent).zip(data.iter().copied()) {
            self.bad.remove(&sector);
            self.cache[sector] = value;
            if durable {
                self.durable[sector] = value;
                self.unflushed.retain(|write| write.sector != sector);
            } else {
                self.unflushed.push(Unflushed { sector, value, number });
            }
        }
    }

    pub fn flush_ends(&mut self, covered: u64) {
        for write in &self.unflushed {
            if write.number <= covered {
                self.durable[write.sector] = write.value;
            }
        }
        self.unflushed.retain(|write| write.number > covered);
    }

    /// A write that had not ended when the power went, or the process was killed: any of its sectors may be there.
    pub fn write_cut_short(&mut self, extent: Extent, data: &[Sector], rng: &mut Rng) {
        for (sector, value) in sectors(extent).zip(data.iter().copied()) {
            if rng.per_mille(500) {
                self.cache[sector] = value;
                self.unflushed.push(Unflushed { sector, value, number: u64::MAX });
                self.bad.remove(&sector);
            }
        }
    }

    /// Writes of a killed process that ended are as good as any other.
    pub fn settle_numbers(&mut self) {
        self.next_number += 1;
        for write in &mut self.unflushed {
            write.number = write.number.min(self.next_number);
        }
    }

    /// Of what was not flushed, anything may be there: each sector has its old content or that of any later write.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        for write in std::mem::take(&mut self.unflushed) {
            if rng.per_mille(500) {
                self.durable[write.sector] = write.value;
            }
        }
        self.cache.clone_from(&self.durable);
    }

    pub fn superblock_stored(&mut self, info: ReplicaInfo) {
        self.superblock = info;
    }

    pub fn words_stored(&mut self, words: &[MapWord]) {
        for word in words {
            self.maps[index(word.map)][word.word] = word.bits;
        }
    }

    /// A commit that had not ended: each page is old, new, or torn (if the power went), which counts as all set.
    pub fn words_cut_short(&mut self, words: &[MapWord], tear: bool, rng: &mut Rng) {
        let pages: BTreeSet<(RegionMap, usize)> =
            words.iter().map(|word| (word.map, word.word / self.page_words)).collect();
        for (map, page) in pages {
            let in_page = |word: usize| word / self.page_words == page;
            match rng.within(0..if tear { 3 } else { 2 }) {
                0 => {}
                1 => {
                    let new = words.iter().filter(|word| word.map == map && in_page(word.word));
                    for word in new {
                        self.maps[index(map)][word.word] = word.bits;
                    }
                }
                _ => {
                    self.torn = true;
                    for word in (0..self.masks.len()).filter(|word| in_page(*word)) {
                        self.maps[index(map)][word] = self.masks[word];
                    }
                }
            }
        }
    }
}
