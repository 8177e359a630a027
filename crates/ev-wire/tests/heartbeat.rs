//! Heartbeats: only whole ones of the own pool count.

use ev_core::ids::{MemberId, PoolId};
use ev_wire::heartbeat::{HEARTBEAT_BYTES, Heartbeat, HeartbeatError, HeartbeatKey};
use uuid::Uuid;

fn heartbeat() -> Heartbeat {
    Heartbeat { pool: PoolId(Uuid::from_u128(5)), host: MemberId(2), path: 1, run: 77, sequence: 1_000 }
}

#[test]
fn it_is_read_by_the_same_key_only() {
    let key = HeartbeatKey::derive(b"secret of the pool");
    let datagram = heartbeat().encode(&key);
    assert_eq!(Heartbeat::decode(&datagram, &key), Ok(heartbeat()));
    let other = HeartbeatKey::derive(b"secret of another");
    assert_eq!(Heartbeat::decode(&datagram, &other), Err(HeartbeatError::Forged));
}

#[test]
fn every_changed_byte_and_every_other_length_is_refused() {
    let key = HeartbeatKey::derive(b"secret of the pool");
    let datagram = heartbeat().encode(&key);
    for place in 0..HEARTBEAT_BYTES {
        let mut changed = datagram;
        changed[place] ^= 1;
        assert!(Heartbeat::decode(&changed, &key).is_err(), "byte {place}");
    }
    for length in 0..HEARTBEAT_BYTES {
        assert_eq!(Heartbeat::decode(&datagram[..length], &key), Err(HeartbeatError::NotOne));
    }
    let mut newer = datagram;
    newer[5] = 2;
    assert_eq!(Heartbeat::decode(&newer, &key), Err(HeartbeatError::Version { theirs: 2 }));
}
