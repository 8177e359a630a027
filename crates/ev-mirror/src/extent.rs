//! A stretch of a disk in bytes, as protocols and engines name it.

pub use ev_core::mirror::Extent;
