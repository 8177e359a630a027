//! The undo file: old blocks appended before they are overwritten, and put back by [`restore`].

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::record::{self, Block, HeaderError, RECORD_BYTES, RECORDS_OFFSET, UNDO_BLOCK_BYTES};
use super::{UndoError, UndoIdentity, io_error, temporary};
use crate::extent::Extent;
use crate::metadata::{PAGE_BYTES, sync_folder};

/// Old data that is collected before it is written out.
const APPEND_BYTES_MAX: usize = 4 << 20;

/// An undo file that blocks are being added to.
#[derive(Debug)]
pub struct UndoFile {
    path: PathBuf,
    file: File,
    identity: UndoIdentity,
    /// Where the next record goes.
    end: u64,
    /// One bit per block: durable in the file.
    saved: Vec<u64>,
}

impl UndoFile {
    /// Creates the file durably, or goes on with one of the same disk and state: what follows its last whole record is cut off.
    pub fn open_or_create(path: &Path, identity: UndoIdentity) -> Result<Self, UndoError> {
        let blocks = identity.size_bytes.div_ceil(u64::from(UNDO_BLOCK_BYTES));
        let words = usize::try_from(blocks.div_ceil(64)).expect("a disk's blocks fit the address space");
        let mut saved = vec![0; words];
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => {
                check_header(&file, path, identity)?;
                let end = for_each_block(&file, path, identity, |block, _| {
                    set(&mut saved, block.offset);
                    Ok(())
                })?;
                file.set_len(end).map_err(io_error("cut", path))?;
                file.sync_all().map_err(io_error("flush", path))?;
                Ok(Self { path: path.to_owned(), file, identity, end, saved })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = create(path, identity)?;
                let end = u64::try_from(RECORDS_OFFSET).expect("small");
                Ok(Self { path: path.to_owned(), file, identity, end, saved })
            }
            Err(error) => Err(io_error("open", path)(error)),
        }
    }

    /// Whether all blocks of `extent` are durable in the file.
    #[must_use]
    pub fn is_saved(&self, extent: Extent) -> bool {
        blocks(extent, self.identity.size_bytes).all(|block| is_set(&self.saved, block.offset))
    }

    /// Saves what `extents` hold in `replica` now, durably. `replica` must not be open for direct I/O.
    pub fn save(&mut self, replica: &File, extents: &[Extent]) -> Result<(), UndoError> {
        let mut records = Vec::new();
        let mut added = BTreeSet::new();
        let mut data = Vec::new();
        for &extent in extents {
            for block in blocks(extent, self.identity.size_bytes) {
                if is_set(&self.saved, block.offset) || added.contains(&block.offset) {
                    continue;
                }
                data.resize(usize::try_from(block.length).expect("a block"), 0);
                read_block(replica, &mut data, block.offset).map_err(io_error("keep the old data in", &self.path))?;
                record::append_block(&mut records, self.identity, block.offset, &data);
                added.insert(block.offset);
                if records.len() >= APPEND_BYTES_MAX {
                    self.append(&mut records)?;
                }
            }
        }
        if added.is_empty() {
            return Ok(());
        }
        self.append(&mut records)?;
        self.file.sync_data().map_err(io_error("flush", &self.path))?;
        for offset in added {
            set(&mut self.saved, offset);
        }
        Ok(())
    }

    fn append(&mut self, records: &mut Vec<u8>) -> Result<(), UndoError> {
        self.file.write_all_at(records, self.end).map_err(io_error("append to", &self.path))?;
        self.end += u64::try_from(records.len()).expect("bounded");
        records.clear();
        Ok(())
    }
}

fn create(path: &Path, identity: UndoIdentity) -> Result<File, UndoError> {
    let temporary = temporary(path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    file.write_all_at(&record::encode_header(identity), 0)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| sync_folder(path))
        .map_err(io_error("create", path))?;
    Ok(file)
}

