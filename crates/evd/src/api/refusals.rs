//! Refusals of the pool state in the words of the API.

use ev_api::{ApiError, ErrorCode};
use ev_core::pool::Refusal;

/// The kind of a refusal; its text says the rest.
#[must_use]
pub fn of_state(refusal: &Refusal) -> ApiError {
    let code = match refusal {
        Refusal::NoPool => ErrorCode::Uninitialised,
        Refusal::BadName(_)
        | Refusal::BadTokenName(_)
        | Refusal::DiskSize { .. }
        | Refusal::TooManyDevices { .. }
        | Refusal::TooFewDevices(_)
        | Refusal::WrongHostCount { .. }
        | Refusal::BadSettings(_) => ErrorCode::Invalid,
        Refusal::NameTaken(_) | Refusal::MacTaken(_) | Refusal::Superseded(_) => ErrorCode::Conflict,
        Refusal::TokenUnknown | Refusal::TokenUsed | Refusal::TokenExpired => ErrorCode::Unauthorized,
        Refusal::NoSuchMember
        | Refusal::NoSuchNetwork
        | Refusal::NoSuchVm
        | Refusal::NoSuchDisk
        | Refusal::NoSuchAdminToken(_) => ErrorCode::NotFound,
        _ => ErrorCode::Refused,
    };
    ApiError::new(code, refusal.to_string())
}
