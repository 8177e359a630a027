//! Checkpoints on their way: memory and device state of the active host's guest become the image that the standby could go on from.
//!
//! ```text
//!   active host                                                          standby
//!   EpochBuffer ─► Shipper: differences against what ══ memory stream ══► Receiver: whole epochs, checked ─► Staged
//!                  the standby has (Shadow), packed where that pays                                          │ decided
//!                                                                                                            ▼
//!                                                                  Image (memory of the waiting QEMU) ◄── Applier
//!   ev_core::checkpoint::Primary ◄═════════════ lane: Begin, Clock, Confirm ═════════════► ev_core::checkpoint::Standby
//! ```
//! Two streams, both TLS: megabytes of memory must not delay the lane, on which each side shows that it lives.
//! Threads that block carry the memory; decisions are `ev_core::checkpoint`'s, and `ev-am` brings the two together.

mod entry;
mod image;
mod lane;
mod packing;
mod receive;
mod shadow;
mod ship;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use image::{Applier, ApplyError, Image, ImageError, ImageMemory};
pub use lane::{LANE, LaneMessage, MemoryShape};
pub use receive::{ReceiveError, Receiver, Staged, StagedNotice};
pub use ship::{ShipCounters, ShipError, ShipNotice, Shipper};
pub use stream::{Cut, MemoryStream};
