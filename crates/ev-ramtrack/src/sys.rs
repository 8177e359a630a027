//! The system calls, made safe to call: one of the files that may hold unsafe code. They go straight to the kernel,
//! past the C library's functions that this library takes the place of.

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::ptr;

/// A file, whatever it is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub device: u64,
    pub inode: u64,
}

/// Arguments of `mmap`, as QEMU gave them.
#[derive(Clone, Copy)]
pub(crate) struct MapCall {
    pub address: *mut c_void,
    pub length: usize,
    pub protection: c_int,
    pub flags: c_int,
    pub fd: c_int,
    pub offset: i64,
}

pub(crate) const PAGE_BYTES: usize = 4096;

// linux/userfaultfd.h.
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

pub(crate) fn errno() -> c_int {
    // SAFETY: the address is that of this thread's own variable.
    let address = unsafe { libc::__errno_location() };
    // SAFETY: valid for as long as the thread lives, and no other thread uses it.
    unsafe { *address }
}

/// Puts back what the caller of a hooked function is to see.
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: the address is that of this thread's own variable.
    let address = unsafe { libc::__errno_location() };
    // SAFETY: valid for as long as the thread lives, and no other thread uses it.
    unsafe { *address = value };
}

fn checked(result: c_long) -> Result<c_long, c_int> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

pub(crate) fn mmap(call: MapCall) -> *mut c_void {
    // SAFETY: the caller of the hooked `mmap` answers for the arguments, as it did to the C library's.
    let result = unsafe {
        libc::syscall(libc::SYS_mmap, call.address, call.length, call.protection, call.flags, call.fd, call.offset)
    };
    usize::try_from(result).map_or(libc::MAP_FAILED, ptr::with_exposed_provenance_mut)
}

pub(crate) fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int {
    // SAFETY: the caller of the hooked `madvise` answers for the arguments.
    let result = unsafe { libc::syscall(libc::SYS_madvise, address, length, advice) };
    if result < 0 { -1 } else { 0 }
}

pub(crate) fn write(fd: c_int, bytes: &[u8]) {
    // SAFETY: the pointer and length are those of a live slice. Whether it was written can't be told to anyone.
    let _ = unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) };
}

pub(crate) fn file_id(fd: c_int) -> Option<FileId> {
    let mut status = core::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is to room for one `stat`.
    if unsafe { libc::fstat(fd, status.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: fstat succeeded, so it has filled the room.
    let status = unsafe { status.assume_init() };
    Some(FileId { device: status.st_dev, inode: status.st_ino })
}

/// The target of `/proc/self/fd/FD`.
pub(crate) fn file_name(fd: c_int, room: &mut [u8]) -> Option<&str> {
    use core::fmt::Write;
    let mut path = Path { bytes: [0; 32], length: 0 };
    write!(path, "/proc/self/fd/{fd}").ok()?;
    // SAFETY: the path ends with a zero byte, as `Path` keeps one; the room is as long as said.
    let length =
        unsafe { libc::readlink(path.bytes.as_ptr().cast::<c_char>(), room.as_mut_ptr().cast::<c_char>(), room.len()) };
    let name = room.get(..usize::try_from(length).ok()?)?;
    core::str::from_utf8(name).ok()
}

struct Path {
    bytes: [u8; 32],
    length: usize,
}

impl core::fmt::Write for Path {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let end = self.length + text.len();
        // The last byte stays zero.
        if end >= self.bytes.len() {
            return Err(core::fmt::Error);
        }
        self.bytes.get_mut(self.length..end).ok_or(core::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// The environment variable, for good: nothing in QEMU changes it.
pub(crate) fn variable(name: &CStr) -> Option<&'static str> {
    // SAFETY: the name ends with a zero byte; called while the process has one thread (from `.init_array`).
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: getenv's answer ends with a zero byte and lies in the environment block, which is never freed.
    let value = unsafe { CStr::from_ptr(value) };
    value.to_str().ok()
}

/// A userfaultfd of this process, by the device.
pub(crate) fn userfaultfd_by_device(device: c_int) -> Result<c_int, c_int> {
    // SAFETY: this ioctl takes flags, no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_ioctl, device, USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    checked(fd).map(|fd| c_int::try_from(fd).unwrap_or(-1))
}

/// A userfaultfd of this process, by the system call: needs privileges or `vm.unprivileged_userfaultfd=1`.
pub(crate) fn userfaultfd_by_call() -> Result<c_int, c_int> {
    // SAFETY: this call takes flags, no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    checked(fd).map(|fd| c_int::try_from(fd).unwrap_or(-1))
}

/// Asks for all that is needed: Linux 6.7 has it.
pub(crate) fn enable(uffd: c_int) -> Result<(), c_int> {
    let features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    let mut argument = UffdioApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the pointer is to a live structure of the layout that the kernel documents for this ioctl.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, uffd, UFFDIO_API, &raw mut argument) };
    checked(result).map(drop)
}

/// From now on the kernel notes writes to the range.
pub(crate) fn register(uffd: c_int, start: usize, length: usize) -> Result<(), c_int> {
    let (Ok(start), Ok(length)) = (u64::try_from(start), u64::try_from(length)) else { return Err(libc::EINVAL) };
    let mut argument = UffdioRegister { start, length, mode: UFFDIO_REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: the pointer is to a live structure of the layout that the kernel documents for this ioctl.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, uffd, UFFDIO_REGISTER, &raw mut argument) };
    checked(result).map(drop)
}
