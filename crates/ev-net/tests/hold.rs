//! Frames that wait for their epoch, through a real pump and TAP.

mod support;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use ev_core::checkpoint::Epoch;
use ev_net::NicPump;
use ev_net::pump::HELD_BYTES_MAX;
use support::in_namespace;
use support::place::{GUEST, PEER, Place, accept, frame, number, receive, send, until};
use tokio::net::{UnixListener, UnixStream};

async fn send_numbers(qemu: &mut UnixStream, numbers: std::ops::Range<u32>) {
    for number in numbers {
        send(qemu, &frame(GUEST, number, 60)).await;
    }
}

#[test]
fn frames_leave_in_order_with_their_epoch_lease_or_not() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        place.hold.on_waiting(move |epoch| tell.lock().unwrap().push(epoch.0));

        send_numbers(&mut qemu, 0..1).await;
        assert_eq!(place.seen(number).await, 0, "nothing is held before it was asked for");
        place.hold.hold_from(Epoch(2));
        place.gate.store(false, Ordering::SeqCst);
        for epoch in 2..5 {
            send_numbers(&mut qemu, epoch * 10..epoch * 10 + 5).await;
            until("the frames", || pump.counters().held_frames == u64::from(epoch - 1) * 5).await;
            place.hold.advance_to(Epoch(u64::from(epoch) + 1));
        }
        assert_eq!(*told.lock().unwrap(), [2, 3, 4], "once each");
        assert!(place.hold.has_waited(Epoch(4)) && !place.hold.has_waited(Epoch(5)));
        // The pump counts a frame before the hold does.
        let all_wait = || (place.hold.waiting().frames, place.hold.waiting().bytes) == (15, 15 * 60);
        until("the hold's count", all_wait).await;
        place.hold.release_through(Epoch(3));
        for expected in (20..25).chain(30..35) {
            assert_eq!(place.seen(number).await, expected);
        }
        until("the count", || pump.counters().sent_frames == 11).await;
        assert_eq!((pump.counters().held_frames, place.hold.waiting().frames), (5, 5), "epoch 4 waits on");
        // Noted when the last of those that left together has left.
        until("the delays", || place.hold.added_delay().is_some_and(|delay| delay.frames == 10)).await;
        place.hold.release_through(Epoch(4));
        for expected in 40..45 {
            assert_eq!(place.seen(number).await, expected);
        }
        assert_eq!(pump.counters().dropped_gate_closed, 0);
    });
}

#[test]
fn what_is_free_again_leaves_under_the_gate_and_before_what_comes_later() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        place.hold.hold_from(Epoch(2));
        send_numbers(&mut qemu, 0..10).await;
        until("the frames", || pump.counters().held_frames == 10).await;
        place.hold.free();
        send_numbers(&mut qemu, 10..20).await;
        for expected in 0..20 {
            assert_eq!(place.seen(number).await, expected);
        }
        // The same with a closed gate: gone.
        place.hold.hold_from(Epoch(2));
        place.gate.store(false, Ordering::SeqCst);
        send_numbers(&mut qemu, 20..30).await;
        until("the frames", || pump.counters().held_frames == 10).await;
        place.hold.free();
        until("the drops", || pump.counters().dropped_gate_closed == 10).await;
        place.gate.store(true, Ordering::SeqCst);
        send_numbers(&mut qemu, 30..31).await;
        assert_eq!(place.seen(number).await, 30);
    });
}

#[test]
fn what_was_dropped_never_leaves() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        place.hold.hold_from(Epoch(2));
        send_numbers(&mut qemu, 0..10).await;
        until("the frames", || pump.counters().held_frames == 10).await;
        place.hold.drop_held();
        place.hold.release_through(Epoch(2));
        send_numbers(&mut qemu, 10..20).await;
        until("the drops", || pump.counters().dropped_held == 20).await;
        place.hold.free();
        send_numbers(&mut qemu, 20..21).await;
        assert_eq!(place.seen(number).await, 20);
        // Counted after it was seen.
        until("the count", || pump.counters().sent_frames > 0).await;
        assert_eq!(pump.counters().sent_frames, 1);
    });
}

#[test]
fn an_earlier_sessions_frames_are_not_taken_for_a_later_ones() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        place.hold.hold_from(Epoch(2));
        place.hold.advance_to(Epoch(70));
        place.hold.release_through(Epoch(69));
        place.hold.free();
        // A new session begins at low numbers again.
        place.hold.hold_from(Epoch(2));
        send_numbers(&mut qemu, 0..5).await;
        until("the frames", || pump.counters().held_frames == 5).await;
        place.hold.advance_to(Epoch(3));
        place.hold.release_through(Epoch(2));
        for expected in 0..5 {
            assert_eq!(place.seen(number).await, expected);
        }
    });
}

