//! Tells neighbours where a guest's NIC is now: RARP (switches learn the port), gratuitous ARP and unsolicited
//! neighbour advertisements (hosts learn the hardware address).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ev_core::ids::MacAddress;

use crate::gate::FrameGate;
use crate::tap::Tap;

/// Pauses before each round: the first ones soon, as switches and bridges may just be coming up, and frames get lost.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// Shortest Ethernet frame without its check sum, in bytes.
const FRAME_BYTES_MIN: usize = 60;
const BROADCAST: [u8; 6] = [0xff; 6];

/// Sends the announcements of `mac` and `addresses` out of the guest's TAP towards the bridge, several times over
/// two seconds, as long as the gate is open: they are frames like the guest's own. Returns when the last one is out,
/// or at once when the gate is found closed.
///
/// # Errors
/// The TAP can't be written to.
pub async fn announce(tap: &Tap, mac: MacAddress, addresses: &[IpAddr], gate: &dyn FrameGate) -> io::Result<()> {
    let mut frames = vec![rarp(mac)];
    frames.extend(addresses.iter().map(|address| match address {
        IpAddr::V4(address) => gratuitous_arp(mac, *address),
        IpAddr::V6(address) => unsolicited_advertisement(mac, *address),
    }));
    for pause in PAUSES {
        tokio::time::sleep(pause).await;
        for frame in &frames {
            if !gate.is_open() {
                return Ok(());
            }
            match tap.write(frame) {
                // The next round comes.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn ethernet(destination: [u8; 6], source: MacAddress, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(destination);
    frame.extend(source.0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.len() < FRAME_BYTES_MIN {
        frame.resize(FRAME_BYTES_MIN, 0);
    }
    frame
}

fn arp(ethertype: u16, operation: u16, mac: MacAddress, sender: Ipv4Addr, target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ethertype);
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac.0);
    frame.extend(sender.octets());
    frame.extend(target.0);
    frame.extend(target.1.octets());
    padded(frame)
}

/// A reverse ARP request (RFC 903), as QEMU sends after a migration: no address is needed for it.
pub(crate) fn rarp(mac: MacAddress) -> Vec<u8> {
    const REQUEST_REVERSE: u16 = 3;
    arp(0x8035, REQUEST_REVERSE, mac, Ipv4Addr::UNSPECIFIED, (mac.0, Ipv4Addr::UNSPECIFIED))
}

/// An ARP announcement (RFC 5227, 3): a request for the own address.
pub(crate) fn gratuitous_arp(mac: MacAddress, address: Ipv4Addr) -> Vec<u8> {
    const REQUEST: u16 = 1;
    arp(0x0806, REQUEST, mac, address, ([0; 6], address))
}

/// An unsolicited neighbour advertisement (RFC 4861, 7.2.6) to all nodes, with the override flag.
pub(crate) fn unsolicited_advertisement(mac: MacAddress, address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ICMPV6: u8 = 58;
    const HOP_LIMIT: u8 = 255;
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]); // Option: target's link-layer address, in units of 8 bytes.
    message.extend(mac.0);
    let sum = checksum(address, ALL_NODES, ICMPV6, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(message.len()).expect("32 bytes").to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    padded(frame)
}

/// The Internet check sum over the pseudo-header and the message (RFC 8200, 8.1), whose check sum field is zero.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).expect("a short message");
    let mut bytes = Vec::new();
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, next_header]);
    bytes.extend(message);
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);

    #[test]
    fn a_gratuitous_arp_is_as_the_rfc_says() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(192, 0, 2, 7));
        let wanted = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0xaa, 0xbb, 0xcc, 0x08, 0x06, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 1, // request
            0x52, 0x54, 0, 0xaa, 0xbb, 0xcc, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7,
        ];
        assert_eq!(frame[..wanted.len()], wanted);
        assert_eq!(frame.len(), FRAME_BYTES_MIN);
    }

    #[test]
    fn the_advertisements_check_sum_is_right() {
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // A message with its right check sum in it sums to zero.
        let destination = "ff02::1".parse().unwrap();
        assert_eq!(checksum(address, destination, 58, &frame[54..]), 0);
    }
}
