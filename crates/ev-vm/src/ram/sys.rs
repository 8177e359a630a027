//! Memory mappings and the `PAGEMAP_SCAN` call, made safe to use: one of the files that may hold unsafe code, since
//! neither can be had otherwise.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Memory is tracked, copied and compared in pages of this size.
pub const PAGE_BYTES: usize = 4096;
/// The same, for positions.
pub const PAGE_BYTES_U64: u64 = 4096;

/// A page's bytes.
pub type PageBytes = [u8; PAGE_BYTES];

/// One memory mapping, unmapped when dropped.
#[derive(Debug)]
struct Mapped {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapped {}
// SAFETY: as above; what may be done through a shared reference is guarded by the types that hold this one.
unsafe impl Sync for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this address and length, and nobody can have a reference into it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.length) } {
            tracing::error!(%error, "could not unmap memory");
        }
    }
}

impl Mapped {
    fn position(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        if end > self.length {
            return None;
        }
        // SAFETY: the offset is within the mapping.
        Some(unsafe { self.address.add(offset) })
    }

    fn of_file(file: &impl AsFd, length: usize, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }?;
        let mapped = Self::owned(address, length)?;
        mapped.advise(Advice::LinuxNoHugepage);
        Ok(mapped)
    }

    fn owned(address: *mut core::ffi::c_void, length: usize) -> io::Result<Self> {
        let address = NonNull::new(address.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, length })
    }

    /// Hints only: a kernel without huge pages refuses some.
    fn advise(&self, advice: Advice) {
        // SAFETY: the range is our own mapping, and these hints don't change what is read from it.
        let _ = unsafe { rustix::mm::madvise(self.address.as_ptr().cast(), self.length, advice) };
    }
}

/// A file of guest memory, mapped shared. The guest may write while it is read: what is read then is of no use, and is
/// read again in a later pass, as the page counts as written.
#[derive(Debug)]
pub struct GuestMapping(Mapped);

impl GuestMapping {
    /// Maps the first `length` bytes of a file that can't shrink (see [`seal`]): with one that can, reading would end
    /// this process.
    pub(crate) fn new(file: &impl AsFd, length: usize) -> io::Result<Self> {
        Mapped::of_file(file, length, ProtFlags::READ.union(ProtFlags::WRITE)).map(Self)
    }

    /// Copies out; `None`: not within the file.
    #[must_use]
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        let from = self.0.position(offset, into.len())?;
        // SAFETY: both ranges are valid for their whole length, and don't overlap, as nothing else of ours lies in the
        // mapping. The guest may write meanwhile; any bytes are valid for `u8`, and no reference to them is made.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        Some(())
    }

    /// Copies in; `None`: not within the file.
    #[must_use]
    pub fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        let to = self.0.position(offset, from.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        Some(())
    }
}

/// Memory of our own that is only taken from the system where it is written.
#[derive(Debug)]
pub(crate) struct Buffer(Mapped);

impl Buffer {
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, flags) }?;
        let mapped = Mapped::owned(address, length)?;
        mapped.advise(Advice::LinuxHugepage);
        Ok(Self(mapped))
    }

    pub(crate) fn page(&self, slot: usize) -> Option<&PageBytes> {
        let position = self.0.position(slot.checked_mul(PAGE_BYTES)?, PAGE_BYTES)?;
        // SAFETY: within the mapping, which is private to this value, of bytes, and borrowed as this value is.
        Some(unsafe { position.cast::<PageBytes>().as_ref() })
    }

    /// `count` pages from `slot` on.
    pub(crate) fn pages_mut(&mut self, slot: usize, count: usize) -> Option<&mut [u8]> {
        let length = count.checked_mul(PAGE_BYTES)?;
        let position = self.0.position(slot.checked_mul(PAGE_BYTES)?, length)?;
        // SAFETY: within the mapping, which is private to this value, of bytes, and borrowed as this value is: mutably.
        Some(unsafe { std::slice::from_raw_parts_mut(position.as_ptr(), length) })
    }

    /// Gives the memory from `slot` on back to the system.
    pub(crate) fn release_from(&mut self, slot: usize) {
        let Some(offset) = slot.checked_mul(PAGE_BYTES).filter(|offset| *offset < self.0.length) else { return };
        let Some(position) = self.0.position(offset, 0) else { return };
        let length = self.0.length - offset;
        // SAFETY: within our own private mapping, borrowed mutably; what is read there afterwards is zero.
        if let Err(error) = unsafe { rustix::mm::madvise(position.as_ptr().cast(), length, Advice::LinuxDontNeed) } {
            tracing::warn!(%error, "could not give memory back");
        }
    }
}

/// A new memory file.
pub(crate) fn memory_file(name: &str) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(rustix::fs::memfd_create(name, flags)?)
}

/// Has the file keep its length for good.
pub(crate) fn seal(file: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}

pub(crate) fn is_sealed(file: &impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// Addresses in another process; `start` and `end` are multiples of the page size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct WrittenRange {
    pub start: u64,
    pub end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vector: u64,
    vector_length: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;

/// What to do with the written pages that are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Find {
    /// Find the first one only. For a guest under KVM this is far cheaper, as the kernel then does not take the range
    /// out of the guest's second page tables.
    First,
    /// Find them all, and have the kernel note their next write.
    AllAndRearm,
}

/// Finds the written pages of `start..end`. Returns how many places of `found` were filled and up to which address it
/// came: to `end`, unless `found` was full.
///
/// The mask of exactly `PAGE_IS_WRITTEN` takes the kernel's path in which a page that is not mapped counts as written,
/// where its page table exists: so a page that was written and then swapped out is not missed.
pub(crate) fn scan(
    pagemap: &File,
    find: Find,
    start: u64,
    end: u64,
    found: &mut [WrittenRange],
) -> io::Result<(usize, u64)> {
    let (flags, max_pages) = match find {
        Find::First => (PM_SCAN_CHECK_WPASYNC, 1),
        Find::AllAndRearm => (PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, 0),
    };
    let size = u64::try_from(size_of::<ScanArgument>()).map_err(io::Error::other)?;
    let vector_length = u64::try_from(found.len()).map_err(io::Error::other)?;
    let vector = u64::try_from(found.as_mut_ptr().expose_provenance()).map_err(io::Error::other)?;
    let mut argument = ScanArgument {
        size,
        flags,
        start,
        end,
        walk_end: start,
        vector,
        vector_length,
        max_pages,
        category_inverted: 0,
        category_mask: PAGE_IS_WRITTEN,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_WRITTEN,
    };
    // SAFETY: the argument is a live structure of the layout that the kernel documents; it names a live slice of
    // structures of the documented layout, borrowed mutably, by its address and length.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    match usize::try_from(count) {
        Ok(count) => Ok((count, argument.walk_end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
