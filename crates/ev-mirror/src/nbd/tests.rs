//! The NBD server against hand-made streams: handshake, requests, refusals, cuts and random bytes.

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::wire::{self, OptionHeader, RequestHeader, command, command_flag, option, option_reply};
use super::*;

const SIZE_BYTES: u64 = 1 << 20;

fn export() -> Export {
    Export { name: "disk-0".to_owned(), size_bytes: SIZE_BYTES }
}

struct Client {
    connection: Connection,
    out: SendQueue,
    pool: BufferPool,
}

impl Client {
    fn new() -> Self {
        let mut out = SendQueue::default();
        let connection = Connection::new(export(), &mut out);
        Self { connection, out, pool: BufferPool::default() }
    }

    /// A connection past the greeting.
    fn greeted() -> Self {
        let mut client = Self::new();
        assert_eq!(client.sent().len(), 18);
        client.send(&3_u32.to_be_bytes());
        client
    }

    /// A connection in transmission.
    fn ready(structured: bool) -> Self {
        let mut client = Self::greeted();
        if structured {
            client.send(&option_bytes(option::STRUCTURED_REPLY, &[]));
            client.send(&option_bytes(option::SET_META_CONTEXT, &meta_context("", &["base:allocation"])));
        }
        client.send(&option_bytes(option::GO, &[0; 6]));
        assert_eq!(client.next(), Ok(None));
        assert!(client.connection.in_transmission());
        client.sent();
        client
    }

    /// Gives the bytes to the connection as far as it has space.
    fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.connection.space();
            let count = space.len().min(bytes.len());
            assert!(count > 0, "the test sends more than one window");
            space[..count].copy_from_slice(&bytes[..count]);
            self.connection.received(count);
            bytes = &bytes[count..];
        }
    }

    fn next(&mut self) -> Result<Option<Request>, ProtocolError> {
        self.connection.next(&mut self.out, &mut self.pool)
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while !self.out.is_empty() {
            let front = self.out.front();
            let count = front.len();
            all.extend_from_slice(front);
            self.out.sent(count, &mut self.pool);
        }
        all
    }

    /// The error number of the simple reply that was just sent.
    fn simple_error(&mut self) -> u32 {
        let sent = self.sent();
        assert_eq!(sent.len(), 16, "{sent:02x?}");
        assert_eq!(sent[..4], wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
        u32::from_be_bytes(sent[4..8].try_into().unwrap())
    }
}

impl PartialEq for Request {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader {
        magic: wire::OPTION_MAGIC.into(),
        option: number.into(),
        length: u32::try_from(data.len()).unwrap().into(),
    };
    [header.as_bytes(), data].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

fn meta_context(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn request(command: u16, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    let header = RequestHeader {
        magic: wire::REQUEST_MAGIC.into(),
        flags: flags.into(),
        command: command.into(),
        cookie: 0x0102_0304_0506_0708.into(),
        offset: offset.into(),
        length: length.into(),
    };
    header.as_bytes().to_vec()
}

/// (option, reply type, data) of each option reply in `bytes`.
fn option_replies(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..8], wire::OPTION_REPLY_MAGIC.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let end = 20 + usize::try_from(number(16)).unwrap();
        replies.push((number(8), number(12), bytes[20..end].to_vec()));
        bytes = &bytes[end..];
    }
    replies
}

#[test]
fn greeting_is_fixed_newstyle_without_zeroes() {
    let sent = Client::new().sent();
    assert_eq!(sent, [b"NBDMAGICIHAVEOPT".as_slice(), &[0, 3]].concat());
}

#[test]
fn export_name_starts_transmission_with_and_without_padding() {
    for (flags, length) in [(3_u32, 10), (1, 134), (0, 134)] {
        let mut client = Client::new();
        client.sent();
        client.send(&flags.to_be_bytes());
        client.send(&option_bytes(option::EXPORT_NAME, b"disk-0"));
        assert_eq!(client.next(), Ok(None));
        let sent = client.sent();
        assert_eq!(sent.len(), length);
        assert_eq!(sent[..8], SIZE_BYTES.to_be_bytes());
        assert!(client.connection.in_transmission());
    }
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let mut client = Client::greeted();
    client.send(&option_bytes(option::GO, &[string("disk-0"), vec![0, 1, 0, 1]].concat()));
    assert_eq!(client.next(), Ok(None));
    let replies = option_replies(&client.sent());
    let kinds: Vec<_> = replies.iter().map(|(option, reply, _)| (*option, *reply)).collect();
    let info = (option::GO, option_reply::INFO);
    assert_eq!(kinds, [info, info, info, (option::GO, option_reply::ACK)]);
    assert_eq!(replies[0].2[2..10], SIZE_BYTES.to_be_bytes());
    let flags = u16::from_be_bytes(replies[0].2[10..12].try_into().unwrap());
    assert_eq!(flags, 0b1_0110_1101, "flush, FUA, trim, write zeroes, multi-conn; DF only with structured replies");
    assert_eq!(replies[1].2[2..], [512_u32, 4096, 32 << 20].map(u32::to_be_bytes).concat());
    assert_eq!(replies[2].2[2..], *b"disk-0");
}

