//! One page on the wire: as a difference against what the standby has, where that is shorter.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | number of the page (big-endian) |
//! | 1 | form: 0 all zero, 1 whole, 2 patch |
//! | whole: 4096 | its bytes |
//! | patch: 2 | number of runs (big-endian), at least 1 |
//! | each run: 2 + 2 + n | offset and length n (big-endian), the new bytes |

use ev_vm::ram::{PAGE_BYTES, PageBytes};

const ZERO: u8 = 0;
const WHOLE: u8 = 1;
const PATCH: u8 = 2;
/// Bytes of an entry before its content.
const HEAD_BYTES: usize = 5;
/// Bytes of a run before its content.
const RUN_HEAD_BYTES: usize = 4;
/// Longest entry.
pub const ENTRY_BYTES_MAX: usize = HEAD_BYTES + PAGE_BYTES;
/// A patch that is longer is no gain: the whole page is sent.
const PATCH_BYTES_MAX: usize = PAGE_BYTES / 2;
/// Pages are compared in words of this many bytes.
const WORD_BYTES: usize = 8;
/// Equal words between two runs up to which they become one run.
const GAP_WORDS_MAX: usize = 1;

/// The bytes are no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a page of the stream can't be understood: the two sides run versions that don't fit, or the peer is faulty")]
pub struct BadEntry;

/// What an entry says of its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form<'a> {
    Zero,
    Whole(&'a PageBytes),
    /// Runs, checked to lie within the page.
    Patch(Patch<'a>),
}

/// The runs of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch<'a>(&'a [u8]);

/// Appends what turns `old` into `new`; nothing if they are the same.
pub fn encode(number: u32, old: &PageBytes, new: &PageBytes, out: &mut Vec<u8>) {
    if old == new {
        return;
    }
    let start = out.len();
    out.extend(number.to_be_bytes());
    if new.iter().all(|byte| *byte == 0) {
        out.push(ZERO);
        return;
    }
    out.push(PATCH);
    if !encode_patch(old, new, out) {
        out.truncate(start + HEAD_BYTES - 1);
        out.push(WHOLE);
        out.extend(new);
    }
}

/// Whether it is short enough; else what was appended is of no use.
fn encode_patch(old: &PageBytes, new: &PageBytes, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.extend([0, 0]);
    let (old_words, _) = old.as_chunks::<WORD_BYTES>();
    let (new_words, _) = new.as_chunks::<WORD_BYTES>();
    let differs = |word: usize| old_words.get(word) != new_words.get(word);
    let words = new_words.len();
    let mut runs: u16 = 0;
    let mut word = 0;
    while word < words {
        if !differs(word) {
            word += 1;
            continue;
        }
        let (first, mut end) = (word, word + 1);
        while end < words && (end..=end + GAP_WORDS_MAX).any(|next| next < words && differs(next)) {
            end += 1;
        }
        let (offset, length) = (first * WORD_BYTES, (end - first) * WORD_BYTES);
        if out.len() - start + RUN_HEAD_BYTES + length > PATCH_BYTES_MAX {
            return false;
        }
        out.extend(short(offset));
        out.extend(short(length));
        out.extend(&new[offset..offset + length]);
        runs += 1;
        word = end;
    }
    out[start..start + 2].copy_from_slice(&runs.to_be_bytes());
    true
}

fn short(value: usize) -> [u8; 2] {
    u16::try_from(value).expect("an offset in a page is short").to_be_bytes()
}

/// The first entry of `bytes`, and the rest.
///
/// # Errors
/// There is none.
pub fn decode(bytes: &[u8]) -> Result<(u32, Form<'_>, &[u8]), BadEntry> {
    let (number, rest) = bytes.split_first_chunk::<4>().ok_or(BadEntry)?;
    let (form, rest) = rest.split_first().ok_or(BadEntry)?;
    let number = u32::from_be_bytes(*number);
    match *form {
        ZERO => Ok((number, Form::Zero, rest)),
        WHOLE => {
            let (page, rest) = rest.split_first_chunk::<PAGE_BYTES>().ok_or(BadEntry)?;
            Ok((number, Form::Whole(page), rest))
        }
        PATCH => {
            let (runs, rest) = rest.split_first_chunk::<2>().ok_or(BadEntry)?;
            let mut after = rest;
            for _ in 0..u16::from_be_bytes(*runs) {
                let (offset, bytes, next) = run(after).ok_or(BadEntry)?;
                if offset + bytes.len() > PAGE_BYTES {
                    return Err(BadEntry);
                }
                after = next;
            }
            let patch = &rest[..rest.len() - after.len()];
            Ok((number, Form::Patch(Patch(patch)), after))
        }
        _ => Err(BadEntry),
    }
}

/// The first run: where, what, and the rest.
fn run(bytes: &[u8]) -> Option<(usize, &[u8], &[u8])> {
    let (offset, rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (bytes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((usize::from(u16::from_be_bytes(*offset)), bytes, rest))
}

impl Patch<'_> {
    /// Makes the page what it is to be.
    pub fn apply(self, page: &mut PageBytes) {
        let mut rest = self.0;
        while let Some((offset, bytes, next)) = run(rest) {
            page[offset..offset + bytes.len()].copy_from_slice(bytes);
            rest = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(form: Form<'_>, page: &mut PageBytes) {
        match form {
            Form::Zero => *page = [0; PAGE_BYTES],
            Form::Whole(whole) => *page = *whole,
            Form::Patch(patch) => patch.apply(page),
        }
    }

    proptest! {
        #[test]
        fn a_page_arrives_as_it_was_whatever_changed(
            old in proptest::collection::vec(any::<u8>(), PAGE_BYTES),
            changes in proptest::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..400),
            number in any::<u32>(),
        ) {
            let old: PageBytes = old.try_into().unwrap();
            let mut new = old;
            for (at, byte) in &changes {
                new[*at] = *byte;
            }
            let mut out = Vec::new();
            encode(number, &old, &new, &mut out);
            prop_assert!(out.len() <= ENTRY_BYTES_MAX);
            if old == new {
                prop_assert!(out.is_empty());
            } else {
                let (decoded, form, rest) = decode(&out).unwrap();
                prop_assert_eq!((decoded, rest.len()), (number, 0));
                let mut page = old;
                apply(form, &mut page);
                prop_assert!(page == new);
            }
        }

        #[test]
        fn rubbish_is_refused_or_stays_within_the_page(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((_, form, _)) = decode(&bytes) {
                apply(form, &mut [0; PAGE_BYTES]);
            }
        }
    }

    #[test]
    fn a_few_changed_words_are_a_short_patch_and_a_cleared_page_is_nothing_but_its_number() {
        let (mut new, mut out) = ([7; PAGE_BYTES], Vec::new());
        new[100] = 1;
        new[4095] = 2;
        encode(5, &[7; PAGE_BYTES], &new, &mut out);
        assert_eq!(out.len(), HEAD_BYTES + 2 + 2 * (RUN_HEAD_BYTES + WORD_BYTES));
        out.clear();
        encode(5, &new, &[0; PAGE_BYTES], &mut out);
        assert_eq!(out, [0, 0, 0, 5, ZERO]);
    }

    #[test]
    fn a_run_beyond_the_page_is_refused() {
        let bytes = [0, 0, 0, 1, PATCH, 0, 1, 0x0f, 0xff, 0, 2, 1, 1];
        assert_eq!(decode(&bytes), Err(BadEntry));
    }
}
