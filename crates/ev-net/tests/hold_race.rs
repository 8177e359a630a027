//! A guest that sends without end while epochs pass and are confirmed late: each frame is seen once, in order, and never before its
//! epoch was released.

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ev_core::checkpoint::Epoch;
use ev_net::{NicPump, OutputHold};
use proptest::prelude::*;
use support::in_namespace;
use support::place::{GUEST, Place, accept, frame, number};
use tokio::net::UnixListener;

/// Enough for what the longest schedule waits for, and little enough for the network's buffers.
const FRAMES_MAX: u32 = 4_000;

/// One epoch of a schedule.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// So many frames later the guest is paused.
    frames: u32,
    /// The standby's confirmation comes so many epochs late.
    lag: u64,
}

fn schedules() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..60_u32, 0..4_u64).prop_map(|(frames, lag)| Step { frames, lag });
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nothing_leaves_before_its_epoch_and_all_of_it_in_order(schedule in schedules()) {
        in_namespace(move || race(schedule));
    }
}

/// The guest sends under a lock on this, and stands still while somebody else has it.
struct Guest {
    epoch: u64,
    sent: u32,
    socket: std::os::unix::net::UnixStream,
}

impl Guest {
    /// A frame has its number and the epoch in which it was sent.
    fn send(&mut self) {
        let mut frame = frame(GUEST, self.sent, 60);
        frame[20..28].copy_from_slice(&self.epoch.to_be_bytes());
        self.socket.write_all(&60_u32.to_be_bytes()).unwrap();
        self.socket.write_all(&frame).unwrap();
        self.sent += 1;
    }
}

fn epoch_of(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame[20..28].try_into().unwrap())
}

/// What the threads of a run share.
struct Shared {
    guest: Mutex<Guest>,
    hold: Arc<OutputHold>,
    pump: NicPump,
    /// Raised before the hold is told.
    released: AtomicU64,
    over: AtomicBool,
}

impl Shared {
    fn send_on(&self) {
        for _ in 0..FRAMES_MAX {
            self.guest.lock().unwrap().send();
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn sent(&self) -> u32 {
        self.guest.lock().unwrap().sent
    }

    /// The epoch that ended.
    fn pause(&self) -> u64 {
        let mut guest = self.guest.lock().unwrap();
        let ended = guest.epoch;
        guest.epoch += 1;
        self.hold.advance_to(Epoch(guest.epoch));
        ended
    }

    fn release(&self, epoch: u64) {
        self.released.fetch_max(epoch, Ordering::SeqCst);
        self.hold.release_through(Epoch(epoch));
    }

    fn take_checkpoints(&self, schedule: &[Step]) {
        for step in schedule {
            let enough = (self.sent() + step.frames).min(FRAMES_MAX);
            while self.sent() < enough {
                std::thread::yield_now();
            }
            self.release(self.pause().saturating_sub(step.lag).max(1));
        }
        self.over.store(true, Ordering::SeqCst);
    }

    /// The last epoch ends when all was read.
    fn end(&self) -> u32 {
        // In this order: a frame that leaves meanwhile is not counted at all instead of twice.
        let was_read = || {
            let sent = self.pump.counters().sent_frames;
            sent + self.pump.counters().held_frames
        };
        while was_read() < u64::from(self.sent()) {
            std::thread::yield_now();
        }
        self.release(self.pause());
        self.sent()
    }
}

async fn race(schedule: Vec<Step>) {
    let place = Place::new().await;
    let listener = UnixListener::bind(&place.socket).unwrap();
    let pump = place.pump();
    // Nothing here leaves because of the lease.
    place.gate.store(false, Ordering::SeqCst);
    let socket = accept(&listener).await.into_std().unwrap();
    socket.set_nonblocking(false).unwrap();
    place.hold.hold_from(Epoch(2));
    let shared = Arc::new(Shared {
        guest: Mutex::new(Guest { epoch: 2, sent: 0, socket }),
        hold: Arc::clone(&place.hold),
        pump,
        released: AtomicU64::new(1),
        over: AtomicBool::new(false),
    });
    let of_threads = Arc::clone(&shared);
    let mut threads = tokio::task::spawn_blocking(move || {
        std::thread::scope(|scope| {
            scope.spawn(|| of_threads.send_on());
            scope.spawn(|| of_threads.take_checkpoints(&schedule));
        });
        of_threads.end()
    });
    let (mut expected, mut total) = (0, None);
    while total != Some(expected) {
        tokio::select! {
            (number, epoch) = place.seen(|frame| Some((number(frame)?, epoch_of(frame)))) => {
                let released = shared.released.load(Ordering::SeqCst);
                assert!(epoch <= released, "frame {number} of epoch {epoch} left, and {released} was released");
                assert_eq!(number, expected);
                expected += 1;
            }
            sent = &mut threads, if total.is_none() => total = Some(sent.unwrap()),
        }
    }
    assert_eq!((shared.pump.counters().held_frames, shared.pump.counters().dropped_gate_closed), (0, 0));
    assert_eq!(shared.hold.waiting().frames, 0);
}
