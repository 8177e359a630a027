//! When the thread looks out for what comes next without sleeping.
//!
//! To be woken takes longer than a partner's write, and costs the one who wakes about as much, most of all in a virtual
//! machine. While the guest does one thing after another, the thread of the active side therefore stays awake for a moment, as QEMU's
//! own threads for I/O do (`poll-max-ns`). It does so only if the last wait of the same kind was a short one, so that
//! a guest that does little, a slow network, or a processor that others want soon make it sleep as any other thread.

use std::io;
use std::time::{Duration, Instant};

use super::Thread;
use super::engine::Engine;

/// Longest that the thread stays awake for one thing: above what a partner's write takes on a fast network.
const AWAKE_MAX: Duration = Duration::from_micros(100);
/// With more requests under way than that the processor is better left to those who work on them.
const REQUESTS_MAX: usize = 2;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The guest's next request.
    Request,
    /// The end of a request.
    Answer,
}

/// Whether the last wait of each kind was a short one.
#[derive(Debug, Default)]
pub struct Lookout {
    requests_come_soon: bool,
    answers_come_soon: bool,
}

impl Lookout {
    fn is_worth_it(&self, awaited: Awaited) -> bool {
        match awaited {
            Awaited::Request => self.requests_come_soon,
            Awaited::Answer => self.answers_come_soon,
        }
    }

    fn waited(&mut self, awaited: Awaited, time: Duration) {
        let soon = time < AWAKE_MAX;
        match awaited {
            Awaited::Request => self.requests_come_soon = soon,
            Awaited::Answer => self.answers_come_soon = soon,
        }
    }
}

impl Thread {
    /// Waits until something completes, or for `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let serves = matches!(self.engine, Engine::Coordinator(_)) && !self.clients.is_empty();
        if !serves || self.requests > REQUESTS_MAX || !self.held.is_empty() {
            return self.ring.wait(timeout);
        }
        let awaited = if self.requests == 0 { Awaited::Request } else { Awaited::Answer };
        let began = Instant::now();
        if self.lookout.is_worth_it(awaited) {
            self.ring.look_out(AWAKE_MAX)?;
        }
        self.ring.wait(timeout)?;
        self.lookout.waited(awaited, began.elapsed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_wait_ends_it_for_its_kind_and_one_short_wait_begins_it() {
        let mut lookout = Lookout::default();
        assert!(!lookout.is_worth_it(Awaited::Request));
        lookout.waited(Awaited::Request, AWAKE_MAX / 2);
        lookout.waited(Awaited::Answer, AWAKE_MAX / 2);
        assert!(lookout.is_worth_it(Awaited::Request));
        lookout.waited(Awaited::Request, AWAKE_MAX);
        assert!(!lookout.is_worth_it(Awaited::Request));
        assert!(lookout.is_worth_it(Awaited::Answer));
    }
}
