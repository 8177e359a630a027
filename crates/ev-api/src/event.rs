//! Events (what happened) and alerts (what is wrong now).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How much a person should care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    /// A person must act.
    Critical,
}

/// `GET /v1/events?since=NUMBER&wait_s=SECONDS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Rises by one with each event of the pool.
    pub number: u64,
    pub time: Timestamp,
    pub severity: Severity,
    /// What it is about: `vm:web01`, `host:a`, `pool`.
    pub object: String,
    pub message: String,
}

/// `GET /v1/alerts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertView {
    pub severity: Severity,
    pub object: String,
    pub message: String,
    /// What a person should do about it.
    pub action: String,
    /// Since when it is so, as far as this master knows.
    pub since: Timestamp,
}
