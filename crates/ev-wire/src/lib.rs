//! Between hosts and between the daemons of one host: frames, versions, checksums, identity (mutual TLS), transport.

pub mod am;
pub mod frame;
pub mod heartbeat;
pub mod identity;
pub mod local;
pub mod peer;
pub mod quorum;
pub mod stream;
pub mod transport;
