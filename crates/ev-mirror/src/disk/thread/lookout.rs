//! When the thread looks out for what comes next without sleeping.
//!
//! To be woken takes longer than a partner's write, and costs the one who wakes about as much, most of all in a virtual
//! machine. While the guest does one thing after another, the thread of the active side therefore stays awake for a moment, as QEMU's
//! own threads for I/O do (`poll-max-ns`). It does so only if the last wait of the same kind was a short one, and not for a while
//! after it looked out in vain, so that a guest that does little, a slow network, or a processor that others
//! want make it sleep as any other thread.

use std::io;
use std::time::{Duration, Instant};

use super::Thread;
use super::engine::Engine;

/// Longest that the thread stays awake for one thing: above what a partner's write takes on a fast network.
const AWAKE_MAX: Duration = Duration::from_micros(100);
/// With more requests under way than that the processor is better left to those who work on them.
const REQUESTS_MAX: usize = 2;

/// How long it does not look out after it did so in vain: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);

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
    /// Not before then.
    resume: Option<Instant>,
    /// How long the last pause was; none since it last looked out with success.
    pause: Duration,
}

impl Lookout {
    fn is_worth_it(&self, awaited: Awaited, now: Instant) -> bool {
        if self.resume.is_some_and(|resume| now < resume) {
            return false;
        }
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

    /// It looked out, and the wait took so long.
    fn looked_out(&mut self, time: Duration, now: Instant) {
        if time < AWAKE_MAX {
            self.pause = Duration::ZERO;
        } else {
            self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            self.resume = Some(now + self.pause);
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
        let looks_out = self.lookout.is_worth_it(awaited, began);
        if looks_out {
            self.ring.look_out(AWAKE_MAX)?;
        }
        self.ring.wait(timeout)?;
        let time = began.elapsed();
        self.lookout.waited(awaited, time);
        if looks_out {
            self.lookout.looked_out(time, began + time);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_wait_ends_it_for_its_kind_and_one_short_wait_begins_it() {
        let now = Instant::now();
        let mut lookout = Lookout::default();
        assert!(!lookout.is_worth_it(Awaited::Request, now));
        lookout.waited(Awaited::Request, AWAKE_MAX / 2);
        lookout.waited(Awaited::Answer, AWAKE_MAX / 2);
        assert!(lookout.is_worth_it(Awaited::Request, now));
        lookout.waited(Awaited::Request, AWAKE_MAX);
        assert!(!lookout.is_worth_it(Awaited::Request, now));
        assert!(lookout.is_worth_it(Awaited::Answer, now));
    }

    #[test]
    fn to_look_out_in_vain_has_a_pause_that_grows_until_it_is_of_use_again() {
        let now = Instant::now();
        let mut lookout = Lookout::default();
        lookout.waited(Awaited::Answer, AWAKE_MAX / 2);
        lookout.looked_out(AWAKE_MAX, now);
        assert!(!lookout.is_worth_it(Awaited::Answer, now));
        assert!(lookout.is_worth_it(Awaited::Answer, now + PAUSE_MIN));
        lookout.looked_out(AWAKE_MAX, now);
        assert!(!lookout.is_worth_it(Awaited::Answer, now + PAUSE_MIN));
        for _ in 0..10 {
            lookout.looked_out(AWAKE_MAX, now);
        }
        assert!(lookout.is_worth_it(Awaited::Answer, now + PAUSE_MAX));
        lookout.looked_out(AWAKE_MAX / 2, now);
        lookout.looked_out(AWAKE_MAX, now);
        assert!(lookout.is_worth_it(Awaited::Answer, now + PAUSE_MIN));
    }
}
