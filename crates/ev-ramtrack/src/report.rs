//! What the library says: one line each, appended with one write, so that lines don't mix.
//!
//! | line | meaning |
//! |---|---|
//! | `1 loaded` | a userfaultfd with all needed features was made |
//! | `1 failed STEP ERRNO` | it was not; nothing will be tracked |
//! | `1 tracked DEV INO START LENGTH OFFSET NAME` | the mapping is tracked |
//! | `1 untracked DEV INO START LENGTH OFFSET ERRNO NAME` | the mapping was made, but can't be tracked |
//!
//! Numbers are decimal, lengths and offsets in bytes, START an address in QEMU. NAME (may hold spaces) is the file's as
//! `/proc/self/fd` shows it.

use core::fmt::{self, Write};

use crate::sys::{self, FileId};

/// Longest line; what is longer is cut.
const LINE_BYTES_MAX: usize = 512;

/// What was being done when it failed.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    Variable,
    UserfaultfdDevice,
    UserfaultfdCall,
    Features,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Variable => "variable",
            Self::UserfaultfdDevice => "userfaultfd-device",
            Self::UserfaultfdCall => "userfaultfd-call",
            Self::Features => "features",
        }
    }
}

/// A mapping that the kernel has made.
#[derive(Clone, Copy)]
pub(crate) struct Mapping<'a> {
    pub file: FileId,
    pub start: usize,
    pub length: usize,
    pub offset: i64,
    pub name: &'a str,
}

struct Line {
    bytes: [u8; LINE_BYTES_MAX],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte is kept for the line feed.
        let room = LINE_BYTES_MAX.saturating_sub(self.length + 1);
        let count = text.len().min(room);
        let from = text.as_bytes().get(..count).ok_or(fmt::Error)?;
        let to = self.bytes.get_mut(self.length..self.length + count).ok_or(fmt::Error)?;
        to.copy_from_slice(from);
        self.length += count;
        Ok(())
    }
}

fn say(report: i32, text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE_BYTES_MAX], length: 0 };
    if line.write_fmt(text).is_err() {
        return;
    }
    if let Some(end) = line.bytes.get_mut(line.length) {
        *end = b'\n';
        line.length += 1;
    }
    sys::write(report, line.bytes.get(..line.length).unwrap_or_default());
}

pub(crate) fn loaded(report: i32) {
    say(report, format_args!("1 loaded"));
}

pub(crate) fn failed(report: i32, step: Step, errno: i32) {
    say(report, format_args!("1 failed {} {errno}", step.name()));
}

pub(crate) fn mapped(report: i32, mapping: Mapping<'_>, result: Result<(), i32>) {
    let Mapping { file: FileId { device, inode }, start, length, offset, name } = mapping;
    match result {
        Ok(()) => say(report, format_args!("1 tracked {device} {inode} {start} {length} {offset} {name}")),
        Err(errno) => {
            say(report, format_args!("1 untracked {device} {inode} {start} {length} {offset} {errno} {name}"));
        }
    }
}
