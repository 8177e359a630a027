//! Where received bytes go: a small window for headers, and long payloads straight into their own buffer.

use crate::buffer::{BufferPool, IoBuffer};

/// Size of the window. Many small requests are received at once into it.
pub const WINDOW_BYTES: usize = 128 << 10;
/// A payload of which at least this much is missing is received into its own buffer, without a copy.
const DIRECT_BYTES_MIN: usize = 16 << 10;

/// What is being put together beside the window.
#[derive(Debug)]
enum Body {
    None,
    Payload {
        buffer: IoBuffer,
        filled: usize,
    },
    /// Bytes that nobody wants, such as the payload of a request that is refused.
    Skip {
        left: u64,
    },
}

/// State of a body that was started.
#[derive(Debug)]
pub enum BodyState {
    /// None was started.
    None,
    /// More bytes are needed.
    Incomplete,
    /// All bytes of the payload are there.
    Payload(IoBuffer),
    /// All unwanted bytes have passed.
    Skipped,
}

/// The receiving side of one stream.
///
/// The slice that [`Receiver::space`] returns keeps its place until [`Receiver::received`], so that the kernel may write
/// into it; between the two nothing else of the receiver is to be called.
#[derive(Debug)]
pub struct Receiver {
    window: Box<[u8]>,
    begin: usize,
    end: usize,
    body: Body,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { window: vec![0; WINDOW_BYTES].into_boxed_slice(), begin: 0, end: 0, body: Body::None }
    }
}

impl Receiver {
    /// Where the next bytes from the stream belong. Empty only while a full window waits to be looked at.
    pub fn space(&mut self) -> &mut [u8] {
        if let Body::Payload { buffer, filled } = &mut self.body
            && buffer.len() - *filled >= DIRECT_BYTES_MIN
            && self.begin == self.end
        {
            return &mut buffer.data_mut()[*filled..];
        }
        if self.begin == self.end {
            self.begin = 0;
            self.end = 0;
        } else if self.begin > 0 && self.window.len() - self.end < DIRECT_BYTES_MIN {
            self.window.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        &mut self.window[self.end..]
    }

    /// `count` bytes were put at the front of the space.
    pub fn received(&mut self, count: usize) {
        if let Body::Payload { buffer, filled } = &mut self.body
            && buffer.len() - *filled >= DIRECT_BYTES_MIN
            && self.begin == self.end
        {
            assert!(count <= buffer.len() - *filled, "more bytes received than there was space for");
            *filled += count;
            return;
        }
        assert!(count <= self.window.len() - self.end, "more bytes received than there was space for");
        self.end += count;
    }

    /// Bytes in the window that were not consumed yet.
    #[must_use]
    pub fn window(&self) -> &[u8] {
        &self.window[self.begin..self.end]
    }

    /// The next `count` bytes, if they are there. `count` must be below half of [`WINDOW_BYTES`].
    #[must_use]
    pub fn peek(&self, count: usize) -> Option<&[u8]> {
        assert!(count <= WINDOW_BYTES / 2, "{count} bytes never fit the window together with what precedes them");
        self.window().get(..count)
    }

    /// Lets go of the next `count` bytes, which must be there.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.begin, "only what was received can be consumed");
        self.begin += count;
    }

    /// The next `length` bytes are a payload.
    pub fn start_payload(&mut self, length: usize, pool: &mut BufferPool) {
        assert!(matches!(self.body, Body::None), "one body at a time");
        self.body = Body::Payload { buffer: pool.take(length), filled: 0 };
    }

    /// The next `count` bytes are of no interest.
    pub fn start_skip(&mut self, count: u64) {
        assert!(matches!(self.body, Body::None), "one body at a time");
        self.body = Body::Skip { left: count };
    }

    /// Moves what has come into the body that was started, and hands it out once it is whole.
    pub fn body(&mut self) -> BodyState {
        let waiting = self.end - self.begin;
        match std::mem::replace(&mut self.body, Body::None) {
            Body::None => BodyState::None,
            Body::Payload { mut buffer, filled } => {
                let count = waiting.min(buffer.len() - filled);
                buffer.data_mut()[filled..filled + count].copy_from_slice(&self.window[self.begin..self.begin + count]);
                self.begin += count;
                if filled + count == buffer.len() {
                    return BodyState::Payload(buffer);
                }
                self.body = Body::Payload { buffer, filled: filled + count };
                BodyState::Incomplete
            }
            Body::Skip { left } => {
                let count = usize::try_from(left).map_or(waiting, |left| left.min(waiting));
                self.begin += count;
                let left = left - u64::try_from(count).expect("a buffer's length fits 64 bits");
                if left == 0 {
                    return BodyState::Skipped;
                }
                self.body = Body::Skip { left };
                BodyState::Incomplete
            }
        }
    }
}
