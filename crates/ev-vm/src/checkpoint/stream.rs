//! The incoming migration stream that a saved device state is loaded by: QEMU's own format (`migration/savevm.c`), of
//! which only the frame is known here. It has no section for memory, as the memory is in its file already.
//!
//! | bytes | from |
//! |---|---|
//! | `QEVM`, version 3 (big-endian u32) | the saved state |
//! | 0x07, length (big-endian u32), the machine type's full name | composed here: the saved state has no such section |
//! | the sections of the devices, up to the end mark 0x00 | the saved state |
//! | 0x06, length 0 (big-endian u32) | composed here: an empty description, which QEMU misses otherwise |

/// Longest device state that is taken, in bytes. A usual one has about 100 KiB, one with a busy virtio-gpu or many
/// queues a few MiB. A longer one is an error: it would not be a checkpoint any more.
pub const DEVICE_STATE_BYTES_MAX: usize = 64 << 20;

const HEADER: [u8; 8] = *b"QEVM\x00\x00\x00\x03";
const CONFIGURATION: u8 = 0x07;
const DESCRIPTION: u8 = 0x06;
const END: u8 = 0x00;

/// Why bytes are no device state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum StateError {
    #[error("the device state of {bytes} bytes is longer than {DEVICE_STATE_BYTES_MAX}; remove devices")]
    TooLong { bytes: usize },
    #[error("the device state does not begin as QEMU's version 3 does; use the same QEMU on both hosts")]
    Header,
    #[error("the device state of {bytes} bytes is cut short: it has no end mark")]
    Truncated { bytes: usize },
}

/// Refuses what surely is no whole device state.
///
/// # Errors
/// Too long, another format, no end.
pub fn check_state(state: &[u8]) -> Result<(), StateError> {
    let bytes = state.len();
    if bytes > DEVICE_STATE_BYTES_MAX {
        return Err(StateError::TooLong { bytes });
    }
    let Some(sections) = state.strip_prefix(&HEADER) else { return Err(StateError::Header) };
    if sections.last() != Some(&END) {
        return Err(StateError::Truncated { bytes });
    }
    Ok(())
}

/// The parts of a stream, to be sent one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingStream<'a> {
    /// Header and configuration.
    pub head: Vec<u8>,
    /// The devices, from the saved state.
    pub sections: &'a [u8],
    /// The empty description.
    pub tail: [u8; 5],
}

/// Composes the stream that loads `state`, saved by a guest of this machine type.
///
/// # Errors
/// The bytes are no device state.
pub fn incoming_stream<'a>(machine: &str, state: &'a [u8]) -> Result<IncomingStream<'a>, StateError> {
    check_state(state)?;
    let mut head = HEADER.to_vec();
    head.push(CONFIGURATION);
    // Names of machine types are a few characters.
    let length = u32::try_from(machine.len()).map_err(|_| StateError::Header)?;
    head.extend(length.to_be_bytes());
    head.extend(machine.as_bytes());
    let sections = state.get(HEADER.len()..).ok_or(StateError::Header)?;
    Ok(IncomingStream { head, sections, tail: [DESCRIPTION, 0, 0, 0, 0] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_composed_as_qemu_reads_it() {
        let state = b"QEVM\0\0\0\x03sections\0";
        let IncomingStream { head, sections, tail } = incoming_stream("pc-q35-7.2", state).unwrap();
        assert_eq!(head, b"QEVM\0\0\0\x03\x07\0\0\0\x0apc-q35-7.2");
        assert_eq!(sections, b"sections\0");
        assert_eq!(tail, [6, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        assert_eq!(check_state(b""), Err(StateError::Header));
        assert_eq!(check_state(b"QEVM\0\0\0\x04x\0"), Err(StateError::Header));
        assert_eq!(check_state(b"QEVM\0\0\0\x03"), Err(StateError::Truncated { bytes: 8 }));
        assert_eq!(check_state(b"QEVM\0\0\0\x03x"), Err(StateError::Truncated { bytes: 9 }));
        assert_eq!(
            check_state(&vec![0; DEVICE_STATE_BYTES_MAX + 1]),
            Err(StateError::TooLong { bytes: DEVICE_STATE_BYTES_MAX + 1 })
        );
    }
}
