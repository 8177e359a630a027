//! Whether the guest's processors had much to do since the last look, by the processor time of its QEMU.

use std::time::{Duration, Instant};

use ev_core::checkpoint::Load;
use ev_vm::Guest;

/// A guest that takes less of one processor than this has little to do; taking checkpoints alone is up to a third.
const BUSY_PERCENT: u32 = 70;

/// The last look.
#[derive(Debug, Default)]
pub struct Busy {
    last: Option<(Instant, Duration)>,
}

impl Busy {
    /// Since the last call of this.
    pub fn load(&mut self, guest: &Guest) -> Load {
        let now = Instant::now();
        let Some(time) = guest.processor_time() else { return Load::Busy };
        let Some((then, before)) = self.last.replace((now, time)) else { return Load::Busy };
        let is_busy = time.saturating_sub(before) * 100 >= (now - then) * BUSY_PERCENT;
        if is_busy { Load::Busy } else { Load::Idle }
    }
}
