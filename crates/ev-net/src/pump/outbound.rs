//! The one place that a guest's frames pass on their way out of the host.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crate::gate::FrameGate;
use crate::hold::{OutputHold, Turn, Verdict};
use crate::tap::Tap;

use super::counters::{Shared, add, subtract};
use super::held::{HeldFrame, HeldFrames};

/// When frames were read from QEMU.
#[derive(Debug, Clone, Copy)]
pub(super) struct WhatWasRead {
    /// The newest epoch that they can be of.
    pub turn: Turn,
    pub at: Instant,
}

/// Lets frames out to the TAP, one by one and in order. Nothing else in the pump writes to the TAP. A frame that is not held leaves
/// under the gate at that moment or is dropped; one of an epoch that the standby has not confirmed is kept until then.
pub struct Outbound {
    tap: Tap,
    gate: Arc<dyn FrameGate>,
    hold: Arc<OutputHold>,
    held: HeldFrames,
    shared: Arc<Shared>,
}

impl Outbound {
    pub(super) fn new(tap: Tap, gate: Arc<dyn FrameGate>, hold: Arc<OutputHold>, shared: Arc<Shared>) -> Self {
        Self { tap, gate, hold, held: HeldFrames::default(), shared }
    }

    /// Takes a frame that the guest sent. There must be room for it.
    pub(super) fn take(&mut self, read: WhatWasRead, frame: &[u8]) {
        let verdict = self.hold.verdict(read.turn);
        // Not past those that wait.
        if verdict == Verdict::Drop || verdict != Verdict::Wait && self.held.is_empty() {
            return self.obey(verdict, frame);
        }
        self.held.push(HeldFrame { turn: read.turn, since: read.at, bytes: frame.into() });
        add(&self.shared.held_frames, 1);
        add(&self.shared.held_bytes, frame.len());
        self.hold.note_kept(frame.len());
        if verdict == Verdict::Wait {
            self.hold.note_waits(read.turn);
        }
    }

    /// Whether as much as this, read from QEMU, can be kept.
    pub(super) fn has_room(&self, read_bytes_max: usize) -> bool {
        self.held.has_room(read_bytes_max)
    }

    /// Whether the first held frame need not wait any more.
    pub(super) fn can_let_go(&self) -> bool {
        self.held.first().is_some_and(|frame| self.hold.verdict(frame.turn) != Verdict::Wait)
    }

    /// Lets out, or drops, what waits no longer; so many frames at most.
    pub(super) fn let_go(&mut self, frames_max: usize) {
        let mut delays = Vec::new();
        for _ in 0..frames_max {
            let Some(verdict) = self.held.first().map(|frame| self.hold.verdict(frame.turn)) else { break };
            if verdict == Verdict::Wait {
                break;
            }
            let frame = self.held.pop().expect("there is a first one");
            subtract(&self.shared.held_frames, 1);
            subtract(&self.shared.held_bytes, frame.bytes.len());
            self.hold.note_gone(frame.bytes.len());
            self.obey(verdict, &frame.bytes);
            if verdict == Verdict::Leave {
                delays.push(frame.since.elapsed());
            }
        }
        if !delays.is_empty() {
            self.hold.note_delays(delays);
        }
    }

    fn obey(&self, verdict: Verdict, frame: &[u8]) {
        match verdict {
            Verdict::AskGate if self.gate.is_open() => self.let_out(frame),
            Verdict::AskGate => self.drop_one(&self.shared.dropped_gate_closed),
            Verdict::Leave => self.let_out(frame),
            Verdict::Drop => self.drop_one(&self.shared.dropped_held),
            Verdict::Wait => unreachable!("a frame that waits is kept"),
        }
    }

    fn let_out(&self, frame: &[u8]) {
        match self.tap.write(frame) {
            Ok(()) => {
                add(&self.shared.sent_frames, 1);
                add(&self.shared.sent_bytes, frame.len());
            }
            Err(error) => {
                // The device is down, or its queue is full: Ethernet loses frames then.
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(tap = self.tap.name(), %error, "a frame was not taken");
                }
                self.drop_one(&self.shared.dropped_by_tap);
            }
        }
    }

    fn drop_one(&self, counter: &AtomicU64) {
        add(counter, 1);
    }
}

impl Drop for Outbound {
    /// What still waits goes with its pump: the hold counts it no longer.
    fn drop(&mut self) {
        while let Some(frame) = self.held.pop() {
            self.hold.note_gone(frame.bytes.len());
        }
    }
}
