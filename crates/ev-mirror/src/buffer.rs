//! Page-aligned data buffers, kept for reuse, and the queue of bytes to send.
//!
//! Both protocols receive a payload straight into the buffer that is then written to the disk, and send what was read
//! from the buffer that it was read into: the header of a reply is put into the spare bytes before the data.

use std::collections::VecDeque;

/// Spare bytes before the data, for the header of the frame that will carry it.
pub const HEADROOM_BYTES: usize = 64;
/// Alignment of the data in memory: what direct I/O asks for on any device.
pub const ALIGNMENT_BYTES: usize = 4096;
/// Most bytes that a pool keeps for reuse; what is given back beyond that is freed.
pub const POOL_KEPT_BYTES_MAX: usize = 64 << 20;
/// Payloads to this size are copied behind other small replies, so that one system call sends many.
pub const COALESCE_BYTES_MAX: usize = 8 << 10;
/// A batch of small replies is closed at this size.
const BATCH_BYTES_MAX: usize = 128 << 10;
/// Smallest buffer: sizes are rounded up to a power of two from here, so that buffers fit again.
const CLASS_BYTES_MIN: usize = 4096;
/// 4 KiB << 13 = 32 MiB, the longest request.
const CLASSES: usize = 14;

/// Data on its way between socket and disk.
pub struct IoBuffer {
    /// Never grown, so that the address stays while the kernel works on it.
    store: Box<[u8]>,
    start: usize,
    length: usize,
    header: usize,
}

impl IoBuffer {
    /// A zeroed buffer of `length` bytes.
    #[must_use]
    pub fn new(length: usize) -> Self {
        Self::with_capacity(length, length)
    }

    fn with_capacity(length: usize, capacity: usize) -> Self {
        let store = vec![0; capacity + HEADROOM_BYTES + ALIGNMENT_BYTES].into_boxed_slice();
        let start = HEADROOM_BYTES + store[HEADROOM_BYTES..].as_ptr().align_offset(ALIGNMENT_BYTES);
        assert!(start + capacity <= store.len(), "a byte address can always be aligned within one page");
        Self { store, start, length, header: 0 }
    }

    fn capacity(&self) -> usize {
        self.store.len() - HEADROOM_BYTES - ALIGNMENT_BYTES
    }

    /// The data.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.store[self.start..self.start + self.length]
    }

    /// The data, to be filled.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.length]
    }

    /// Number of data bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Puts a header right before the data. Replaces an earlier one. At most [`HEADROOM_BYTES`].
    pub fn put_header(&mut self, header: &[u8]) {
        assert!(header.len() <= HEADROOM_BYTES, "a header of {} bytes does not fit the headroom", header.len());
        self.header = header.len();
        self.store[self.start - header.len()..self.start].copy_from_slice(header);
    }

    /// Header and data in one piece.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.store[self.start - self.header..self.start + self.length]
    }
}

impl AsRef<[u8]> for IoBuffer {
    fn as_ref(&self) -> &[u8] {
        self.data()
    }
}

impl std::fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBuffer({} bytes)", self.length)
    }
}

impl PartialEq for IoBuffer {
    fn eq(&self, other: &Self) -> bool {
        self.data() == other.data()
    }
}

/// Buffers kept for reuse, by size. Used by one thread.
#[derive(Debug, Default)]
pub struct BufferPool {
    free: [Vec<IoBuffer>; CLASSES],
    kept_bytes: usize,
}

impl BufferPool {
    /// A buffer of `length` bytes with whatever content.
    pub fn take(&mut self, length: usize) -> IoBuffer {
        let capacity = length.next_power_of_two().max(CLASS_BYTES_MIN);
        let Some(free) = Self::class(capacity).and_then(|class| self.free.get_mut(class)) else {
            return IoBuffer::new(length);
        };
        match free.pop() {
            Some(mut buffer) => {
                self.kept_bytes -= capacity;
                buffer.length = length;
                buffer.header = 0;
                buffer
            }
            None => IoBuffer::with_capacity(length, capacity),
        }
    }

    /// Takes a buffer back for reuse.
    pub fn give(&mut self, buffer: IoBuffer) {
        let capacity = buffer.capacity();
        if self.kept_bytes + capacity > POOL_KEPT_BYTES_MAX || !capacity.is_power_of_two() {
            return;
        }
        if let Some(free) = Self::class(capacity).and_then(|class| self.free.get_mut(class)) {
            self.kept_bytes += capacity;
            free.push(buffer);
        }
    }

    fn class(capacity: usize) -> Option<usize> {
        let shift = capacity.trailing_zeros().checked_sub(CLASS_BYTES_MIN.trailing_zeros())?;
        usize::try_from(shift).ok()
    }
}

#[derive(Debug)]
enum Segment {
    Batch(Vec<u8>),
    Frame(IoBuffer),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Batch(bytes) => bytes,
            Self::Frame(buffer) => buffer.frame(),
        }
    }
}

