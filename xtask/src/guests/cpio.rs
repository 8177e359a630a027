//! An initramfs: files in the kernel's "newc" archive format (Documentation/driver-api/early-userspace/buffer-format.rst).

/// What an entry is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Folder,
    Program,
    CharacterDevice { major: u32, minor: u32 },
}

/// An archive in memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub fn folder(&mut self, name: &str) {
        self.entry(name, Kind::Folder, &[]);
    }

    /// A file that may be run.
    pub fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, Kind::Program, content);
    }

    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, Kind::CharacterDevice { major, minor }, &[]);
    }

    /// The whole archive, with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", Kind::Program, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, kind: Kind, content: &[u8]) {
        let (mode, major, minor) = match kind {
            Kind::Folder => (0o040_755, 0, 0),
            Kind::Program => (0o100_755, 0, 0),
            Kind::CharacterDevice { major, minor } => (0o020_600, major, minor),
        };
        self.entries += 1;
        // Inode, mode, user, group, links, time, size, device (2), special device (2), name's length, checksum (unused).
        let fields: [usize; 13] = [
            to_usize(self.entries),
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            to_usize(major),
            to_usize(minor),
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Name and content end at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).expect("a 64-bit machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_lists() {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.program("init", b"#!x");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("init\0"));
        assert!(text.contains("TRAILER!!!\0"));
    }
}
