//! One file for each kind of command, and one for what holds whatever is asked.

mod alerts;
mod authority;
mod members;
mod memory;
mod placement;
mod properties;
mod settings;
mod vms;
