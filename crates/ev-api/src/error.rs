//! What the API answers when it does not do what was asked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of refusal; scripts may rely on these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// No object of that name or uuid.
    NotFound,
    /// The request itself is wrong.
    Invalid,
    /// The request is right but a rule or the present state forbids it.
    Refused,
    /// Something of that name exists, or the state changed under the request.
    Conflict,
    /// No token, a wrong one, or one that is used up.
    Unauthorized,
    /// This host belongs to no pool yet.
    Uninitialised,
    /// Another host is the pool master; `master` has its API address.
    NotMaster,
    /// The pool has no master at present.
    NoMaster,
    /// A host that is needed cannot be reached.
    Unreachable,
    /// It took longer than it may.
    TimedOut,
    /// A disk is full.
    NoSpace,
    /// A fault in the daemon or its machine.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that carries this code.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::Invalid => 400,
            Self::Refused | Self::Conflict | Self::Uninitialised => 409,
            Self::Unauthorized => 401,
            Self::NotMaster => 421,
            Self::NoMaster => 503,
            Self::Unreachable => 502,
            Self::TimedOut => 504,
            Self::NoSpace => 507,
            Self::Internal => 500,
        }
    }
}

/// Body of every answer whose status is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    pub error: ErrorCode,
    /// What was tried, on what, and why it was not done.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// With `not-master`: the master's API address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<std::net::SocketAddr>,
}

impl ApiError {
    #[must_use]
    pub fn new(error: ErrorCode, message: impl Into<String>) -> Self {
        Self { error, message: message.into(), hint: None, master: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}
