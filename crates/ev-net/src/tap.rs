//! TAP devices: the host's end of a guest's NIC. One of the files that may hold unsafe code: the kernel makes a TAP by
//! an ioctl that no library offers.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use crate::name::is_name;

/// Why a TAP could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TapError {
    #[error("could not open /dev/net/tun: {0}; load the tun module and run as root")]
    NoTun(io::Error),
    #[error(
        "could not create the TAP device {name}: {source}; if something else has that name, remove it (ip link del {name})"
    )]
    Create { name: String, source: io::Error },
    #[error("{name:?} is no name for a network interface: 1 to 15 bytes, no slash, colon, percent sign or space")]
    BadName { name: String },
}

/// A TAP device that lives for as long as this and its clones do.
#[derive(Debug, Clone)]
pub struct Tap {
    name: String,
    fd: Arc<OwnedFd>,
}

impl Tap {
    /// Creates the device in this thread's network namespace. It is down and on no bridge yet: see
    /// [`crate::Links::plug`].
    ///
    /// # Errors
    /// Not root, no tun module, the name is in use.
    pub fn create(name: &str) -> Result<Self, TapError> {
        if !is_name(name) {
            return Err(TapError::BadName { name: name.to_owned() });
        }
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let tun = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun");
        let fd = OwnedFd::from(tun.map_err(TapError::NoTun)?);
        // One frame per read and write, without a header in front. Fails if the name is in use.
        make_tap(&fd, name).map_err(|source| TapError::Create { name: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), fd: Arc::new(fd) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends a frame from the guest's side of the device to the host's.
    ///
    /// # Errors
    /// The device is down, or its queue is full.
    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(self.fd(), frame)?;
        Ok(())
    }
}

fn make_tap(fd: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let low = flags.to_ne_bytes();
    let ifru_flags = if cfg!(target_endian = "little") { [low[0], low[1]] } else { [low[2], low[3]] };
    let request = libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: libc::c_short::from_ne_bytes(ifru_flags) },
    };
    // SAFETY: TUNSETIFF reads an `ifreq` from the pointer and writes the name back into it; `request` is one, it lives
    // across the call, and `fd` is open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
