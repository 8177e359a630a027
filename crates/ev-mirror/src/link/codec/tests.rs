//! The link's frames: there and back, in parts, cut, changed, and hellos that do not fit.

use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::{DiskId, Generation, MemberId, PoolId, VmId};
use ev_core::mirror::{
    CopyKind, Durability, Epochs, Extent, Health, Hello, History, Message, OpId, Outcome, RegionMap, ReplicaInfo,
    Write, WriteKind,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::buffer::{BufferPool, IoBuffer};

const SIZE_BYTES: u64 = (1 << 30) + 4096;

fn identity() -> LinkIdentity {
    LinkIdentity {
        pool: PoolId(Uuid::from_u128(1)),
        vm: VmId(Uuid::from_u128(2)),
        disk: DiskId(Uuid::from_u128(3)),
        size_bytes: SIZE_BYTES,
        region_bytes: 1 << 20,
    }
}

fn hello() -> LinkHello {
    let history = History { current: Generation(6), bitmap_base: Generation(7) };
    let replica = ReplicaInfo { health: Health::Good, history };
    LinkHello::new(
        identity(),
        Hello { host: MemberId(4), instance: 8, generation: Generation(5), replica, epochs: Epochs::None },
    )
}

fn encoded(incoming: &Incoming) -> Vec<u8> {
    let mut bytes = Vec::new();
    match incoming {
        Incoming::Hello(hello) => encode_hello(hello, &mut bytes),
        Incoming::Refused(refusal) => encode_refusal(refusal, &mut bytes),
        Incoming::Message(message, data) => {
            let data = encode(message, data.as_ref().map_or(&[], IoBuffer::data), &mut bytes).to_vec();
            bytes.extend(data);
        }
    }
    bytes
}

/// Frames in a stream that arrives in parts of `part` bytes.
fn decode(bytes: &[u8], part: usize) -> Result<Vec<Incoming>, FrameError> {
    let mut decoder = Decoder::new(SIZE_BYTES);
    let mut pool = BufferPool::default();
    let mut frames = Vec::new();
    let mut rest = bytes;
    loop {
        while let Some(frame) = decoder.next(&mut pool)? {
            frames.push(frame);
        }
        if rest.is_empty() {
            return Ok(frames);
        }
        let space = decoder.space();
        let count = part.min(rest.len()).min(space.len());
        space[..count].copy_from_slice(&rest[..count]);
        decoder.received(count);
        rest = &rest[count..];
    }
}

fn buffer(length: usize) -> Option<IoBuffer> {
    let mut buffer = IoBuffer::new(length);
    for (at, byte) in buffer.data_mut().iter_mut().enumerate() {
        *byte = u8::try_from(at % 253).unwrap();
    }
    Some(buffer)
}

/// One of each kind, and of each value that a kind can carry.
fn all_frames() -> Vec<Incoming> {
    let op = OpId(u64::MAX - 1);
    let current = Generation(3);
    let extent = |length| Extent { offset: 1 << 16, length };
    let (ours, theirs) = (DiskId(Uuid::from_u128(8)), DiskId(Uuid::from_u128(9)));
    let version = LinkVersion(3);
    let (ours_oldest, ours_newest, theirs_oldest, theirs_newest) = (version, version, LinkVersion(1), LinkVersion(2));
    let mut copying = hello();
    copying.hello.replica.health = Health::Copying;
    let mut holding = hello();
    holding.hello.epochs = Epochs::Held;
    let mut frames = vec![
        Incoming::Hello(hello()),
        Incoming::Hello(copying),
        Incoming::Hello(holding),
        Incoming::Refused(Refusal::Version { ours_oldest, ours_newest, theirs_oldest, theirs_newest }),
        Incoming::Refused(Refusal::OtherPool),
        Incoming::Refused(Refusal::OtherDisk { ours, theirs }),
        Incoming::Refused(Refusal::OtherSize { ours: 1, theirs: u64::MAX }),
        Incoming::Refused(Refusal::OtherRegions { ours: 1, theirs: u32::MAX }),
        Incoming::Refused(Refusal::Unknown(999)),
    ];
    let mut message = |message, data| frames.push(Incoming::Message(message, data));
    message(Message::KeepAlive, None);
    message(Message::Flush { op }, None);
    message(Message::EpochEnd { session: Session(u64::MAX - 2), epoch: Epoch(9) }, None);
    message(Message::Read { op, extent: extent(4096) }, None);
    message(Message::ReadData { op }, buffer(70_000));
    message(Message::History { op, current, bitmap_base: Generation(2) }, None);
    message(Message::HashRequest { op, extent: extent(4096) }, None);
    message(Message::Hashes { op, hashes: vec![[1; 32], [2; 32]] }, None);
    message(Message::CopyData { op, extent: extent(1 << 20) }, buffer(1 << 20));
    message(Message::CopyData { op, extent: extent(1 << 16) }, Some(IoBuffer::new(1 << 16)));
    message(Message::CopyEnd { op, current }, None);
    for outcome in [Outcome::Done, Outcome::Failed, Outcome::NotNow] {
        message(Message::Ack { op, outcome }, None);
    }
    for durability in [Durability::AtFlush, Durability::BeforeReply] {
        let write = |kind| Message::Write { op, write: Write { extent: extent(512), kind, durability } };
        message(write(WriteKind::Data), buffer(512));
        for kind in [WriteKind::Zeroes, WriteKind::ZeroesAllocated, WriteKind::Trim] {
            message(write(kind), None);
        }
    }
    for map in [RegionMap::WriteIntent, RegionMap::OutOfSync] {
        for last in [false, true] {
            message(Message::Regions { map, first_word: 77, words: vec![1, u64::MAX, 0], last }, None);
        }
    }
    for kind in [CopyKind::Delta, CopyKind::Full] {
        message(Message::CopyBegin { op, kind, current }, None);
    }
    frames
}

/// What the refused side reads: "ours" and "theirs" change sides.
fn as_received(frame: Incoming) -> Incoming {
    let Incoming::Refused(refusal) = frame else { return frame };
    Incoming::Refused(match refusal {
        Refusal::Version { ours_oldest, ours_newest, theirs_oldest, theirs_newest } => Refusal::Version {
            ours_oldest: theirs_oldest,
            ours_newest: theirs_newest,
            theirs_oldest: ours_oldest,
            theirs_newest: ours_newest,
        },
        Refusal::OtherDisk { ours, theirs } => Refusal::OtherDisk { ours: theirs, theirs: ours },
        Refusal::OtherSize { ours, theirs } => Refusal::OtherSize { ours: theirs, theirs: ours },
        Refusal::OtherRegions { ours, theirs } => Refusal::OtherRegions { ours: theirs, theirs: ours },
        Refusal::OtherPool | Refusal::Unknown(_) => refusal,
    })
}

#[test]
fn every_frame_comes_back_whatever_the_parts() {
    let frames = all_frames();
    let stream: Vec<u8> = frames.iter().flat_map(encoded).collect();
    let expected: Vec<_> = frames.into_iter().map(as_received).collect();
    for part in [1, 31, 4096, 100_000, usize::MAX] {
        assert!(decode(&stream, part).unwrap() == expected, "parts of {part}");
    }
}

#[test]
fn acknowledgements_of_one_frame_come_one_by_one() {
    let acks: Vec<_> = (0..1000).map(|op| (OpId(op), Outcome::Done)).collect();
    let mut stream = encoded(&Incoming::Hello(hello()));
    encode_acks(&acks, &mut stream);
    encode_acks(&[], &mut stream);
    let frames = decode(&stream, 5000).unwrap();
    let expected = acks.into_iter().map(|(op, outcome)| Incoming::Message(Message::Ack { op, outcome }, None));
    assert!(frames.into_iter().skip(1).eq(expected));
}

#[test]
fn copied_zeroes_are_not_sent() {
    let extent = Extent { offset: 0, length: 1 << 16 };
    let copy = Incoming::Message(Message::CopyData { op: OpId(1), extent }, Some(IoBuffer::new(1 << 16)));
    assert_eq!(encoded(&copy).len(), 32);
}

#[test]
fn version_1_is_what_it_was() {
    let v1 = LinkVersion(1);
    let mut stream = encoded(&Incoming::Hello(LinkHello { newest: v1, oldest: v1, ..hello() }));
    let write = Write {
        extent: Extent { offset: 0x0304_0000, length: 4 },
        kind: WriteKind::Data,
        durability: Durability::BeforeReply,
    };
    let data = encode(&Message::Write { op: OpId(0x0102), write }, b"data", &mut stream);
    stream.extend_from_slice(data);
    let hex: String = stream.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, SAVED_VERSION_1);
}

