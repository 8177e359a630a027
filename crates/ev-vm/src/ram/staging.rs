//! The pages of one epoch, copied out of the guest: filled by the passes, read by whoever ships them, used again for a
//! later epoch. Nothing is allocated while it is filled; the memory of the copies is taken from the system where first
//! used, and kept. That costs far more than copying, so a page that is copied again by the same thread replaces its
//! copy: many passes over much memory take no more of it than two.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::blocks::{GuestMemory, PageNumber, RamLayout};
use super::sys::{Buffer, PAGE_BYTES, PageBytes};

/// Copied pages whose memory is kept for the next epoch, for each part; the rest is given back.
const PAGES_KEPT_MAX: usize = (256 << 20) / PAGE_BYTES;
/// Runs of pages of at least this length are asked for holes in the file: pages that never were written.
const HOLE_RUN_PAGES_MIN: u32 = 16;
/// Parts of a staging: one for each thread that copies.
pub const PARTS_MAX: usize = 8;

/// Where the newest copy of a page is: part in the upper bits, place in the lower. Two values mean no place.
const PLACE_BITS: u32 = 28;
const NOT_COPIED: u32 = u32::MAX;
const ZERO: u32 = u32::MAX - 1;

/// What one thread copied: each page once, as it was when this thread last did.
pub(crate) struct Part {
    index: u32,
    copies: Buffer,
    /// Whose copy is in each place.
    pages: Vec<PageNumber>,
    /// And the place of each page, or [`NOT_COPIED`].
    own_places: Vec<u32>,
    /// Pages that hold nothing, as the file has a hole there.
    zeroes: Vec<PageNumber>,
}

/// A copied page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StagedPage<'a> {
    /// Its bytes.
    Bytes(&'a PageBytes),
    /// All zero: the file has a hole there.
    Zero,
}

/// The pages of one epoch.
pub struct Staging {
    parts: Vec<Part>,
    places: Vec<AtomicU32>,
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").field("copies", &self.copies()).finish_non_exhaustive()
    }
}

impl Staging {
    /// For guests of this layout, filled by up to `threads` threads.
    ///
    /// # Errors
    /// The kernel has no address space for it.
    pub fn new(layout: &RamLayout, threads: usize) -> io::Result<Self> {
        let pages = usize::try_from(layout.pages()).map_err(io::Error::other)?;
        if pages >= 1 << PLACE_BITS {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let part = |index: usize| -> io::Result<Part> {
            let index = u32::try_from(index).map_err(io::Error::other)?;
            let copies = Buffer::new(pages * PAGE_BYTES)?;
            let own_places = vec![NOT_COPIED; pages];
            Ok(Part { index, copies, pages: Vec::with_capacity(pages), own_places, zeroes: Vec::new() })
        };
        let parts = (0..threads.clamp(1, PARTS_MAX)).map(part).collect::<io::Result<_>>()?;
        let places = std::iter::repeat_with(|| AtomicU32::new(NOT_COPIED)).take(pages).collect();
        Ok(Self { parts, places })
    }

    /// For each thread a part of its own, and the shared table.
    pub(crate) fn split(&mut self) -> (&mut [Part], &[AtomicU32]) {
        (&mut self.parts, &self.places)
    }

    /// Copies in it, with those that another thread's replaced.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.parts.iter().map(|part| part.pages.len() + part.zeroes.len()).sum()
    }

    /// Each page that was copied, as the last pass found it. In no order; a page of zeroes may come more than once.
    pub fn pages(&self) -> impl Iterator<Item = (PageNumber, StagedPage<'_>)> {
        self.parts.iter().flat_map(|part| {
            let copied = part.pages.iter().enumerate().filter_map(|(place, page)| {
                let newest = self.place(*page)? == part.word(place)?;
                newest.then(|| part.copies.page(place)).flatten().map(|bytes| (*page, StagedPage::Bytes(bytes)))
            });
            let zeroes = part.zeroes.iter().filter(|page| self.place(**page) == Some(ZERO));
            copied.chain(zeroes.map(|page| (*page, StagedPage::Zero)))
        })
    }

