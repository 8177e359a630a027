//! The HTTP API: one router behind both doors.

pub mod answer;
pub mod upload;
