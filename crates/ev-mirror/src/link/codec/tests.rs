//! The link's frames: there and back, in parts, cut, changed, and hellos that do not fit.

use ev_core::ids::{DiskId, MemberId, PoolId, VmId};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::buffer::{BufferPool, IoBuffer};
use crate::metadata::ReplicaHealth;

const SIZE_BYTES: u64 = (1 << 30) + 4096;

fn hello() -> Hello {
    Hello {
        newest: LinkVersion::NEWEST,
        oldest: LinkVersion::OLDEST,
        pool: PoolId(Uuid::from_u128(1)),
        vm: VmId(Uuid::from_u128(2)),
        disk: DiskId(Uuid::from_u128(3)),
        host: MemberId(4),
        instance: 77,
        role: LinkRole::Coordinator,
        generation: Generation(5),
        size_bytes: SIZE_BYTES,
        region_bytes: 1 << 20,
        health: ReplicaHealth::Good,
        current: Generation(6),
        bitmap_base: Generation(7),
    }
}

fn encoded<D: AsRef<[u8]>>(message: &Message<D>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let data = encode(message, &mut bytes).to_vec();
    bytes.extend(data);
    bytes
}

/// Messages in a stream that arrives in parts of `part` bytes.
fn decode(bytes: &[u8], part: usize) -> Result<Vec<Message<IoBuffer>>, FrameError> {
    let mut decoder = Decoder::new(SIZE_BYTES);
    let mut pool = BufferPool::default();
    let mut messages = Vec::new();
    let mut rest = bytes;
    loop {
        while let Some(message) = decoder.next(&mut pool)? {
            messages.push(message);
        }
        if rest.is_empty() {
            return Ok(messages);
        }
        let space = decoder.space();
        let count = part.min(rest.len()).min(space.len());
        space[..count].copy_from_slice(&rest[..count]);
        decoder.received(count);
        rest = &rest[count..];
    }
}

fn buffer(length: usize) -> IoBuffer {
    let mut buffer = IoBuffer::new(length);
    for (at, byte) in buffer.data_mut().iter_mut().enumerate() {
        *byte = u8::try_from(at % 253).unwrap();
    }
    buffer
}

/// One of each kind, and of each value that a kind can carry.
fn all_messages() -> Vec<Message<IoBuffer>> {
    let sequence = Sequence(u64::MAX - 1);
    let extent = Extent { offset: 1 << 16, length: 4096 };
    let (ours, theirs) = (DiskId(Uuid::from_u128(8)), DiskId(Uuid::from_u128(9)));
    let version = LinkVersion(3);
    let (ours_oldest, ours_newest, theirs_oldest, theirs_newest) = (version, version, LinkVersion(1), LinkVersion(2));
    let mut messages = vec![
        Message::Hello(hello()),
        Message::Hello(Hello { role: LinkRole::Replica, health: ReplicaHealth::Copying, ..hello() }),
        Message::Refused(Refusal::Version { ours_oldest, ours_newest, theirs_oldest, theirs_newest }),
        Message::Refused(Refusal::OtherPool),
        Message::Refused(Refusal::OtherDisk { ours, theirs }),
        Message::Refused(Refusal::OtherSize { ours: 1, theirs: u64::MAX }),
        Message::Refused(Refusal::OtherRegions { ours: 1, theirs: u32::MAX }),
        Message::Refused(Refusal::SameHost),
        Message::Refused(Refusal::SameRole(LinkRole::Replica)),
        Message::Refused(Refusal::Unknown(999)),
        Message::KeepAlive,
        Message::Flush { sequence },
        Message::Read { sequence, extent },
        Message::Acks(vec![]),
        Message::ReadData { sequence, data: buffer(70_000) },
        Message::Settled { through: sequence },
        Message::History { sequence, current: Generation(1), bitmap_base: Generation(2) },
        Message::HashRequest { sequence, extent },
        Message::Hashes { sequence, hashes: vec![BlockHash::of(b"a"), BlockHash::of(b"b")] },
        Message::CopyData { sequence, offset: 4096, data: buffer(1 << 20) },
        Message::CopyZeroes { sequence, extent },
        Message::CopyEnd { sequence, current: Generation(3), bitmap_base: Generation(4) },
    ];
    let outcomes = [Outcome::Done, Outcome::Failed, Outcome::NotNow];
    messages.push(Message::Acks(
        (0..ACKS_MAX).map(|at| Ack { sequence, outcome: outcomes[at % outcomes.len()] }).collect(),
    ));
    for durability in [Durability::AtFlush, Durability::BeforeReply] {
        messages.push(Message::Write { sequence, offset: 512, durability, data: buffer(512) });
        messages.push(Message::Trim { sequence, extent, durability });
        for zeroing in [Zeroing::MayDeallocate, Zeroing::KeepAllocated] {
            messages.push(Message::WriteZeroes { sequence, extent, zeroing, durability });
        }
    }
    for map in [RegionMap::WriteIntent, RegionMap::OutOfSync] {
        for part in [Part::More, Part::Last] {
            messages.push(Message::Regions { map, first_word: 77, words: vec![1, u64::MAX, 0], part });
        }
    }
    for kind in [CopyKind::Delta, CopyKind::Full] {
        messages.push(Message::CopyBegin { sequence, kind, current: Generation(7) });
    }
    messages
}

