//! Reads what the preloaded library says (the table in `ev-ramtrack/src/report.rs`). It is written inside of QEMU, so
//! nothing of it is trusted: the addresses are only ever given to the kernel, for QEMU's own address space.

use super::file::FileId;

/// A mapping in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReportedMapping {
    pub file: FileId,
    pub start: u64,
    pub bytes: u64,
    pub offset: u64,
    /// The file's name, without what `/proc` adds: `vga.vram`.
    pub name: String,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Loaded,
    Failed { step: String, errno: i32 },
    Tracked(ReportedMapping),
    Untracked { mapping: ReportedMapping, errno: i32 },
}

const FORMAT_VERSION: &str = "1";
const PAGE_BYTES: u64 = super::sys::PAGE_BYTES_U64;

/// `None`: not a line of this format.
pub(crate) fn parse(line: &str) -> Option<Line> {
    let (version, rest) = line.split_once(' ')?;
    if version != FORMAT_VERSION {
        return None;
    }
    if rest == "loaded" {
        return Some(Line::Loaded);
    }
    let (kind, rest) = rest.split_once(' ')?;
    match kind {
        "failed" => {
            let (step, errno) = rest.split_once(' ')?;
            Some(Line::Failed { step: step.to_owned(), errno: errno.parse().ok()? })
        }
        "tracked" => {
            let (numbers, name) = numbers::<5>(rest)?;
            mapping(numbers, name).map(Line::Tracked)
        }
        "untracked" => {
            let ([device, inode, start, bytes, offset, errno], name) = numbers::<6>(rest)?;
            let mapping = mapping([device, inode, start, bytes, offset], name)?;
            Some(Line::Untracked { mapping, errno: i32::try_from(errno).ok()? })
        }
        _ => None,
    }
}

fn numbers<const COUNT: usize>(text: &str) -> Option<([u64; COUNT], &str)> {
    let mut numbers = [0; COUNT];
    let mut rest = text;
    for number in &mut numbers {
        let (word, after) = rest.split_once(' ')?;
        *number = word.parse().ok()?;
        rest = after;
    }
    Some((numbers, rest))
}

fn mapping([device, inode, start, bytes, offset]: [u64; 5], name: &str) -> Option<ReportedMapping> {
    let whole = [start, bytes, offset].iter().all(|number| number.is_multiple_of(PAGE_BYTES));
    if !whole || bytes == 0 || start.checked_add(bytes).is_none() || offset.checked_add(bytes).is_none() {
        return None;
    }
    let name = name.strip_prefix("/memfd:").unwrap_or(name);
    let name = name.strip_suffix(" (deleted)").unwrap_or(name).to_owned();
    Some(ReportedMapping { file: FileId { device, inode }, start, bytes, offset, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        assert_eq!(parse("1 loaded"), Some(Line::Loaded));
        assert_eq!(
            parse("1 failed userfaultfd-call 1"),
            Some(Line::Failed { step: "userfaultfd-call".to_owned(), errno: 1 })
        );
        let mapping = ReportedMapping {
            file: FileId { device: 1, inode: 77 },
            start: 0x7f00_0000_0000,
            bytes: 0x0100_0000,
            offset: 0,
            name: "vga.vram".to_owned(),
        };
        assert_eq!(
            parse("1 tracked 1 77 139637976727552 16777216 0 /memfd:vga.vram (deleted)"),
            Some(Line::Tracked(mapping.clone()))
        );
        assert_eq!(
            parse("1 untracked 1 77 139637976727552 16777216 0 22 /memfd:vga.vram (deleted)"),
            Some(Line::Untracked { mapping, errno: 22 })
        );
    }

    #[test]
    fn other_lines_are_refused() {
        let bad = [
            "",
            "1",
            "2 loaded",
            "1 tracked",
            "1 tracked 1 2 4096 4096 x name",
            "1 tracked 1 2 4096 100 0 name",
            "1 tracked 1 2 4096 0 0 name",
            "1 tracked 1 2 18446744073709547520 8192 0 name",
        ];
        for line in bad {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
