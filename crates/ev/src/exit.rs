//! How `ev` ends: exit codes that scripts may rely on, and how a failure is told.

use std::process::ExitCode;

use ev_api::client::ClientError;
use ev_api::{ApiError, ErrorCode};

/// The pool refused, or what was asked failed.
pub const FAILED: u8 = 1;
/// The command line is wrong (clap ends with this one too).
pub const USAGE: u8 = 2;
/// No object of that name.
pub const NOT_FOUND: u8 = 3;
/// No host of the pool can be reached, or the pool has no master.
pub const NO_CONNECTION: u8 = 4;
/// It did not happen in the time that was given.
pub const TIMED_OUT: u8 = 5;

/// Shown at the end of `ev --help`.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  refused or failed
  2  wrong command line
  3  no such object
  4  no host can be reached, or the pool has no master
  5  not done within the time given

Objects are named by their name or by uuid=…; hosts also by id=…

`ev` talks to the evd of this machine if there is one, else to the pool in ~/.config/evenkeel/pool.toml
(see `ev login`), else to the one given with --pool and --token.";

/// A failure with a hint, or one of the pool's or the connection's.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{message}")]
    Local { code: u8, message: String, hint: Option<String> },
    #[error("not done after {seconds} s: {what}")]
    TimedOut { what: String, seconds: u64 },
}

impl Failure {
    /// Something on this side of the connection.
    pub fn local(message: impl Into<String>) -> Self {
        Self::Local { code: FAILED, message: message.into(), hint: None }
    }

    /// A wrong command line that clap cannot see.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Local { code: USAGE, message: message.into(), hint: None }
    }

    /// With what to do about it.
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Local { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Client(ClientError::Api(error))
    }
}

fn code_and_hint(failure: &Failure) -> (u8, Option<String>) {
    match failure {
        Failure::Local { code, hint, .. } => (*code, hint.clone()),
        Failure::TimedOut { .. } => (TIMED_OUT, Some("it may still be done later: look at it with ev pvm-show".into())),
        Failure::Client(ClientError::Api(error)) => {
            let code = match error.error {
                ErrorCode::NotFound => NOT_FOUND,
                ErrorCode::NotMaster | ErrorCode::NoMaster => NO_CONNECTION,
                ErrorCode::TimedOut => TIMED_OUT,
                ErrorCode::Invalid
                | ErrorCode::Refused
                | ErrorCode::Conflict
                | ErrorCode::Unauthorized
                | ErrorCode::Uninitialised
                | ErrorCode::Unreachable
                | ErrorCode::NoSpace
                | ErrorCode::Internal => FAILED,
            };
            (code, error.hint.clone())
        }
        Failure::Client(ClientError::TimedOut(_)) => (TIMED_OUT, None),
        Failure::Client(ClientError::NotThisPool { .. }) => {
            (NO_CONNECTION, Some("was the pool made anew? Get a token from it and run ev login".into()))
        }
        Failure::Client(ClientError::Unreachable(_)) => (
            NO_CONNECTION,
            Some("is evd running there (systemctl status evd)? Another host can be named with --pool".into()),
        ),
        Failure::Client(ClientError::RedirectedInCircles | ClientError::Broken(_)) => (NO_CONNECTION, None),
        Failure::Client(ClientError::Unreadable(_)) => (FAILED, None),
    }
}

/// Tells the user about a failure and turns it into the exit code.
pub fn report(result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    let (code, hint) = code_and_hint(&failure);
    eprintln!("ev: {failure}");
    if let Some(hint) = hint {
        eprintln!("    {hint}");
    }
    ExitCode::from(code)
}
