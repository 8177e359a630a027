//! Which pages a guest has written, as the kernel notes it, and the passes that copy them.
//!
//! A pass has the kernel note writes anew first, then copies: what is written during the copy is found by the next
//! pass. So the copies of a pass are of use only together with those of a last pass while the guest stands still.
//!
//! Not seen is what is written past QEMU's page tables:
//! - by another process that has the file mapped (a vhost-user backend);
//! - by a device into memory that was pinned before: disk images opened with `cache.direct` and read by io_uring or
//!   native AIO straight into guest memory;
//! - memory that is given back (a hole made in the file by virtio-balloon, free page reporting, virtio-mem): the kernel
//!   keeps the mark "not written" for a page that is zero from then on. Tried on Linux 6.18.
//!
//! The command line of `ev-vm` has none of them: disks come over sockets, whose data QEMU's threads copy, and no device
//! gives memory back. Whoever adds one must make it an obstacle to Level 3.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::blocks::{Addresses, GuestMemory, PageNumber, TrackError};
use super::faults::FaultCounter;
use super::staging::{Part, Staging};
use super::sys::{Find, PAGE_BYTES_U64, WrittenRange, scan};

/// The piece of memory that a thread looks through at a time.
const STRIPE_PAGES: u32 = (16 << 20) / 4096;
/// Pages that are copied without asking other threads for help: in the pause that takes no longer than QEMU needs to save its devices,
/// which it could not do meanwhile on a host with two processors that both copy.
const PAGES_ALONE_MAX: u32 = 2_048;
/// Ranges that one call of the kernel answers at most; there may be more calls.
const RANGES_MAX: usize = 512;

/// Why a pass failed. Which pages were written is then not known any more.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PassError {
    #[error(
        "could not ask which pages of the guest were written: {source}; its memory must be copied as a whole again"
    )]
    Scan { source: io::Error },
    #[error("could not copy the guest's memory: {source}; it must be copied as a whole again")]
    Copy { source: io::Error },
}

/// What a pass found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassReport {
    /// Pages that were written, as far as the kernel can tell (it may name some that were not).
    pub pages: u32,
    /// Time of looking and copying.
    pub time: Duration,
}

/// Page faults that QEMU had had at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultCount(u64);

/// Whether there were writes since an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Surely none to pages that a pass had looked at.
    None,
    /// There may be some: QEMU had page faults, of whatever kind.
    Possible,
}

/// How far a pass in parts is: from both ends of the memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartlyDone {
    from_start: usize,
    from_end: usize,
}

/// Written pages that were found and not copied. The kernel notes writes anew there, so these are lost unless
/// [`RamTracker::copy_found`] comes next.
#[derive(Debug, Default)]
#[must_use]
pub struct Found {
    runs: Vec<(PageNumber, u32)>,
    pages: u32,
}

/// Looks which pages were written.
#[derive(Debug)]
pub struct RamTracker {
    pagemap: File,
    faults: FaultCounter,
    memory: Arc<GuestMemory>,
    stripes: Vec<Addresses>,
}

impl RamTracker {
    /// Tracks the memory of the QEMU that is process `pid`.
    ///
    /// # Errors
    /// It can't be tracked; the reason is the candidacy's.
    pub fn open(pid: u32) -> Result<Self, TrackError> {
        let memory = Arc::new(GuestMemory::of_process(pid)?);
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|source| TrackError::Process { source })?;
        let faults = FaultCounter::of_process(pid).map_err(|source| TrackError::Process { source })?;
        let stripes = memory.addresses().iter().flat_map(stripes).collect();
        let tracker = Self { pagemap, faults, memory, stripes };
        // Said by the kernel itself: does it note writes there?
        tracker.arm().map_err(|error| match error {
            PassError::Scan { source } | PassError::Copy { source } => {
                TrackError::Unsupported { step: "PAGEMAP_SCAN".to_owned(), source }
            }
        })?;
        Ok(tracker)
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Notes writes anew and forgets those up to now: before the whole memory is copied.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn arm(&self) -> Result<(), PassError> {
        let mut found = vec![WrittenRange::default(); RANGES_MAX];
        self.stripes.iter().try_for_each(|stripe| self.written(*stripe, &mut found, |_, _| Ok(())))
    }

