//! TAP devices: the host's end of a guest's NIC.

/// Why a TAP could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TapError {
    #[error("could not open /dev/net/tun: {0}; load the tun module and run as root")]
    NoTun(std::io::Error),
    #[error("could not create the TAP device {name}: {source}; is the name in use?")]
    Create { name: String, source: std::io::Error },
    #[error("{name:?} is no name for a network interface: 1 to 15 bytes, no slash, colon or space")]
    BadName { name: String },
}

/// A TAP device that lives for as long as this (and its clones) do.
#[derive(Debug, Clone)]
pub struct Tap {}

impl Tap {
    /// Creates the device in this thread's network namespace. It is down and on no bridge yet: see
    /// [`crate::Links::plug`].
    ///
    /// # Errors
    /// Not root, no tun module, the name is in use.
    pub fn create(name: &str) -> Result<Self, TapError> {
        let _ = name;
        unimplemented!()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        unimplemented!()
    }
}
