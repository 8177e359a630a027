//! Between the engines' messages, whose data is elsewhere, and the link's frames, which carry it.

use ev_core::mirror::{self as core, Durability, OpId, Write, WriteKind};

use crate::buffer::IoBuffer;
use crate::extent::Extent;
use crate::link::codec::{self, Ack, BlockHash, CopyKind, Outcome, Part, Sequence};
use crate::metadata::{RegionMap, ReplicaHealth};
use crate::nbd::{self, Zeroing};

pub fn extent_in(extent: Extent) -> core::Extent {
    core::Extent { offset: extent.offset, length: extent.length }
}

pub fn extent_out(extent: core::Extent) -> Extent {
    Extent { offset: extent.offset, length: extent.length }
}

pub fn durability_in(durability: nbd::Durability) -> Durability {
    match durability {
        nbd::Durability::AtFlush => Durability::AtFlush,
        nbd::Durability::BeforeReply => Durability::BeforeReply,
    }
}

fn durability_out(durability: Durability) -> nbd::Durability {
    match durability {
        Durability::AtFlush => nbd::Durability::AtFlush,
        Durability::BeforeReply => nbd::Durability::BeforeReply,
    }
}

pub fn zeroing_in(zeroing: Zeroing) -> WriteKind {
    match zeroing {
        Zeroing::MayDeallocate => WriteKind::Zeroes,
        Zeroing::KeepAllocated => WriteKind::ZeroesAllocated,
    }
}

pub fn health_in(health: ReplicaHealth) -> core::Health {
    match health {
        ReplicaHealth::Empty => core::Health::Empty,
        ReplicaHealth::Good => core::Health::Good,
        ReplicaHealth::Copying => core::Health::Copying,
        ReplicaHealth::Failed => core::Health::Failed,
    }
}

pub fn health_out(health: core::Health) -> ReplicaHealth {
    match health {
        core::Health::Empty => ReplicaHealth::Empty,
        core::Health::Good => ReplicaHealth::Good,
        core::Health::Copying => ReplicaHealth::Copying,
        core::Health::Failed => ReplicaHealth::Failed,
    }
}

pub fn map_in(map: RegionMap) -> core::RegionMap {
    match map {
        RegionMap::WriteIntent => core::RegionMap::WriteIntent,
        RegionMap::OutOfSync => core::RegionMap::OutOfSync,
    }
}

pub fn map_out(map: core::RegionMap) -> RegionMap {
    match map {
        core::RegionMap::WriteIntent => RegionMap::WriteIntent,
        core::RegionMap::OutOfSync => RegionMap::OutOfSync,
    }
}

fn outcome_in(outcome: Outcome) -> core::Outcome {
    match outcome {
        Outcome::Done => core::Outcome::Done,
        Outcome::Failed => core::Outcome::Failed,
        Outcome::NotNow => core::Outcome::NotNow,
    }
}

pub fn outcome_out(outcome: core::Outcome) -> Outcome {
    match outcome {
        core::Outcome::Done => Outcome::Done,
        core::Outcome::Failed => Outcome::Failed,
        core::Outcome::NotNow => Outcome::NotNow,
    }
}

/// A frame to send, but for greetings (which say more than the engine knows) and acknowledgements (which are sent together).
/// `data` is the operation's, where the message has any.
pub fn out(message: core::Message, data: Option<&IoBuffer>) -> Option<codec::Message<&[u8]>> {
    let sequence = |op: OpId| Sequence(op.0);
    let bytes = || data.map(|buffer| buffer.data());
    Some(match message {
        core::Message::Hello(_) | core::Message::Ack { .. } => return None,
        core::Message::Regions { map, first_word, words, last } => {
            let part = if last { Part::Last } else { Part::More };
            codec::Message::Regions { map: map_out(map), first_word, words, part }
        }
        core::Message::KeepAlive => codec::Message::KeepAlive,
        core::Message::Write { op, write } => write_out(sequence(op), write, bytes())?,
        core::Message::Flush { op } => codec::Message::Flush { sequence: sequence(op) },
        core::Message::Read { op, extent } => {
            codec::Message::Read { sequence: sequence(op), extent: extent_out(extent) }
        }
        core::Message::ReadData { op } => codec::Message::ReadData { sequence: sequence(op), data: bytes()? },
        core::Message::History { op, current, bitmap_base } => {
            codec::Message::History { sequence: sequence(op), current, bitmap_base }
        }
        core::Message::CopyBegin { op, kind, current } => {
            let kind = match kind {
                core::CopyKind::Delta => CopyKind::Delta,
                core::CopyKind::Full => CopyKind::Full,
            };
            codec::Message::CopyBegin { sequence: sequence(op), kind, current }
        }
        core::Message::HashRequest { op, extent } => {
            codec::Message::HashRequest { sequence: sequence(op), extent: extent_out(extent) }
        }
        core::Message::Hashes { op, hashes } => {
            let hashes = hashes.into_iter().map(BlockHash).collect();
            codec::Message::Hashes { sequence: sequence(op), hashes }
        }
        core::Message::CopyData { op, extent } => copy_out(sequence(op), extent, bytes()?),
        core::Message::CopyEnd { op, current } => {
            codec::Message::CopyEnd { sequence: sequence(op), current, bitmap_base: current }
        }
    })
}