    /// Copies all pages that were written since the last pass.
    ///
    /// # Errors
    /// The kernel refuses. Some pages may be lost: see [`PassError`].
    pub fn copy_written(&self, staging: &mut Staging) -> Result<PassReport, PassError> {
        self.copy_written_until(staging, &mut PartlyDone::default(), None)
    }

    /// Goes on with a pass in parts: copies written pages from where `at` is on, until `deadline`; one stripe in any case.
    ///
    /// # Errors
    /// As of [`Self::copy_written`].
    pub fn copy_written_until(
        &self,
        staging: &mut Staging,
        at: &mut PartlyDone,
        deadline: Option<Instant>,
    ) -> Result<PassReport, PassError> {
        let start = Instant::now();
        let left = Mutex::new(at.from_start..self.stripes.len().saturating_sub(at.from_end));
        let (parts, places) = staging.split();
        let Some((own, helpers)) = parts.split_first_mut() else { return Ok(PassReport::default()) };
        let copy = |part: &mut Part, index: usize| -> Result<u32, PassError> {
            let mut found = [WrittenRange::default(); RANGES_MAX];
            let mut pages = 0;
            let Some(stripe) = self.stripes.get(index) else { return Ok(0) };
            self.written(*stripe, &mut found, |first, count| {
                pages += count;
                part.copy(&self.memory, places, first, count).map_err(|source| PassError::Copy { source })
            })?;
            Ok(pages)
        };
        let in_time = || deadline.is_none_or(|deadline| Instant::now() < deadline);
        // Not more than one stripe at a time, so that a thread that comes later finds work. Helpers begin at the end: so each thread
        // mostly has the same pages as in the last pass.
        let first = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let last = || left.lock().unwrap_or_else(PoisonError::into_inner).next_back();
        let pages = std::thread::scope(|scope| {
            let (copy, last, in_time) = (&copy, &last, &in_time);
            let mut idle = helpers.iter_mut();
            let mut running = Vec::new();
            let mut pages = 0;
            while let Some(index) = first() {
                pages += copy(own, index)?;
                // Looking is not faster with more threads, copying is; to begin one takes as long as to copy some pages.
                if pages > PAGES_ALONE_MAX {
                    running.extend(idle.by_ref().map(|part| {
                        let mut indices = std::iter::from_fn(move || if in_time() { last() } else { None });
                        scope.spawn(move || indices.try_fold(0, |pages, index| Ok(pages + copy(part, index)?)))
                    }));
                }
                if !in_time() {
                    break;
                }
            }
            for helper in running {
                // A panic in a helper is one in this pass.
                pages += helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(pages)
        })?;
        let left = left.into_inner().unwrap_or_else(PoisonError::into_inner);
        *at = PartlyDone { from_start: left.start, from_end: self.stripes.len().saturating_sub(left.end) };
        Ok(PassReport { pages, time: start.elapsed() })
    }

    /// Begins a pass: looks for written pages for about `time`, or until there are many, and does not copy them. To look takes less time
    /// while none of QEMU's threads runs: the kernel interrupts those that do for every 2 MiB in which it notes writes anew.
    ///
    /// # Errors
    /// As of [`Self::copy_written`].
    pub fn find_written(&self, at: &mut PartlyDone, time: Duration) -> Result<Found, PassError> {
        let start = Instant::now();
        let mut ranges = [WrittenRange::default(); RANGES_MAX];
        let mut found = Found::default();
        while found.pages <= PAGES_ALONE_MAX && start.elapsed() < time && !self.is_over(*at) {
            let Some(stripe) = self.stripes.get(at.from_start) else { break };
            self.written(*stripe, &mut ranges, |first, count| {
                found.runs.push((first, count));
                found.pages += count;
                Ok(())
            })?;
            at.from_start += 1;
        }
        Ok(found)
    }

    /// Copies what was found; how many pages that are.
    ///
    /// # Errors
    /// The memory can't be read: see [`PassError`].
    pub fn copy_found(&self, found: &Found, staging: &mut Staging) -> Result<u32, PassError> {
        let copy_error = |source| PassError::Copy { source };
        let (parts, places) = staging.split();
        let part = parts.first_mut().ok_or_else(|| copy_error(io::ErrorKind::InvalidInput.into()))?;
        let mut copies = found.runs.iter().map(|(first, count)| part.copy(&self.memory, places, *first, *count));
        copies.try_for_each(|copied| copied.map_err(copy_error))?;
        Ok(found.pages)
    }

    /// Whether a pass in parts has looked at all of the memory.
    #[must_use]
    pub fn is_over(&self, at: PartlyDone) -> bool {
        at.from_start + at.from_end >= self.stripes.len()
    }

    /// An instant, for [`Self::writes_since`].
    ///
    /// # Errors
    /// The process is gone.
    pub fn now(&self) -> io::Result<FaultCount> {
        self.faults.count().map(FaultCount)
    }

    /// Whether a pass that began after `instant` found all that has been written up to now by QEMU itself. It takes far less time than
    /// another pass. What is written to a page before that pass looks at it is found by the pass; what is written after
    /// it has looked is a page fault in QEMU, which the kernel counts.
    ///
    /// # Errors
    /// The process is gone.
    pub fn writes_since(&self, instant: FaultCount) -> io::Result<Writes> {
        Ok(if self.now()? == instant { Writes::None } else { Writes::Possible })
    }

    /// The same where the guest's processors ran since `instant`, or a part of the time. On a host with swap it is never sure.
    ///
    /// # Errors
    /// The process is gone.
    pub fn processors_writes_since(&self, instant: FaultCount) -> io::Result<Writes> {
        if self.faults.may_swap()? { Ok(Writes::Possible) } else { self.writes_since(instant) }
    }

    /// Calls `each` with the runs of written pages in a stripe, after the kernel has begun to note writes anew there.
    fn written(
        &self,
        stripe: Addresses,
        found: &mut [WrittenRange],
        mut each: impl FnMut(PageNumber, u32) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        let scan_error = |source| PassError::Scan { source };
        let odd = || scan_error(io::ErrorKind::InvalidData.into());
        let end = stripe.start + u64::from(stripe.pages) * PAGE_BYTES_U64;
        let (count, _) = scan(&self.pagemap, Find::First, stripe.start, end, found).map_err(scan_error)?;
        let Some(first) = found.get(..count).and_then(<[_]>::first) else { return Ok(()) };
        let mut from = first.start;
        while from < end {
            let (count, reached) = scan(&self.pagemap, Find::AllAndRearm, from, end, found).map_err(scan_error)?;
            for range in found.get(..count).ok_or_else(odd)? {
                let within = range.start.checked_sub(stripe.start).ok_or_else(odd)? / PAGE_BYTES_U64;
                let pages = range.end.checked_sub(range.start).ok_or_else(odd)? / PAGE_BYTES_U64;
                let first = u32::try_from(within).ok().and_then(|within| stripe.first.0.checked_add(within));
                each(PageNumber(first.ok_or_else(odd)?), u32::try_from(pages).map_err(|_| odd())?)?;
            }
            if reached <= from {
                return Err(odd());
            }
            from = reached;
        }
        Ok(())
    }
}

fn stripes(addresses: &Addresses) -> impl Iterator<Item = Addresses> + use<> {
    let whole = *addresses;
    let count = whole.pages.div_ceil(STRIPE_PAGES);
    (0..count).map(move |index| {
        let skipped = index * STRIPE_PAGES;
        Addresses {
            start: whole.start + u64::from(skipped) * PAGE_BYTES_U64,
            pages: STRIPE_PAGES.min(whole.pages - skipped),
            first: PageNumber(whole.first.0 + skipped),
        }
    })
}
