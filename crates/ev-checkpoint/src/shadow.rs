//! What the standby has, kept on the active host, so that only differences are sent.

use ev_vm::ram::{PAGE_BYTES, PageBytes};

/// Pages as the standby has them once all that was sent is applied. It begins with zeroes, as the standby's image does, and takes memory
/// only for pages that were sent.
#[derive(Debug)]
pub struct Shadow {
    bytes: Vec<u8>,
}

impl Shadow {
    /// `pages` of zeroes.
    pub fn new(pages: u32) -> Self {
        let pages = usize::try_from(pages).expect("usize holds 32 bits");
        Self { bytes: vec![0; pages * PAGE_BYTES] }
    }

    /// A page.
    pub fn page(&mut self, number: u32) -> Option<&mut PageBytes> {
        let (pages, _) = self.bytes.as_chunks_mut::<PAGE_BYTES>();
        pages.get_mut(usize::try_from(number).ok()?)
    }
}
