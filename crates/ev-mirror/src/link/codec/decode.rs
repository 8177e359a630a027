//! Bytes to messages, each checked against the disk's size and the limits.

use ev_core::ids::Generation;
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::frame::{self, AckRecord, FrameHeader, HEADER_BYTES, HistoryRecord, Kind};
use super::hello::{HelloRecord, RefusalRecord};
use super::{ACKS_MAX, Ack, BlockHash, CopyKind, DATA_BYTES_MAX, HASH_BLOCK_BYTES, HASH_BLOCKS_MAX, LinkVersion};
use super::{Message, Outcome, Part, REGION_WORDS_MAX, Sequence};
use crate::buffer::{BufferPool, IoBuffer};
use crate::extent::Extent;
use crate::metadata::RegionMap;
use crate::nbd::{Durability, Zeroing};
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

/// The receiving side of a link.
#[derive(Debug)]
pub struct Decoder {
    size_bytes: u64,
    receiver: Receiver,
    /// A frame whose data is on its way.
    pending: Option<FrameHeader>,
    greeted: bool,
}

impl Decoder {
    /// For a disk of `size_bytes`.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, receiver: Receiver::default(), pending: None, greeted: false }
    }

    /// Where the next bytes belong; see [`Receiver::space`]. Call it only when [`Decoder::next`] had nothing more.
    pub fn space(&mut self) -> &mut [u8] {
        self.receiver.space()
    }

    /// `count` bytes were put there.
    pub fn received(&mut self, count: usize) {
        self.receiver.received(count);
    }

    /// The next complete message; `None` when more bytes are needed.
    pub fn next(&mut self, pool: &mut BufferPool) -> Result<Option<Message<IoBuffer>>, FrameError> {
        match self.receiver.body() {
            BodyState::Incomplete => return Ok(None),
            BodyState::Payload(data) => return self.data_message(data).map(Some),
            BodyState::Skipped => unreachable!("no frame is skipped"),
            BodyState::None => {}
        }
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
        if matches!(kind, Kind::Write | Kind::ReadData | Kind::CopyData) {
            if kind != Kind::ReadData {
                self.check(header.offset.get(), header.length.get())?;
            }
            self.receiver.consume(HEADER_BYTES);
            self.receiver.start_payload(length, pool);
            self.pending = Some(header);
            return match self.receiver.body() {
                BodyState::Payload(data) => self.data_message(data).map(Some),
                BodyState::None | BodyState::Incomplete | BodyState::Skipped => Ok(None),
            };
        }
        let Some(bytes) = self.receiver.peek(HEADER_BYTES + length) else { return Ok(None) };
        let message = self.control_message(kind, &header, &bytes[HEADER_BYTES..])?;
        self.receiver.consume(HEADER_BYTES + length);
        self.greeted = true;
        Ok(Some(message))
    }

    fn check(&self, offset: u64, length: u32) -> Result<Extent, FrameError> {
        let extent = Extent { offset, length };
        if length == 0 || offset >= self.size_bytes || extent.end() > self.size_bytes {
            Err(FrameError::OutsideDisk { offset, length, size_bytes: self.size_bytes })
        } else {
            Ok(extent)
        }
    }

    fn data_message(&mut self, data: IoBuffer) -> Result<Message<IoBuffer>, FrameError> {
        let header = self.pending.take().expect("set when the payload was started");
        let sequence = Sequence(header.sequence.get());
        let offset = header.offset.get();
        match Kind::from_number(header.kind) {
            Some(Kind::Write) => Ok(Message::Write { sequence, offset, durability: durability(&header), data }),
            Some(Kind::CopyData) => Ok(Message::CopyData { sequence, offset, data }),
            _ => Ok(Message::ReadData { sequence, data }),
        }
    }

    fn control_message(&self, kind: Kind, header: &FrameHeader, body: &[u8]) -> Result<Message<IoBuffer>, FrameError> {
        let sequence = Sequence(header.sequence.get());
        let bad_value = FrameError::BadValue { kind: header.kind };
        let extent = || self.check(header.offset.get(), header.argument.get());
        Ok(match kind {
            Kind::Hello => Message::Hello(hello(body, bad_value)?),
            Kind::Refused => Message::Refused(RefusalRecord::read_from_prefix(body).map_err(|_| bad_value)?.0.decode()),
            Kind::Regions => Message::Regions {
                map: if has(header, frame::FLAG_OUT_OF_SYNC) { RegionMap::OutOfSync } else { RegionMap::WriteIntent },
                first_word: header.offset.get(),
                words: records::<U64>(body).iter().map(|word| word.get()).collect(),
                part: if has(header, frame::FLAG_MORE) { Part::More } else { Part::Last },
            },
            Kind::KeepAlive => Message::KeepAlive,
            Kind::WriteZeroes => Message::WriteZeroes {
                sequence,
                extent: extent()?,
                zeroing: if has(header, frame::FLAG_KEEP_ALLOCATED) {
                    Zeroing::KeepAllocated
                } else {
                    Zeroing::MayDeallocate
                },
                durability: durability(header),
            },
            Kind::Trim => Message::Trim { sequence, extent: extent()?, durability: durability(header) },
            Kind::Flush => Message::Flush { sequence },
            Kind::Read => {
                let extent = extent()?;
                if extent.length > DATA_BYTES_MAX {
                    return Err(bad_value);
                }
                Message::Read { sequence, extent }
            }
            Kind::Acks => {
                Message::Acks(records::<AckRecord>(body).iter().map(ack).collect::<Option<_>>().ok_or(bad_value)?)
            }
            Kind::Settled => Message::Settled { through: sequence },
            Kind::CopyBegin => Message::CopyBegin {
                sequence,
                kind: if has(header, frame::FLAG_FULL) { CopyKind::Full } else { CopyKind::Delta },
                current: Generation(header.offset.get()),
            },
            Kind::HashRequest => Message::HashRequest { sequence, extent: hash_extent(extent()?, bad_value)? },
            Kind::Hashes => {
                let hashes = records::<[u8; 32]>(body).iter().map(|hash| BlockHash(*hash)).collect();
                Message::Hashes { sequence, hashes }
            }
            Kind::CopyZeroes => Message::CopyZeroes { sequence, extent: extent()? },
            Kind::History => {
                let (current, bitmap_base) = history(body).ok_or(bad_value)?;
                Message::History { sequence, current, bitmap_base }
            }
            Kind::CopyEnd => {
                let (current, bitmap_base) = history(body).ok_or(bad_value)?;
                Message::CopyEnd { sequence, current, bitmap_base }
            }
            Kind::Write | Kind::ReadData | Kind::CopyData => unreachable!("handled with their data"),
        })
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
        Kind::History | Kind::CopyEnd => length == size_of::<HistoryRecord>(),
        Kind::Write | Kind::ReadData | Kind::CopyData => {
            length > 0 && u32::try_from(length).is_ok_and(|length| length <= DATA_BYTES_MAX)
        }
        Kind::KeepAlive
        | Kind::WriteZeroes
        | Kind::Trim
        | Kind::Flush
        | Kind::Read
        | Kind::Settled
        | Kind::CopyBegin
        | Kind::HashRequest
        | Kind::CopyZeroes => length == 0,
    }
}

