//! Output commit for frames (Level 3): which epoch the guest's frames belong to, and which epochs' frames may leave.
//!
//! ```text
//!             hold_from                  release_through(n)
//!   Free ───────────────────► Held ─────────────────────────► frames of epochs ≤ n leave, lease or not, while the standby is heard
//!    ▲ │                       │ │
//!    │ └── drop_held ──┐  free │ │ drop_held
//!    │◄────────────────┼───────┘ │
//!    │      free       ▼         │
//!    └───────────── Dropped ◄────┘   nothing that the guest sends leaves
//! ```
//!
//! Inside, an epoch is a **turn**: a number that goes on rising from session to session, so that a frame of an earlier session is
//! never taken for one of a later session's epoch of the same number. A later session's checkpoint contains that the guest sent
//! what it had sent in earlier ones; so releasing a turn always releases all before it.

mod delay;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ev_core::checkpoint::Epoch;

use crate::gate::FrameGate;
use delay::Delays;

pub use delay::{AddedDelay, DELAYS_MAX};

/// Number of an epoch, over all sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn(u64);

impl Turn {
    /// Of frames that were read while nothing was held.
    const FREE: Self = Self(0);
    /// Of frames that were read after the guest had gone on elsewhere.
    const DROPPED: Self = Self(u64::MAX);
}

/// What is to happen to a frame now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It leaves if the lease gate is open, and is dropped if not.
    AskGate,
    /// It leaves: the standby has its epoch, so that nothing undoes it. No lease is needed for that.
    Leave,
    /// Its epoch is not on the standby yet, or this host stood still since it was, so that the standby may have taken over.
    Wait,
    /// It never leaves.
    Drop,
}

/// What waits now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Frames of all NICs.
    pub frames: usize,
    /// Their bytes, without what keeping them costs.
    pub bytes: usize,
}

type OnWaiting = Box<dyn Fn(Epoch) + Send + Sync>;

/// Shared by the Availability Manager and all pumps of a guest. The former says how far the standby is, the latter ask. A hold
/// that was never told anything holds nothing.
#[derive(Default)]
pub struct OutputHold {
    /// The turn that frames read from QEMU now belong to.
    running: AtomicU64,
    /// Turns up to this one may leave without a lease.
    released: AtomicU64,
    /// Turns up to this one are not held any more: the lease decides.
    freed: AtomicU64,
    /// Turns up to this one never leave.
    dropped: AtomicU64,
    /// The newest turn of which it was told that a frame waits.
    told: AtomicU64,
    waiting_frames: AtomicUsize,
    waiting_bytes: AtomicUsize,
    control: Mutex<Control>,
    wakers: Mutex<Vec<Weak<OwnedFd>>>,
    on_waiting: OnceLock<OnWaiting>,
    while_heard: OnceLock<Box<dyn FrameGate>>,
    delays: Mutex<Delays>,
}

/// What only those need who tell the hold something.
#[derive(Debug, Default)]
struct Control {
    mode: Mode,
    /// The turn before the first of the present session's epochs: `turn = base + epoch`.
    base: u64,
    /// The newest turn there has been.
    newest: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Free,
    Held,
    Dropped,
}

impl Control {
    fn turn(&self, epoch: Epoch) -> u64 {
        self.base.saturating_add(epoch.0)
    }
}

impl fmt::Debug for OutputHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputHold")
            .field("control", &*self.control())
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

impl OutputHold {
    /// Holds nothing.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// From now on what the guest sends is held, beginning with this epoch of a new session. To be called while the guest stands
    /// still at the end of the epoch before it.
    ///
    /// What an earlier session held and nobody freed keeps waiting, and leaves with the new session's first confirmed epoch.
    pub fn hold_from(&self, epoch: Epoch) {
        let mut control = self.control();
        control.base = control.newest;
        control.mode = Mode::Held;
        self.run(&mut control, epoch);
    }

    /// From now on what the guest sends belongs to this epoch. To be called while the guest stands still between the two: after it
    /// runs on would be too late. Does nothing when nothing is held (any more).
    pub fn advance_to(&self, epoch: Epoch) {
        let mut control = self.control();
        if control.mode == Mode::Held {
            self.run(&mut control, epoch);
        }
    }

    fn run(&self, control: &mut Control, epoch: Epoch) {
        let turn = control.turn(epoch);
        assert!(turn > control.base && turn >= control.newest, "epoch {epoch} after turn {}", control.newest);
        control.newest = turn;
        self.running.store(turn, Ordering::SeqCst);
    }

    /// The standby has everything up to this epoch: its frames leave at once. Does nothing when nothing is held (any more).
    ///
    /// # Panics
    /// If the guest is still in that epoch: then the standby can't have it.
    pub fn release_through(&self, epoch: Epoch) {
        let control = self.control();
        if control.mode != Mode::Held || epoch == Epoch::NONE {
            return;
        }
        let turn = control.turn(epoch);
        assert!(turn < control.newest, "epoch {epoch} is released while the guest is in it");
        self.released.fetch_max(turn, Ordering::SeqCst);
        drop(control);
        self.wake();
    }

