//! One type for each identity and each number that must not be mistaken for another.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

uuid_id! {
    /// Identity of a pool, drawn once by `ev pool-create`.
    PoolId
}
uuid_id! {
    /// Identity of a VM for its whole life, whatever its name and level.
    VmId
}
uuid_id! {
    /// Identity of a disk; all replicas of a mirror set carry the same one.
    DiskId
}
uuid_id! {
    /// Identity of a pool network.
    NetworkId
}

/// Number of a member (host or quorum server) in the pool's consensus group. Never given twice in one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A member that is a host. Quorum servers never appear where this alias is used.
pub type HostId = MemberId;

/// Rises with each change of a VM's authority record. 0 is never committed: it means "none yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// Before the first record.
    pub const NONE: Self = Self(0);

    /// The generation that the next change of the record will carry.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Ethernet address of a virtual NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

/// A text that is not six colon-separated hexadecimal bytes, such as `52:54:00:12:34:56`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six hexadecimal bytes with colons between them, such as 52:54:00:12:34:56")]
pub struct BadMacAddress;

impl std::str::FromStr for MacAddress {
    type Err = BadMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(BadMacAddress)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| BadMacAddress)?;
        }
        if parts.next().is_some() {
            return Err(BadMacAddress);
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = BadMacAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_address_round_trips_and_refuses_other_texts() {
        let mac: MacAddress = "52:54:00:aB:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:00:01");
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "5:254:00:12:34:56", "zz:54:00:12:34:56"] {
            assert_eq!(bad.parse::<MacAddress>(), Err(BadMacAddress), "{bad}");
        }
    }
}
