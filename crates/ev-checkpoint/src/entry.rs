//! One page on the wire: as a difference against what the standby has, where that is shorter.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | number of the page (big-endian) |
//! | 1 | form: 0 all zero, 1 whole, 2 patch, 3 packed, 4 packed difference |
//! | whole: 4096 | its bytes |
//! | patch: 2 | number of runs (big-endian), at least 1 |
//! | each run: 2 + 2 + n | offset and length n (big-endian), the new bytes |
//! | packed: 2 + n | length n (big-endian), an LZ4 block of exactly one page: its bytes, or (4) what is to be XORed into it |

use ev_vm::ram::{PAGE_BYTES, PageBytes};

use crate::packing::{self, Packer};

const ZERO: u8 = 0;
const WHOLE: u8 = 1;
const PATCH: u8 = 2;
const PACKED: u8 = 3;
const PACKED_DIFFERENCE: u8 = 4;
/// Bytes of an entry before its content.
const HEAD_BYTES: usize = 5;
/// Bytes of a run before its content.
const RUN_HEAD_BYTES: usize = 4;
/// Longest entry.
pub const ENTRY_BYTES_MAX: usize = HEAD_BYTES + PAGE_BYTES;
/// A patch that is longer is no gain: the whole page is sent.
const PATCH_BYTES_MAX: usize = PAGE_BYTES / 2;
/// A patch that is shorter is not packed.
const PATCH_BYTES_LARGE: usize = PAGE_BYTES / 8;
/// Of a page with more words than this that differ, the new bytes are packed, else the difference.
const WORDS_DIFFER_MAX: usize = PAGE_BYTES / WORD_BYTES * 3 / 4;
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
    Packed(Packed<'a>),
    PackedDifference(Packed<'a>),
}

/// The runs of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch<'a>(&'a [u8]);

/// An LZ4 block, not looked at yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed<'a>(&'a [u8]);

/// Appends what turns `old` into `new`; nothing if they are the same.
pub fn encode(number: u32, old: &PageBytes, new: &PageBytes, packer: &mut Packer, out: &mut Vec<u8>) {
    if old == new {
        return;
    }
    out.extend(number.to_be_bytes());
    if new.iter().all(|byte| *byte == 0) {
        out.push(ZERO);
        return;
    }
    let start = out.len();
    out.push(PATCH);
    let is_patch = encode_patch(old, new, out);
    let otherwise = if is_patch { out.len() - start - 1 } else { PAGE_BYTES };
    if is_patch && otherwise < PATCH_BYTES_LARGE {
        return;
    }
    if packer.attempts() && encode_packed(old, new, otherwise, packer, start, out) || is_patch {
        return;
    }
    out.truncate(start);
    out.push(WHOLE);
    out.extend(new);
}

/// Puts the packed page in place of what was appended from `start` on, if that is shorter by an eighth. Whether it is.
fn encode_packed(
    old: &PageBytes,
    new: &PageBytes,
    otherwise: usize,
    packer: &mut Packer,
    start: usize,
    out: &mut Vec<u8>,
) -> bool {
    let (old_words, _) = old.as_chunks::<WORD_BYTES>();
    let (new_words, _) = new.as_chunks::<WORD_BYTES>();
    let differ = old_words.iter().zip(new_words).filter(|(old, new)| old != new).count();
    let mut difference = *new;
    let form = if differ > WORDS_DIFFER_MAX {
        PACKED
    } else {
        xor(&mut difference, old);
        PACKED_DIFFERENCE
    };
    let Some(packed) = packer.pack(&difference, otherwise - otherwise / 8 - 2, otherwise) else { return false };
    out.truncate(start);
    out.push(form);
    out.extend(short(packed.len()));
    out.extend(packed);
    true
}

fn xor(page: &mut PageBytes, other: &PageBytes) {
    page.iter_mut().zip(other).for_each(|(byte, other)| *byte ^= other);
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
        PACKED | PACKED_DIFFERENCE => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or(BadEntry)?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (packed, rest) = rest.split_at_checked(length).ok_or(BadEntry)?;
            let packed = Packed(packed);
            let form = if *form == PACKED { Form::Packed(packed) } else { Form::PackedDifference(packed) };
            Ok((number, form, rest))
        }
        _ => Err(BadEntry),
    }
}