#[test]
fn unknown_names_options_and_malformed_data_get_their_errors() {
    let unknown_go = [string("nope"), vec![0, 0]].concat();
    let cases: [(u32, &[u8], u32); 10] = [
        (option::GO, &unknown_go, option_reply::ERR_UNKNOWN),
        (option::INFO, &unknown_go, option_reply::ERR_UNKNOWN),
        (option::GO, &[], option_reply::ERR_INVALID),
        (option::GO, &[0xff; 40], option_reply::ERR_INVALID),
        (option::GO, &[0, 0, 0, 0, 0, 9], option_reply::ERR_INVALID),
        (option::LIST, &[1], option_reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, &[1], option_reply::ERR_INVALID),
        (option::SET_META_CONTEXT, &[0; 8], option_reply::ERR_INVALID),
        (5, &[], option_reply::ERR_UNSUPPORTED),
        (0xdead, &[7; 100], option_reply::ERR_UNSUPPORTED),
    ];
    for (number, data, expected) in cases {
        let mut client = Client::greeted();
        client.send(&option_bytes(number, data));
        assert_eq!(client.next(), Ok(None));
        let replies = option_replies(&client.sent());
        assert_eq!(replies.iter().map(|reply| (reply.0, reply.1)).collect::<Vec<_>>(), [(number, expected)]);
        assert!(!client.connection.in_transmission());
    }
}

#[test]
fn list_abort_and_meta_contexts() {
    let mut client = Client::greeted();
    client.send(&option_bytes(option::LIST, &[]));
    client.send(&option_bytes(option::LIST_META_CONTEXT, &meta_context("", &[])));
    client.send(&option_bytes(option::STRUCTURED_REPLY, &[]));
    client.send(&option_bytes(option::SET_META_CONTEXT, &meta_context("disk-0", &["qemu:dirty", "base:allocation"])));
    client.send(&option_bytes(option::SET_META_CONTEXT, &meta_context("disk-0", &["qemu:dirty"])));
    client.send(&option_bytes(option::ABORT, &[]));
    assert_eq!(client.next(), Ok(Some(Request::Disconnect)));
    assert_eq!(client.next(), Ok(None));
    let ack = |number| (number, option_reply::ACK, vec![]);
    let context = |number, id: u32| {
        (number, option_reply::META_CONTEXT, [id.to_be_bytes().as_slice(), b"base:allocation"].concat())
    };
    assert_eq!(
        option_replies(&client.sent()),
        [
            (option::LIST, option_reply::SERVER, string("disk-0")),
            ack(option::LIST),
            context(option::LIST_META_CONTEXT, 0),
            ack(option::LIST_META_CONTEXT),
            ack(option::STRUCTURED_REPLY),
            context(option::SET_META_CONTEXT, 1),
            ack(option::SET_META_CONTEXT),
            ack(option::SET_META_CONTEXT),
            ack(option::ABORT),
        ]
    );
}

#[test]
fn over_long_options_are_skipped_then_refused() {
    let mut client = Client::greeted();
    let long = usize::try_from(OPTION_BYTES_MAX).unwrap() + 1;
    client.send(&option_bytes(option::GO, &vec![0; long]));
    client.send(&option_bytes(option::LIST, &[]));
    assert_eq!(client.next(), Ok(None));
    let replies: Vec<_> = option_replies(&client.sent()).into_iter().map(|reply| (reply.0, reply.1)).collect();
    assert_eq!(replies[0], (option::GO, option_reply::ERR_TOO_BIG));
    assert_eq!(replies[1].0, option::LIST, "the stream is still in step");

    let mut client = Client::greeted();
    let mut endless = option_bytes(option::GO, &[]);
    endless[12..16].copy_from_slice(&(OPTION_SKIP_BYTES_MAX + 1).to_be_bytes());
    client.send(&endless);
    assert_eq!(client.next(), Err(ProtocolError::OptionTooLong(OPTION_SKIP_BYTES_MAX + 1)));

    let mut client = Client::greeted();
    for _ in 0..=OPTIONS_MAX {
        client.send(&option_bytes(5, &[]));
    }
    assert_eq!(client.next(), Err(ProtocolError::TooManyOptions));
}