fn check_header(file: &File, path: &Path, identity: UndoIdentity) -> Result<(), UndoError> {
    let mut page = [0; PAGE_BYTES];
    let read = file.read_exact_at(&mut page, 0);
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(UndoError::Other { path: path.to_owned() });
        }
        other => other.map_err(io_error("read", path))?,
    }
    match record::decode_header(&page) {
        Ok(found) if found == identity => Ok(()),
        Ok(_) | Err(HeaderError::NotUndo) => Err(UndoError::Other { path: path.to_owned() }),
        Err(HeaderError::NewerVersion(version)) => Err(UndoError::NewerVersion { path: path.to_owned(), version }),
    }
}

/// Gives each whole record with its data, in order, and returns where the last one ends.
fn for_each_block(
    file: &File,
    path: &Path,
    identity: UndoIdentity,
    mut each: impl FnMut(Block, &[u8]) -> Result<(), UndoError>,
) -> Result<u64, UndoError> {
    let mut position = u64::try_from(RECORDS_OFFSET).expect("small");
    let mut data = Vec::new();
    loop {
        let mut header = [0; RECORD_BYTES];
        if !read_whole(file, &mut header, position).map_err(io_error("read", path))? {
            return Ok(position);
        }
        let Some(block) = record::decode_block(&header, identity) else { return Ok(position) };
        data.resize(usize::try_from(block.data_bytes).expect("a block"), 0);
        let data_position = position + u64::try_from(RECORD_BYTES).expect("small");
        let whole = read_whole(file, &mut data, data_position).map_err(io_error("read", path))?;
        if !whole || crc32c::crc32c(&data) != block.data_checksum {
            return Ok(position);
        }
        each(block, &data)?;
        position = data_position + u64::from(block.data_bytes);
    }
}

/// Puts all saved blocks back and flushes. A block is saved once only, with its oldest data, so that order does not matter.
pub(super) fn restore(path: &Path, identity: UndoIdentity, target: &File, replica: &Path) -> Result<(), UndoError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    check_header(&file, path, identity)?;
    let zeroes = vec![0; usize::try_from(UNDO_BLOCK_BYTES).expect("small")];
    for_each_block(&file, path, identity, |block, data| {
        let length = usize::try_from(block.length).expect("a block");
        let old = if block.data_bytes == 0 { &zeroes[..length] } else { data };
        target.write_all_at(old, block.offset).map_err(io_error("put back old data in", replica))
    })?;
    target.sync_all().map_err(io_error("flush", replica))
}

/// The undo blocks that `extent` touches.
fn blocks(extent: Extent, size_bytes: u64) -> impl Iterator<Item = Extent> {
    let block = u64::from(UNDO_BLOCK_BYTES);
    let first = extent.offset / block;
    let end = extent.end().min(size_bytes).div_ceil(block);
    (first..end).map(move |index| {
        let offset = index * block;
        let length = u32::try_from((size_bytes - offset).min(block)).expect("a block");
        Extent { offset, length }
    })
}

fn place(offset: u64) -> (usize, u64) {
    let block = offset / u64::from(UNDO_BLOCK_BYTES);
    (usize::try_from(block / 64).expect("fits, as the map does"), 1 << (block % 64))
}

fn set(saved: &mut [u64], offset: u64) {
    let (word, bit) = place(offset);
    saved[word] |= bit;
}

fn is_set(saved: &[u64], offset: u64) -> bool {
    let (word, bit) = place(offset);
    saved[word] & bit != 0
}

/// Reads a block of the replica; what lies beyond the end of a shorter file is zero.
fn read_block(replica: &File, data: &mut [u8], offset: u64) -> io::Result<()> {
    data.fill(0);
    read_up_to(replica, data, offset).map(|_| ())
}

fn read_whole(file: &File, data: &mut [u8], offset: u64) -> io::Result<bool> {
    Ok(read_up_to(file, data, offset)? == data.len())
}

fn read_up_to(file: &File, data: &mut [u8], mut offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset) {
            Ok(0) => break,
            Ok(count) => {
                filled += count;
                offset += u64::try_from(count).expect("bounded");
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