/// Whether all of `bytes` are entries that can be applied to pages with a number below `pages`. Nothing is applied before that is known.
///
/// # Errors
/// They are not.
pub fn check(bytes: &[u8], pages: u32) -> Result<(), BadEntry> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (number, form, next) = decode(rest)?;
        if number >= pages {
            return Err(BadEntry);
        }
        match form {
            Form::Zero | Form::Whole(_) | Form::Patch(_) => {}
            Form::Packed(packed) | Form::PackedDifference(packed) => packed.unpack(&mut [0; PAGE_BYTES])?,
        }
        rest = next;
    }
    Ok(())
}

/// The first run: where, what, and the rest.
fn run(bytes: &[u8]) -> Option<(usize, &[u8], &[u8])> {
    let (offset, rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (bytes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((usize::from(u16::from_be_bytes(*offset)), bytes, rest))
}

impl Packed<'_> {
    /// What was packed.
    ///
    /// # Errors
    /// It is not exactly one page.
    pub fn unpack(self, page: &mut PageBytes) -> Result<(), BadEntry> {
        packing::unpack(self.0, page).map_err(|packing::NotAPage| BadEntry)
    }

    /// Makes the page what it is to be, by what is packed as the difference.
    ///
    /// # Errors
    /// It is not exactly one page.
    pub fn apply_difference(self, page: &mut PageBytes) -> Result<(), BadEntry> {
        let mut difference = [0; PAGE_BYTES];
        self.unpack(&mut difference)?;
        xor(page, &difference);
        Ok(())
    }
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
    use crate::packing::Packing;

    fn apply(form: Form<'_>, page: &mut PageBytes) -> Result<(), BadEntry> {
        match form {
            Form::Zero => *page = [0; PAGE_BYTES],
            Form::Whole(whole) => *page = *whole,
            Form::Patch(patch) => patch.apply(page),
            Form::Packed(packed) => packed.unpack(page)?,
            Form::PackedDifference(packed) => packed.apply_difference(page)?,
        }
        Ok(())
    }

    /// Bytes that repeat after a while, or not at all.
    fn page() -> impl Strategy<Value = PageBytes> {
        let bytes = proptest::collection::vec(any::<u8>(), 1..PAGE_BYTES);
        bytes.prop_map(|bytes| std::array::from_fn(|index| bytes[index % bytes.len()]))
    }

    proptest! {
        #[test]
        fn a_page_arrives_as_it_was_whatever_changed(
            old in page(),
            changes in proptest::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..900),
            other in proptest::option::of(page()),
            number in 0..u32::MAX,
            packing in prop_oneof![Just(Packing::Always), Just(Packing::Never), Just(Packing::Measured)],
        ) {
            let mut new = other.unwrap_or(old);
            for (at, byte) in &changes {
                new[*at] = *byte;
            }
            let mut out = Vec::new();
            encode(number, &old, &new, &mut Packer::new(packing), &mut out);
            prop_assert!(out.len() <= ENTRY_BYTES_MAX);
            if old == new {
                prop_assert!(out.is_empty());
            } else {
                let (decoded, form, rest) = decode(&out).unwrap();
                prop_assert_eq!((decoded, rest.len()), (number, 0));
                prop_assert_eq!(check(&out, number + 1), Ok(()));
                prop_assert_eq!(check(&out, number), Err(BadEntry));
                let mut page = old;
                apply(form, &mut page).unwrap();
                prop_assert!(page == new);
            }
        }

        #[test]
        fn rubbish_is_refused_or_stays_within_the_page(
            head in proptest::option::of(prop_oneof![Just(PATCH), Just(PACKED), Just(PACKED_DIFFERENCE)]),
            mut bytes in proptest::collection::vec(any::<u8>(), 8..200),
        ) {
            if let Some(form) = head {
                bytes[4] = form;
                // A length that may be there.
                bytes[5] = 0;
            }
            let is_sound = check(&bytes, u32::MAX).is_ok();
            if let Ok((_, form, rest)) = decode(&bytes) {
                let applied = apply(form, &mut [0; PAGE_BYTES]);
                prop_assert!(!is_sound || applied.is_ok());
                prop_assert!(is_sound || applied.is_err() || !rest.is_empty() || bytes[..4] == [0xff; 4]);
            }
        }
    }

    fn encoded(old: &PageBytes, new: &PageBytes, packing: Packing) -> Vec<u8> {
        let mut out = Vec::new();
        encode(5, old, new, &mut Packer::new(packing), &mut out);
        out
    }

    #[test]
    fn a_few_changed_words_are_a_short_patch_and_a_cleared_page_is_nothing_but_its_number() {
        let mut new = [7; PAGE_BYTES];
        new[100] = 1;
        new[4095] = 2;
        let patch = encoded(&[7; PAGE_BYTES], &new, Packing::Always);
        assert_eq!(patch.len(), HEAD_BYTES + 2 + 2 * (RUN_HEAD_BYTES + WORD_BYTES));
        assert_eq!(encoded(&new, &[0; PAGE_BYTES], Packing::Always), [0, 0, 0, 5, ZERO]);
    }

    #[test]
    fn text_and_scattered_changes_are_packed_and_noise_is_sent_as_it_is() {
        let text: PageBytes = std::array::from_fn(|index| b"the quick brown fox "[index % 20]);
        let from_nothing = encoded(&[0; PAGE_BYTES], &text, Packing::Always);
        assert!(from_nothing[4] == PACKED && from_nothing.len() < 200, "{}", from_nothing.len());
        let mut noise = 1_u32;
        let noise: PageBytes = std::array::from_fn(|_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        });
        let as_it_is = encoded(&text, &noise, Packing::Always);
        assert_eq!((as_it_is[4], as_it_is.len()), (WHOLE, ENTRY_BYTES_MAX));
        let mut counted = noise;
        counted.iter_mut().step_by(2 * WORD_BYTES).for_each(|byte| *byte ^= 1);
        let difference = encoded(&noise, &counted, Packing::Always);
        assert!(difference[4] == PACKED_DIFFERENCE && difference.len() < 200, "{}", difference.len());
        assert_eq!(encoded(&noise, &counted, Packing::Never)[4], WHOLE);
    }

    #[test]
    fn what_does_not_unpack_to_exactly_one_page_is_refused() {
        for (bytes, is_page) in [(PAGE_BYTES, true), (PAGE_BYTES - 1, false), (PAGE_BYTES + 1, false), (60_000, false)]
        {
            let packed = lz4_flex::block::compress(&vec![9; bytes]);
            for form in [PACKED, PACKED_DIFFERENCE] {
                let mut entry = vec![0, 0, 0, 5, form];
                entry.extend(short(packed.len()));
                entry.extend(&packed);
                assert_eq!(check(&entry, 6).is_ok(), is_page, "{bytes}");
                let (_, form, _) = decode(&entry).unwrap();
                assert_eq!(apply(form, &mut [0; PAGE_BYTES]).is_ok(), is_page);
                // Longer than what is there.
                entry.pop();
                assert_eq!(check(&entry, 6), Err(BadEntry));
            }
        }
    }

    #[test]
    fn a_run_beyond_the_page_is_refused() {
        let bytes = [0, 0, 0, 1, PATCH, 0, 1, 0x0f, 0xff, 0, 2, 1, 1];
        assert_eq!(decode(&bytes), Err(BadEntry));
    }
}
