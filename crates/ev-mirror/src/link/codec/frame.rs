//! Layout of frames.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..2 | magic | `EK` |
//! | 2 | kind | see [`Kind`] |
//! | 3 | flags | see `FLAG_*` |
//! | 4..8 | length | bytes that follow the header |
//! | 8..16 | operation | its number, in requests and their answers |
//! | 16..24 | offset | bytes on the disk; first word of a part of a region map |
//! | 24..28 | argument | length of an extent that comes without data; else 0 |
//! | 28..32 | checksum | CRC-32C of bytes 0..28 |
//!
//! All little-endian. What follows the header: data, or records of fixed size (acks 16 bytes, hashes 32, words of a region map 8,
//! generations, an epoch), or a hello or refusal.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MAGIC: u16 = u16::from_le_bytes(*b"EK");
pub const HEADER_BYTES: usize = size_of::<FrameHeader>();
const CHECKED_BYTES: usize = HEADER_BYTES - 4;

pub const FLAG_DURABLE: u8 = 1;
pub const FLAG_KEEP_ALLOCATED: u8 = 2;
pub const FLAG_MORE: u8 = 4;
pub const FLAG_OUT_OF_SYNC: u8 = 8;
pub const FLAG_FULL: u8 = 16;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FrameHeader {
    pub magic: U16,
    pub kind: u8,
    pub flags: u8,
    pub length: U32,
    pub op: U64,
    pub offset: U64,
    pub argument: U32,
    pub checksum: U32,
}

impl FrameHeader {
    pub fn new(kind: Kind) -> Self {
        Self {
            magic: MAGIC.into(),
            kind: kind.number(),
            flags: 0,
            length: 0.into(),
            op: 0.into(),
            offset: 0.into(),
            argument: 0.into(),
            checksum: 0.into(),
        }
    }

    pub fn checksum_of(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..CHECKED_BYTES])
    }
}

/// One acknowledgement.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct AckRecord {
    pub op: U64,
    /// 0 done, 1 failed, 2 not now.
    pub outcome: U32,
    pub zero: U32,
}

/// Which epoch of which session ends.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct EpochRecord {
    pub session: U64,
    pub epoch: U64,
}

/// `current`, and for a history `bitmap_base` (else 0).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct HistoryRecord {
    pub current: U64,
    pub bitmap_base: U64,
}

macro_rules! kinds {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// What a frame is. Numbers are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind { $($name),* }

        impl Kind {
            pub fn number(self) -> u8 {
                match self { $(Self::$name => $number),* }
            }

            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    Hello = 1,
    Refused = 2,
    Regions = 3,
    KeepAlive = 4,
    Write = 16,
    WriteZeroes = 17,
    Trim = 18,
    Flush = 19,
    Read = 20,
    EpochEnd = 21,
    Acks = 32,
    ReadData = 33,
    History = 35,
    CopyBegin = 48,
    HashRequest = 49,
    Hashes = 50,
    CopyData = 51,
    CopyZeroes = 52,
    CopyEnd = 53,
}
