//! A disk with nothing but a boot sector that writes a line to the serial port: the earliest sign of life a
//! guest of the product can give, for measuring how soon after a host's death it does.

use std::fs;

use anyhow::Result;

use super::cache::{self, Inputs};

/// What it writes, once a boot.
const MARKER: &[u8] = b"EVENKEEL-GUEST first instruction\r\n";
/// Where the BIOS loads the sector, and where the text lies in it.
const LOAD_ADDRESS: u16 = 0x7c00;
const TEXT_OFFSET: u16 = 0x40;
const DISK_BYTES: usize = 1 << 20;

/// Real mode, hand-assembled; the number is the instruction's offset.
///
/// | at | instructions | why |
/// |---|---|---|
/// | 00 | `cli; xor ax,ax; mov ds,ax` | a known state |
/// | 05 | `mov si, text` | |
/// | 08 | `lodsb; test al,al; jz 0x1e` | next character, or done |
/// | 0d | `mov ah,al; mov dx,0x3fd` | the first serial port's status |
/// | 12 | `in al,dx; test al,0x20; jz 0x12` | until the port takes a character |
/// | 17 | `mov al,ah; mov dl,0xf8; out dx,al; jmp 0x08` | 0x3f8 is its data |
/// | 1e | `hlt; jmp 0x1e` | interrupts are off: for good |
fn code() -> Vec<u8> {
    let [low, high] = (LOAD_ADDRESS + TEXT_OFFSET).to_le_bytes();
    let mut code = vec![0xfa, 0x31, 0xc0, 0x8e, 0xd8];
    code.extend([0xbe, low, high]);
    code.extend([0xac, 0x84, 0xc0, 0x74, 0x11]);
    code.extend([0x88, 0xc4, 0xba, 0xfd, 0x03]);
    code.extend([0xec, 0xa8, 0x20, 0x74, 0xfb]);
    code.extend([0x88, 0xe0, 0xb2, 0xf8, 0xee, 0xeb, 0xea]);
    code.extend([0xf4, 0xeb, 0xfd]);
    code
}

fn disk() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    let code = code();
    disk[..code.len()].copy_from_slice(&code);
    let text = usize::from(TEXT_OFFSET);
    disk[text..text + MARKER.len()].copy_from_slice(MARKER);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// `target/guests/boot-sector/disk.raw`.
pub fn ensure() -> Result<()> {
    let inputs = Inputs::default().path("xtask/src/guests/boot_sector.rs")?;
    cache::ensure("boot-sector", &inputs, |folder| Ok(fs::write(folder.join("disk.raw"), disk())?)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_text_and_signature_fit_one_sector() {
        assert!(code().len() <= usize::from(TEXT_OFFSET));
        assert!(usize::from(TEXT_OFFSET) + MARKER.len() < 510);
        assert_eq!(disk()[510..512], [0x55, 0xaa]);
    }
}