fn has(header: &FrameHeader, flag: u8) -> bool {
    header.flags & flag != 0
}

fn durability(header: &FrameHeader) -> Durability {
    if has(header, frame::FLAG_DURABLE) { Durability::BeforeReply } else { Durability::AtFlush }
}

/// The body as records. Its length was checked to be a multiple of the record's.
fn records<R: FromBytes + Immutable + KnownLayout + Unaligned>(body: &[u8]) -> &[R] {
    <[R]>::ref_from_bytes(body).expect("unaligned records, whole by the length check")
}

fn ack(record: &AckRecord) -> Option<Ack> {
    let outcome = match record.outcome.get() {
        0 => Outcome::Done,
        1 => Outcome::Failed,
        2 => Outcome::NotNow,
        _ => return None,
    };
    Some(Ack { sequence: Sequence(record.sequence.get()), outcome })
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
fn hello(body: &[u8], bad_value: FrameError) -> Result<super::Hello, FrameError> {
    let (newest, oldest) = HelloRecord::versions(body).ok_or(bad_value)?;
    if newest < LinkVersion::OLDEST || oldest > LinkVersion::NEWEST {
        return Err(FrameError::Version { oldest, newest });
    }
    HelloRecord::read_from_prefix(body).ok().and_then(|(record, _)| record.decode()).ok_or(bad_value)
}
