//! The guest's disk, read and written past the page cache, so that what is read came from the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::record::{self, BLOCK_BYTES, Content, random_bytes};
use crate::setup;

const DEVICE: &str = "/dev/vda";
/// The unit of `fill` and `check`.
const CHUNK_BYTES: usize = 1 << 20;

/// The first virtio disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
}

/// The disk, if the guest has one.
pub fn find() -> Option<Disk> {
    if !setup::wait_for(Path::new(DEVICE)) {
        println!("EVENKEEL-GUEST has no disk {DEVICE}");
        return None;
    }
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or_default();
    match OpenOptions::new().read(true).write(true).custom_flags(direct).open(DEVICE) {
        Ok(file) => Some(Disk { file }),
        Err(error) => {
            println!("EVENKEEL-GUEST could not open {DEVICE}: {error}");
            None
        }
    }
}

/// Memory at an address that direct I/O takes: a part of a larger piece.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, start, len }
    }

    fn of(bytes: &[u8]) -> Self {
        let mut aligned = Self::new(bytes.len());
        aligned.bytes_mut().copy_from_slice(bytes);
        aligned
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl Disk {
    pub fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Returns when the record is on the disk for good.
    pub fn write_record(&self, slot: u64, value: u64) -> io::Result<()> {
        let block = Aligned::of(&record::encode(slot, value));
        self.file.write_all_at(block.bytes(), offset(slot, BLOCK_BYTES)?)?;
        self.file.sync_data()
    }

    /// A record in another slot than its own counts as damage.
    pub fn read_record(&self, slot: u64) -> io::Result<Content> {
        let mut block = Aligned::new(BLOCK_BYTES);
        self.file.read_exact_at(block.bytes_mut(), offset(slot, BLOCK_BYTES)?)?;
        Ok(match record::decode(block.bytes()) {
            Content::Record { slot: found, .. } if found != slot => Content::Damaged,
            content => content,
        })
    }

    /// Writes `count` chunks of the seed's bytes and flushes them.
    pub fn fill(&self, first: u64, count: u64, seed: u64) -> io::Result<()> {
        for chunk in first..first + count {
            let bytes = Aligned::of(&chunk_bytes(chunk, seed));
            self.file.write_all_at(bytes.bytes(), offset(chunk, CHUNK_BYTES)?)?;
        }
        self.file.sync_data()
    }

    /// Where the first chunk is that does not hold the seed's bytes.
    pub fn check(&self, first: u64, count: u64, seed: u64) -> io::Result<Option<u64>> {
        let mut found = Aligned::new(CHUNK_BYTES);
        for chunk in first..first + count {
            let start = offset(chunk, CHUNK_BYTES)?;
            self.file.read_exact_at(found.bytes_mut(), start)?;
            if found.bytes() != chunk_bytes(chunk, seed) {
                return Ok(Some(start));
            }
        }
        Ok(None)
    }
}

fn chunk_bytes(chunk: u64, seed: u64) -> Vec<u8> {
    random_bytes(seed.wrapping_mul(0x0100_0000_01b3) ^ chunk, CHUNK_BYTES)
}

fn offset(index: u64, unit: usize) -> io::Result<u64> {
    let unit = u64::try_from(unit).map_err(io::Error::other)?;
    index.checked_mul(unit).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}