    /// The copy of one page.
    #[must_use]
    pub fn page(&self, page: PageNumber) -> Option<StagedPage<'_>> {
        let word = self.place(page)?;
        if word == ZERO {
            return Some(StagedPage::Zero);
        }
        let part = self.parts.get(usize::try_from(word >> PLACE_BITS).ok()?)?;
        let place = usize::try_from(word & ((1 << PLACE_BITS) - 1)).ok()?;
        part.copies.page(place).map(StagedPage::Bytes)
    }

    fn place(&self, page: PageNumber) -> Option<u32> {
        let word = self.places.get(page.index())?.load(Ordering::Relaxed);
        (word != NOT_COPIED).then_some(word)
    }

    /// Forgets all copies; takes time by how many there are.
    pub fn clear(&mut self) {
        for part in &mut self.parts {
            for page in part.pages.iter().chain(&part.zeroes) {
                if let Some(place) = self.places.get(page.index()) {
                    place.store(NOT_COPIED, Ordering::Relaxed);
                }
                if let Some(place) = part.own_places.get_mut(page.index()) {
                    *place = NOT_COPIED;
                }
            }
            if part.pages.len() > PAGES_KEPT_MAX {
                part.copies.release_from(PAGES_KEPT_MAX);
            }
            part.pages.clear();
            part.zeroes.clear();
        }
    }
}

impl Part {
    fn word(&self, place: usize) -> Option<u32> {
        Some(self.index << PLACE_BITS | u32::try_from(place).ok()?)
    }

    /// Copies the pages from `first` on.
    pub(crate) fn copy(
        &mut self,
        memory: &GuestMemory,
        places: &[AtomicU32],
        first: PageNumber,
        count: u32,
    ) -> io::Result<()> {
        let end = PageNumber(first.0 + count);
        let mut from = first;
        if count >= HOLE_RUN_PAGES_MIN {
            while from < end {
                let data = memory.next_data(from, end)?.unwrap_or(end);
                self.note_zeroes(places, from, data);
                let until = PageNumber(end.0.min(data.0 + HOLE_RUN_PAGES_MIN));
                self.copy_data(memory, places, data, until)?;
                from = until;
            }
            return Ok(());
        }
        self.copy_data(memory, places, from, end)
    }

    fn note_zeroes(&mut self, places: &[AtomicU32], from: PageNumber, until: PageNumber) {
        for number in from.0..until.0 {
            let page = PageNumber(number);
            if let Some(place) = places.get(page.index()) {
                place.store(ZERO, Ordering::Relaxed);
                self.zeroes.push(page);
            }
        }
    }

    fn copy_data(
        &mut self,
        memory: &GuestMemory,
        places: &[AtomicU32],
        from: PageNumber,
        until: PageNumber,
    ) -> io::Result<()> {
        let mut from = from;
        while from < until {
            let (place, count) = self.room(from, until).ok_or(io::ErrorKind::InvalidInput)?;
            let room = self.copies.pages_mut(place, count).ok_or(io::ErrorKind::StorageFull)?;
            memory.read(from, room)?;
            for place in place..place + count {
                let word = self.word(place).ok_or(io::ErrorKind::StorageFull)?;
                places.get(from.index()).ok_or(io::ErrorKind::InvalidInput)?.store(word, Ordering::Relaxed);
                from.0 += 1;
            }
        }
        Ok(())
    }

    /// A place for the copy of `from`, and for how many after it, each in the place behind.
    fn room(&mut self, from: PageNumber, until: PageNumber) -> Option<(usize, usize)> {
        let own = self.own_places.get_mut(from.index()..until.index())?;
        let first = *own.first()?;
        if first == NOT_COPIED {
            let place = self.pages.len();
            let new = own.iter_mut().take_while(|own| **own == NOT_COPIED);
            for (own, page) in new.zip(from.0..) {
                *own = u32::try_from(self.pages.len()).ok()?;
                self.pages.push(PageNumber(page));
            }
            return Some((place, self.pages.len() - place));
        }
        let count = own.iter().zip(first..).take_while(|(own, place)| *own == place).count();
        Some((usize::try_from(first).ok()?, count))
    }
}
