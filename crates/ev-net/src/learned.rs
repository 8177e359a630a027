//! Which IP addresses the guest uses, learned from what it claims by ARP and neighbour discovery. The source addresses
//! of its other packets are no claim: a guest that routes sends packets of others, and to announce those would take
//! them away from their owners.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ev_core::ids::MacAddress;

/// Most addresses that are kept for one NIC. More are not learned: neighbours find them by asking.
pub const LEARNED_MAX: usize = 64;

const ETHERNET_BYTES: usize = 14;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// ARP over Ethernet for IPv4: hardware type 1, protocol 0x0800, lengths 6 and 4 (RFC 826).
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// "This hardware address has this IP address."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub mac: MacAddress,
    pub address: IpAddr,
}

/// What a frame claims, if it does.
pub(crate) fn claim(frame: &[u8]) -> Option<Claim> {
    let ethertype = frame.get(12..14)?;
    let payload = frame.get(ETHERNET_BYTES..)?;
    if ethertype == ARP {
        arp_claim(payload)
    } else if ethertype == IPV6 {
        let source = MacAddress(frame.get(6..12)?.try_into().ok()?);
        Some(Claim { mac: source, address: neighbour_claim(payload)?.into() })
    } else {
        None
    }
}

fn arp_claim(packet: &[u8]) -> Option<Claim> {
    if packet.get(..6)? != ARP_ETHERNET_IPV4 {
        return None;
    }
    let mac = MacAddress(packet.get(8..14)?.try_into().ok()?);
    let octets: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    let address = Ipv4Addr::from(octets);
    // A probe (RFC 5227) asks from 0.0.0.0, and claims nothing yet.
    let usable =
        !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !address.is_broadcast();
    usable.then_some(Claim { mac, address: address.into() })
}

/// A solicitation claims its source, an advertisement its target (RFC 4861).
fn neighbour_claim(packet: &[u8]) -> Option<Ipv6Addr> {
    const HEADER_BYTES: usize = 40;
    if *packet.get(6)? != ICMPV6 {
        return None;
    }
    let address = |at: usize| {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets))
    };
    let address = match *packet.get(HEADER_BYTES)? {
        NEIGHBOUR_SOLICITATION => address(8)?,
        NEIGHBOUR_ADVERTISEMENT => address(HEADER_BYTES + 8)?,
        _ => return None,
    };
    (!address.is_unspecified() && !address.is_multicast() && !address.is_loopback()).then_some(address)
}

/// The addresses of one guest NIC.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    addresses: BTreeSet<IpAddr>,
}

impl Learned {
    /// Takes note of a frame that the guest sent. Whether anything changed.
    pub(crate) fn note_sent(&mut self, mac: MacAddress, frame: &[u8]) -> bool {
        let Some(claim) = claim(frame).filter(|claim| claim.mac == mac) else { return false };
        self.addresses.len() < LEARNED_MAX && self.addresses.insert(claim.address)
    }

    /// Takes note of a frame from the network: an address that somebody else has claimed is no longer the guest's.
    pub(crate) fn note_received(&mut self, mac: MacAddress, frame: &[u8]) -> bool {
        let Some(claim) = claim(frame).filter(|claim| claim.mac != mac) else { return false };
        self.addresses.remove(&claim.address)
    }

    pub(crate) fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::{gratuitous_arp, rarp, unsolicited_advertisement};

    const GUEST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

    #[test]
    fn arp_and_neighbour_discovery_are_claims() {
        let v4 = Ipv4Addr::new(192, 0, 2, 7);
        let v6: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let mut learned = Learned::default();
        assert!(learned.note_sent(GUEST, &gratuitous_arp(GUEST, v4)));
        assert!(!learned.note_sent(GUEST, &gratuitous_arp(GUEST, v4)));
        assert!(learned.note_sent(GUEST, &unsolicited_advertisement(GUEST, v6)));
        assert!(!learned.note_sent(GUEST, &gratuitous_arp(OTHER, Ipv4Addr::new(192, 0, 2, 8))));
        assert!(!learned.note_sent(GUEST, &rarp(GUEST)));
        assert_eq!(learned.addresses(), &BTreeSet::from([v4.into(), v6.into()]));
        // Somebody else takes one of them over.
        assert!(!learned.note_received(GUEST, &gratuitous_arp(GUEST, v4)));
        assert!(learned.note_received(GUEST, &gratuitous_arp(OTHER, v4)));
        assert_eq!(learned.addresses(), &BTreeSet::from([v6.into()]));
    }

    #[test]
    fn probes_and_broken_frames_are_none() {
        assert_eq!(claim(&gratuitous_arp(GUEST, Ipv4Addr::UNSPECIFIED)), None);
        let whole = unsolicited_advertisement(GUEST, "2001:db8::7".parse().unwrap());
        let header_and_target = 14 + 40 + 8 + 16;
        for length in 0..header_and_target {
            assert_eq!(claim(&whole[..length]), None, "{length}");
        }
        let arp = gratuitous_arp(GUEST, Ipv4Addr::new(192, 0, 2, 7));
        for length in 0..14 + 18 {
            assert_eq!(claim(&arp[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_flood_of_claims_is_bounded() {
        let mut learned = Learned::default();
        for last in 0..=255 {
            learned.note_sent(GUEST, &gratuitous_arp(GUEST, Ipv4Addr::new(192, 0, 2, last)));
        }
        assert_eq!(learned.addresses().len(), LEARNED_MAX);
    }
}
