//! QEMU's stream framing, both ways, in bounded buffers: a frame is its length (u32, big endian) and its bytes.

/// Largest frame, in bytes: QEMU's `NET_BUFSIZE` (net/net.h).
pub(super) const FRAME_BYTES_MAX: usize = 4096 + 65_536;
/// Bytes of a length.
const LENGTH_BYTES: usize = 4;
/// What is read from QEMU at once, at most; room for one frame of any size, and for a batch of usual ones.
pub(super) const READ_BYTES_MAX: usize = 256 << 10;
/// What may wait for QEMU to read it. No more is taken from the TAP then, whose own queue fills and drops.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// QEMU sent a length that no frame has; the connection is out of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutOfStep {
    pub length: u32,
}

/// Frames from QEMU.
pub(super) struct FrameReader {
    buffer: Box<[u8]>,
    /// What was read and is no whole frame yet: `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl FrameReader {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; READ_BYTES_MAX].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Forgets a frame that was begun on a lost connection.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Where to read to; never empty once all whole frames are taken. Tell [`Self::filled`] how much.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        self.end += bytes;
        assert!(self.end <= self.buffer.len(), "more was read than there was room for");
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, OutOfStep> {
        let Some((head, rest)) = self.buffer[self.start..self.end].split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head);
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes == 0 || bytes > FRAME_BYTES_MAX {
            return Err(OutOfStep { length });
        }
        if rest.len() < bytes {
            return Ok(None);
        }
        let frame = self.start + LENGTH_BYTES..self.start + LENGTH_BYTES + bytes;
        self.start = frame.end;
        Ok(Some(&self.buffer[frame]))
    }
}

/// Frames for QEMU.
pub(super) struct FrameWriter {
    buffer: Vec<u8>,
    written: usize,
}

impl FrameWriter {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::with_capacity(WRITE_BYTES_MAX), written: 0 }
    }

    /// Forgets what a lost connection did not take.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.written = 0;
    }

    /// Whether the largest frame would fit.
    pub(super) fn has_room(&self) -> bool {
        self.buffer.len() + LENGTH_BYTES + FRAME_BYTES_MAX <= WRITE_BYTES_MAX
    }

    pub(super) fn push(&mut self, frame: &[u8]) {
        assert!(self.has_room() && frame.len() <= FRAME_BYTES_MAX, "a frame without room for it");
        let length = u32::try_from(frame.len()).expect("frames are short");
        self.buffer.extend(length.to_be_bytes());
        self.buffer.extend(frame);
    }

    pub(super) fn waiting(&self) -> &[u8] {
        &self.buffer[self.written..]
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        assert!(self.written <= self.buffer.len(), "more was written than there was");
        if self.written == self.buffer.len() {
            self.clear();
        } else if !self.has_room() {
            self.buffer.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(reader: &mut FrameReader, bytes: &[u8]) {
        reader.space()[..bytes.len()].copy_from_slice(bytes);
        reader.filled(bytes.len());
    }

    fn frames(reader: &mut FrameReader) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().unwrap() {
            frames.push(frame.to_vec());
        }
        frames
    }

    #[test]
    fn what_is_written_is_read_whatever_the_pieces() {
        let sent: Vec<Vec<u8>> = [1, 60, 1514, 9000].map(|length| vec![7; length]).to_vec();
        for piece in [1, 3, 4, 5, 64, 4096] {
            let (mut writer, mut reader, mut got) = (FrameWriter::new(), FrameReader::new(), Vec::new());
            for frame in &sent {
                writer.push(frame);
            }
            while !writer.waiting().is_empty() {
                let bytes = writer.waiting()[..piece.min(writer.waiting().len())].to_vec();
                writer.wrote(bytes.len());
                feed(&mut reader, &bytes);
                got.extend(frames(&mut reader));
            }
            assert_eq!(got, sent, "pieces of {piece}");
        }
    }

    #[test]
    fn the_largest_frame_passes_and_a_larger_one_is_told() {
        let mut reader = FrameReader::new();
        let mut bytes = u32::try_from(FRAME_BYTES_MAX).unwrap().to_be_bytes().to_vec();
        bytes.resize(LENGTH_BYTES + FRAME_BYTES_MAX, 1);
        feed(&mut reader, &bytes);
        assert_eq!(frames(&mut reader), [vec![1; FRAME_BYTES_MAX]]);
        for length in [0, u32::try_from(FRAME_BYTES_MAX).unwrap() + 1, u32::MAX] {
            let mut reader = FrameReader::new();
            feed(&mut reader, &length.to_be_bytes());
            assert_eq!(reader.next(), Err(OutOfStep { length }));
        }
    }

    #[test]
    fn there_is_always_room_to_read_once_whole_frames_are_taken() {
        let mut reader = FrameReader::new();
        let mut frame = u32::try_from(FRAME_BYTES_MAX).unwrap().to_be_bytes().to_vec();
        frame.resize(LENGTH_BYTES + FRAME_BYTES_MAX, 1);
        let stream: Vec<u8> = frame.iter().copied().cycle().take(frame.len() * 10).collect();
        let (mut at, mut count) = (0, 0);
        while at < stream.len() {
            let space = reader.space();
            assert!(!space.is_empty());
            let bytes = space.len().min(stream.len() - at);
            space[..bytes].copy_from_slice(&stream[at..at + bytes]);
            reader.filled(bytes);
            at += bytes;
            count += frames(&mut reader).len();
        }
        assert_eq!(count, 10);
    }

    #[test]
    fn a_reader_that_is_slow_fills_the_buffer_and_no_more() {
        let mut writer = FrameWriter::new();
        let frame = vec![0; 1514];
        while writer.has_room() {
            writer.push(&frame);
        }
        assert!(writer.waiting().len() <= WRITE_BYTES_MAX);
        writer.wrote(writer.waiting().len() - 1);
        assert!(writer.has_room());
        assert_eq!(writer.waiting().len(), 1);
    }
}
