//! One record on the disk: a block that proves which slot and value it is.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | [`MAGIC`] |
//! | 8..16 | slot, little-endian |
//! | 16..24 | value, little-endian |
//! | 24..32 | checksum of all other bytes, little-endian |
//! | 32..4096 | bytes drawn from slot and value |

/// A record's size; the disk is written in such blocks.
pub const BLOCK_BYTES: usize = 4096;
const MAGIC: [u8; 8] = *b"EVRECORD";

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Record {
        slot: u64,
        value: u64,
    },
    /// Only zeroes: never written.
    Empty,
    Damaged,
}

pub fn encode(slot: u64, value: u64) -> Vec<u8> {
    let mut block = random_bytes(slot ^ value.rotate_left(32), BLOCK_BYTES);
    block[..8].copy_from_slice(&MAGIC);
    block[8..16].copy_from_slice(&slot.to_le_bytes());
    block[16..24].copy_from_slice(&value.to_le_bytes());
    let sum = block_checksum(&block);
    block[24..32].copy_from_slice(&sum.to_le_bytes());
    block
}

pub fn decode(block: &[u8]) -> Content {
    if block.iter().all(|byte| *byte == 0) {
        return Content::Empty;
    }
    let (slot, value) = (number(&block[8..16]), number(&block[16..24]));
    if block[..8] == MAGIC && number(&block[24..32]) == block_checksum(block) {
        Content::Record { slot, value }
    } else {
        Content::Damaged
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// Of the block without the checksum itself.
fn block_checksum(block: &[u8]) -> u64 {
    checksum(&[&block[..24], &block[32..]])
}

/// FNV-1a over the parts: enough to see a torn or stale block.
pub fn checksum(parts: &[&[u8]]) -> u64 {
    let covered = parts.iter().copied().flatten();
    covered.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `count` (a multiple of 8) bytes that depend on the seed only (splitmix64).
pub fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    (0..count / 8).flat_map(|_| next().to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_was_written_and_any_flipped_bit_is_damage() {
        let block = encode(7, 99);
        assert_eq!(decode(&block), Content::Record { slot: 7, value: 99 });
        for position in [0, 9, 20, 30, 32, BLOCK_BYTES - 1] {
            let mut damaged = block.clone();
            damaged[position] ^= 1;
            assert_eq!(decode(&damaged), Content::Damaged, "{position}");
        }
        assert_eq!(decode(&[0; BLOCK_BYTES]), Content::Empty);
    }

    #[test]
    fn half_of_one_record_and_half_of_another_is_damage() {
        let mut torn = encode(7, 99);
        torn[512..].copy_from_slice(&encode(7, 100)[512..]);
        assert_eq!(decode(&torn), Content::Damaged);
    }
}
