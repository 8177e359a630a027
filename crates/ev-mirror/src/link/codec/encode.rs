//! Messages to bytes.

use ev_core::mirror::{CopyKind, Durability, Extent, Message, OpId, Outcome, RegionMap, Write, WriteKind};
use zerocopy::{Immutable, IntoBytes};

use super::frame::{self, AckRecord, EpochRecord, FrameHeader, HistoryRecord, Kind};
use super::hello::{HelloRecord, LinkHello, Refusal, RefusalRecord};
use super::{ACKS_MAX, COPY_ZEROES_BYTES_MAX, DATA_BYTES_MAX, HASH_BLOCKS_MAX, REGION_WORDS_MAX};

/// Appends a side's first frame.
pub fn encode_hello(hello: &LinkHello, head: &mut Vec<u8>) {
    control(FrameHeader::new(Kind::Hello), HelloRecord::from(hello).as_bytes(), head);
}

/// Appends why the other side's hello cannot be worked with.
pub fn encode_refusal(refusal: &Refusal, head: &mut Vec<u8>) {
    control(FrameHeader::new(Kind::Refused), RefusalRecord::from(refusal).as_bytes(), head);
}

/// Appends acknowledgements, at most [`ACKS_MAX`].
pub fn encode_acks(acks: &[(OpId, Outcome)], head: &mut Vec<u8>) {
    assert!(acks.len() <= ACKS_MAX, "many acknowledgements are sent in parts");
    let record = |&(op, outcome): &(OpId, Outcome)| AckRecord {
        op: op.0.into(),
        outcome: outcome_number(outcome).into(),
        zero: 0.into(),
    };
    records(FrameHeader::new(Kind::Acks), acks.iter().map(record), head);
}

/// Appends the message to `head` but for its data, which is returned and is to be sent right after it. `data` is that of
/// the message's operation, and not looked at for messages without. The limits of this module are asserted: what
/// passes them is our own mistake. A hello goes by [`encode_hello`].
pub fn encode<'a>(message: &Message, data: &'a [u8], head: &mut Vec<u8>) -> &'a [u8] {
    match message {
        Message::Hello(_) => unreachable!("a hello is sent with the disk's identity, by encode_hello"),
        Message::Regions { map, first_word, words, last } => {
            assert!(words.len() <= REGION_WORDS_MAX, "a long region map is sent in parts");
            let mut header = FrameHeader::new(Kind::Regions);
            header.offset = (*first_word).into();
            header.flags = match map {
                RegionMap::WriteIntent => 0,
                RegionMap::OutOfSync => frame::FLAG_OUT_OF_SYNC,
            };
            header.flags |= if *last { 0 } else { frame::FLAG_MORE };
            records(header, words.iter().map(|word| word.to_le_bytes()), head)
        }
        Message::KeepAlive => control(FrameHeader::new(Kind::KeepAlive), &[], head),
        Message::Write { op, write } => encode_write(*op, *write, data, head),
        Message::Flush { op } => control(header(Kind::Flush, *op), &[], head),
        Message::EpochEnd { session, epoch } => {
            let record = EpochRecord { session: session.0.into(), epoch: epoch.0.into() };
            control(FrameHeader::new(Kind::EpochEnd), record.as_bytes(), head)
        }
        Message::Read { op, extent } => with_extent(header(Kind::Read, *op), *extent, head),
        Message::Ack { op, outcome } => {
            encode_acks(&[(*op, *outcome)], head);
            &[]
        }
        Message::ReadData { op } => {
            let length = u32::try_from(data.len()).expect("bounded by the limit on reads");
            with_data(header(Kind::ReadData, *op), Extent { offset: 0, length }, data, head)
        }
        Message::History { op, current, bitmap_base } => {
            let record = HistoryRecord { current: current.0.into(), bitmap_base: bitmap_base.0.into() };
            control(header(Kind::History, *op), record.as_bytes(), head)
        }
        Message::CopyBegin { op, kind, current } => {
            let mut header = header(Kind::CopyBegin, *op);
            header.flags = match kind {
                CopyKind::Delta => 0,
                CopyKind::Full => frame::FLAG_FULL,
            };
            let record = HistoryRecord { current: current.0.into(), bitmap_base: 0.into() };
            control(header, record.as_bytes(), head)
        }
        Message::HashRequest { op, extent } => with_extent(header(Kind::HashRequest, *op), *extent, head),
        Message::Hashes { op, hashes } => {
            let fits = u32::try_from(hashes.len()).is_ok_and(|count| count <= HASH_BLOCKS_MAX);
            assert!(fits, "as many as were asked for");
            records(header(Kind::Hashes, *op), hashes.iter().copied(), head)
        }
        Message::CopyData { op, extent } => {
            if extent.length <= COPY_ZEROES_BYTES_MAX && data.iter().all(|&byte| byte == 0) {
                return with_extent(header(Kind::CopyZeroes, *op), *extent, head);
            }
            with_data(header(Kind::CopyData, *op), *extent, data, head)
        }
        Message::CopyEnd { op, current } => {
            let record = HistoryRecord { current: current.0.into(), bitmap_base: 0.into() };
            control(header(Kind::CopyEnd, *op), record.as_bytes(), head)
        }
    }
}

