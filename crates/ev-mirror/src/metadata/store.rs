//! Both maps in memory as they are to be on disk, and the pages that a commit has to write.

use std::collections::BTreeSet;

use ev_core::ids::DiskId;
use ev_core::mirror::{MapWord, RegionMap};

use super::file::LoadedMaps;
use super::{Layout, MapPage, Page};

/// A page that is to be written at an offset of the metadata file. Boxed, so that it keeps its place while the kernel reads it.
#[derive(Debug)]
pub struct PageWrite {
    pub offset: u64,
    pub page: Box<Page>,
}

/// Both maps.
#[derive(Debug)]
pub struct MapStore {
    disk: DiskId,
    layout: Layout,
    write_intent: Vec<u64>,
    out_of_sync: Vec<u64>,
    /// Written with each page; rises with each commit.
    counter: u64,
}

impl MapStore {
    /// Maps as they were found.
    #[must_use]
    pub fn new(disk: DiskId, layout: Layout, maps: LoadedMaps) -> Self {
        Self { disk, layout, write_intent: maps.write_intent, out_of_sync: maps.out_of_sync, counter: 0 }
    }

    /// Takes over the words of a commit and returns each page that they change, once. The commit is durable when all of
    /// them are written and the file is flushed.
    pub fn commit(&mut self, words: &[MapWord]) -> Vec<PageWrite> {
        self.counter += 1;
        let mut pages = BTreeSet::new();
        for &MapWord { map, word, bits } in words {
            let (number, maps_words) = match map {
                RegionMap::WriteIntent => (0, &mut self.write_intent),
                RegionMap::OutOfSync => (1, &mut self.out_of_sync),
            };
            maps_words[word] = bits;
            pages.insert((number, self.layout.page_of_word(word)));
        }
        pages.into_iter().map(|(number, index)| self.page(number, index)).collect()
    }

    fn page(&self, number: u8, index: u64) -> PageWrite {
        let (map, words) = match number {
            0 => (RegionMap::WriteIntent, &self.write_intent),
            _ => (RegionMap::OutOfSync, &self.out_of_sync),
        };
        let mut page = Box::new(Page::ZERO);
        let here = MapPage { disk: self.disk, map, index };
        here.encode(self.counter, &words[self.layout.words_of_page(index)], &mut page);
        PageWrite { offset: self.layout.map_page_offset(map, index), page }
    }
}
