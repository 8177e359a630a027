//! Bytes to messages, each checked against the disk's size and the limits.

use std::collections::VecDeque;

use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::Generation;
use ev_core::mirror::{BlockHash, CopyKind, Durability, Extent, Message, OpId, Outcome, RegionMap, Write, WriteKind};
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::frame::{self, AckRecord, EpochRecord, FrameHeader, HEADER_BYTES, HistoryRecord, Kind};
use super::hello::{HelloRecord, LinkHello, LinkVersion, Refusal, RefusalRecord};
use super::{ACKS_MAX, COPY_ZEROES_BYTES_MAX, DATA_BYTES_MAX, HASH_BLOCK_BYTES, HASH_BLOCKS_MAX, REGION_WORDS_MAX};
use crate::buffer::{BufferPool, IoBuffer};
use crate::receive::{BodyState, Receiver};

/// Longest hello that is taken: a later version's may be longer than ours.
const HELLO_BYTES_MAX: usize = 4096;

/// The partner sent what cannot be understood; the link is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the link's stream is out of step: {0:#06x} where a frame starts; reconnect")]
    BadMagic(u16),
    #[error(
        "a link frame's header fails its checksum; reconnect, and check memory and network cards if it happens again"
    )]
    BadChecksum,
    #[error("the partner sent a link frame of unknown kind {0}; both hosts must run versions that know each other")]
    UnknownKind(u8),
    #[error("the partner sent a link frame of kind {kind} with {length} bytes, which it cannot have")]
    BadLength { kind: u8, length: u32 },
    #[error("the partner sent a request for {length} bytes at {offset}, on a disk of {size_bytes} bytes")]
    OutsideDisk { offset: u64, length: u32, size_bytes: u64 },
    #[error("the partner sent a link frame of kind {kind} with an unknown value")]
    BadValue { kind: u8 },
    #[error("the partner did not begin with its hello")]
    NotGreeted,
    #[error(
        "the partner speaks link protocol versions {} to {}, this host {} to {}; upgrade the host with the older programs",
        oldest.0, newest.0, LinkVersion::OLDEST.0, LinkVersion::NEWEST.0
    )]
    Version { oldest: LinkVersion, newest: LinkVersion },
}

/// What a frame was.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// First in each direction; to be checked by [`super::LinkIdentity::check`].
    Hello(LinkHello),
    /// The other side can't work with our hello; it closes the link.
    Refused(Refusal),
    /// For the engine, with the data of the operation if the message has any.
    Message(Message, Option<IoBuffer>),
}

/// The receiving side of a link.
#[derive(Debug)]
pub struct Decoder {
    size_bytes: u64,
    receiver: Receiver,
    /// A frame whose data is on its way.
    pending: Option<FrameHeader>,
    /// Acknowledgements of one frame that were not handed out yet; at most [`ACKS_MAX`].
    acks: VecDeque<(OpId, Outcome)>,
    greeted: bool,
}

