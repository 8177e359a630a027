//! The addresses that the guest was seen to use, kept so that another host can announce them after a takeover.
//!
//! Format: JSON. Version 1: `{"version":1,"nics":[["192.0.2.7","fe80::1"],[]]}`, one list per NIC.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::durable;

const VERSION: u32 = 1;
/// Most addresses kept per NIC. More are dropped: announcing is a help to neighbours, not a promise.
pub const ADDRESSES_MAX: usize = 32;

/// Per NIC the addresses seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    version: u32,
    nics: Vec<BTreeSet<IpAddr>>,
}

impl Learned {
    /// What the file says; a missing or damaged one says nothing (the guest's own first frames teach it anew).
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let empty = Self { version: VERSION, nics: Vec::new() };
        let Ok(text) = std::fs::read(path) else { return empty };
        match serde_json::from_slice::<Self>(&text) {
            Ok(learned) if learned.version == VERSION => learned,
            Ok(_) | Err(_) => empty,
        }
    }

    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).expect("the addresses are plain data");
        durable::replace(path, &text)
    }

    #[must_use]
    pub fn of(&self, nic: usize) -> Vec<IpAddr> {
        self.nics.get(nic).map(|addresses| addresses.iter().copied().collect()).unwrap_or_default()
    }

    /// Replaces what is known of a NIC; tells whether that changed anything.
    pub fn set(&mut self, nic: usize, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        if nic >= ev_core::vm::NICS_MAX {
            return false;
        }
        if self.nics.len() <= nic {
            self.nics.resize_with(nic + 1, BTreeSet::new);
        }
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().take(ADDRESSES_MAX).collect();
        let changed = self.nics[nic] != addresses;
        self.nics[nic] = addresses;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_tells_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned.json");
        let mut learned = Learned::read(&path);
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        assert!(learned.set(1, [address]));
        assert!(!learned.set(1, [address]));
        learned.write(&path).unwrap();
        let again = Learned::read(&path);
        assert_eq!((again.of(0), again.of(1), again.of(7)), (vec![], vec![address], vec![]));
    }

    #[test]
    fn damage_counts_as_nothing_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned.json");
        std::fs::write(&path, b"{rubbish").unwrap();
        assert_eq!(Learned::read(&path).of(0), Vec::<IpAddr>::new());
    }

    #[test]
    fn numbers_beyond_the_limits_are_not_kept() {
        let mut learned = Learned::default();
        assert!(!learned.set(usize::MAX, ["192.0.2.7".parse().unwrap()]));
        let many = (0..1_000_u32).map(|n| IpAddr::V4(n.into()));
        learned.set(0, many);
        assert_eq!(learned.of(0).len(), ADDRESSES_MAX);
    }
}