#[test]
fn what_is_no_nbd_ends_the_connection() {
    let mut client = Client::new();
    client.send(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(client.next(), Err(ProtocolError::UnknownClientFlags(0x4745_5420)));
    let mut client = Client::greeted();
    client.send(&[0x55; 16]);
    assert_eq!(client.next(), Err(ProtocolError::BadOptionMagic(0x5555_5555_5555_5555)));
    let mut client = Client::greeted();
    client.send(&option_bytes(option::EXPORT_NAME, b"other"));
    assert_eq!(client.next(), Err(ProtocolError::UnknownExport));
    let mut client = Client::ready(true);
    client.send(&[0x55; 28]);
    assert_eq!(client.next(), Err(ProtocolError::BadRequestMagic(0x5555_5555)));
    let mut client = Client::ready(true);
    client.send(&request(command::WRITE, 0, 0, REQUEST_BYTES_MAX + 512));
    assert_eq!(client.next(), Err(ProtocolError::WriteTooLong(REQUEST_BYTES_MAX + 512)));
}

#[test]
fn read_is_answered_in_the_negotiated_form() {
    for structured in [false, true] {
        let mut client = Client::ready(structured);
        client.send(&request(command::READ, 0, 4096, 1024));
        let Ok(Some(Request::Read { extent, reply })) = client.next() else { panic!("a read") };
        assert_eq!(extent, Extent { offset: 4096, length: 1024 });
        let mut data = client.pool.take(1024);
        data.data_mut().fill(9);
        reply.data(data, &mut client.out, &mut client.pool);
        let sent = client.sent();
        let head: Vec<u8> = if structured {
            let chunk = [wire::CHUNK_MAGIC.to_be_bytes(), [0, 1, 0, 1]].concat();
            [chunk, vec![1, 2, 3, 4, 5, 6, 7, 8], 1032_u32.to_be_bytes().to_vec(), 4096_u64.to_be_bytes().to_vec()]
                .concat()
        } else {
            [wire::SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec(), vec![0; 4], vec![1, 2, 3, 4, 5, 6, 7, 8]].concat()
        };
        assert_eq!(sent, [head, vec![9; 1024]].concat());

        client.send(&request(command::READ, 0, 4096, 1024));
        let Ok(Some(Request::Read { reply, .. })) = client.next() else { panic!("a read") };
        reply.fail(NbdError::Io, &mut client.out);
        let sent = client.sent();
        assert_eq!(sent.len(), if structured { 26 } else { 16 });
        assert_eq!(if structured { sent[20..24].to_vec() } else { sent[4..8].to_vec() }, 5_u32.to_be_bytes());
    }
}

#[test]
fn writes_carry_their_payload_whatever_its_size() {
    for length in [512_u32, 4096, 64 << 10, 1 << 20] {
        let mut client = Client::ready(false);
        let payload: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut stream = request(command::WRITE, command_flag::FUA, 0, length);
        stream.extend(&payload);
        stream.extend(request(command::FLUSH, 0, 0, 0));
        let mut requests = Vec::new();
        for part in stream.chunks(50_000) {
            client.send(part);
            while let Some(request) = client.next().unwrap() {
                requests.push(request);
            }
        }
        let [Request::Write { extent, data, durability, .. }, Request::Flush { .. }] = &requests[..] else {
            panic!("a write and a flush: {requests:?}")
        };
        assert_eq!(*extent, Extent { offset: 0, length });
        assert_eq!(*durability, Durability::BeforeReply);
        assert!(data.data() == payload);
    }
}

#[test]
fn bad_requests_get_their_errors_and_the_stream_goes_on() {
    let sector = BLOCK_BYTES_MIN;
    let cases = [
        (command::READ, 0, 0, 1, 22),
        (command::READ, 0, 1, sector, 22),
        (command::READ, 0, SIZE_BYTES, sector, 22),
        (command::READ, 0, u64::MAX - 511, sector, 22),
        (command::READ, 0, 0, 0, 22),
        (command::READ, 1 << 15, 0, sector, 22),
        (command::READ, command_flag::DF, 0, sector, 22),
        (command::WRITE, 0, 1, sector, 22),
        (command::WRITE, 0, SIZE_BYTES - 512, 2 * sector, 28),
        (command::WRITE, 0, u64::MAX, 1 << 20, 28),
        (command::WRITE, 0, 0, 0, 22),
        (command::WRITE, command_flag::NO_HOLE, 0, sector, 22),
        (command::TRIM, 0, SIZE_BYTES, sector, 22),
        (command::TRIM, 0, 0, 7, 22),
        (command::WRITE_ZEROES, 0, SIZE_BYTES, sector, 28),
        (command::WRITE_ZEROES, 1 << 4, 0, sector, 22),
        (command::FLUSH, 1 << 9, 0, 0, 22),
        (command::BLOCK_STATUS, 0, 0, sector, 22),
        (5, 0, 0, 0, 22),
        (99, 0, 0, 0, 22),
    ];
    for (number, flags, offset, length, expected) in cases {
        let mut client = Client::ready(false);
        client.send(&request(number, flags, offset, length));
        if number == command::WRITE {
            let mut left = usize::try_from(length).unwrap();
            while left > 0 {
                assert_eq!(client.next(), Ok(None));
                let part = left.min(60_000);
                client.send(&vec![1; part]);
                left -= part;
            }
        }
        client.send(&request(command::FLUSH, 0, 0, 0));
        assert!(matches!(client.next(), Ok(Some(Request::Flush { .. }))), "{number} {flags} {offset} {length}");
        assert_eq!(client.simple_error(), expected, "{number} {flags} {offset} {length}");
    }
}

#[test]
fn a_read_beyond_the_longest_is_refused_on_a_large_disk() {
    let mut out = SendQueue::default();
    let mut pool = BufferPool::default();
    let export = Export { name: String::new(), size_bytes: 1 << 40 };
    let mut client = Client { connection: Connection::new(export, &mut out), out, pool: BufferPool::default() };
    client.send(&3_u32.to_be_bytes());
    client.send(&option_bytes(option::GO, &[0; 6]));
    assert_eq!(client.next(), Ok(None));
    client.sent();
    client.send(&request(command::READ, 0, 0, REQUEST_BYTES_MAX + 512));
    assert_eq!(client.next(), Ok(None));
    assert_eq!(client.simple_error(), 22);
    client.send(&request(command::WRITE_ZEROES, 0, 0, u32::MAX - 511));
    assert!(matches!(client.next(), Ok(Some(Request::WriteZeroes { .. }))), "no data, so that it may be longer");
    pool.give(IoBuffer::new(1));
}

#[test]
fn zeroes_trim_and_disconnect() {
    let mut client = Client::ready(false);
    client.send(&request(command::WRITE_ZEROES, command_flag::NO_HOLE | command_flag::FUA, 512, 512));
    client.send(&request(command::TRIM, 0, 0, 4096));
    client.send(&request(command::DISCONNECT, 0, 0, 0));
    client.send(&request(command::FLUSH, 0, 0, 0));
    let extent = Extent { offset: 512, length: 512 };
    let Ok(Some(Request::WriteZeroes { extent: found, zeroing, durability, reply })) = client.next() else {
        panic!("write zeroes")
    };
    assert_eq!((found, zeroing, durability), (extent, Zeroing::KeepAllocated, Durability::BeforeReply));
    reply.done(&mut client.out);
    assert_eq!(client.simple_error(), 0);
    let Ok(Some(Request::Trim { reply, .. })) = client.next() else { panic!("trim") };
    reply.fail(NbdError::NotSupported, &mut client.out);
    assert_eq!(client.simple_error(), 95);
    assert_eq!(client.next(), Ok(Some(Request::Disconnect)));
    assert_eq!(client.next(), Ok(None), "nothing is taken after the end");
}

#[test]
fn block_status_joins_cuts_and_counts() {
    let hole = |length| AllocationExtent { length, allocation: Allocation::Hole };
    let data = |length| AllocationExtent { length, allocation: Allocation::Data };
    let ask = |flags, extents: Vec<AllocationExtent>| {
        let mut client = Client::ready(true);
        client.send(&request(command::BLOCK_STATUS, flags, 0, 8192));
        let Ok(Some(Request::BlockStatus { reply, .. })) = client.next() else { panic!("block status") };
        reply.extents(extents, &mut client.out);
        let sent = client.sent();
        assert_eq!(sent[20..24], 1_u32.to_be_bytes(), "the context's number");
        sent[24..].chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect::<Vec<_>>()
    };
    let extents = vec![data(1024), data(1024), hole(2048), data(512), hole(100_000)];
    assert_eq!(ask(0, extents.clone()), [2048, 0, 2048, 3, 512, 0, 3584, 3]);
    assert_eq!(ask(command_flag::REQ_ONE, extents), [2048, 0]);
    let many: Vec<_> = (0..5000).map(|at| if at % 2 == 0 { data(1) } else { hole(1) }).collect();
    assert_eq!(ask(0, many).len(), 2 * STATUS_EXTENTS_MAX);
}

/// A stream that goes through the handshake and most requests.
fn good_stream() -> Vec<u8> {
    let mut stream = 3_u32.to_be_bytes().to_vec();
    stream.extend(option_bytes(option::LIST, &[]));
    stream.extend(option_bytes(option::STRUCTURED_REPLY, &[]));
    stream.extend(option_bytes(option::SET_META_CONTEXT, &meta_context("", &["base:allocation"])));
    stream.extend(option_bytes(option::INFO, &[0; 6]));
    stream.extend(option_bytes(option::GO, &[0; 6]));
    stream.extend(request(command::WRITE, 0, 512, 1024));
    stream.extend([7; 1024]);
    stream.extend(request(command::WRITE, 0, SIZE_BYTES, 512));
    stream.extend([7; 512]);
    stream.extend(request(command::READ, 0, 0, 512));
    stream.extend(request(command::BLOCK_STATUS, 0, 0, 512));
    stream.extend(request(command::FLUSH, 0, 0, 0));
    stream.extend(request(command::DISCONNECT, 0, 0, 0));
    stream
}

/// Requests and bytes that come out of a stream which arrives in parts of the given sizes.
fn run(stream: &[u8], mut part: impl FnMut() -> usize) -> (Vec<String>, Vec<u8>, Result<(), ProtocolError>) {
    let mut client = Client::new();
    let mut requests = Vec::new();
    let mut rest = stream;
    loop {
        match client.next() {
            Ok(Some(Request::Disconnect)) => return (requests, client.sent(), Ok(())),
            Ok(Some(request)) => requests.push(format!("{request:?}")),
            Ok(None) if rest.is_empty() => return (requests, client.sent(), Ok(())),
            Ok(None) => {
                let count = part().clamp(1, rest.len()).min(client.connection.space().len());
                client.send(&rest[..count]);
                rest = &rest[count..];
            }
            Err(error) => return (requests, client.sent(), Err(error)),
        }
    }
}

#[test]
fn every_truncation_is_just_incomplete() {
    let stream = good_stream();
    let whole = run(&stream, || usize::MAX);
    assert_eq!(whole.0.len(), 4, "{whole:?}");
    for end in 0..stream.len() {
        let (requests, sent, result) = run(&stream[..end], || usize::MAX);
        assert_eq!(result, Ok(()));
        assert!(whole.0.starts_with(&requests) && whole.1.starts_with(&sent), "cut at {end}");
    }
}

proptest! {
    #[test]
    fn parts_of_any_size_give_the_same(sizes in prop::collection::vec(1_usize..700, 1..50)) {
        let stream = good_stream();
        let mut sizes = sizes.into_iter().cycle();
        let parts = run(&stream, || sizes.next().unwrap());
        prop_assert_eq!(parts, run(&stream, || usize::MAX));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = run(&bytes, || 17);
        let mut client = Client::ready(true);
        client.send(&bytes);
        while let Ok(Some(_)) = client.next() {}
    }

    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut stream = good_stream();
        for (at, byte) in changes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        let _ = run(&stream, || usize::MAX);
    }

    #[test]
    fn random_requests_are_answered_or_handed_out(
        number in 0_u16..10, flags in 0_u16..40, offset in 0_u64..SIZE_BYTES + 4096, length in 0_u32..70_000, round: bool,
    ) {
        let (offset, length) = if round { (offset & !511, length & !511) } else { (offset, length) };
        prop_assume!(number != command::DISCONNECT);
        let mut client = Client::ready(true);
        client.send(&request(number, flags, offset, length));
        let mut handed_out = client.next().unwrap();
        if number == command::WRITE {
            client.send(&vec![0; usize::try_from(length).unwrap()]);
            handed_out = handed_out.or(client.next().unwrap());
        }
        let answered = !client.sent().is_empty();
        prop_assert_ne!(handed_out.is_some(), answered, "exactly one of both");
    }
}