#[test]
fn a_guest_that_ended_still_has_its_frames_sent() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        place.hold.hold_from(Epoch(2));
        send_numbers(&mut qemu, 0..10).await;
        drop((qemu, listener));
        until("the end", || pump.counters().held_frames == 10 && !pump.is_connected()).await;
        place.hold.advance_to(Epoch(3));
        place.hold.release_through(Epoch(2));
        for expected in 0..10 {
            assert_eq!(place.seen(number).await, expected);
        }
        drop(pump);
        assert_eq!(place.hold.waiting().frames, 0);
    });
}

/// Of the frames of a flood.
const FLOOD_FRAME_BYTES: usize = 9_000;
/// A hold is full when there is no room for a read's worth of the shortest frames: some way below the limit.
const FULL_BYTES: usize = HELD_BYTES_MAX * 3 / 4;

async fn until_full(pump: &NicPump) {
    until("the hold to be full", || pump.counters().held_bytes > u64::try_from(FULL_BYTES).unwrap()).await;
}

#[test]
fn a_flood_waits_in_qemu_and_nothing_is_lost() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let (mut from_qemu, mut to_qemu) = accept(&listener).await.into_split();
        place.hold.hold_from(Epoch(2));
        let look = async {
            until_full(&pump).await;
            // The other direction goes on.
            place.send(&frame(PEER, 7, 60));
            assert_eq!(receive(&mut from_qemu).await, 7);
            let held = pump.counters().held_bytes;
            assert!(held <= u64::try_from(HELD_BYTES_MAX).unwrap(), "{held}");
            place.hold.advance_to(Epoch(3));
            place.hold.free();
        };
        // More than is held, than its socket takes, and than the pump's buffer.
        let count = u32::try_from(2 * HELD_BYTES_MAX / FLOOD_FRAME_BYTES).unwrap();
        let flood = async {
            for number in 0..count {
                send(&mut to_qemu, &frame(GUEST, number, FLOOD_FRAME_BYTES)).await;
            }
        };
        tokio::join!(flood, look);
        until("all frames", || pump.counters().sent_frames == u64::from(count)).await;
        assert_eq!((pump.counters().connections, pump.counters().dropped_by_tap), (1, 0));
    });
}

#[test]
fn what_was_released_to_a_host_that_stands_still_waits_until_the_standby_is_heard_again() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        let heard = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&heard);
        place.hold.leave_while(move || asked.load(Ordering::SeqCst));
        place.hold.hold_from(Epoch(2));
        send_numbers(&mut qemu, 0..3).await;
        until("the frames", || pump.counters().held_frames == 3).await;
        place.hold.advance_to(Epoch(3));
        heard.store(false, Ordering::SeqCst);
        place.hold.release_through(Epoch(2));
        // Two more that are taken one after the other: it has looked at those before them meanwhile.
        for number in 3..5 {
            send_numbers(&mut qemu, number..number + 1).await;
            until("the next frame", || pump.counters().held_frames == u64::from(number) + 1).await;
        }
        assert_eq!(pump.counters().sent_frames, 0);
        heard.store(true, Ordering::SeqCst);
        place.hold.look_again();
        for expected in 0..3 {
            assert_eq!(place.seen(number).await, expected);
        }
    });
}

#[test]
fn a_guest_that_ended_while_the_hold_was_full_is_read_to_its_last_frame() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        place.hold.hold_from(Epoch(2));
        let mut whole_frames = 0;
        let write_on = async {
            loop {
                send(&mut qemu, &frame(GUEST, whole_frames, FLOOD_FRAME_BYTES)).await;
                whole_frames += 1;
            }
        };
        // It goes in the middle of a frame, or between two.
        tokio::select! {
            () = write_on => unreachable!("it never ends"),
            () = until_full(&pump) => {}
        }
        drop(qemu);
        place.hold.advance_to(Epoch(3));
        place.hold.release_through(Epoch(2));
        // What lay in the socket was read later, and counts to the epoch of that time. The pump connects anew when it has read all.
        until("the end", || pump.counters().connections == 2).await;
        place.hold.advance_to(Epoch(4));
        place.hold.release_through(Epoch(3));
        until("all frames", || pump.counters().sent_frames == u64::from(whole_frames)).await;
        accept(&listener).await;
    });
}
