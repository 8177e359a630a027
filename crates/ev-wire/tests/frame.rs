//! Frames as bytes: whole, in pieces, damaged, of other versions.

use ev_wire::frame::{
    BODY_BYTES_MAX, Decoder, Frame, FrameError, FrameKind, HEADER_BYTES, PROTOCOL_VERSION, decode_header,
};
use ev_wire::stream::{ReadError, read_frame, write_frame};
use proptest::prelude::*;

/// A frame of version 1 as it was written when that was new. Later programs must read it.
const SAVED_V1: &[u8] = &[0x45, 0x56, 0x4e, 0x4b, 0, 1, 0, 1, 0, 0, 0, 3, 0x3f, 0xbe, 0xe2, 0x61, 1, 2, 3];

fn patched(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = SAVED_V1.to_vec();
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

fn decode(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    decoder.next_frame()
}

#[test]
fn saved_bytes_of_version_1_are_read_and_written() {
    let frame = Frame { kind: FrameKind::PEER_CALL, body: vec![1, 2, 3] };
    assert_eq!(decode(SAVED_V1), Ok(Some(frame.clone())));
    assert_eq!(frame.to_bytes(), SAVED_V1);
}

#[test]
fn other_versions_are_refused_by_a_text_that_says_what_to_upgrade() {
    let old = decode(&patched(4, &[0, 0])).unwrap_err();
    assert_eq!(old, FrameError::TooOld { theirs: 0 });
    assert!(old.to_string().contains("version 0, this program 1 to 1: upgrade Evenkeel on the other machine"), "{old}");
    let new = decode(&patched(4, &[0, 9])).unwrap_err();
    assert_eq!(new, FrameError::TooNew { theirs: 9 });
    assert!(new.to_string().contains("upgrade Evenkeel on this machine"), "{new}");
    assert_eq!(PROTOCOL_VERSION, 1, "a new version needs saved bytes of its own here");
}

#[test]
fn what_is_no_frame_is_refused_before_its_body_is_waited_for() {
    assert_eq!(decode(b"GET / HTTP/1.1\r\n"), Err(FrameError::Magic { found: *b"GET " }));
    let long = patched(8, &[0xff; 4]);
    assert_eq!(decode(&long[..HEADER_BYTES]), Err(FrameError::TooLong { length: u32::MAX }));
    let limit = u32::try_from(BODY_BYTES_MAX).unwrap();
    let header: [u8; HEADER_BYTES] = patched(8, &limit.to_be_bytes())[..HEADER_BYTES].try_into().unwrap();
    assert_eq!(decode_header(&header).unwrap().body_bytes(), BODY_BYTES_MAX);
}

#[test]
fn a_message_of_the_wrong_kind_or_with_something_after_it_is_refused() {
    let frame = Frame::of(FrameKind::PING, &7_u32).unwrap();
    assert_eq!(frame.message::<u32>(FrameKind::PING), Ok(7));
    let due = FrameKind::PONG;
    assert_eq!(frame.message::<u32>(due), Err(FrameError::Kind { found: FrameKind::PING, due }));
    let longer = Frame { kind: FrameKind::PING, body: [frame.body, vec![0]].concat() };
    assert_eq!(longer.message::<u32>(FrameKind::PING), Err(FrameError::Body { kind: FrameKind::PING }));
}

#[test]
fn a_message_over_the_limit_is_not_made() {
    assert!(Frame::of(FrameKind::PING, &vec![0_u8; BODY_BYTES_MAX]).is_err());
    assert!(Frame::of(FrameKind::PING, &vec![0_u8; BODY_BYTES_MAX - 8]).is_ok());
}

proptest! {
    #[test]
    fn frames_survive_any_cutting(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6), piece in 1..50_usize) {
        let frames: Vec<Frame> = bodies.into_iter().map(|body| Frame { kind: FrameKind(7), body }).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                found.push(frame);
            }
        }
        prop_assert_eq!(found, frames);
    }

    #[test]
    fn any_single_damaged_byte_is_found(body in prop::collection::vec(any::<u8>(), 0..100), place in any::<prop::sample::Index>(), change in 1..=255_u8) {
        let frame = Frame { kind: FrameKind(7), body };
        let mut bytes = frame.to_bytes();
        let place = place.index(bytes.len());
        bytes[place] ^= change;
        // A longer length waits for bytes that do not come; everything else is an error.
        match decode(&bytes) {
            Err(_) => {}
            Ok(None) => prop_assert!((8..12).contains(&place)),
            Ok(Some(_)) => prop_assert!(false, "damage at {} went unseen", place),
        }
    }

    #[test]
    fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next_frame() {}
    }
}

#[tokio::test]
async fn a_stream_that_ends_between_frames_is_clean_and_in_the_middle_is_not() {
    let frame = Frame { kind: FrameKind(7), body: vec![9; 40] };
    let bytes = frame.to_bytes();
    let mut whole = bytes.as_slice();
    assert_eq!(read_frame(&mut whole).await.unwrap(), Some(frame.clone()));
    assert_eq!(read_frame(&mut whole).await.unwrap(), None);
    for cut in [1, HEADER_BYTES - 1, HEADER_BYTES, bytes.len() - 1] {
        assert!(matches!(read_frame(&mut &bytes[..cut]).await, Err(ReadError::CutOff)), "{cut}");
    }
    let mut written = Vec::new();
    write_frame(&mut written, &frame).await.unwrap();
    assert_eq!(written, bytes);
}