#[test]
fn version_2_is_what_it_was() {
    let mut greeting = hello();
    greeting.hello.epochs = Epochs::Held;
    let mut stream = encoded(&Incoming::Hello(greeting)).split_off(136);
    let mark = Message::EpochEnd { session: Session(0x0102_0304_0506_0708), epoch: Epoch(0x0a0b) };
    encode(&mark, &[], &mut stream);
    let hex: String = stream.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, SAVED_VERSION_2);
}

/// The hello's last eight bytes (the rest is as in version 1), and a mark.
const SAVED_VERSION_2: &str = concat!(
    "0200000001000000454b1500100000000000000000000000000000000000000000000000585cdbde",
    "08070605040302010b0a000000000000",
);

const SAVED_VERSION_1: &str = concat!(
    "454b01007000000000000000000000000000000000000000000000007f639faa",
    "0100010000001000000000000000000000000000000000010000000000000000",
    "0000000000000002000000000000000000000000000000030400000000000000",
    "0800000000000000050000000000000000100040000000000600000000000000",
    "07000000000000000200000000000000454b1001040000000201000000000000",
    "000004030000000000000000643ac9e164617461",
);

#[test]
fn every_truncation_is_just_incomplete() {
    let stream: Vec<u8> = all_frames()[..14].iter().flat_map(encoded).collect();
    let whole = decode(&stream, usize::MAX).unwrap();
    for end in 0..stream.len() {
        assert!(whole.starts_with(&decode(&stream[..end], usize::MAX).unwrap()), "cut at {end}");
    }
}