impl Decoder {
    /// For a disk of `size_bytes`.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, receiver: Receiver::default(), pending: None, acks: VecDeque::new(), greeted: false }
    }

    /// Where the next bytes belong; see [`Receiver::space`]. Call it only when [`Decoder::next`] had nothing more.
    pub fn space(&mut self) -> &mut [u8] {
        self.receiver.space()
    }

    /// `count` bytes were put there.
    pub fn received(&mut self, count: usize) {
        self.receiver.received(count);
    }

    /// The next complete frame; `None` when more bytes are needed.
    pub fn next(&mut self, pool: &mut BufferPool) -> Result<Option<Incoming>, FrameError> {
        loop {
            if let Some((op, outcome)) = self.acks.pop_front() {
                return Ok(Some(Incoming::Message(Message::Ack { op, outcome }, None)));
            }
            match self.receiver.body() {
                BodyState::Incomplete => return Ok(None),
                BodyState::Payload(data) => return Ok(Some(self.data_message(data))),
                BodyState::Skipped => unreachable!("no frame is skipped"),
                BodyState::None => {}
            }
            let Some((kind, header, length)) = self.header()? else { return Ok(None) };
            match kind {
                Kind::Write | Kind::CopyData => {
                    self.check(header.offset.get(), header.length.get())?;
                    self.start_data(header, length, pool);
                }
                Kind::ReadData => self.start_data(header, length, pool),
                _ => {
                    let Some(bytes) = self.receiver.peek(HEADER_BYTES + length) else { return Ok(None) };
                    let body = &bytes[HEADER_BYTES..];
                    let incoming = if kind == Kind::Acks {
                        self.acks = acks(body).ok_or(FrameError::BadValue { kind: header.kind })?;
                        None
                    } else {
                        Some(self.control_frame(kind, &header, body, pool)?)
                    };
                    self.receiver.consume(HEADER_BYTES + length);
                    self.greeted = true;
                    if incoming.is_some() {
                        return Ok(incoming);
                    }
                }
            }
        }
    }

    /// The next frame's header, checked but not consumed, with its kind and its body's length.
    fn header(&self) -> Result<Option<(Kind, FrameHeader, usize)>, FrameError> {
        let Some(bytes) = self.receiver.peek(HEADER_BYTES) else { return Ok(None) };
        let header = FrameHeader::read_from_bytes(bytes).expect("as long as the header");
        if header.magic.get() != frame::MAGIC {
            return Err(FrameError::BadMagic(header.magic.get()));
        }
        if header.checksum.get() != header.checksum_of() {
            return Err(FrameError::BadChecksum);
        }
        let kind = Kind::from_number(header.kind).ok_or(FrameError::UnknownKind(header.kind))?;
        let bad_length = FrameError::BadLength { kind: header.kind, length: header.length.get() };
        let length = usize::try_from(header.length.get()).map_err(|_| bad_length)?;
        if !length_fits(kind, length) {
            return Err(bad_length);
        }
        if !self.greeted && !matches!(kind, Kind::Hello | Kind::Refused) {
            return Err(FrameError::NotGreeted);
        }
        Ok(Some((kind, header, length)))
    }

    fn start_data(&mut self, header: FrameHeader, length: usize, pool: &mut BufferPool) {
        self.receiver.consume(HEADER_BYTES);
        self.receiver.start_payload(length, pool);
        self.pending = Some(header);
    }

    fn check(&self, offset: u64, length: u32) -> Result<Extent, FrameError> {
        let extent = Extent { offset, length };
        if length == 0 || offset >= self.size_bytes || extent.end() > self.size_bytes {
            Err(FrameError::OutsideDisk { offset, length, size_bytes: self.size_bytes })
        } else {
            Ok(extent)
        }
    }

    fn data_message(&mut self, data: IoBuffer) -> Incoming {
        let header = self.pending.take().expect("set when the payload was started");
        let op = OpId(header.op.get());
        let extent = Extent { offset: header.offset.get(), length: header.length.get() };
        let message = match Kind::from_number(header.kind) {
            Some(Kind::Write) => Message::Write { op, write: write(&header, extent, WriteKind::Data) },
            Some(Kind::CopyData) => Message::CopyData { op, extent },
            _ => Message::ReadData { op },
        };
        Incoming::Message(message, Some(data))
    }

    /// A frame without data of its own.
    fn control_frame(
        &self,
        kind: Kind,
        header: &FrameHeader,
        body: &[u8],
        pool: &mut BufferPool,
    ) -> Result<Incoming, FrameError> {
        let op = OpId(header.op.get());
        let bad_value = FrameError::BadValue { kind: header.kind };
        let extent = || self.check(header.offset.get(), header.argument.get());
        let message = match kind {
            Kind::Hello => return hello(body, bad_value).map(Incoming::Hello),
            Kind::Refused => {
                let (record, _) = RefusalRecord::read_from_prefix(body).map_err(|_| bad_value)?;
                return Ok(Incoming::Refused(record.decode()));
            }
            Kind::Regions => Message::Regions {
                map: if has(header, frame::FLAG_OUT_OF_SYNC) { RegionMap::OutOfSync } else { RegionMap::WriteIntent },
                first_word: header.offset.get(),
                words: records::<U64>(body).iter().map(|word| word.get()).collect(),
                last: !has(header, frame::FLAG_MORE),
            },
            Kind::KeepAlive => Message::KeepAlive,
            Kind::WriteZeroes if has(header, frame::FLAG_KEEP_ALLOCATED) => {
                Message::Write { op, write: write(header, extent()?, WriteKind::ZeroesAllocated) }
            }
            Kind::WriteZeroes => Message::Write { op, write: write(header, extent()?, WriteKind::Zeroes) },
            Kind::Trim => Message::Write { op, write: write(header, extent()?, WriteKind::Trim) },
            Kind::Flush => Message::Flush { op },
            Kind::EpochEnd => {
                let record = EpochRecord::read_from_bytes(body).map_err(|_| bad_value)?;
                Message::EpochEnd { session: Session(record.session.get()), epoch: Epoch(record.epoch.get()) }
            }
            Kind::Read => Message::Read { op, extent: shorter(extent()?, DATA_BYTES_MAX, bad_value)? },
            Kind::CopyBegin => Message::CopyBegin {
                op,
                kind: if has(header, frame::FLAG_FULL) { CopyKind::Full } else { CopyKind::Delta },
                current: history(body).ok_or(bad_value)?.0,
            },
            Kind::HashRequest => Message::HashRequest { op, extent: hash_extent(extent()?, bad_value)? },
            Kind::Hashes => Message::Hashes { op, hashes: records::<BlockHash>(body).to_vec() },
            Kind::CopyZeroes => {
                let extent = shorter(extent()?, COPY_ZEROES_BYTES_MAX, bad_value)?;
                let mut data = pool.take(usize::try_from(extent.length).map_err(|_| bad_value)?);
                data.data_mut().fill(0);
                return Ok(Incoming::Message(Message::CopyData { op, extent }, Some(data)));
            }
            Kind::History => {
                let (current, bitmap_base) = history(body).ok_or(bad_value)?;
                Message::History { op, current, bitmap_base }
            }
            Kind::CopyEnd => Message::CopyEnd { op, current: history(body).ok_or(bad_value)?.0 },
            Kind::Write | Kind::ReadData | Kind::CopyData | Kind::Acks => unreachable!("handled before"),
        };
        Ok(Incoming::Message(message, None))
    }
}

