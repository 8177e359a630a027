//! The functions that QEMU calls instead of the C library's, and what runs when the library is loaded. One of the
//! files that may hold unsafe code: exported names can't be had otherwise.

use core::ffi::{c_int, c_void};
use std::sync::OnceLock;

use crate::config::{Config, Others};
use crate::report::{self, Mapping, Step};
use crate::sys::{self, MapCall, PAGE_BYTES};
use crate::tracked;

/// A file's name in a report line is cut beyond this.
const NAME_BYTES_MAX: usize = 128;

struct Tracking {
    config: Config,
    uffd: c_int,
}

/// Empty: not asked to track, or not able to.
static TRACKING: OnceLock<Tracking> = OnceLock::new();

// SAFETY: the loader calls the functions in `.init_array` once, before `main`; `load` has the type that it expects
// (its arguments may be left out in the C calling convention).
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = load;

extern "C" fn load() {
    let Some(text) = sys::variable(c"EVENKEEL_RAMTRACK") else { return };
    let Some(config) = Config::parse(text) else {
        // Where to report to is not known; standard error is QEMU's log.
        report::failed(libc::STDERR_FILENO, Step::Variable, libc::EINVAL);
        return;
    };
    let made = match config.uffd_device {
        Some(device) => sys::userfaultfd_by_device(device).map_err(|errno| (Step::UserfaultfdDevice, errno)),
        None => sys::userfaultfd_by_call().map_err(|errno| (Step::UserfaultfdCall, errno)),
    };
    let enabled = made.and_then(|uffd| match sys::enable(uffd) {
        Ok(()) => Ok(uffd),
        Err(errno) => Err((Step::Features, errno)),
    });
    match enabled {
        Ok(uffd) => {
            report::loaded(config.report);
            // Loaded once, so it was empty.
            let _ = TRACKING.set(Tracking { config, uffd });
        }
        Err((step, errno)) => report::failed(config.report, step, errno),
    }
}

/// Called with each mapping that the kernel has made.
fn look_at(tracking: &Tracking, call: MapCall, start: usize) {
    let shared = call.flags & libc::MAP_TYPE != libc::MAP_PRIVATE && call.flags & libc::MAP_ANONYMOUS == 0;
    if call.fd < 0 || !shared || call.protection & libc::PROT_WRITE == 0 {
        return;
    }
    let Some(file) = sys::file_id(call.fd) else { return };
    let mut room = [0; NAME_BYTES_MAX];
    let name = sys::file_name(call.fd, &mut room).unwrap_or("?");
    let wanted = match tracking.config.others {
        Others::Track => tracking.config.names(file) || name.starts_with("/memfd:"),
        Others::Leave => tracking.config.names(file),
    };
    if !wanted {
        return;
    }
    let length = call.length.next_multiple_of(PAGE_BYTES);
    let result = sys::register(tracking.uffd, start, length);
    if result.is_ok() {
        tracked::add(start, length);
        // A hint only: where it fails, there are no huge pages.
        sys::madvise(core::ptr::with_exposed_provenance_mut(start), length, libc::MADV_NOHUGEPAGE);
    }
    report::mapped(tracking.config.report, Mapping { file, start, length, offset: call.offset, name }, result);
}

fn map(call: MapCall) -> *mut c_void {
    let address = sys::mmap(call);
    if address != libc::MAP_FAILED
        && let Some(tracking) = TRACKING.get()
    {
        let errno = sys::errno();
        look_at(tracking, call, address.expose_provenance());
        sys::set_errno(errno);
    }
    address
}

/// Takes the place of mmap(2).
// SAFETY: same name, arguments and behaviour as the C library's.
#[unsafe(no_mangle)]
extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    map(MapCall { address, length, protection, flags, fd, offset })
}

/// The name under which programs with 64-bit file offsets call it.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn mmap64(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    map(MapCall { address, length, protection, flags, fd, offset })
}

/// Takes the place of madvise(2): as long as guest memory is tracked, it has no huge pages. A huge page is reported as
/// written as a whole; and one that was written and then unmapped by the kernel would not be reported at all.
// SAFETY: same name, arguments and behaviour as the C library's, but for leaving a hint out.
#[unsafe(no_mangle)]
extern "C" fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int {
    if advice == libc::MADV_HUGEPAGE && tracked::overlaps(address.expose_provenance(), length) {
        return 0;
    }
    sys::madvise(address, length, advice)
}