/// What the refused side reads: "ours" and "theirs" change sides.
fn as_received(message: Message<IoBuffer>) -> Message<IoBuffer> {
    let Message::Refused(refusal) = message else { return message };
    Message::Refused(match refusal {
        Refusal::Version { ours_oldest, ours_newest, theirs_oldest, theirs_newest } => Refusal::Version {
            ours_oldest: theirs_oldest,
            ours_newest: theirs_newest,
            theirs_oldest: ours_oldest,
            theirs_newest: ours_newest,
        },
        Refusal::OtherDisk { ours, theirs } => Refusal::OtherDisk { ours: theirs, theirs: ours },
        Refusal::OtherSize { ours, theirs } => Refusal::OtherSize { ours: theirs, theirs: ours },
        Refusal::OtherRegions { ours, theirs } => Refusal::OtherRegions { ours: theirs, theirs: ours },
        Refusal::OtherPool | Refusal::SameHost | Refusal::SameRole(_) | Refusal::Unknown(_) => refusal,
    })
}

#[test]
fn every_message_comes_back_whatever_the_parts() {
    let messages = all_messages();
    let stream: Vec<u8> = messages.iter().flat_map(encoded).collect();
    let expected: Vec<_> = messages.into_iter().map(as_received).collect();
    for part in [1, 31, 4096, 100_000, usize::MAX] {
        assert!(decode(&stream, part).unwrap() == expected, "parts of {part}");
    }
}

#[test]
fn version_1_is_what_it_was() {
    let mut stream = encoded::<IoBuffer>(&Message::Hello(hello()));
    let write: Message<&[u8]> = Message::Write {
        sequence: Sequence(0x0102),
        offset: 0x0304_0000,
        durability: Durability::BeforeReply,
        data: b"data".as_slice(),
    };
    stream.extend(encoded(&write));
    let hex: String = stream.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, SAVED_VERSION_1);
}

const SAVED_VERSION_1: &str = concat!(
    "454b01007000000000000000000000000000000000000000000000007f639faa",
    "0100010000001000000000000000000000000000000000010000000000000000",
    "0000000000000002000000000000000000000000000000030400000000000000",
    "0500000000000000001000400000000006000000000000000700000000000000",
    "01000000020000004d00000000000000454b1001040000000201000000000000",
    "000004030000000000000000643ac9e164617461",
);

#[test]
fn every_truncation_is_just_incomplete() {
    let stream: Vec<u8> = all_messages()[..14].iter().flat_map(encoded).collect();
    let whole = decode(&stream, usize::MAX).unwrap();
    for end in 0..stream.len() {
        assert!(whole.starts_with(&decode(&stream[..end], usize::MAX).unwrap()), "cut at {end}");
    }
}

