//! Between hosts and between the daemons of one host: frames, versions, checksums, identity (mutual TLS), transport.

pub mod am;
pub mod peer;