/// Bytes waiting to be sent on one socket, in order.
///
/// The bytes that [`SendQueue::front`] returned stay where they are until [`SendQueue::sent`], so that the kernel may
/// read them meanwhile. The queue is bounded by its users: they stop receiving when too many requests are in flight.
#[derive(Debug, Default)]
pub struct SendQueue {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that were sent already.
    sent: usize,
    /// The first segment was handed out and must not be appended to.
    front_taken: bool,
    /// An emptied batch, kept for its allocation.
    spare: Option<Vec<u8>>,
}

impl SendQueue {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Where small replies are appended.
    pub fn batch(&mut self) -> &mut Vec<u8> {
        let last_is_free = self.segments.len() > 1 || !self.front_taken;
        let appendable = match self.segments.back() {
            Some(Segment::Batch(bytes)) => last_is_free && bytes.len() < BATCH_BYTES_MAX,
            Some(Segment::Frame(_)) | None => false,
        };
        if !appendable {
            self.segments.push_back(Segment::Batch(self.spare.take().unwrap_or_default()));
        }
        match self.segments.back_mut() {
            Some(Segment::Batch(bytes)) => bytes,
            Some(Segment::Frame(_)) | None => unreachable!("a batch was just put at the end"),
        }
    }

    /// Queues a frame: the header in the buffer's headroom and its data. A small one is copied and the buffer goes
    /// straight back to the pool.
    pub fn frame(&mut self, buffer: IoBuffer, pool: &mut BufferPool) {
        if buffer.frame().len() <= COALESCE_BYTES_MAX {
            self.batch().extend_from_slice(buffer.frame());
            pool.give(buffer);
        } else {
            self.segments.push_back(Segment::Frame(buffer));
        }
    }

    /// The bytes to send next; empty when nothing waits.
    pub fn front(&mut self) -> &[u8] {
        match self.segments.front() {
            Some(segment) => {
                self.front_taken = true;
                &segment.bytes()[self.sent..]
            }
            None => &[],
        }
    }

    /// `count` of the bytes that [`SendQueue::front`] returned were sent.
    pub fn sent(&mut self, count: usize, pool: &mut BufferPool) {
        self.sent += count;
        let Some(front) = self.segments.front() else { return };
        assert!(self.sent <= front.bytes().len(), "more bytes sent than were handed out");
        if self.sent < front.bytes().len() {
            return;
        }
        self.sent = 0;
        self.front_taken = false;
        match self.segments.pop_front() {
            Some(Segment::Frame(buffer)) => pool.give(buffer),
            Some(Segment::Batch(mut bytes)) => {
                bytes.clear();
                self.spare = Some(bytes);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_aligned_and_header_is_right_before_it() {
        let mut buffer = IoBuffer::new(5000);
        assert_eq!(buffer.data().as_ptr().addr() % ALIGNMENT_BYTES, 0);
        buffer.data_mut().fill(7);
        buffer.put_header(b"head");
        assert_eq!(&buffer.frame()[..4], b"head");
        assert_eq!(buffer.frame().len(), 5004);
        assert!(buffer.frame()[4..].iter().all(|&byte| byte == 7));
    }

    #[test]
    fn pool_reuses_what_fits_and_frees_what_is_too_much() {
        let mut pool = BufferPool::default();
        let buffer = pool.take(5000);
        let address = buffer.data().as_ptr();
        pool.give(buffer);
        let again = pool.take(6000);
        assert_eq!(again.data().as_ptr(), address);
        assert_eq!(again.len(), 6000);
        for _ in 0..3 {
            pool.give(IoBuffer::new(32 << 20));
        }
        assert_eq!(pool.kept_bytes, 64 << 20);
        assert_eq!(pool.take(64 << 20).len(), 64 << 20, "longer than any class");
    }

    #[test]
    fn queue_keeps_order_and_does_not_touch_what_was_handed_out() {
        let mut pool = BufferPool::default();
        let mut queue = SendQueue::default();
        queue.batch().extend_from_slice(b"ab");
        let first = queue.front().as_ptr();
        queue.batch().extend_from_slice(b"cd");
        let mut large = pool.take(COALESCE_BYTES_MAX + 1);
        large.data_mut().fill(b'x');
        large.put_header(b"h");
        queue.frame(large, &mut pool);
        queue.batch().extend_from_slice(b"e");
        assert_eq!(queue.front(), b"ab");
        assert_eq!(queue.front().as_ptr(), first);
        let mut all = Vec::new();
        while !queue.is_empty() {
            let count = queue.front().len().min(3);
            all.extend_from_slice(&queue.front()[..count]);
            queue.sent(count, &mut pool);
        }
        let mut expected = b"abcdh".to_vec();
        expected.extend(std::iter::repeat_n(b'x', COALESCE_BYTES_MAX + 1));
        expected.push(b'e');
        assert_eq!(all, expected);
    }
}
