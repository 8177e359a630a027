//! Format of the undo file, version 1. All numbers little-endian.
//!
//! Header (one page):
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `EVKUNDO` and a zero |
//! | 8..12 | version, 1 |
//! | 12..16 | block size, 65536 |
//! | 16..32 | disk (UUID) |
//! | 32..40 | size of the disk in bytes |
//! | 40..48 | `current` of the kept state |
//! | 48..52 | CRC-32C of all before |
//! | 52..4096 | zero |
//!
//! Then records, each a header and, unless the block was all zero, the old data:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `EVKB` |
//! | 4..8 | length of the block: the block size, less at the end of the disk |
//! | 8..16 | offset on the disk, a multiple of the block size |
//! | 16..20 | bytes of data that follow: the length, or 0 for a block of zeroes |
//! | 20..24 | CRC-32C of the data |
//! | 24..28 | CRC-32C of bytes 0..24 and the disk's identity |
//! | 28..32 | zero |
//!
//! A record that fails its checks ends the file: it was not durable, so that its block was not overwritten.

use ev_core::ids::{DiskId, Generation};
use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::UndoIdentity;
use crate::metadata::PAGE_BYTES;

/// Blocks are saved in this size.
pub const UNDO_BLOCK_BYTES: u32 = 64 << 10;
/// Where the first record begins.
pub(super) const RECORDS_OFFSET: usize = PAGE_BYTES;
/// Bytes of a record's header.
pub(super) const RECORD_BYTES: usize = size_of::<BlockRecord>();

const MAGIC: [u8; 8] = *b"EVKUNDO\0";
const BLOCK_MAGIC: [u8; 4] = *b"EVKB";
const VERSION: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileRecord {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    disk: [u8; 16],
    size_bytes: U64,
    current: U64,
    checksum: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockRecord {
    magic: [u8; 4],
    length: U32,
    offset: U64,
    data_bytes: U32,
    data_checksum: U32,
    checksum: U32,
    zero: U32,
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    NotUndo,
    NewerVersion(u32),
}

/// A saved block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub offset: u64,
    pub length: u32,
    pub data_bytes: u32,
    pub data_checksum: u32,
}

pub(super) fn encode_header(identity: UndoIdentity) -> [u8; PAGE_BYTES] {
    let mut record = FileRecord {
        magic: MAGIC,
        version: VERSION.into(),
        block_bytes: UNDO_BLOCK_BYTES.into(),
        disk: identity.disk.0.into_bytes(),
        size_bytes: identity.size_bytes.into(),
        current: identity.current.0.into(),
        checksum: 0.into(),
    };
    record.checksum = crc32c::crc32c(&record.as_bytes()[..size_of::<FileRecord>() - 4]).into();
    let mut page = [0; PAGE_BYTES];
    record.write_to_prefix(&mut page).expect("shorter than a page");
    page
}

pub(super) fn decode_header(page: &[u8; PAGE_BYTES]) -> Result<UndoIdentity, HeaderError> {
    let (record, _) = FileRecord::ref_from_prefix(page).map_err(|_| HeaderError::NotUndo)?;
    let checksum = crc32c::crc32c(&record.as_bytes()[..size_of::<FileRecord>() - 4]);
    if record.magic != MAGIC || record.checksum.get() != checksum {
        return Err(HeaderError::NotUndo);
    }
    if record.version.get() != VERSION {
        return Err(HeaderError::NewerVersion(record.version.get()));
    }
    if record.block_bytes.get() != UNDO_BLOCK_BYTES {
        return Err(HeaderError::NotUndo);
    }
    Ok(UndoIdentity {
        disk: DiskId(Uuid::from_bytes(record.disk)),
        size_bytes: record.size_bytes.get(),
        current: Generation(record.current.get()),
    })
}

fn checksum(record: &BlockRecord, disk: DiskId) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record.as_bytes()[..24]), disk.0.as_bytes())
}

/// Appends the record of a block with its data.
pub(super) fn append_block(out: &mut Vec<u8>, identity: UndoIdentity, offset: u64, data: &[u8]) {
    let kept: &[u8] = if data.iter().all(|&byte| byte == 0) { &[] } else { data };
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a block");
    let mut record = BlockRecord {
        magic: BLOCK_MAGIC,
        length: length(data).into(),
        offset: offset.into(),
        data_bytes: length(kept).into(),
        data_checksum: crc32c::crc32c(kept).into(),
        checksum: 0.into(),
        zero: 0.into(),
    };
    record.checksum = checksum(&record, identity.disk).into();
    out.extend_from_slice(record.as_bytes());
    out.extend_from_slice(kept);
}

/// The block that a record's header describes; `None`: the file ends here.
pub(super) fn decode_block(bytes: &[u8; RECORD_BYTES], identity: UndoIdentity) -> Option<Block> {
    let record = BlockRecord::ref_from_bytes(bytes).ok()?;
    if record.magic != BLOCK_MAGIC || record.checksum.get() != checksum(record, identity.disk) {
        return None;
    }
    let block = Block {
        offset: record.offset.get(),
        length: record.length.get(),
        data_bytes: record.data_bytes.get(),
        data_checksum: record.data_checksum.get(),
    };
    let at_block = block.offset.is_multiple_of(u64::from(UNDO_BLOCK_BYTES));
    let inside = block.offset < identity.size_bytes
        && u64::from(block.length) == (identity.size_bytes - block.offset).min(u64::from(UNDO_BLOCK_BYTES));
    let data = block.data_bytes == 0 || block.data_bytes == block.length;
    (at_block && inside && data).then_some(block)
}
