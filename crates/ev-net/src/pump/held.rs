//! Frames of one NIC that wait for their epoch, in order.

use std::collections::VecDeque;
use std::time::Instant;

use crate::hold::Turn;

use super::stream::FRAME_BYTES_MAX;

/// What waits for one NIC takes at most this much memory. With more, QEMU's socket is not read: it fills, the guest's own queue
/// fills, and nothing is lost.
pub const HELD_BYTES_MAX: usize = 16 << 20;
/// What keeping a frame costs beside its own bytes, about.
const FRAME_COST_BYTES: usize = 64;

pub(super) struct HeldFrame {
    pub turn: Turn,
    /// When it was read from QEMU.
    pub since: Instant,
    pub bytes: Box<[u8]>,
}

#[derive(Default)]
pub(super) struct HeldFrames {
    frames: VecDeque<HeldFrame>,
    cost_bytes: usize,
}

fn cost(frame: &HeldFrame) -> usize {
    frame.bytes.len() + FRAME_COST_BYTES
}

impl HeldFrames {
    /// Whether so many bytes as QEMU may have sent since the last look still fit, in frames of any size.
    pub(super) fn has_room(&self, read_bytes_max: usize) -> bool {
        // The shortest frames cost the most: a byte each, and their length on the socket.
        let worst = read_bytes_max / 5 * (1 + FRAME_COST_BYTES) + FRAME_BYTES_MAX + FRAME_COST_BYTES;
        self.cost_bytes + worst <= HELD_BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn push(&mut self, frame: HeldFrame) {
        self.cost_bytes += cost(&frame);
        self.frames.push_back(frame);
    }

    pub(super) fn first(&self) -> Option<&HeldFrame> {
        self.frames.front()
    }

    pub(super) fn pop(&mut self) -> Option<HeldFrame> {
        let frame = self.frames.pop_front()?;
        self.cost_bytes -= cost(&frame);
        if self.frames.is_empty() {
            // A burst need not cost memory for ever.
            self.frames.shrink_to(64);
        }
        Some(frame)
    }
}
