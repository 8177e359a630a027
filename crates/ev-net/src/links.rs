//! The host's network interfaces through rtnetlink: bridges, their uplinks, TAP devices on them.

use std::net::IpAddr;

use ev_core::ids::MacAddress;

use crate::tap::Tap;

/// Why an interface could not be set up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LinksError {
    #[error("could not open a netlink socket: {0}")]
    Socket(std::io::Error),
    #[error("there is no network interface {name}; `ip link` lists those that exist")]
    NoSuchLink { name: String },
    #[error("{name} exists and is no bridge; name another one, or remove it (ip link del {name})")]
    NotABridge { name: String },
    #[error("{name:?} is no name for a network interface: 1 to 15 bytes, no slash, colon or space")]
    BadName { name: String },
    #[error("{action} {name}: {source}")]
    Kernel { action: &'static str, name: String, source: std::io::Error },
}

/// A connection to the kernel's interfaces, in the network namespace of the thread that opened it. Needs a tokio
/// runtime.
#[derive(Debug, Clone)]
pub struct Links {}

impl Links {
    /// Opens it.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn open() -> Result<Self, LinksError> {
        unimplemented!()
    }

    /// Makes sure that a bridge of this name exists, is up and has this MTU (bytes). `true` if it was made now.
    ///
    /// # Errors
    /// Something else has the name; not root.
    pub async fn ensure_bridge(&self, name: &str, mtu: u32) -> Result<bool, LinksError> {
        let _ = (name, mtu);
        unimplemented!()
    }

    /// Puts the host's own interface `uplink` on the bridge and sets it up.
    ///
    /// # Errors
    /// One of them does not exist; not root.
    pub async fn attach_uplink(&self, bridge: &str, uplink: &str) -> Result<(), LinksError> {
        let _ = (bridge, uplink);
        unimplemented!()
    }

    /// Puts a guest's TAP on the bridge, with the bridge's MTU, and sets it up. The TAP's own hardware address is
    /// derived from the guest's so that the bridge never takes it for its own.
    ///
    /// # Errors
    /// No such bridge; not root.
    pub async fn plug(&self, tap: &Tap, bridge: &str, mac: MacAddress) -> Result<(), LinksError> {
        let _ = (tap, bridge, mac);
        unimplemented!()
    }

    /// Removes an interface; one that is gone already is no error.
    ///
    /// # Errors
    /// Not root.
    pub async fn remove(&self, name: &str) -> Result<(), LinksError> {
        let _ = name;
        unimplemented!()
    }

    /// The host's own addresses, without loopback and link-local ones, with the interface each is on.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn addresses(&self) -> Result<Vec<(String, IpAddr)>, LinksError> {
        unimplemented!()
    }
}
