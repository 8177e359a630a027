//! One page of a region map.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `EVKM` |
//! | 4..6 | version, 1 |
//! | 6..8 | which map: 1 write-intent log, 2 out-of-sync map |
//! | 8..12 | number of the page within the map |
//! | 12..20 | counter of the writer, rising; for people who look for what happened |
//! | 20..28 | first eight bytes of the disk's identity |
//! | 28..4092 | 508 words of 64 bits, little-endian: bit `b` of word `w` is region `64 * (508 * page + w) + b` |
//! | 4092..4096 | CRC-32C of all before |

use ev_core::ids::DiskId;
use ev_core::mirror::RegionMap;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{PAGE_BYTES, Page};

/// Words of a map in one page.
pub const WORDS_PER_PAGE: usize = 508;
/// Regions of a map in one page.
pub const REGIONS_PER_PAGE: u64 = 64 * 508;

const MAGIC: [u8; 4] = *b"EVKM";
const VERSION: u16 = 1;

fn map_number(map: RegionMap) -> u16 {
    match map {
        RegionMap::WriteIntent => 1,
        RegionMap::OutOfSync => 2,
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MapRecord {
    magic: [u8; 4],
    version: U16,
    map: U16,
    index: U32,
    counter: U64,
    disk: [u8; 8],
    words: [U64; WORDS_PER_PAGE],
    checksum: U32,
}

const _: () = assert!(size_of::<MapRecord>() == PAGE_BYTES);

/// Why a page says nothing. The reader takes all of its regions as set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapPageError {
    #[error("the page fails its checksum")]
    Checksum,
    #[error("the page belongs elsewhere")]
    Misplaced,
    #[error("the page has format version {0}, this program knows {VERSION}")]
    Version(u16),
}

/// Which page it is: what identifies it on the disk besides its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapPage {
    pub disk: DiskId,
    pub map: RegionMap,
    pub index: u64,
}

impl MapPage {
    fn disk_tag(self) -> [u8; 8] {
        let (tag, _) = self.disk.0.as_bytes().split_first_chunk().expect("an identity has 16 bytes");
        *tag
    }

    /// Writes the page with `words`, the map's words from this page on; missing ones are 0, those beyond the page are ignored.
    pub fn encode(self, counter: u64, words: &[u64], page: &mut Page) {
        let record = MapRecord::mut_from_bytes(&mut page.0).expect("the record fills a page");
        record.magic = MAGIC;
        record.version = VERSION.into();
        record.map = map_number(self.map).into();
        record.index = u32::try_from(self.index).expect("bounded by REGIONS_MAX").into();
        record.counter = counter.into();
        record.disk = self.disk_tag();
        for (slot, word) in record.words.iter_mut().zip(words.iter().copied().chain(std::iter::repeat(0))) {
            *slot = word.into();
        }
        page.seal();
    }

    /// Reads the page's words into `words`, as many as there are, and returns the writer's counter.
    pub fn decode(self, page: &Page, words: &mut [u64]) -> Result<u64, MapPageError> {
        if !page.is_sealed() {
            return Err(MapPageError::Checksum);
        }
        let record = MapRecord::ref_from_bytes(&page.0).expect("the record fills a page");
        if record.magic != MAGIC {
            return Err(MapPageError::Misplaced);
        }
        if record.version.get() != VERSION {
            return Err(MapPageError::Version(record.version.get()));
        }
        let here = record.map.get() == map_number(self.map) && u64::from(record.index.get()) == self.index;
        if !here || record.disk != self.disk_tag() {
            return Err(MapPageError::Misplaced);
        }
        for (word, slot) in words.iter_mut().zip(&record.words) {
            *word = slot.get();
        }
        Ok(record.counter.get())
    }
}
