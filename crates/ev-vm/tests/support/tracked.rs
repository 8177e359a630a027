//! Guests whose memory is tracked, and an image of that memory that is kept by tracked pages only.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ev_vm::checkpoint::AtStop;
use ev_vm::ram::{
    GuestMemory, PAGE_BYTES, PageBytes, PageNumber, RamFile, RamTracker, StagedPage, Staging, TrackedMemory,
};
use ev_vm::{BootSource, Guest, GuestSpec, Memory, Qemu};
use tokio::time::sleep;

use super::{Ending, Folders, PATIENCE, qemus, tcg};

fn target() -> PathBuf {
    // The test program lies in target/debug/deps.
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(3).unwrap().to_owned()
}

/// The preloaded library, made anew if its sources changed: no test program depends on it, as it can't be linked.
pub fn library() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "ev-ramtrack", "--target-dir"]).arg(target());
        assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    });
    target().join("debug/libev_ramtrack.so")
}

pub fn tracked(memory_mib: u32) -> Memory {
    let file = RamFile::create(u64::from(memory_mib) << 20).unwrap();
    Memory::Tracked(TrackedMemory { file, library: library() })
}

/// The machine type to test each QEMU with.
pub fn machines() -> Vec<(Qemu, &'static str)> {
    qemus().into_iter().zip(["pc-q35-7.2", "pc-q35-10.0"]).collect()
}

/// The tiny guest: Debian's kernel and our program. Made by `cargo xtask guests`.
pub fn tiny(folders: &Folders, machine: &str, memory_mib: u32, parameters: &str) -> GuestSpec {
    let files = target().join("guests/tiny");
    let kernel = files.join("vmlinuz");
    assert!(kernel.exists(), "{} does not exist; make it: cargo xtask guests", kernel.display());
    let mut spec = folders.spec(machine);
    spec.disks.clear();
    spec.vcpus = 2;
    spec.memory_mib = memory_mib;
    spec.memory = tracked(memory_mib);
    // The kernel's check of its timer fails if this machine stands still for a moment right then.
    let command_line = format!("console=ttyS0 quiet panic=-1 no_timer_check {parameters}");
    spec.boot = BootSource::Kernel { kernel, initrd: Some(files.join("initrd")), command_line };
    spec
}

/// The same with 128 MiB, running, after it has said `sign`.
pub async fn running_tiny(folders: &Folders, qemu: &Qemu, machine: &str, parameters: &str, sign: &str) -> Ending {
    let guest = Ending(Guest::start(qemu, &tcg(), &tiny(folders, machine, 128, parameters)).await.unwrap());
    until_said(folders, sign).await;
    guest
}

/// What the guest said on its serial port up to now.
pub fn said(folders: &Folders) -> String {
    String::from_utf8_lossy(&std::fs::read(folders.paths.serial_log()).unwrap_or_default()).into_owned()
}

/// Fails by what it said instead.
pub async fn until_said(folders: &Folders, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !said(folders).contains(text) {
        assert!(Instant::now() < deadline, "waited in vain for {text:?}; the guest said:\n{}", said(folders));
        sleep(Duration::from_millis(5)).await;
    }
}

/// The highest round that a thread of the guest's memory check told; no round may be bad.
pub fn round(said: &str, thread: usize) -> u64 {
    assert!(!said.contains("BAD"), "the guest found a bad page: {said}");
    let start = format!("EVENKEEL-GUEST memory {thread} round ");
    let rounds = said.lines().filter_map(|line| line.strip_prefix(&start)?.split(' ').next()?.parse().ok());
    rounds.max().unwrap_or_default()
}

/// All pages of a memory that hold data, to `each`.
pub fn each_page(memory: &GuestMemory, mut each: impl FnMut(PageNumber, &PageBytes)) {
    let mut first = 0;
    for block in memory.layout().blocks {
        let end = PageNumber(first + block.pages);
        let mut next = PageNumber(first);
        while let Some(page) = (next < end).then(|| memory.next_data(next, end).unwrap()).flatten() {
            let mut bytes = [0; PAGE_BYTES];
            memory.read(page, &mut bytes).unwrap();
            each(page, &bytes);
            next = PageNumber(page.0 + 1);
        }
        first = end.0;
    }
}

/// A copy of a guest's memory, brought forward by staged pages alone.
#[derive(Clone, PartialEq)]
pub struct Image {
    bytes: Vec<u8>,
}

fn range(page: PageNumber) -> std::ops::Range<usize> {
    let start = usize::try_from(page.0).unwrap() * PAGE_BYTES;
    start..start + PAGE_BYTES
}

impl Image {
    /// Of the whole memory as it is now; the tracker must have been armed before.
    pub fn of(memory: &GuestMemory) -> Self {
        let pages = usize::try_from(memory.layout().pages()).unwrap();
        let mut image = Self { bytes: vec![0; pages * PAGE_BYTES] };
        each_page(memory, |page, bytes| image.bytes[range(page)].copy_from_slice(bytes));
        image
    }

    /// Returns how many pages really are others now.
    pub fn apply(&mut self, staging: &Staging) -> usize {
        let mut changed = 0;
        for (page, content) in staging.pages() {
            let bytes = match content {
                StagedPage::Bytes(bytes) => bytes,
                StagedPage::Zero => &[0; PAGE_BYTES],
            };
            let kept = &mut self.bytes[range(page)];
            if kept != bytes {
                changed += 1;
                kept.copy_from_slice(bytes);
            }
        }
        changed
    }

    /// Pages that differ from the memory, which must stand still.
    pub fn differences(&self, tracker: &RamTracker) -> Vec<PageNumber> {
        let memory = tracker.memory();
        let mut zero = self.bytes.chunks(PAGE_BYTES).map(|page| page.iter().any(|byte| *byte != 0)).collect::<Vec<_>>();
        let mut differing = Vec::new();
        each_page(memory, |page, bytes| {
            zero[usize::try_from(page.0).unwrap()] = false;
            if self.bytes[range(page)] != *bytes {
                differing.push(page);
            }
        });
        // Pages that hold something here and nothing there.
        let left = zero.iter().enumerate().filter(|(_, left)| **left);
        differing.extend(left.map(|(page, _)| PageNumber(u32::try_from(page).unwrap())));
        differing
    }
}

/// For checkpoints of which memory and devices are all.
pub fn nothing_else() -> AtStop {
    std::sync::Arc::new(|| Ok(()))
}

/// Copies the memory as a whole into another guest's, then staged pages.
pub fn copy_all(from: &GuestMemory, to: &GuestMemory) {
    assert_eq!(from.layout(), to.layout());
    each_page(from, |page, bytes| to.write(page, bytes).unwrap());
}

pub fn apply(staging: &Staging, to: &GuestMemory) -> usize {
    let mut count = 0;
    for (page, content) in staging.pages() {
        let bytes = match content {
            StagedPage::Bytes(bytes) => bytes,
            StagedPage::Zero => &[0; PAGE_BYTES],
        };
        to.write(page, bytes).unwrap();
        count += 1;
    }
    count
}
