//! The link between both hosts: two queues in order, that can be cut at any place.

use std::collections::VecDeque;

use ev_core::mirror::Message;

use super::disk::Sector;
use crate::rng::Rng;

/// A message with its operation's data.
#[derive(Debug, Clone)]
pub struct Packet {
    pub message: Message,
    pub data: Option<Vec<Sector>>,
}

/// A connection. `0` and `1` are the two hosts' places.
#[derive(Debug, Default)]
pub struct Link {
    /// What is on its way to each.
    pub to: [VecDeque<Packet>; 2],
    /// Whether each still holds its end.
    pub held: [bool; 2],
    /// Until then nothing arrives at each.
    pub stalled_until: [u64; 2],
    /// Nothing more gets in.
    pub cut: bool,
}

impl Link {
    pub fn new() -> Self {
        Self { to: [VecDeque::new(), VecDeque::new()], held: [true, true], stalled_until: [0, 0], cut: false }
    }

    /// Cuts it: of what is on its way, some from the front still arrives.
    pub fn cut(&mut self, rng: &mut Rng) {
        if self.cut {
            return;
        }
        self.cut = true;
        for queue in &mut self.to {
            let kept = rng.within(0..u64::try_from(queue.len()).expect("a short queue") + 1);
            queue.truncate(usize::try_from(kept).expect("a short queue"));
        }
    }
}
