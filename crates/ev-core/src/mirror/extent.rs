//! A stretch of a disk in bytes, as protocols name it.

/// `length` bytes from `offset`. Whoever decodes one from outside has checked that it ends within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes; at most 4 GiB, because both protocols carry 32 bits.
    pub length: u32,
}

impl Extent {
    /// The byte after the last one. Saturates, so that a wrong extent fails the comparison with the disk's size.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }

    /// Whether both have a byte in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}
