//! Bridges, uplinks, TAPs and the watch over them, in a network namespace.

mod support;

use ev_core::ids::MacAddress;
use ev_net::{LinkState, LinkWatch, Links, LinksError, Tap, TapError};
use support::{PATIENCE, in_namespace, ip};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);

#[test]
fn a_bridge_is_made_once_and_carries_uplink_and_tap() {
    in_namespace(|| async {
        let links = Links::open().unwrap();
        assert!(links.ensure_bridge("br-test", 1400).await.unwrap());
        assert!(!links.ensure_bridge("br-test", 1400).await.unwrap());
        ip("link add up0 type veth peer name up1");
        links.attach_uplink("br-test", "up0").await.unwrap();
        links.attach_uplink("br-test", "up0").await.unwrap();
        assert!(ip("link show up0").contains("master br-test"));

        let tap = Tap::create("tap-test").unwrap();
        links.plug(&tap, "br-test", MAC).await.unwrap();
        let shown = ip("link show tap-test");
        for part in ["master br-test", "mtu 1400", "fe:54:00:00:00:01", "UP"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!ip("address show tap-test").contains("inet6"));
        // The device goes with its last clone, and its name is free again.
        let clone = tap.clone();
        drop(tap);
        assert!(matches!(Tap::create("tap-test"), Err(TapError::Create { .. })));
        drop(clone);
        Tap::create("tap-test").unwrap();

        links.remove("br-test").await.unwrap();
        links.remove("br-test").await.unwrap();
        assert!(!ip("link").contains("br-test"));
    });
}

#[test]
fn what_is_in_the_way_is_named() {
    in_namespace(|| async {
        let links = Links::open().unwrap();
        assert!(matches!(links.ensure_bridge("lo", 1500).await, Err(LinksError::NotABridge { .. })));
        assert!(
            matches!(links.attach_uplink("no-bridge", "lo").await, Err(LinksError::NoSuchLink { name }) if name == "no-bridge")
        );
        assert!(matches!(links.ensure_bridge("a name that is too long", 1500).await, Err(LinksError::BadName { .. })));
        assert!(matches!(Tap::create("tap%d"), Err(TapError::BadName { .. })));
        let tap = Tap::create("tap-test").unwrap();
        assert!(matches!(links.plug(&tap, "no-bridge", MAC).await, Err(LinksError::NoSuchLink { .. })));
    });
}

#[test]
fn the_hosts_own_addresses_are_listed() {
    in_namespace(|| async {
        ip("link set lo up");
        ip("link add up0 type veth peer name up1");
        ip("link set up0 up");
        ip("address add 192.0.2.1/24 dev up0");
        ip("address add 2001:db8::1/64 dev up0 nodad");
        let mut found = Links::open().unwrap().addresses().await.unwrap();
        found.sort();
        let wanted = ["192.0.2.1", "2001:db8::1"].map(|address| ("up0".to_owned(), address.parse().unwrap()));
        assert_eq!(found, wanted);
    });
}

#[test]
fn the_watch_sees_links_come_lose_their_carrier_and_go() {
    in_namespace(|| async {
        ip("link add up0 type veth peer name up1");
        let watch = LinkWatch::start().await.unwrap();
        let mut states = watch.states();
        let mut wait = async |name: &'static str, wanted: Option<LinkState>| {
            let reached = states.wait_for(|states| states.get(name).copied() == wanted);
            let result = tokio::time::timeout(PATIENCE, reached).await.map(drop);
            assert!(result.is_ok(), "{name} did not get to be {wanted:?}");
        };
        wait("up0", Some(LinkState::Down)).await;
        ip("link set up0 up");
        wait("up0", Some(LinkState::NoCarrier)).await;
        ip("link set up1 up");
        wait("up0", Some(LinkState::Up)).await;
        // A port that leaves its bridge is still there.
        ip("link add br0 type bridge");
        ip("link set up0 master br0");
        ip("link set up0 nomaster");
        ip("link set up1 down");
        wait("up0", Some(LinkState::NoCarrier)).await;
        ip("link del up0");
        wait("up0", None).await;
    });
}
