//! The pieces of a guest's memory in a running QEMU: which files they are, and where QEMU has them mapped.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::SeekFrom;

use super::file::{FileId, RAM_FILE_NAME, RamFile};
use super::prepare::{REPORT_FILE_NAME, STATE_FILE_NAME};
use super::report::{Line, ReportedMapping, parse};
use super::sys::{GuestMapping, PAGE_BYTES, PAGE_BYTES_U64, PageBytes};

/// Longest report that is read, in bytes; QEMU maps a few blocks, a line each.
const REPORT_BYTES_MAX: usize = 64 << 10;
/// QEMU's picture of the screen for VNC: not guest memory, made anew with each change of the resolution.
const SCREEN_FILE_NAME: &str = "displaysurface";
/// Most pages of all blocks together: 1 TiB. Beyond that the tables here would have to be built otherwise.
pub const PAGES_MAX: u32 = 1 << 28;

/// Why a QEMU's memory can't be tracked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrackError {
    #[error("could not look into QEMU's process: {source}; ev-am must run as root")]
    Process { source: io::Error },
    #[error("QEMU (process {pid}) was started without memory tracking; start the guest anew to have it")]
    NotPrepared { pid: u32 },
    #[error("the tracking library was not loaded into QEMU; is it installed, and readable for everyone?")]
    NotLoaded,
    #[error(
        "the kernel does not track memory ({step}: {source}); Linux 6.7 or newer is needed, and /dev/userfaultfd for an unprivileged QEMU"
    )]
    Unsupported { step: String, source: io::Error },
    #[error("the kernel does not track {block}: {source}")]
    Untracked { block: String, source: io::Error },
    #[error("QEMU has not mapped the guest's memory ({bytes} bytes) as a whole; restart the guest")]
    NotMapped { bytes: u64 },
    #[error("memory block {block} has no file of that size in QEMU; restart the guest")]
    NoFile { block: String },
    #[error("the guest's memory of {pages} pages is beyond the limit of {PAGES_MAX}; give it less")]
    TooLarge { pages: u64 },
}

/// A page of guest memory, counted over all blocks in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(pub u32);

impl PageNumber {
    pub(crate) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Name and size of one block: two QEMUs with the same command line have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLayout {
    /// `ram`, or QEMU's name for a smaller one: `vga.vram`.
    pub name: String,
    /// Size in pages.
    pub pages: u32,
}

/// All blocks, the guest's main memory first. Two guests with equal layouts number their pages alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RamLayout {
    /// In order.
    pub blocks: Vec<BlockLayout>,
}

impl RamLayout {
    /// Pages of all blocks together.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.blocks.iter().map(|block| block.pages).sum()
    }
}

/// Where QEMU has a part of a block mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub start: u64,
    pub pages: u32,
    /// The number of the page at `start`.
    pub first: PageNumber,
}

#[derive(Debug)]
enum Content {
    /// Mapped: fast.
    Memory { mapping: GuestMapping, file: RamFile },
    /// Made by QEMU, which could cut it short, so that reading a mapping of it would end this process: read by calls.
    File(File),
}

#[derive(Debug)]
struct Block {
    layout: BlockLayout,
    first: u32,
    content: Content,
}

/// The memory of one running guest, readable and writable.
#[derive(Debug)]
pub struct GuestMemory {
    blocks: Vec<Block>,
    addresses: Vec<Addresses>,
    state_file: File,
    /// Its name in QEMU.
    state_path: String,
}

