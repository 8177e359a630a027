//! The metadata file's life: durable creation, opening with all checks, superblock updates.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ev_core::ids::{DiskId, HostId, PoolId, VmId};
use rustix::fs::{FlockOperation, flock};

use super::map::MapPage;
use super::{Layout, PAGE_BYTES, Page, RegionMap, Superblock, SuperblockError};
use crate::cache;

/// Why a metadata file was not created. Nothing is left behind then.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("can't create the disk metadata {}: it exists; remove the old disk first, or open it", path.display())]
    Exists { path: PathBuf },
    #[error(
        "a disk of {size_bytes} bytes in regions of {region_bytes} can't be mirrored; the size must not be 0 or above 128 TiB"
    )]
    BadSize { size_bytes: u64, region_bytes: u32 },
    #[error("can't create the disk metadata {}: {source}; check the folder's free space and permissions", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Why a metadata file can't be used. It was not changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("can't read the disk metadata {}: {source}; without it the replica needs a full copy from its partner", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is in use by another process; only one may serve a disk, find and end the other one", path.display())]
    InUse { path: PathBuf },
    #[error("{} is no disk metadata: slot 0: {first}, slot 1: {second}; move it away and let the replica be copied from its partner", path.display())]
    NotMetadata { path: PathBuf, first: SuperblockError, second: SuperblockError },
    #[error("{} has format version {version}, which is newer than this program; upgrade this host", path.display())]
    NewerVersion { path: PathBuf, version: u32 },
    #[error("{} belongs to {what} {found}, not {expected}; move it away and put the right file there", path.display())]
    Other { path: PathBuf, what: &'static str, found: String, expected: String },
    #[error("{} has {found} bytes and should have {expected}; move it away and let the replica be copied from its partner", path.display())]
    Truncated { path: PathBuf, found: u64, expected: u64 },
}

/// A superblock update did not become durable; the replica's state is the old or the new one.
#[derive(Debug, thiserror::Error)]
#[error("can't update the disk metadata {}: {source}; check the storage under it", path.display())]
pub struct UpdateError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// What the file is expected to be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    pool: PoolId,
    vm: VmId,
    disk: DiskId,
    host: HostId,
    size_bytes: u64,
}

/// How the two slots were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// Both say the same.
    Equal,
    /// One is older: a crash between the two writes of an update.
    OneOlder,
    /// One can't be read, for this reason. It was written anew from the other; a person should look at the storage.
    OneDamaged(SuperblockError),
}

/// Both maps as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedMaps {
    pub write_intent: Vec<u64>,
    pub out_of_sync: Vec<u64>,
    /// Pages that failed their check and were taken as all set.
    pub damaged_pages: u64,
}

/// An open metadata file, locked against other processes.
#[derive(Debug)]
pub struct MetadataFile {
    path: PathBuf,
    file: File,
    superblock: Superblock,
    layout: Layout,
}

impl MetadataFile {
    /// Creates the file durably: written and flushed under another name, then renamed, then the folder flushed. The
    /// sequence of `superblock` is set. Both maps are empty.
    pub fn create(path: &Path, superblock: Superblock) -> Result<Self, CreateError> {
        let layout = superblock
            .layout()
            .ok_or(CreateError::BadSize { size_bytes: superblock.size_bytes, region_bytes: superblock.region_bytes })?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let superblock = Superblock { sequence: 1, ..superblock };
        let created = Self::write_new(&temporary, path, &superblock, layout);
        match created {
            Ok(file) => Ok(Self { path: path.to_owned(), file, superblock, layout }),
            Err(source) => {
                // The name is ours alone; a failure to remove it changes nothing for anyone.
                let _ = std::fs::remove_file(&temporary);
                if source.kind() == io::ErrorKind::AlreadyExists {
                    Err(CreateError::Exists { path: path.to_owned() })
                } else {
                    Err(CreateError::Io { path: path.to_owned(), source })
                }
            }
        }
    }

