//! The metadata file beside a replica: superblock in two slots, write-intent log, out-of-sync map.
//!
//! | page (4 KiB each) | content |
//! |---|---|
//! | 0, 1 | superblock, the same content in both ([`superblock`]) |
//! | 2 .. 2+n | write-intent log, one bit a region ([`map`]) |
//! | 2+n .. 2+2n | out-of-sync map, one bit a region |
//!
//! `n` is the number of pages that hold one bit for each region of the disk.
//!
//! **Superblock.** An update writes slot 0, flushes, writes slot 1, flushes, and counts only then. So at each moment one
//! slot is whole and at least as new as the last update that counted, and a slot that rots does not bring back an older state:
//! the other one says the same.
//!
//! **Maps.** A page that fails its check counts as "all regions set": a copy too much is slow, one too little is wrong.
//!
//! Encoding and decoding are pure; [`MetadataFile`] does the file's life outside of the disk's thread: creation, opening
//! with all checks, and the rare superblock updates.

mod file;
pub mod map;
mod store;
pub mod superblock;
#[cfg(test)]
mod tests;

pub use ev_core::mirror::{Health, RegionMap};
pub(crate) use file::sync_folder;
pub use file::{CreateError, LoadedMaps, MetadataFile, OpenError, Slots, UpdateError};
pub use map::{MapPage, MapPageError};
pub use store::{MapStore, PageWrite};
pub use superblock::{KeptState, MetadataVersion, Superblock, SuperblockError, UndoMethod};
pub(crate) use superblock::{health_from_number, health_number};

/// Size of a page: what devices write as one, and the alignment of direct I/O.
pub const PAGE_BYTES: usize = 4096;
/// Region size of new replicas.
pub const REGION_BYTES_DEFAULT: u32 = 1 << 20;
/// Most regions that a disk can have (128 TiB in regions of 1 MiB, 16 MiB of map).
pub const REGIONS_MAX: u64 = 1 << 27;
/// Number of superblock slots.
const SLOTS: u64 = 2;

/// One page, aligned as direct I/O needs it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; PAGE_BYTES]);

impl Page {
    /// All zero.
    pub const ZERO: Self = Self([0; PAGE_BYTES]);

    /// The checksum stands in the last four bytes and covers all others, in every version.
    fn seal(&mut self) {
        let checksum = crc32c::crc32c(&self.0[..PAGE_BYTES - 4]);
        self.0[PAGE_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    }

    fn is_sealed(&self) -> bool {
        let checksum = crc32c::crc32c(&self.0[..PAGE_BYTES - 4]);
        self.0[PAGE_BYTES - 4..] == checksum.to_le_bytes()
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({:02x?}…)", &self.0[..16])
    }
}

/// Where things are in a metadata file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    regions: u64,
    pages_per_map: u64,
}

impl Layout {
    /// For a disk of `size_bytes` in regions of `region_bytes`; `None` if there would be no region or more than [`REGIONS_MAX`].
    #[must_use]
    pub fn new(size_bytes: u64, region_bytes: u32) -> Option<Self> {
        let regions = size_bytes.checked_add(u64::from(region_bytes.checked_sub(1)?))? / u64::from(region_bytes);
        if !region_bytes.is_power_of_two() || regions == 0 || regions > REGIONS_MAX {
            return None;
        }
        Some(Self { regions, pages_per_map: regions.div_ceil(map::REGIONS_PER_PAGE) })
    }

    /// Number of regions of the disk.
    #[must_use]
    pub fn regions(self) -> u64 {
        self.regions
    }

    /// Number of 64-bit words that hold one bit for each region.
    #[must_use]
    pub fn words(self) -> usize {
        usize::try_from(self.regions.div_ceil(64)).expect("bounded by REGIONS_MAX")
    }

    /// Number of pages of each map.
    #[must_use]
    pub fn pages_per_map(self) -> u64 {
        self.pages_per_map
    }

    /// Length of the file.
    #[must_use]
    pub fn file_bytes(self) -> u64 {
        (SLOTS + 2 * self.pages_per_map) * page_bytes()
    }

    /// Where superblock slot 0 or 1 is.
    #[must_use]
    pub fn slot_offset(self, slot: u64) -> u64 {
        assert!(slot < SLOTS, "there are two slots");
        slot * page_bytes()
    }

    /// Where page `index` of `map` is.
    #[must_use]
    pub fn map_page_offset(self, map: RegionMap, index: u64) -> u64 {
        assert!(index < self.pages_per_map, "page {index} of a map with {}", self.pages_per_map);
        let first = match map {
            RegionMap::WriteIntent => SLOTS,
            RegionMap::OutOfSync => SLOTS + self.pages_per_map,
        };
        (first + index) * page_bytes()
    }

    /// The page that holds the bit of `region`.
    #[must_use]
    pub fn page_of_region(self, region: u64) -> u64 {
        region / map::REGIONS_PER_PAGE
    }

    /// The page that holds word `word` of a map.
    #[must_use]
    pub fn page_of_word(self, word: usize) -> u64 {
        u64::try_from(word / map::WORDS_PER_PAGE).expect("bounded by REGIONS_MAX")
    }

    /// Which words of a map stand in page `index`.
    #[must_use]
    pub fn words_of_page(self, index: u64) -> std::ops::Range<usize> {
        let first = usize::try_from(index).expect("bounded by REGIONS_MAX") * map::WORDS_PER_PAGE;
        first..(first + map::WORDS_PER_PAGE).min(self.words())
    }

    /// Clears the bits after the last region, which a page that counts as all set would leave.
    pub fn trim(self, words: &mut [u64]) {
        let used = self.regions % 64;
        if used != 0
            && let Some(last) = words.get_mut(self.words() - 1)
        {
            *last &= (1 << used) - 1;
        }
    }
}

fn page_bytes() -> u64 {
    u64::try_from(PAGE_BYTES).expect("a page's size fits 64 bits")
}
