//! The partner link of one disk.

pub mod codec;
pub mod session;
