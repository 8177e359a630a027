//! QEMU as it comes from the distribution: what it can do, how it is started, spoken to, watched and ended, and the
//! disk images that users bring along. Nothing here decides anything; `ev-am` does.

#![warn(missing_docs)]

pub mod accelerator;
pub mod args;
pub mod checkpoint;
mod child;
mod firmware;
pub mod guest;
pub mod image;
mod launch;
mod log;
mod process;
pub mod qemu;
pub mod qmp;
pub mod ram;
pub mod spec;
mod user;

pub use accelerator::Accelerator;
pub use guest::{Exit, Guest};
pub use qemu::{Qemu, QemuInfo, Version};
pub use qmp::{Event, EventKind, Qmp, QmpError, RunState, ShutdownReason, Stopped};
pub use spec::{BootSource, GuestPaths, GuestSpec, Memory, StartState};
pub use user::UserError;
