//! Partners that talk rubbish, stop in the middle, say nothing, or speak another version: the disk goes on, and the true partner
//! is brought in step afterwards.

use std::io::{Read, Write};
use std::net::TcpStream;

use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::Generation;
use ev_core::mirror::{Durability, Epochs, Extent, Health, Hello, History, Message, OpId, ReplicaInfo, WriteKind};
use ev_mirror::buffer::BufferPool;
use ev_mirror::link::codec::{Decoder, Incoming, LinkHello, LinkIdentity, LinkVersion, Refusal, encode, encode_hello};
use ev_mirror::metadata::REGION_BYTES_DEFAULT;
use ev_mirror::{DiskEvent, MarkError};

use crate::client::Client;
use crate::pair::{A, B, Pair, WAIT_TIMEOUT};
use crate::pattern;

const SIZE_BYTES: u64 = 64 << 20;

type Peer = rustls::StreamOwned<rustls::ServerConnection, TcpStream>;

/// `A` serves the disk, and its partner is not there.
fn alone() -> Pair {
    serve_alone(Pair::new(SIZE_BYTES))
}

/// The same, of a new disk.
fn serve_alone(mut pair: Pair) -> Pair {
    pair.a.open();
    pair.commit();
    pair.until_confirmed();
    pair
}

fn hello(pair: &Pair) -> LinkHello {
    let spec = &pair.b.spec;
    let identity = LinkIdentity {
        pool: spec.pool,
        vm: spec.vm,
        disk: spec.disk,
        size_bytes: spec.size_bytes,
        region_bytes: REGION_BYTES_DEFAULT,
    };
    let replica = ReplicaInfo { health: Health::Empty, history: History::NONE };
    LinkHello::new(identity, Hello { host: B, instance: 1, generation: Generation(1), replica, epochs: Epochs::None })
}

fn bytes_of(hello: &LinkHello) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_hello(hello, &mut bytes);
    bytes
}

fn send(peer: &mut Peer, bytes: &[u8]) {
    peer.write_all(bytes).unwrap();
    peer.flush().unwrap();
}

/// Everything that the disk still says until it closes the link.
fn until_closed(peer: &mut Peer) -> Vec<u8> {
    let mut said = Vec::new();
    let mut part = [0; 4096];
    loop {
        match peer.read(&mut part) {
            Ok(0) => return said,
            Ok(count) => said.extend(&part[..count]),
            Err(error) => {
                let still_open = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                assert!(!still_open, "the disk closes the link: {error}");
                return said;
            }
        }
    }
}

/// The guest's disk works, and the true partner gets everything.
fn goes_on(mut pair: Pair) {
    let mut client = Client::connect(&pair.a.socket());
    client.write(5 << 20, &pattern(1, 4096));
    pair.b.open();
    pair.commit();
    pair.connect();
    pair.until_good(&[A, B]);
    let disk = pair.close_and_compare();
    assert!(disk[5 << 20..][..4096] == pattern(1, 4096));
}

#[test]
fn rubbish_ends_the_link_and_nothing_else() {
    let mut pair = alone();
    let good = bytes_of(&hello(&pair));
    let mut second = good.clone();
    second.extend([0x41; 300]);
    let mut health = good.clone();
    let last = health.len() - 8;
    health[last] = 0xee;
    for bytes in [vec![0x41; 100], vec![0; 64], second, health, [good.clone(), good].concat()] {
        let mut peer = pair.connect_by_hand();
        send(&mut peer, &bytes);
        until_closed(&mut peer);
    }
    goes_on(pair);
}

#[test]
fn a_peer_that_stops_in_the_middle_or_says_nothing_is_left() {
    let mut pair = Pair::new(SIZE_BYTES);
    pair.shorten_timeout();
    let mut pair = serve_alone(pair);
    let good = bytes_of(&hello(&pair));
    for length in [0, 1, 31, 32, good.len() - 1, good.len()] {
        let mut peer = pair.connect_by_hand();
        send(&mut peer, &good[..length]);
        // Half of them go, half of them stay and say nothing more.
        if length % 2 == 0 {
            until_closed(&mut peer);
        }
    }
    goes_on(pair);
}

#[test]
fn a_coordinators_message_to_a_coordinator_ends_the_link() {
    let mut pair = alone();
    let extent = Extent { offset: 0, length: 4096 };
    let write = ev_core::mirror::Write { extent, kind: WriteKind::Data, durability: Durability::AtFlush };
    let bytes = bytes_of(&hello(&pair));
    let mut frame = Vec::new();
    let data = encode(&Message::Write { op: OpId(1), write }, &[0x41; 4096], &mut frame).to_vec();
    let mut peer = pair.connect_by_hand();
    send(&mut peer, &[bytes, frame, data].concat());
    until_closed(&mut peer);
    assert!(pair.a.bytes()[..4096].iter().all(|byte| *byte == 0), "nothing was written");
    goes_on(pair);
}

#[test]
fn an_older_protocol_version_is_refused_and_both_sides_say_which_host_to_upgrade() {
    let mut pair = alone();
    let older = LinkHello { newest: LinkVersion(0), oldest: LinkVersion(0), ..hello(&pair) };
    let mut peer = pair.connect_by_hand();
    send(&mut peer, &bytes_of(&older));
    let said = until_closed(&mut peer);
    let mut decoder = Decoder::new(SIZE_BYTES);
    let mut pool = BufferPool::default();
    let mut rest = &said[..];
    let refusal = loop {
        match decoder.next(&mut pool).unwrap() {
            Some(Incoming::Refused(refusal)) => break refusal,
            Some(_) => {}
            None => {
                assert!(!rest.is_empty(), "the disk says why it closes the link");
                let space = decoder.space();
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                decoder.received(count);
                rest = &rest[count..];
            }
        }
    };
    assert!(matches!(refusal, Refusal::Version { theirs_newest: LinkVersion::NEWEST, .. }), "{refusal:?}");
    assert!(refusal.to_string().contains("upgrade the host with the older programs"), "{refusal}");
    let told = pair.until_event("the refusal", |event| matches!(event, DiskEvent::Trouble { .. }));
    let DiskEvent::Trouble { text, .. } = told else { unreachable!("waited for it") };
    assert!(text.contains("upgrade the host with the older programs"), "{text}");
    goes_on(pair);
}

#[test]
fn a_partner_of_before_epochs_is_mirrored_to_and_not_written_ahead_of() {
    let mut pair = alone();
    let before = LinkHello { newest: LinkVersion(1), oldest: LinkVersion(1), ..hello(&pair) };
    let mut peer = pair.connect_by_hand();
    send(&mut peer, &bytes_of(&before));
    pair.until_event("the link", |event| matches!(event, DiskEvent::LinkUp { .. }));
    let mark = pair.a.disk().mark_epoch(Session(1), Epoch::FIRST).unwrap();
    assert_eq!(mark.wait(WAIT_TIMEOUT), Err(MarkError::PartnerTooOld));
    drop(peer);
    goes_on(pair);
}