#[test]
fn any_flipped_header_bit_is_found() {
    let greeting = encoded(&Incoming::Hello(hello()));
    let flush = encoded(&Incoming::Message(Message::Flush { op: OpId(9) }, None));
    for bit in 0..flush.len() * 8 {
        let mut changed = flush.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let result = decode(&[greeting.clone(), changed].concat(), usize::MAX);
        assert!(matches!(result, Err(FrameError::BadMagic(_) | FrameError::BadChecksum)), "bit {bit}: {result:?}");
    }
}

/// A frame with a good checksum and whatever else.
fn frame(kind: u8, length: u32, offset: u64, argument: u32, body: &[u8]) -> Vec<u8> {
    use zerocopy::IntoBytes;
    let mut header = frame::FrameHeader::new(frame::Kind::KeepAlive);
    header.kind = kind;
    header.length = length.into();
    header.offset = offset.into();
    header.argument = argument.into();
    header.checksum = header.checksum_of().into();
    [header.as_bytes(), body].concat()
}

#[test]
fn rubbish_in_a_whole_frame_is_an_error() {
    let greeting = encoded(&Incoming::Hello(hello()));
    let after_hello = |bytes: Vec<u8>| decode(&[greeting.clone(), bytes].concat(), usize::MAX).unwrap_err();
    assert_eq!(after_hello(frame(0, 0, 0, 0, &[])), FrameError::UnknownKind(0));
    assert_eq!(after_hello(frame(200, 0, 0, 0, &[])), FrameError::UnknownKind(200));
    for (kind, length) in
        [(16, 0), (16, DATA_BYTES_MAX + 1), (32, 15), (32, 16 * 1025), (50, 33), (3, 4), (19, 1), (35, 8), (21, 8)]
    {
        assert_eq!(after_hello(frame(kind, length, 0, 0, &[])), FrameError::BadLength { kind, length });
    }
    for (offset, length) in [(SIZE_BYTES, 512), (SIZE_BYTES - 512, 1024), (u64::MAX, 1), (0, 0)] {
        let outside = FrameError::OutsideDisk { offset, length, size_bytes: SIZE_BYTES };
        for kind in [17, 18, 20, 49, 52] {
            assert_eq!(after_hello(frame(kind, 0, offset, length, &[])), outside);
        }
    }
    let outside = FrameError::OutsideDisk { offset: SIZE_BYTES, length: 512, size_bytes: SIZE_BYTES };
    for kind in [16, 51] {
        assert_eq!(after_hello(frame(kind, 512, SIZE_BYTES, 0, &[0; 512])), outside);
    }
    assert_eq!(after_hello(frame(20, 0, 0, DATA_BYTES_MAX + 1, &[])), FrameError::BadValue { kind: 20 });
    assert_eq!(after_hello(frame(49, 0, 512, 512, &[])), FrameError::BadValue { kind: 49 });
    assert_eq!(
        after_hello(frame(49, 0, 0, HASH_BLOCK_BYTES * HASH_BLOCKS_MAX + 1, &[])),
        FrameError::BadValue { kind: 49 }
    );
    assert_eq!(after_hello(frame(32, 16, 0, 0, &[9; 16])), FrameError::BadValue { kind: 32 });
}

