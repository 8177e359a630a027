//! What the library is told, by one environment variable.
//!
//! `EVENKEEL_RAMTRACK=1 report=FD uffd=FD others=track|leave ram=DEV:INO ram=DEV:INO …`
//!
//! - `1`: version of this format.
//! - `report`: inherited descriptor, open for appending, for the report lines (see `report.rs`).
//! - `uffd`: inherited descriptor of `/dev/userfaultfd`; left out: the system call is tried.
//! - `others`: whether other memory files (memfd) that QEMU maps shared and writable are guest memory too: so they are
//!   with `-machine aux-ram-share=on`.
//! - `ram`: a file of guest memory, by its `st_dev` and `st_ino` in decimal digits.

use crate::sys::FileId;

/// Files that may be named; more are refused as a malformed variable.
const FILES_MAX: usize = 8;
const FORMAT_VERSION: &str = "1";

/// What to do with memory files that were not named.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    Track,
    Leave,
}

pub(crate) struct Config {
    pub report: i32,
    pub uffd_device: Option<i32>,
    pub others: Others,
    files: [Option<FileId>; FILES_MAX],
}

impl Config {
    /// `None`: malformed.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(FORMAT_VERSION) {
            return None;
        }
        let mut report = None;
        let mut config = Self { report: -1, uffd_device: None, others: Others::Leave, files: [None; FILES_MAX] };
        for word in words {
            let (name, value) = word.split_once('=')?;
            match name {
                "report" => report = Some(value.parse().ok()?),
                "uffd" => config.uffd_device = Some(value.parse().ok()?),
                "others" if value == "track" => config.others = Others::Track,
                "others" if value == "leave" => config.others = Others::Leave,
                "ram" => {
                    let (device, inode) = value.split_once(':')?;
                    let file = FileId { device: device.parse().ok()?, inode: inode.parse().ok()? };
                    *config.files.iter_mut().find(|place| place.is_none())? = Some(file);
                }
                _ => return None,
            }
        }
        config.report = report?;
        Some(config)
    }

    pub(crate) fn names(&self, file: FileId) -> bool {
        self.files.contains(&Some(file))
    }
}
