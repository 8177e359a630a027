//! Failed storage that works again: replaced, mounted anew, or healed by itself. Files that were open on it stay failed for
//! ever, so they have to be opened anew; when that is worth a try is decided here.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// A failed disk is looked at after this time, doubled with each failure after a try, up to the last.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
const PAUSE_LAST: Duration = Duration::from_secs(300);
/// A disk that worked for so long has not failed again: it failed anew.
const FORGET: Duration = Duration::from_secs(600);
/// Name of the file that is written to see whether the storage works.
const PROBE: &str = "storage-probe";

/// When the next try is due, of one disk.
#[derive(Debug, Default)]
pub struct Retries {
    last: Option<Instant>,
    pause: Duration,
}

impl Retries {
    /// Whether a failed disk may be tried now. A part of a disk can fail while the rest works: then each try ends in a failure,
    /// and they become rare.
    pub fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.duration_since(last) >= self.pause)
    }

    /// A try is made now.
    pub fn tried(&mut self, now: Instant) {
        let again = self.last.is_some_and(|last| now.duration_since(last) < FORGET);
        self.pause = if again { (self.pause * 2).min(PAUSE_LAST) } else { PAUSE_FIRST };
        self.last = Some(now);
    }
}

/// Makes the folder, if it is gone, and writes to it through to the disk.
///
/// # Errors
/// The storage does not work.
pub fn probe(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(PROBE);
    let mut file = File::create(&path)?;
    file.write_all(b"written to see whether the storage works\n")?;
    file.sync_all()?;
    fs::remove_file(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_that_end_in_failures_become_rare_and_a_late_failure_counts_as_the_first() {
        let begin = Instant::now();
        let mut retries = Retries::default();
        assert!(retries.is_due(begin));
        let mut now = begin;
        for expected in [5, 10, 20, 40, 80, 160, 300, 300] {
            retries.tried(now);
            let pause = Duration::from_secs(expected);
            assert!(!retries.is_due(now + pause - Duration::from_millis(1)), "{expected} s");
            now += pause;
            assert!(retries.is_due(now), "{expected} s");
        }
        retries.tried(now + FORGET);
        assert!(retries.is_due(now + FORGET + PAUSE_FIRST));
    }

    #[test]
    fn a_missing_folder_is_made_and_nothing_is_left_in_it() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("vms/one");
        probe(&folder).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
        fs::write(&folder, b"not a folder").unwrap();
        probe(&folder).unwrap_err();
    }
}