/// Zeroes are not sent.
fn copy_out(sequence: Sequence, extent: core::Extent, data: &[u8]) -> codec::Message<&[u8]> {
    if data.iter().all(|byte| *byte == 0) {
        codec::Message::CopyZeroes { sequence, extent: extent_out(extent) }
    } else {
        codec::Message::CopyData { sequence, offset: extent.offset, data }
    }
}

fn write_out(sequence: Sequence, write: Write, data: Option<&[u8]>) -> Option<codec::Message<&[u8]>> {
    let extent = extent_out(write.extent);
    let durability = durability_out(write.durability);
    let zeroes = |zeroing| codec::Message::WriteZeroes { sequence, extent, zeroing, durability };
    Some(match write.kind {
        WriteKind::Data => codec::Message::Write { sequence, offset: extent.offset, durability, data: data? },
        WriteKind::Zeroes => zeroes(Zeroing::MayDeallocate),
        WriteKind::ZeroesAllocated => zeroes(Zeroing::KeepAllocated),
        WriteKind::Trim => codec::Message::Trim { sequence, extent, durability },
    })
}

/// What a received frame is to the engine, and the data that came with it.
pub enum Received {
    Hello(codec::Hello),
    Refused(codec::Refusal),
    One(core::Message, Option<(OpId, IoBuffer)>),
    Acks(Vec<Ack>),
    Nothing,
}

pub fn acknowledged(ack: Ack) -> core::Message {
    core::Message::Ack { op: OpId(ack.sequence.0), outcome: outcome_in(ack.outcome) }
}

pub fn received(message: codec::Message<IoBuffer>) -> Received {
    let op = |sequence: Sequence| OpId(sequence.0);
    let length = |data: &IoBuffer| u32::try_from(data.len()).expect("bounded by the codec");
    let with = |message, op, data| Received::One(message, Some((op, data)));
    let alone = |message| Received::One(message, None);
    match message {
        codec::Message::Hello(hello) => Received::Hello(hello),
        codec::Message::Refused(refusal) => Received::Refused(refusal),
        codec::Message::Acks(acks) => Received::Acks(acks),
        codec::Message::Settled { .. } => Received::Nothing,
        codec::Message::KeepAlive => alone(core::Message::KeepAlive),
        codec::Message::Regions { map, first_word, words, part } => {
            alone(core::Message::Regions { map: map_in(map), first_word, words, last: part == Part::Last })
        }
        codec::Message::Write { sequence, offset, durability, data } => {
            let extent = core::Extent { offset, length: length(&data) };
            let write = Write { extent, kind: WriteKind::Data, durability: durability_in(durability) };
            with(core::Message::Write { op: op(sequence), write }, op(sequence), data)
        }
        codec::Message::WriteZeroes { sequence, extent, zeroing, durability } => {
            alone(written(op(sequence), extent, zeroing_in(zeroing), durability))
        }
        codec::Message::Trim { sequence, extent, durability } => {
            alone(written(op(sequence), extent, WriteKind::Trim, durability))
        }
        codec::Message::Flush { sequence } => alone(core::Message::Flush { op: op(sequence) }),
        codec::Message::Read { sequence, extent } => {
            alone(core::Message::Read { op: op(sequence), extent: extent_in(extent) })
        }
        codec::Message::ReadData { sequence, data } => {
            with(core::Message::ReadData { op: op(sequence) }, op(sequence), data)
        }
        codec::Message::History { sequence, current, bitmap_base } => {
            alone(core::Message::History { op: op(sequence), current, bitmap_base })
        }
        codec::Message::CopyBegin { sequence, kind, current } => {
            let kind = match kind {
                CopyKind::Delta => core::CopyKind::Delta,
                CopyKind::Full => core::CopyKind::Full,
            };
            alone(core::Message::CopyBegin { op: op(sequence), kind, current })
        }
        codec::Message::HashRequest { sequence, extent } => {
            alone(core::Message::HashRequest { op: op(sequence), extent: extent_in(extent) })
        }
        codec::Message::Hashes { sequence, hashes } => {
            let hashes = hashes.into_iter().map(|hash| hash.0).collect();
            alone(core::Message::Hashes { op: op(sequence), hashes })
        }
        codec::Message::CopyData { sequence, offset, data } => {
            let extent = core::Extent { offset, length: length(&data) };
            with(core::Message::CopyData { op: op(sequence), extent }, op(sequence), data)
        }
        codec::Message::CopyZeroes { sequence, extent } => {
            alone(written(op(sequence), extent, WriteKind::Zeroes, nbd::Durability::AtFlush))
        }
        codec::Message::CopyEnd { sequence, current, .. } => {
            alone(core::Message::CopyEnd { op: op(sequence), current })
        }
    }
}

fn written(op: OpId, extent: Extent, kind: WriteKind, durability: nbd::Durability) -> core::Message {
    let write = Write { extent: extent_in(extent), kind, durability: durability_in(durability) };
    core::Message::Write { op, write }
}
