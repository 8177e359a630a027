//! A NIC's pump between a socket like QEMU's and a TAP on a bridge; another TAP on the bridge is the network.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use ev_net::{OpenGate, announce};
use support::place::{GUEST, PEER, Place, accept, frame, number, receive, send, until};
use support::{PATIENCE, in_namespace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::timeout;

#[test]
fn frames_pass_both_ways_and_a_lost_connection_is_made_anew() {
    in_namespace(|| async {
        let place = Place::new().await;
        // The pump is there before QEMU.
        let pump = place.pump();
        let listener = UnixListener::bind(&place.socket).unwrap();
        for round in 0..3 {
            let mut qemu = accept(&listener).await;
            for (step, length) in [(1, 60), (2, 1514), (3, 100)] {
                send(&mut qemu, &frame(GUEST, round * 10 + step, length)).await;
                assert_eq!(place.seen(number).await, round * 10 + step);
            }
            until("the connection", || pump.is_connected()).await;
            place.send(&frame(PEER, 7, 60));
            place.send(&frame(PEER, 8, 1514));
            assert_eq!((receive(&mut qemu).await, receive(&mut qemu).await), (7, 8));
            // Half a frame, and away.
            qemu.write_all(&[0, 0, 0, 60, 1, 2]).await.unwrap();
            drop(qemu);
        }
        // A frame is seen a moment before it is counted.
        until("the count", || pump.counters().sent_frames >= 9).await;
        let counters = pump.counters();
        assert_eq!((counters.sent_frames, counters.sent_bytes), (9, 3 * (60 + 1514 + 100)));
        assert!(counters.connections >= 3 && counters.received_frames >= 6);
        assert_eq!(counters.dropped_gate_closed, 0);
    });
}

#[test]
fn nothing_leaves_through_a_closed_gate() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        send(&mut qemu, &frame(GUEST, 1, 60)).await;
        assert_eq!(place.seen(number).await, 1);
        place.gate.store(false, Ordering::SeqCst);
        for other in 2..12 {
            send(&mut qemu, &frame(GUEST, other, 60)).await;
        }
        until("the drops", || pump.counters().dropped_gate_closed == 10).await;
        announce(&place.tap, GUEST, &[], &|| false).await.unwrap();
        // What comes in still does.
        place.send(&frame(PEER, 20, 60));
        assert_eq!(receive(&mut qemu).await, 20);
        place.gate.store(true, Ordering::SeqCst);
        send(&mut qemu, &frame(GUEST, 12, 60)).await;
        let next = |frame: &[u8]| (frame[6..12] == GUEST.0).then(|| number(frame));
        assert_eq!(place.seen(next).await, Some(12), "neither an announcement nor an earlier frame");
        until("the count", || pump.counters().sent_frames >= 2).await;
        assert_eq!(pump.counters().sent_frames, 2);
    });
}

#[test]
fn a_qemu_out_of_step_is_connected_anew() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let _pump = place.pump();
        let mut qemu = accept(&listener).await;
        qemu.write_all(&[0xff; 64]).await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, qemu.read_to_end(&mut rest)).await.expect("it hangs up");
        assert!(closed.is_ok() || closed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
        let mut qemu = accept(&listener).await;
        send(&mut qemu, &frame(GUEST, 1, 60)).await;
        assert_eq!(place.seen(number).await, 1);
    });
}

#[test]
fn a_qemu_that_does_not_read_costs_frames_and_no_memory() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        until("the connection", || pump.is_connected()).await;
        for other in 0..5_000 {
            place.send(&frame(PEER, other, 1514));
        }
        // The other direction goes on.
        send(&mut qemu, &frame(GUEST, 1, 60)).await;
        assert_eq!(place.seen(number).await, 1);
        // The buffers (ours, the socket's) hold less than all; what comes is in order, from the first on.
        let buffered = pump.counters().received_frames;
        assert!(buffered < 5_000, "{buffered}");
        for number in 0..u32::try_from(buffered).unwrap() / 2 {
            assert_eq!(receive(&mut qemu).await, number);
        }
    });
}

#[test]
fn addresses_are_learned_and_announced() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        let mut arp = vec![0xff; 6];
        arp.extend(GUEST.0);
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend(GUEST.0);
        arp.extend([192, 0, 2, 7]);
        arp.resize(60, 0);
        send(&mut qemu, &arp).await;
        until("the address", || !pump.learned().is_empty()).await;
        let learned = pump.learned();
        assert_eq!(learned, BTreeSet::from(["192.0.2.7".parse::<IpAddr>().unwrap()]));

        let mut addresses: Vec<IpAddr> = learned.into_iter().collect();
        addresses.push("2001:db8::7".parse().unwrap());
        drop(pump);
        let announced = tokio::join!(announce(&place.tap, GUEST, &addresses, &OpenGate), async {
            // At least two rounds of each.
            for _ in 0..2 {
                for ethertype in [[0x80, 0x35], [0x08, 0x06], [0x86, 0xdd]] {
                    place.seen(|frame| (frame[6..12] == GUEST.0 && frame[12..14] == ethertype).then_some(())).await;
                }
            }
        });
        announced.0.unwrap();
        // The bridge knows the way to the guest now.
        assert!(
            String::from_utf8(
                std::process::Command::new("bridge").args(["fdb", "show", "dev", "tap0"]).output().unwrap().stdout
            )
            .unwrap()
            .contains(&GUEST.to_string())
        );
    });
}
