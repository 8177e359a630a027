//! The one place that a guest's frames pass on their way out of the host.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::gate::FrameGate;
use crate::tap::Tap;

use super::counters::{Shared, add};

/// Lets frames out to the TAP, one by one, each under the gate at that moment. Nothing else in the pump writes to the
/// TAP. Levels 1 and 2 let a frame out or drop it; Level 3 will keep frames here until their epoch is complete on the
/// standby, and let them out then, under the same gate.
pub struct Outbound {
    tap: Tap,
    gate: Arc<dyn FrameGate>,
    shared: Arc<Shared>,
}

impl Outbound {
    pub(super) fn new(tap: Tap, gate: Arc<dyn FrameGate>, shared: Arc<Shared>) -> Self {
        Self { tap, gate, shared }
    }

    /// Takes a frame that the guest sent.
    pub(super) fn take(&mut self, frame: &[u8]) {
        if self.gate.is_open() {
            self.let_out(frame);
        } else {
            self.drop_one(&self.shared.dropped_gate_closed);
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
