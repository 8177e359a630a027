//! Messages to bytes.

use zerocopy::IntoBytes;

use super::Sequence;
use super::frame::{self, AckRecord, FrameHeader, HistoryRecord, Kind};
use super::hello::{HelloRecord, RefusalRecord};
use super::{ACKS_MAX, CopyKind, DATA_BYTES_MAX, HASH_BLOCKS_MAX, Message, Outcome, Part, REGION_WORDS_MAX};
use crate::extent::Extent;
use crate::metadata::RegionMap;
use crate::nbd::{Durability, Zeroing};

/// Appends the message to `head` but for its data, which is returned and is to be sent right after it. The limits of
/// this module are asserted: what passes them is our own mistake.
pub fn encode<'a, D: AsRef<[u8]>>(message: &'a Message<D>, head: &mut Vec<u8>) -> &'a [u8] {
    let mut header = FrameHeader::new(kind_of(message));
    match message {
        Message::Hello(hello) => control(header, HelloRecord::from(hello).as_bytes(), head),
        Message::Refused(refusal) => control(header, RefusalRecord::from(refusal).as_bytes(), head),
        Message::Regions { map, first_word, words, part } => {
            assert!(words.len() <= REGION_WORDS_MAX, "a long region map is sent in parts");
            header.offset = (*first_word).into();
            header.flags = match map {
                RegionMap::WriteIntent => 0,
                RegionMap::OutOfSync => frame::FLAG_OUT_OF_SYNC,
            } | match part {
                Part::More => frame::FLAG_MORE,
                Part::Last => 0,
            };
            records(header, words.iter().map(|word| word.to_le_bytes()), head)
        }
        Message::KeepAlive => control(header, &[], head),
        Message::Write { sequence, offset, durability, data } => {
            header.flags = durable(*durability);
            with_data(header, *sequence, *offset, data.as_ref(), head)
        }
        Message::WriteZeroes { sequence, extent, zeroing, durability } => {
            header.flags = durable(*durability)
                | match zeroing {
                    Zeroing::MayDeallocate => 0,
                    Zeroing::KeepAllocated => frame::FLAG_KEEP_ALLOCATED,
                };
            with_extent(header, *sequence, *extent, head)
        }
        Message::Trim { sequence, extent, durability } => {
            header.flags = durable(*durability);
            with_extent(header, *sequence, *extent, head)
        }
        Message::Read { sequence, extent }
        | Message::HashRequest { sequence, extent }
        | Message::CopyZeroes { sequence, extent } => with_extent(header, *sequence, *extent, head),
        Message::Flush { sequence } | Message::Settled { through: sequence } => {
            header.sequence = sequence.0.into();
            control(header, &[], head)
        }
        Message::Acks(acks) => {
            assert!(acks.len() <= ACKS_MAX, "many acknowledgements are sent in parts");
            records(
                header,
                acks.iter().map(|ack| AckRecord {
                    sequence: ack.sequence.0.into(),
                    outcome: outcome_number(ack.outcome).into(),
                    zero: 0.into(),
                }),
                head,
            )
        }
        Message::ReadData { sequence, data } => with_data(header, *sequence, 0, data.as_ref(), head),
        Message::CopyBegin { sequence, kind, current } => {
            header.sequence = sequence.0.into();
            header.offset = current.0.into();
            header.flags = match kind {
                CopyKind::Delta => 0,
                CopyKind::Full => frame::FLAG_FULL,
            };
            control(header, &[], head)
        }
        Message::Hashes { sequence, hashes } => {
            assert!(
                u32::try_from(hashes.len()).is_ok_and(|count| count <= HASH_BLOCKS_MAX),
                "as many as were asked for"
            );
            header.sequence = sequence.0.into();
            records(header, hashes.iter().map(|hash| hash.0), head)
        }
        Message::CopyData { sequence, offset, data } => with_data(header, *sequence, *offset, data.as_ref(), head),
        Message::History { sequence, current, bitmap_base } | Message::CopyEnd { sequence, current, bitmap_base } => {
            header.sequence = sequence.0.into();
            let record = HistoryRecord { current: current.0.into(), bitmap_base: bitmap_base.0.into() };
            control(header, record.as_bytes(), head)
        }
    }
}

fn kind_of<D>(message: &Message<D>) -> Kind {
    match message {
        Message::Hello(_) => Kind::Hello,
        Message::Refused(_) => Kind::Refused,
        Message::Regions { .. } => Kind::Regions,
        Message::KeepAlive => Kind::KeepAlive,
        Message::Write { .. } => Kind::Write,
        Message::WriteZeroes { .. } => Kind::WriteZeroes,
        Message::Trim { .. } => Kind::Trim,
        Message::Flush { .. } => Kind::Flush,
        Message::Read { .. } => Kind::Read,
        Message::Acks(_) => Kind::Acks,
        Message::ReadData { .. } => Kind::ReadData,
        Message::Settled { .. } => Kind::Settled,
        Message::History { .. } => Kind::History,
        Message::CopyBegin { .. } => Kind::CopyBegin,
        Message::HashRequest { .. } => Kind::HashRequest,
        Message::Hashes { .. } => Kind::Hashes,
        Message::CopyData { .. } => Kind::CopyData,
        Message::CopyZeroes { .. } => Kind::CopyZeroes,
        Message::CopyEnd { .. } => Kind::CopyEnd,
    }
}

fn durable(durability: Durability) -> u8 {
    match durability {
        Durability::AtFlush => 0,
        Durability::BeforeReply => frame::FLAG_DURABLE,
    }
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

fn records<R: IntoBytes + zerocopy::Immutable>(
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

fn with_data<'a>(
    mut header: FrameHeader,
    sequence: Sequence,
    offset: u64,
    data: &'a [u8],
    head: &mut Vec<u8>,
) -> &'a [u8] {
    assert!(u32::try_from(data.len()).is_ok_and(|length| length <= DATA_BYTES_MAX), "data within the limit");
    header.sequence = sequence.0.into();
    header.offset = offset.into();
    put_header(header, data.len(), head);
    data
}

fn with_extent(mut header: FrameHeader, sequence: Sequence, extent: Extent, head: &mut Vec<u8>) -> &'static [u8] {
    header.sequence = sequence.0.into();
    header.offset = extent.offset.into();
    header.argument = extent.length.into();
    control(header, &[], head)
}