impl GuestMemory {
    /// The memory of the QEMU that is process `pid`, which must have answered on QMP: it has its memory by then.
    ///
    /// # Errors
    /// It was started without tracking, or some block can't be tracked.
    pub fn of_process(pid: u32) -> Result<Self, TrackError> {
        let process = |source| TrackError::Process { source };
        let files = memory_files(pid).map_err(process)?;
        let named = |name: &str| files.iter().find(|file| file.name == name).ok_or(TrackError::NotPrepared { pid });
        let find = |name: &str| open(named(name)?).map_err(process);
        let report = read_report(&find(REPORT_FILE_NAME)?).map_err(process)?;
        let state_file = find(STATE_FILE_NAME)?;
        let number = named(STATE_FILE_NAME)?.path.file_name().unwrap_or_default().to_string_lossy();
        let state_path = format!("/proc/self/fd/{number}");
        let ram = RamFile::new(find(RAM_FILE_NAME)?.into()).map_err(process)?;
        let mappings = tracked_mappings(&report)?;
        let (main, others): (Vec<_>, Vec<_>) = mappings.into_iter().partition(|mapping| mapping.file == ram.id());
        let mut memory = Self { blocks: Vec::new(), addresses: Vec::new(), state_file, state_path };
        memory.add_main(ram, &main)?;
        for mapping in others.iter().filter(|mapping| mapping.name != SCREEN_FILE_NAME) {
            memory.add_other(mapping, &files)?;
        }
        Ok(memory)
    }

    fn add_main(&mut self, ram: RamFile, mappings: &[ReportedMapping]) -> Result<(), TrackError> {
        let bytes = ram.bytes();
        let whole = mappings.iter().any(|mapping| mapping.offset == 0 && mapping.bytes == bytes);
        if !whole {
            return Err(TrackError::NotMapped { bytes });
        }
        let length = usize::try_from(bytes).map_err(|_| TrackError::TooLarge { pages: bytes / PAGE_BYTES_U64 })?;
        let mapping = GuestMapping::new(&ram, length).map_err(|source| TrackError::Process { source })?;
        self.add(RAM_FILE_NAME.to_owned(), bytes, mappings, Content::Memory { mapping, file: ram })
    }

    fn add_other(&mut self, mapping: &ReportedMapping, files: &[MemoryFile]) -> Result<(), TrackError> {
        let no_file = || TrackError::NoFile { block: mapping.name.clone() };
        let file = files.iter().find(|file| file.id == mapping.file).ok_or_else(no_file)?;
        let file = open(file).map_err(|source| TrackError::Process { source })?;
        self.add(mapping.name.clone(), mapping.bytes, std::slice::from_ref(mapping), Content::File(file))
    }

    fn add(
        &mut self,
        name: String,
        bytes: u64,
        mappings: &[ReportedMapping],
        content: Content,
    ) -> Result<(), TrackError> {
        let first = self.layout().pages();
        let total = u64::from(first) + bytes / PAGE_BYTES_U64;
        if total > u64::from(PAGES_MAX) {
            return Err(TrackError::TooLarge { pages: total });
        }
        let to_pages = |bytes: u64| u32::try_from(bytes / PAGE_BYTES_U64).unwrap_or(PAGES_MAX);
        for mapping in mappings {
            let first = PageNumber(first + to_pages(mapping.offset));
            self.addresses.push(Addresses { start: mapping.start, pages: to_pages(mapping.bytes), first });
        }
        self.blocks.push(Block { layout: BlockLayout { name, pages: to_pages(bytes) }, first, content });
        Ok(())
    }

    /// What it is made of.
    #[must_use]
    pub fn layout(&self) -> RamLayout {
        RamLayout { blocks: self.blocks.iter().map(|block| block.layout.clone()).collect() }
    }

    pub(crate) fn addresses(&self) -> &[Addresses] {
        &self.addresses
    }

    pub(crate) fn state_file(&self) -> &File {
        &self.state_file
    }

    /// The name under which QEMU writes [`Self::state_file`].
    pub(crate) fn state_path(&self) -> &str {
        &self.state_path
    }

