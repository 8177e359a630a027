//! The guest's NICs: a TAP on the network's bridge for each, frames carried under the gate, neighbours told.

pub mod learned;