    fn write_new(temporary: &Path, path: &Path, superblock: &Superblock, layout: Layout) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(temporary)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let mut page = Page::ZERO;
        superblock.encode(&mut page);
        for slot in 0..2 {
            file.write_all_at(&page.0, layout.slot_offset(slot))?;
        }
        for map in [RegionMap::WriteIntent, RegionMap::OutOfSync] {
            for index in 0..layout.pages_per_map() {
                MapPage { disk: superblock.disk, map, index }.encode(0, &[], &mut page);
                file.write_all_at(&page.0, layout.map_page_offset(map, index))?;
            }
        }
        file.sync_all()?;
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            temporary,
            rustix::fs::CWD,
            path,
            rustix::fs::RenameFlags::NOREPLACE,
        )?;
        sync_folder(path)?;
        Ok(file)
    }

    /// Opens the file of exactly this replica, and brings both slots in step if they are not. `size_bytes` is that of the disk.
    pub fn open(
        path: &Path,
        (pool, vm, disk, host): (PoolId, VmId, DiskId, HostId),
        size_bytes: u64,
    ) -> Result<(Self, Slots), OpenError> {
        let io_error = |source| OpenError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            rustix::io::Errno::WOULDBLOCK => OpenError::InUse { path: path.to_owned() },
            other => io_error(other.into()),
        })?;
        // By what is read here writes are acknowledged.
        cache::forget_all(&file).map_err(io_error)?;
        let (superblock, slots) = read_superblock(&file, path)?;
        let layout = superblock.layout().expect("checked by decode");
        let expected = Identity { pool, vm, disk, host, size_bytes };
        check_identity(path, &superblock, expected)?;
        let found = file.metadata().map_err(io_error)?.len();
        if found < layout.file_bytes() {
            return Err(OpenError::Truncated { path: path.to_owned(), found, expected: layout.file_bytes() });
        }
        let mut opened = Self { path: path.to_owned(), file, superblock, layout };
        if slots != Slots::Equal {
            // What is about to be relied on must be in both slots.
            opened.update(superblock).map_err(|error| io_error(error.source))?;
        }
        Ok((opened, slots))
    }

    /// The superblock as it is durably on disk.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Where things are in the file.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The file, for a thread that writes map pages by itself.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `superblock` durable in both slots. Its sequence is set; who it belongs to must not change.
    pub fn update(&mut self, superblock: Superblock) -> Result<(), UpdateError> {
        let old = &self.superblock;
        assert!(
            old.disk == superblock.disk && old.host == superblock.host && old.layout() == superblock.layout(),
            "an update changes a replica's state, not which replica it is"
        );
        let superblock = Superblock { sequence: old.sequence + 1, ..superblock };
        let mut page = Page::ZERO;
        superblock.encode(&mut page);
        for slot in 0..2 {
            self.file
                .write_all_at(&page.0, self.layout.slot_offset(slot))
                .and_then(|()| self.file.sync_data())
                .map_err(|source| UpdateError { path: self.path.clone(), source })?;
        }
        self.superblock = superblock;
        Ok(())
    }

    /// Reads both maps. Pages that fail their check, or can't be read, count as all set.
    #[must_use]
    pub fn load_maps(&self) -> LoadedMaps {
        let mut damaged_pages = 0;
        let mut load = |map| {
            let mut words = vec![0; self.layout.words()];
            for index in 0..self.layout.pages_per_map() {
                let range = self.layout.words_of_page(index);
                let here = MapPage { disk: self.superblock.disk, map, index };
                let mut page = Page::ZERO;
                let read = self.file.read_exact_at(&mut page.0, self.layout.map_page_offset(map, index));
                if read.is_err() || here.decode(&page, &mut words[range.clone()]).is_err() {
                    words[range].fill(u64::MAX);
                    damaged_pages += 1;
                }
            }
            self.layout.trim(&mut words);
            words
        };
        let write_intent = load(RegionMap::WriteIntent);
        let out_of_sync = load(RegionMap::OutOfSync);
        LoadedMaps { write_intent, out_of_sync, damaged_pages }
    }

    /// Writes all of a map, without a flush.
    pub fn store_map(&self, map: RegionMap, counter: u64, words: &[u64]) -> io::Result<()> {
        let mut page = Page::ZERO;
        for index in 0..self.layout.pages_per_map() {
            let here = MapPage { disk: self.superblock.disk, map, index };
            here.encode(counter, &words[self.layout.words_of_page(index)], &mut page);
            self.file.write_all_at(&page.0, self.layout.map_page_offset(map, index))?;
        }
        Ok(())
    }
}

fn read_superblock(file: &File, path: &Path) -> Result<(Superblock, Slots), OpenError> {
    let mut slots = [Err(SuperblockError::NotSuperblock); 2];
    for (slot, offset) in slots.iter_mut().zip([0, u64::try_from(PAGE_BYTES).expect("small")]) {
        let mut page = Page::ZERO;
        *slot = match file.read_exact_at(&mut page.0, offset) {
            Ok(()) => Superblock::decode(&page),
            // An unreadable sector is a damaged slot like any other; a file that ends here has no slot.
            Err(_) => Err(SuperblockError::NotSuperblock),
        };
    }
    for slot in &slots {
        if let Err(SuperblockError::NewerVersion(version)) = *slot {
            return Err(OpenError::NewerVersion { path: path.to_owned(), version });
        }
    }
    match slots {
        [Ok(first), Ok(second)] if first == second => Ok((first, Slots::Equal)),
        [Ok(first), Ok(second)] if first.sequence > second.sequence => Ok((first, Slots::OneOlder)),
        [Ok(_), Ok(second)] => Ok((second, Slots::OneOlder)),
        [Ok(whole), Err(damage)] | [Err(damage), Ok(whole)] => Ok((whole, Slots::OneDamaged(damage))),
        [Err(first), Err(second)] => Err(OpenError::NotMetadata { path: path.to_owned(), first, second }),
    }
}

fn check_identity(path: &Path, found: &Superblock, expected: Identity) -> Result<(), OpenError> {
    let other = |what, found: String, expected: String| {
        if found == expected { Ok(()) } else { Err(OpenError::Other { path: path.to_owned(), what, found, expected }) }
    };
    other("pool", found.pool.to_string(), expected.pool.to_string())?;
    other("VM", found.vm.to_string(), expected.vm.to_string())?;
    other("disk", found.disk.to_string(), expected.disk.to_string())?;
    other("host", found.host.to_string(), expected.host.to_string())?;
    other("a disk of size", found.size_bytes.to_string(), expected.size_bytes.to_string())
}

/// Makes a rename or creation in the file's folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    File::open(folder)?.sync_all()
}