    fn block_of(&self, page: PageNumber) -> io::Result<(&Block, u32)> {
        let block = self.blocks.iter().rev().find(|block| block.first <= page.0);
        let found = block.map(|block| (block, page.0 - block.first));
        found.filter(|(block, within)| *within < block.layout.pages).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Reads whole pages from `page` on, of one block. The guest may write meanwhile.
    ///
    /// # Errors
    /// No such pages, or QEMU's file is not what it was.
    pub fn read(&self, page: PageNumber, into: &mut [u8]) -> io::Result<()> {
        let (block, within) = self.block_of(page)?;
        match &block.content {
            Content::Memory { mapping, .. } => {
                let offset = usize::try_from(within).map_err(io::Error::other)? * PAGE_BYTES;
                mapping.read(offset, into).ok_or_else(|| io::ErrorKind::InvalidInput.into())
            }
            Content::File(file) => file.read_exact_at(into, u64::from(within) * PAGE_BYTES_U64),
        }
    }

    /// Writes one page: of a guest that does not run yet.
    ///
    /// # Errors
    /// No such page, or QEMU's file is not what it was.
    pub fn write(&self, page: PageNumber, bytes: &PageBytes) -> io::Result<()> {
        let (block, within) = self.block_of(page)?;
        match &block.content {
            Content::Memory { mapping, .. } => {
                let offset = usize::try_from(within).map_err(io::Error::other)? * PAGE_BYTES;
                mapping.write(offset, bytes).ok_or_else(|| io::ErrorKind::InvalidInput.into())
            }
            Content::File(file) => file.write_all_at(bytes, u64::from(within) * PAGE_BYTES_U64),
        }
    }

    /// The first page from `page` on, below `end` and in the same block, that was ever written to its file; the others
    /// are zero and take no memory, which reading them would change.
    ///
    /// # Errors
    /// No such page, or the file can't be asked.
    pub fn next_data(&self, page: PageNumber, end: PageNumber) -> io::Result<Option<PageNumber>> {
        let (block, within) = self.block_of(page)?;
        let position = SeekFrom::Data(u64::from(within) * PAGE_BYTES_U64);
        let found = match &block.content {
            Content::Memory { file, .. } => rustix::fs::seek(file.as_fd(), position),
            Content::File(file) => rustix::fs::seek(file, position),
        };
        match found {
            Ok(offset) => {
                let within = u32::try_from(offset / PAGE_BYTES_U64).map_err(io::Error::other)?;
                let found = block.first.checked_add(within).map(PageNumber);
                Ok(found.filter(|found| *found < end))
            }
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A memory file among a process's descriptors.
struct MemoryFile {
    path: PathBuf,
    name: String,
    id: FileId,
}

fn memory_files(pid: u32) -> io::Result<Vec<MemoryFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        // Closed meanwhile: not one of ours, which stay open.
        let Ok(target) = std::fs::read_link(&path) else { continue };
        let Some(name) = target.to_str().and_then(|target| target.strip_prefix("/memfd:")) else { continue };
        let name = name.strip_suffix(" (deleted)").unwrap_or(name).to_owned();
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        use std::os::unix::fs::MetadataExt;
        files.push(MemoryFile { path, name, id: FileId { device: metadata.dev(), inode: metadata.ino() } });
    }
    Ok(files)
}

fn open(file: &MemoryFile) -> io::Result<File> {
    let opened = File::options().read(true).write(true).open(&file.path)?;
    // The descriptor's number may have been used anew.
    if FileId::of(&opened)? != file.id {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(opened)
}

fn read_report(file: &File) -> io::Result<Vec<Line>> {
    let mut bytes = vec![0; REPORT_BYTES_MAX];
    let count = file.read_at(&mut bytes, 0)?;
    let text = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()).into_owned();
    Ok(text.lines().filter_map(parse).collect())
}

fn tracked_mappings(report: &[Line]) -> Result<Vec<ReportedMapping>, TrackError> {
    let mut mappings = Vec::new();
    let mut loaded = false;
    for line in report {
        match line {
            Line::Loaded => loaded = true,
            Line::Failed { step, errno } => {
                let source = io::Error::from_raw_os_error(*errno);
                return Err(TrackError::Unsupported { step: step.clone(), source });
            }
            Line::Tracked(mapping) => mappings.push(mapping.clone()),
            Line::Untracked { mapping, errno } => {
                let source = io::Error::from_raw_os_error(*errno);
                return Err(TrackError::Untracked { block: mapping.name.clone(), source });
            }
        }
    }
    if loaded { Ok(mappings) } else { Err(TrackError::NotLoaded) }
}
