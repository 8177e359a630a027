//! Heartbeats: one small UDP datagram per path and interval, by which hosts tell who is alive and which path works.

use ev_core::ids::{MemberId, PoolId};
use uuid::Uuid;
use zerocopy::byteorder::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First four bytes of a heartbeat.
const MAGIC: [u8; 4] = *b"EVHB";
/// Version written. History: 1 (2026) first one.
pub const HEARTBEAT_VERSION: u16 = 1;
/// Length of the datagram.
pub const HEARTBEAT_BYTES: usize = 80;
const MAC_BYTES: usize = 32;

/// The pool's key for heartbeats, derived from a secret that only its hosts know.
#[derive(Clone)]
pub struct HeartbeatKey([u8; 32]);

impl HeartbeatKey {
    /// Derive it from the pool's shared secret.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        Self(blake3::derive_key("evenkeel 2026 heartbeat key v1", secret))
    }
}

impl std::fmt::Debug for HeartbeatKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeartbeatKey(..)")
    }
}

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    pub pool: PoolId,
    /// Who sends.
    pub host: MemberId,
    /// Which path it is sent over: 0 management, 1 and up the private links, by the sender's numbering.
    pub path: u16,
    /// Drawn when the sender's daemon starts; a new one resets the sequence.
    pub run: u64,
    /// Rises with each heartbeat of one run on one path. One that is not higher than the last seen is a duplicate, is late, or is
    /// played back by someone: it proves nothing.
    pub sequence: u64,
}

/// The datagram; numbers are big-endian.
///
/// | offset | bytes | what |
/// |---|---|---|
/// | 0 | 4 | `EVHB` |
/// | 4 | 2 | version |
/// | 6 | 2 | path |
/// | 8 | 16 | pool |
/// | 24 | 8 | sending host |
/// | 32 | 8 | run |
/// | 40 | 8 | sequence |
/// | 48 | 32 | BLAKE3 keyed hash of the 48 bytes before |
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U16,
    path: U16,
    pool: [u8; 16],
    host: U64,
    run: U64,
    sequence: U64,
    mac: [u8; MAC_BYTES],
}

/// Why a datagram does not count as a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    #[error("not a heartbeat")]
    NotOne,
    #[error(
        "heartbeat of version {theirs}, this program reads {HEARTBEAT_VERSION}: upgrade the older of the two hosts"
    )]
    Version { theirs: u16 },
    #[error("heartbeat that was not made with this pool's key")]
    Forged,
}

impl Heartbeat {
    /// The datagram to send.
    #[must_use]
    pub fn encode(&self, key: &HeartbeatKey) -> [u8; HEARTBEAT_BYTES] {
        let mut raw = Raw {
            magic: MAGIC,
            version: U16::new(HEARTBEAT_VERSION),
            path: U16::new(self.path),
            pool: *self.pool.0.as_bytes(),
            host: U64::new(self.host.0),
            run: U64::new(self.run),
            sequence: U64::new(self.sequence),
            mac: [0; MAC_BYTES],
        };
        raw.mac = *raw.mac_with(key).as_bytes();
        zerocopy::transmute!(raw)
    }

    /// Read a datagram that arrived.
    ///
    /// # Errors
    /// See [`HeartbeatError`].
    pub fn decode(datagram: &[u8], key: &HeartbeatKey) -> Result<Self, HeartbeatError> {
        let raw = Raw::read_from_bytes(datagram).map_err(|_| HeartbeatError::NotOne)?;
        if raw.magic != MAGIC {
            return Err(HeartbeatError::NotOne);
        }
        let theirs = raw.version.get();
        if theirs != HEARTBEAT_VERSION {
            return Err(HeartbeatError::Version { theirs });
        }
        // `blake3::Hash` compares in constant time.
        if raw.mac_with(key) != blake3::Hash::from_bytes(raw.mac) {
            return Err(HeartbeatError::Forged);
        }
        Ok(Self {
            pool: PoolId(Uuid::from_bytes(raw.pool)),
            host: MemberId(raw.host.get()),
            path: raw.path.get(),
            run: raw.run.get(),
            sequence: raw.sequence.get(),
        })
    }
}

impl Raw {
    fn mac_with(&self, key: &HeartbeatKey) -> blake3::Hash {
        let (before, _) = self.as_bytes().split_at(HEARTBEAT_BYTES - MAC_BYTES);
        blake3::keyed_hash(&key.0, before)
    }
}