/// Whether a frame of this kind can have so many bytes after the header.
fn length_fits(kind: Kind, length: usize) -> bool {
    let list = |record: usize, most: usize| length.is_multiple_of(record) && length / record <= most;
    match kind {
        Kind::Hello => (4..=HELLO_BYTES_MAX).contains(&length),
        Kind::Refused => (size_of::<RefusalRecord>()..=HELLO_BYTES_MAX).contains(&length),
        Kind::Regions => list(size_of::<U64>(), REGION_WORDS_MAX),
        Kind::Acks => list(size_of::<AckRecord>(), ACKS_MAX),
        Kind::Hashes => usize::try_from(HASH_BLOCKS_MAX).is_ok_and(|most| list(size_of::<BlockHash>(), most)),
        Kind::History | Kind::CopyBegin | Kind::CopyEnd => length == size_of::<HistoryRecord>(),
        Kind::EpochEnd => length == size_of::<EpochRecord>(),
        Kind::Write | Kind::ReadData | Kind::CopyData => {
            length > 0 && u32::try_from(length).is_ok_and(|length| length <= DATA_BYTES_MAX)
        }
        Kind::KeepAlive
        | Kind::WriteZeroes
        | Kind::Trim
        | Kind::Flush
        | Kind::Read
        | Kind::HashRequest
        | Kind::CopyZeroes => length == 0,
    }
}

fn has(header: &FrameHeader, flag: u8) -> bool {
    header.flags & flag != 0
}

fn write(header: &FrameHeader, extent: Extent, kind: WriteKind) -> Write {
    let durability = if has(header, frame::FLAG_DURABLE) { Durability::BeforeReply } else { Durability::AtFlush };
    Write { extent, kind, durability }
}

/// The body as records. Its length was checked to be a multiple of the record's.
fn records<R: FromBytes + Immutable + KnownLayout + Unaligned>(body: &[u8]) -> &[R] {
    <[R]>::ref_from_bytes(body).expect("unaligned records, whole by the length check")
}

fn acks(body: &[u8]) -> Option<VecDeque<(OpId, Outcome)>> {
    let ack = |record: &AckRecord| {
        let outcome = match record.outcome.get() {
            0 => Outcome::Done,
            1 => Outcome::Failed,
            2 => Outcome::NotNow,
            _ => return None,
        };
        Some((OpId(record.op.get()), outcome))
    };
    records::<AckRecord>(body).iter().map(ack).collect()
}

fn shorter(extent: Extent, most: u32, bad_value: FrameError) -> Result<Extent, FrameError> {
    if extent.length <= most { Ok(extent) } else { Err(bad_value) }
}

fn hash_extent(extent: Extent, bad_value: FrameError) -> Result<Extent, FrameError> {
    let starts_at_block = extent.offset.is_multiple_of(u64::from(HASH_BLOCK_BYTES));
    if starts_at_block && extent.length.div_ceil(HASH_BLOCK_BYTES) <= HASH_BLOCKS_MAX {
        Ok(extent)
    } else {
        Err(bad_value)
    }
}

fn history(body: &[u8]) -> Option<(Generation, Generation)> {
    let record = HistoryRecord::read_from_bytes(body).ok()?;
    Some((Generation(record.current.get()), Generation(record.bitmap_base.get())))
}

/// A hello of a version that we cannot speak need not look like ours; its versions can be read all the same.
fn hello(body: &[u8], bad_value: FrameError) -> Result<LinkHello, FrameError> {
    let (newest, oldest) = HelloRecord::versions(body).ok_or(bad_value)?;
    if newest < LinkVersion::OLDEST || oldest > LinkVersion::NEWEST {
        return Err(FrameError::Version { oldest, newest });
    }
    HelloRecord::read_from_prefix(body).ok().and_then(|(record, _)| record.decode()).ok_or(bad_value)
}