fn encode_write<'a>(op: OpId, write: Write, data: &'a [u8], head: &mut Vec<u8>) -> &'a [u8] {
    let kind = match write.kind {
        WriteKind::Data => Kind::Write,
        WriteKind::Zeroes | WriteKind::ZeroesAllocated => Kind::WriteZeroes,
        WriteKind::Trim => Kind::Trim,
    };
    let mut header = header(kind, op);
    header.flags = match write.durability {
        Durability::AtFlush => 0,
        Durability::BeforeReply => frame::FLAG_DURABLE,
    };
    match write.kind {
        WriteKind::Data => return with_data(header, write.extent, data, head),
        WriteKind::ZeroesAllocated => header.flags |= frame::FLAG_KEEP_ALLOCATED,
        WriteKind::Zeroes | WriteKind::Trim => {}
    }
    with_extent(header, write.extent, head)
}

fn header(kind: Kind, op: OpId) -> FrameHeader {
    FrameHeader { op: op.0.into(), ..FrameHeader::new(kind) }
}

fn outcome_number(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Done => 0,
        Outcome::Failed => 1,
        Outcome::NotNow => 2,
    }
}

fn put_header(mut header: FrameHeader, length: usize, head: &mut Vec<u8>) {
    header.length = u32::try_from(length).expect("bounded by the limits").into();
    header.checksum = header.checksum_of().into();
    head.extend_from_slice(header.as_bytes());
}

fn control(header: FrameHeader, body: &[u8], head: &mut Vec<u8>) -> &'static [u8] {
    put_header(header, body.len(), head);
    head.extend_from_slice(body);
    &[]
}

fn records<R: IntoBytes + Immutable>(
    header: FrameHeader,
    records: impl ExactSizeIterator<Item = R>,
    head: &mut Vec<u8>,
) -> &'static [u8] {
    put_header(header, records.len() * size_of::<R>(), head);
    for record in records {
        head.extend_from_slice(record.as_bytes());
    }
    &[]
}

fn with_data<'a>(mut header: FrameHeader, extent: Extent, data: &'a [u8], head: &mut Vec<u8>) -> &'a [u8] {
    assert_eq!(u32::try_from(data.len()), Ok(extent.length), "as much data as the message says");
    assert!(extent.length <= DATA_BYTES_MAX, "data within the limit");
    header.offset = extent.offset.into();
    put_header(header, data.len(), head);
    data
}

fn with_extent(mut header: FrameHeader, extent: Extent, head: &mut Vec<u8>) -> &'static [u8] {
    header.offset = extent.offset.into();
    header.argument = extent.length.into();
    control(header, &[], head)
}
