//! The streams to the standby: the lane for what both sides say, and the one for the memory.

use std::time::{Duration, Instant};

use ev_core::checkpoint::Event;

use super::Driver;
use crate::checkpoint::active::{ActiveNotice, Wish};
use crate::checkpoint::lane::Lane;
use crate::checkpoint::memory_stream;
use crate::links::{Channel, Stream};

/// One that is wanted and not there is asked for this often.
const ASK_AGAIN: Duration = Duration::from_millis(300);

impl Driver {
    pub(super) fn take_lane(&mut self, stream: Stream) {
        self.lanes += 1;
        self.unlink("the lane was replaced");
        self.lane = Some(Lane::start(self.lanes, stream, self.inner.clone()));
        self.link();
    }

    pub(super) fn take_memory(&mut self, stream: Stream) {
        if self.work.as_ref().is_some_and(|work| work.shipper.is_some()) {
            self.unlink("the memory stream was replaced");
        }
        match memory_stream(stream) {
            Ok(stream) => {
                self.memory = Some(stream);
                self.link();
            }
            Err(error) => {
                tracing::warn!(%error, "a memory stream can't be set up");
            }
        }
    }

    /// Both streams are needed; the engine hears when both are there.
    pub(super) fn link(&mut self) {
        if !self.linked && self.lane.is_some() && self.memory.is_some() {
            self.linked = true;
            self.tell(Event::LinkUp);
        }
    }

    pub(super) fn unlink(&mut self, why: &str) {
        if std::mem::replace(&mut self.linked, false) {
            self.end_because(why);
            self.tell(Event::LinkDown);
        }
    }

    /// Streams are wanted while checkpoints are; those that came before this task was there are gone.
    pub(super) fn ask_for_streams(&mut self) {
        if self.wish != Wish::Yes || self.asked_at.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return;
        }
        let missing = [(Channel::Lane, self.lane.is_none()), (Channel::Memory, self.memory_is_missing())];
        for (channel, _) in missing.into_iter().filter(|(_, missing)| *missing) {
            self.asked_at = Some(Instant::now());
            self.notify(ActiveNotice::StreamDown(channel));
        }
    }

    fn memory_is_missing(&self) -> bool {
        self.memory.is_none() && self.work.as_ref().is_none_or(|work| work.shipper.is_none())
    }
}
