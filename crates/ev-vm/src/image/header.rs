//! The first bytes of an image, read here before any of QEMU's tools sees them: those follow what a header says to
//! other files of the host.

use super::{Refusal, SNAPSHOTS_MAX};

/// How much of a file's beginning is looked at, in bytes. A qcow2 header is at most one cluster, but what is read
/// here lies in its first 112 bytes.
pub(super) const HEAD_BYTES: usize = 512;

const QCOW_MAGIC: &[u8] = b"QFI\xfb";

/// Incompatible features of qcow2 version 3 (docs/interop/qcow2.txt in QEMU's source).
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_DATA_FILE: u64 = 1 << 2;

/// Formats that are told apart so that they are not taken for raw disks: name, offset and bytes.
const OTHERS: [(&str, usize, &[u8]); 17] = [
    ("VMDK", 0, b"KDMV"),
    ("VMDK", 0, b"COWD"),
    ("VMDK", 0, b"# Disk DescriptorFile"),
    ("VHDX", 0, b"vhdxfile"),
    ("VHD", 0, b"conectix"),
    ("VDI", 64, &[0x7f, 0x10, 0xda, 0xbe]),
    ("QED", 0, b"QED\0"),
    ("Parallels", 0, b"WithoutFreeSpace"),
    ("Parallels", 0, b"WithouFreSpacExt"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("gzip", 0, &[0x1f, 0x8b]),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, &[0x28, 0xb5, 0x2f, 0xfd]),
    ("bzip2", 0, b"BZh"),
    ("zip", 0, b"PK\x03\x04"),
    ("7z", 0, b"7z\xbc\xaf\x27\x1c"),
    ("tar (OVA)", 257, b"ustar"),
];

/// What a file's beginning says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looks {
    Raw,
    Qcow2,
    Other(&'static str),
}

pub(super) fn looks(head: &[u8]) -> Looks {
    if head.starts_with(QCOW_MAGIC) {
        return Looks::Qcow2;
    }
    let matches = |(_, at, bytes): &&(&str, usize, &[u8])| head.get(*at..).is_some_and(|rest| rest.starts_with(bytes));
    OTHERS.iter().find(matches).map_or(Looks::Raw, |(name, ..)| Looks::Other(name))
}

/// Refuses a qcow2 header that leads outside of the file, or that says that the image is no good. What is wrong in
/// other ways, `qemu-img` tells.
pub(super) fn check_qcow2(head: &[u8]) -> Result<(), Refusal> {
    let number = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(u32::from_be_bytes).ok_or(Refusal::Truncated)
    };
    let long = |at: usize| {
        let bytes = head.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        bytes.map(u64::from_be_bytes).ok_or(Refusal::Truncated)
    };
    if !head.starts_with(QCOW_MAGIC) {
        return Err(Refusal::NotQcow2);
    }
    let version = number(4)?;
    if !(2..=3).contains(&version) {
        return Err(Refusal::QcowVersion { version });
    }
    if long(8)? != 0 || number(16)? != 0 {
        return Err(Refusal::BackingFile);
    }
    if number(32)? != 0 {
        return Err(Refusal::Encrypted);
    }
    let snapshots = number(60)?;
    if snapshots > SNAPSHOTS_MAX {
        return Err(Refusal::TooManySnapshots { snapshots });
    }
    if version == 3 {
        let features = long(72)?;
        if features & FEATURE_DATA_FILE != 0 {
            return Err(Refusal::DataFile);
        }
        if features & FEATURE_CORRUPT != 0 {
            return Err(Refusal::MarkedCorrupt);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[..4].copy_from_slice(QCOW_MAGIC);
        head[7] = 3;
        head
    }

    fn with(at: usize, byte: u8) -> Result<(), Refusal> {
        let mut head = header();
        head[at] = byte;
        check_qcow2(&head)
    }

    #[test]
    fn what_leads_outside_or_is_no_good_is_refused() {
        assert_eq!(check_qcow2(&header()), Ok(()));
        assert_eq!(with(7, 1), Err(Refusal::QcowVersion { version: 1 }));
        assert_eq!(with(7, 2), Ok(()));
        assert_eq!(with(15, 1), Err(Refusal::BackingFile));
        assert_eq!(with(19, 1), Err(Refusal::BackingFile));
        assert_eq!(with(35, 2), Err(Refusal::Encrypted));
        assert_eq!(with(60, 1), Err(Refusal::TooManySnapshots { snapshots: 1 << 24 }));
        assert_eq!(with(79, 2), Err(Refusal::MarkedCorrupt));
        assert_eq!(with(79, 4), Err(Refusal::DataFile));
        assert_eq!(with(79, 1), Ok(()), "in use is for qemu-img to judge");
        assert_eq!(check_qcow2(b"something else"), Err(Refusal::NotQcow2));
        for length in 4..80 {
            assert_eq!(check_qcow2(&header()[..length]), Err(Refusal::Truncated), "{length}");
        }
    }

    #[test]
    fn other_formats_are_not_taken_for_raw_disks() {
        assert_eq!(looks(&header()), Looks::Qcow2);
        assert_eq!(looks(&[0; HEAD_BYTES]), Looks::Raw);
        assert_eq!(looks(b""), Looks::Raw);
        assert_eq!(looks(b"KDMV...."), Looks::Other("VMDK"));
        let mut tar = vec![0; HEAD_BYTES];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(looks(&tar), Looks::Other("tar (OVA)"));
    }
}
