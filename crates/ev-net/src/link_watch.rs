//! Watches the host's interfaces: which are there, and which can carry frames.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::links::LinksError;

/// An interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It can carry frames.
    Up,
    /// It is switched on but has no carrier: cable, switch or other end.
    NoCarrier,
    /// It is switched off.
    Down,
}

/// A task that keeps the state of all interfaces; ends when dropped.
#[derive(Debug)]
pub struct LinkWatch {}

impl LinkWatch {
    /// Starts watching the network namespace of this thread.
    ///
    /// # Errors
    /// No netlink socket.
    pub async fn start() -> Result<Self, LinksError> {
        unimplemented!()
    }

    /// The state by name, and each change of it. An interface that is missing in it does not exist.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<BTreeMap<String, LinkState>> {
        unimplemented!()
    }
}
