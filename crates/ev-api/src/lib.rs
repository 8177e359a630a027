//! The one contract between `evd` and everything that steers it: types of the HTTP API, version 1, and a client.
//!
//! The fields here are what `ev … --output json` prints: they are only added to, never renamed, within version 1.

pub mod client;
pub mod error;
pub mod event;
pub mod host;
pub mod library;
pub mod pool;
pub mod tls;
pub mod token;
pub mod upload;
pub mod vm;

pub use error::{ApiError, ErrorCode};

/// Prefix of all paths.
pub const PREFIX: &str = "/v1";

/// What `GET /v1/version` answers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VersionView {
    /// Version of the program.
    pub version: String,
    /// Version of this API.
    pub api: u32,
    /// Name of the host that answered.
    pub host: String,
    /// Whether this host belongs to a pool.
    pub member: bool,
}
