//! What the pump's thread tells other threads.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What went through since the pump was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PumpCounters {
    /// From the guest to the network.
    pub sent_frames: u64,
    /// From the guest to the network.
    pub sent_bytes: u64,
    /// From the network to the guest.
    pub received_frames: u64,
    /// From the network to the guest.
    pub received_bytes: u64,
    /// Frames of the guest that came while the gate was closed.
    pub dropped_gate_closed: u64,
    /// Frames of the guest that were held, or came, when the guest had gone on elsewhere.
    pub dropped_held: u64,
    /// Frames of the guest that the TAP did not take.
    pub dropped_by_tap: u64,
    /// Frames for the guest that came while QEMU was not connected. (With QEMU connected but not reading, they wait
    /// in the TAP's queue, and the kernel drops what is too much.)
    pub dropped_to_guest: u64,
    /// Connections to QEMU so far.
    pub connections: u64,
    /// Frames of the guest that wait for their epoch now.
    pub held_frames: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

/// Written by the pump's thread, read by others. The numbers are independent of each other: relaxed order will do.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub sent_frames: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub received_frames: AtomicU64,
    pub received_bytes: AtomicU64,
    pub dropped_gate_closed: AtomicU64,
    pub dropped_held: AtomicU64,
    pub dropped_by_tap: AtomicU64,
    pub dropped_to_guest: AtomicU64,
    pub connections: AtomicU64,
    pub held_frames: AtomicU64,
    pub held_bytes: AtomicU64,
    pub connected: AtomicBool,
    pub learned: Mutex<BTreeSet<IpAddr>>,
}

pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
}

pub(super) fn subtract(gauge: &AtomicU64, count: usize) {
    gauge.fetch_sub(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl Shared {
    pub(super) fn counters(&self) -> PumpCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PumpCounters {
            sent_frames: read(&self.sent_frames),
            sent_bytes: read(&self.sent_bytes),
            received_frames: read(&self.received_frames),
            received_bytes: read(&self.received_bytes),
            dropped_gate_closed: read(&self.dropped_gate_closed),
            dropped_held: read(&self.dropped_held),
            dropped_by_tap: read(&self.dropped_by_tap),
            dropped_to_guest: read(&self.dropped_to_guest),
            connections: read(&self.connections),
            held_frames: read(&self.held_frames),
            held_bytes: read(&self.held_bytes),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(super) fn learned(&self) -> BTreeSet<IpAddr> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_learned(&self, addresses: &BTreeSet<IpAddr>) {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone_from(addresses);
    }
}