#[test]
fn nothing_is_taken_before_the_hello() {
    let flush = encoded(&Incoming::Message(Message::Flush { op: OpId(1) }, None));
    assert_eq!(decode(&flush, usize::MAX), Err(FrameError::NotGreeted));
    assert!(matches!(decode(b"GET / HTTP/1.1\r\nHost: somewhere\r\n", usize::MAX), Err(FrameError::BadMagic(_))));
}

#[test]
fn an_older_version_is_refused_with_both_versions_named() {
    let old = LinkHello { newest: LinkVersion(0), oldest: LinkVersion(0), ..hello() };
    let error = decode(&encoded(&Incoming::Hello(old)), usize::MAX).unwrap_err();
    assert_eq!(error, FrameError::Version { oldest: LinkVersion(0), newest: LinkVersion(0) });
    assert_eq!(
        error.to_string(),
        "the partner speaks link protocol versions 0 to 0, this host 1 to 2; upgrade the host with the older programs"
    );
    // A later version's hello may be longer and may speak ours too.
    let later = LinkHello { newest: LinkVersion(7), ..hello() };
    let mut bytes = encoded(&Incoming::Hello(later));
    let body = bytes.split_off(32);
    let longer = frame(1, u32::try_from(body.len() + 9).unwrap(), 0, 0, &[body, vec![1; 9]].concat());
    assert_eq!(decode(&longer, usize::MAX).unwrap(), [Incoming::Hello(later)]);
    assert_eq!(identity().check(&later), Ok(LinkVersion(2)));
    let before_epochs = LinkHello { newest: LinkVersion(1), ..hello() };
    assert_eq!(identity().check(&before_epochs), Ok(LinkVersion(1)), "it is no worse a mirror");
    // One that gave ours up can have any form.
    let body = [8_u16.to_le_bytes(), 3_u16.to_le_bytes()].concat();
    let newer = frame(1, 4, 0, 0, &body);
    let error = FrameError::Version { oldest: LinkVersion(3), newest: LinkVersion(8) };
    assert_eq!(decode(&newer, usize::MAX), Err(error));
}

#[test]
fn hellos_that_do_not_fit_are_refused() {
    let ours = identity();
    let other = Uuid::from_u128(99);
    let cases = [
        (LinkIdentity { pool: PoolId(other), ..ours }, Refusal::OtherPool),
        (LinkIdentity { disk: DiskId(other), ..ours }, Refusal::OtherDisk { ours: ours.disk, theirs: DiskId(other) }),
        (LinkIdentity { size_bytes: 5, ..ours }, Refusal::OtherSize { ours: SIZE_BYTES, theirs: 5 }),
        (LinkIdentity { region_bytes: 5, ..ours }, Refusal::OtherRegions { ours: 1 << 20, theirs: 5 }),
    ];
    for (theirs, refusal) in cases {
        assert_eq!(ours.check(&LinkHello::new(theirs, hello().hello)), Err(refusal));
    }
    let newer = LinkHello { newest: LinkVersion(9), oldest: LinkVersion(8), ..hello() };
    assert!(matches!(ours.check(&newer), Err(Refusal::Version { .. })));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(decode(&bytes, 13).is_err() || bytes.len() < 32);
    }

    #[test]
    fn random_fields_never_panic(
        kind: u8, length in 0_u32..100, offset in 0..2 * SIZE_BYTES, argument: u32,
        body in prop::collection::vec(any::<u8>(), 200),
    ) {
        let greeting = encoded(&Incoming::Hello(hello()));
        let _ = decode(&[greeting, frame(kind, length, offset, argument, &body)].concat(), usize::MAX);
        let _ = decode(&frame(kind % 3, length, offset, argument, &body), usize::MAX);
    }
}