#[test]
fn any_flipped_header_bit_is_found() {
    let greeting = encoded::<IoBuffer>(&Message::Hello(hello()));
    let flush = encoded::<IoBuffer>(&Message::Flush { sequence: Sequence(9) });
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
    let greeting = encoded::<IoBuffer>(&Message::Hello(hello()));
    let after_hello = |bytes: Vec<u8>| decode(&[greeting.clone(), bytes].concat(), usize::MAX).unwrap_err();
    assert_eq!(after_hello(frame(0, 0, 0, 0, &[])), FrameError::UnknownKind(0));
    assert_eq!(after_hello(frame(200, 0, 0, 0, &[])), FrameError::UnknownKind(200));
    for (kind, length) in
        [(16, 0), (16, DATA_BYTES_MAX + 1), (32, 15), (32, 16 * 1025), (50, 33), (3, 4), (19, 1), (35, 8)]
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
    let flush = encoded::<IoBuffer>(&Message::Flush { sequence: Sequence(1) });
    assert_eq!(decode(&flush, usize::MAX), Err(FrameError::NotGreeted));
    assert!(matches!(decode(b"GET / HTTP/1.1\r\nHost: somewhere\r\n", usize::MAX), Err(FrameError::BadMagic(_))));
}

#[test]
fn an_older_version_is_refused_with_both_versions_named() {
    let old = Hello { newest: LinkVersion(0), oldest: LinkVersion(0), ..hello() };
    let error = decode(&encoded::<IoBuffer>(&Message::Hello(old)), usize::MAX).unwrap_err();
    assert_eq!(error, FrameError::Version { oldest: LinkVersion(0), newest: LinkVersion(0) });
    assert_eq!(
        error.to_string(),
        "the partner speaks link protocol versions 0 to 0, this host 1 to 1; upgrade the host with the older programs"
    );
    // A later version's hello may be longer and may speak ours too.
    let later = Hello { newest: LinkVersion(7), ..hello() };
    let mut bytes = encoded::<IoBuffer>(&Message::Hello(later));
    let body = bytes.split_off(32);
    let longer = frame(1, u32::try_from(body.len() + 9).unwrap(), 0, 0, &[body, vec![1; 9]].concat());
    let theirs = match &decode(&longer, usize::MAX).unwrap()[..] {
        [Message::Hello(theirs)] => *theirs,
        other => panic!("{other:?}"),
    };
    let theirs = Hello { host: MemberId(40), role: LinkRole::Replica, ..theirs };
    assert_eq!(hello().check(&theirs), Ok(LinkVersion(1)));
    // One that gave ours up can have any form.
    let body = [8_u16.to_le_bytes(), 2_u16.to_le_bytes()].concat();
    let newer = frame(1, 4, 0, 0, &body);
    assert_eq!(decode(&newer, usize::MAX), Err(FrameError::Version { oldest: LinkVersion(2), newest: LinkVersion(8) }));
}

#[test]
fn hellos_that_do_not_fit_are_refused() {
    let ours = hello();
    let fitting = Hello { host: MemberId(40), role: LinkRole::Replica, ..ours };
    assert_eq!(ours.check(&fitting), Ok(LinkVersion(1)));
    let other = Uuid::from_u128(99);
    let cases = [
        (Hello { pool: PoolId(other), ..fitting }, Refusal::OtherPool),
        (Hello { disk: DiskId(other), ..fitting }, Refusal::OtherDisk { ours: ours.disk, theirs: DiskId(other) }),
        (Hello { host: ours.host, ..fitting }, Refusal::SameHost),
        (Hello { size_bytes: 5, ..fitting }, Refusal::OtherSize { ours: SIZE_BYTES, theirs: 5 }),
        (Hello { region_bytes: 5, ..fitting }, Refusal::OtherRegions { ours: 1 << 20, theirs: 5 }),
        (Hello { role: ours.role, ..fitting }, Refusal::SameRole(LinkRole::Coordinator)),
    ];
    for (theirs, refusal) in cases {
        assert_eq!(ours.check(&theirs), Err(refusal));
    }
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
        let greeting = encoded::<IoBuffer>(&Message::Hello(hello()));
        let _ = decode(&[greeting, frame(kind, length, offset, argument, &body)].concat(), usize::MAX);
        let _ = decode(&frame(kind % 3, length, offset, argument, &body), usize::MAX);
    }
}
