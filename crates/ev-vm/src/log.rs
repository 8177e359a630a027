//! Logs that QEMU writes and we keep small: a guest can write to its serial console for as long as it likes.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A log longer than this many bytes is cut to its last [`LOG_KEPT_BYTES`].
pub(crate) const LOG_BYTES_MAX: u64 = 1 << 20;
/// What stays of a log that is cut.
const LOG_KEPT_BYTES: u64 = 128 << 10;
/// How much of a log is put into an error message, in bytes and lines.
const TAIL_BYTES_MAX: u64 = 4 << 10;
const TAIL_LINES_MAX: usize = 6;

/// Cuts the log if it is too long. QEMU has it open for appending, so its next line comes behind what is kept; lines
/// that it writes during the cut can be lost. What is kept stays in `.1` beside it.
pub(crate) fn bound(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let length = file.metadata()?.len();
    if length <= LOG_BYTES_MAX {
        return Ok(());
    }
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_KEPT_BYTES)))?;
    let mut kept = Vec::new();
    (&mut file).take(LOG_KEPT_BYTES).read_to_end(&mut kept)?;
    file.set_len(0)?;
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    std::fs::File::create(PathBuf::from(old))?.write_all(&kept)
}

/// Length of the log now, to tell later what was added.
pub(crate) fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map(|metadata| metadata.len()).unwrap_or_default()
}

/// The last lines of what was written behind `start`, in one line; for messages.
pub(crate) fn tail(path: &Path, start: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL_BYTES_MAX)).min(length)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(TAIL_LINES_MAX).collect();
    if lines.is_empty() {
        return format!("nothing ({} is empty)", path.display());
    }
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_cut_and_its_end_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut writer = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        let line = "x".repeat(1023) + "\n";
        for _ in 0..1100 {
            writer.write_all(line.as_bytes()).unwrap();
        }
        writer.write_all(b"the end\n").unwrap();
        bound(&path).unwrap();
        assert_eq!(length(&path), 0);
        assert!(std::fs::read_to_string(folder.path().join("log.1")).unwrap().ends_with("the end\n"));
        writer.write_all(b"after\n").unwrap();
        bound(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
    }

    #[test]
    fn the_tail_begins_where_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "old\n\nnew 1\nnew 2\n").unwrap();
        assert_eq!(tail(&path, 4), "new 1 | new 2");
        assert!(tail(&path, 100).starts_with("nothing"));
        assert!(tail(&folder.path().join("none"), 0).starts_with("nothing"));
    }
}
