//! Tells neighbours where a guest's NIC is now: RARP (switches learn the port), gratuitous ARP and unsolicited
//! neighbour advertisements (hosts learn the hardware address).

use std::net::IpAddr;

use ev_core::ids::MacAddress;

use crate::tap::Tap;

/// Sends the announcements of `mac` and `addresses` out of the guest's TAP towards the bridge, several times over
/// about two seconds. Returns when the last one is out.
///
/// # Errors
/// The TAP can't be written to.
pub async fn announce(tap: &Tap, mac: MacAddress, addresses: &[IpAddr]) -> std::io::Result<()> {
    let _ = (tap, mac, addresses);
    unimplemented!()
}
