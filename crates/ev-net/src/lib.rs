//! Guests' network on a host: bridges, TAP devices, the pump that carries frames between QEMU and a TAP, learned
//! addresses, announcements to neighbours, and a watch over the host's own links.

#![warn(missing_docs)]

pub mod announce;
pub mod gate;
pub mod hold;
mod learned;
pub mod link_watch;
pub mod links;
mod name;
pub mod pump;
pub mod tap;

pub use announce::announce;
pub use gate::{FrameGate, OpenGate};
pub use hold::{AddedDelay, OutputHold, Waiting};
pub use learned::LEARNED_MAX;
pub use link_watch::{LinkState, LinkWatch};
pub use links::{Links, LinksError};
pub use pump::{NicPump, NicPumpSpec, PumpCounters};
pub use tap::{Tap, TapError};