    /// Nothing is held from now on. What is held leaves, if the lease gate is open then.
    pub fn free(&self) {
        let mut control = self.control();
        control.mode = Mode::Free;
        self.freed.store(control.newest, Ordering::SeqCst);
        self.running.store(Turn::FREE.0, Ordering::SeqCst);
        drop(control);
        self.wake();
    }

    /// The guest goes on elsewhere: what is held never leaves, nor does what is read from QEMU from now on; also what was released
    /// and has not left yet, as it would turn a switch's table to this host. Ends with [`Self::free`] or [`Self::hold_from`].
    pub fn drop_held(&self) {
        let mut control = self.control();
        control.mode = Mode::Dropped;
        self.dropped.store(control.newest, Ordering::SeqCst);
        self.running.store(Turn::DROPPED.0, Ordering::SeqCst);
        drop(control);
        self.wake();
    }

    /// Has `callback` called once per epoch, by a pump's thread, when the first frame begins to wait in it. It must not block. It
    /// stays for as long as the hold.
    ///
    /// # Panics
    /// If there is one already.
    pub fn on_waiting(&self, callback: impl Fn(Epoch) + Send + Sync + 'static) {
        let first = self.on_waiting.set(Box::new(callback)).is_ok();
        assert!(first, "somebody hears of waiting frames already");
    }

    /// What was released leaves only while `heard` is open, and waits otherwise: a host that stood still may have been replaced, and its
    /// late frames would turn a switch's table back to it. Asked just before each frame; [`Self::look_again`] after it was opened.
    ///
    /// # Panics
    /// If there is one already.
    pub fn leave_while(&self, heard: impl FrameGate) {
        let first = self.while_heard.set(Box::new(heard)).is_ok();
        assert!(first, "somebody says already when frames may leave");
    }

    /// Has all pumps ask again about what waits.
    pub fn look_again(&self) {
        if self.waiting().frames > 0 {
            self.wake();
        }
    }

    /// Whether what the guest sends is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.control().mode == Mode::Held
    }

    /// Whether a frame of this epoch (of the present session), or of a later one, has begun to wait: what the callback has said.
    #[must_use]
    pub fn has_waited(&self, epoch: Epoch) -> bool {
        let control = self.control();
        control.mode == Mode::Held && self.told.load(Ordering::SeqCst) >= control.turn(epoch)
    }

    /// What waits now.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting {
            frames: self.waiting_frames.load(Ordering::Relaxed),
            bytes: self.waiting_bytes.load(Ordering::Relaxed),
        }
    }

    /// How long the newest released frames were held; none before the first.
    #[must_use]
    pub fn added_delay(&self) -> Option<AddedDelay> {
        self.delays.lock().unwrap_or_else(PoisonError::into_inner).summary()
    }

    /// The turn of what has just been read from QEMU. To be asked *after* the read: the guest may have been let into a new epoch
    /// between asking and reading, and a frame of the new epoch would be counted to the old one, and leave before its checkpoint
    /// is complete. Counted to a later epoch than its own a frame only waits longer.
    pub(crate) fn turn_of_what_was_read(&self) -> Turn {
        Turn(self.running.load(Ordering::SeqCst))
    }

    pub(crate) fn verdict(&self, turn: Turn) -> Verdict {
        let up_to = |limit: &AtomicU64| turn.0 <= limit.load(Ordering::SeqCst);
        if turn == Turn::FREE {
            Verdict::AskGate
        } else if turn == Turn::DROPPED || up_to(&self.dropped) {
            Verdict::Drop
        } else if up_to(&self.released) && self.while_heard.get().is_none_or(|heard| heard.is_open()) {
            Verdict::Leave
        } else if up_to(&self.freed) {
            Verdict::AskGate
        } else {
            Verdict::Wait
        }
    }

    /// A frame is kept.
    pub(crate) fn note_kept(&self, bytes: usize) {
        self.waiting_frames.fetch_add(1, Ordering::Relaxed);
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A frame of this turn begins to wait for its epoch.
    pub(crate) fn note_waits(&self, turn: Turn) {
        if self.told.fetch_max(turn.0, Ordering::SeqCst) < turn.0
            && let Some(callback) = self.on_waiting.get()
        {
            let base = self.control().base;
            // A frame of an earlier session that nobody freed: the present one's first checkpoint comes by itself.
            if turn.0 > base {
                callback(Epoch(turn.0 - base));
            }
        }
    }

    /// A frame is kept no longer.
    pub(crate) fn note_gone(&self, bytes: usize) {
        self.waiting_frames.fetch_sub(1, Ordering::Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn note_delays(&self, delays: impl IntoIterator<Item = Duration>) {
        let mut kept = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        for delay in delays {
            kept.add(delay);
        }
    }

    /// Has a pump's eventfd written to when a verdict may have changed, for as long as the pump keeps it.
    pub(crate) fn register(&self, waker: &Arc<OwnedFd>) {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(waker));
    }

    fn wake(&self) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.retain(|waker| {
            let Some(waker) = waker.upgrade() else { return false };
            // An eventfd refuses only when it is at its highest number: then the pump is awake anyway.
            if let Err(error) = rustix::io::write(&*waker, &1_u64.to_ne_bytes()) {
                tracing::debug!(%error, "a NIC's thread was not woken");
            }
            true
        });
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
