//! How handlers answer: JSON, or the API's error with its status.

use axum::Json;
use axum::extract::FromRequest;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use ev_api::{ApiError, ErrorCode};

/// An [`ApiError`] as a response.
#[derive(Debug)]
pub struct Refusal(pub ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

/// What a handler answers.
pub type Answer<T> = Result<Json<T>, Refusal>;

/// A refusal in one call.
pub fn refuse<T>(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(ApiError::new(code, message).hint(hint)))
}

/// A fault of this daemon or its machine; logged here, since the client can do nothing about it.
pub fn internal(what: &str, error: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(%error, what, "a request failed");
    ApiError::new(ErrorCode::Internal, format!("{what}: {error}")).hint("see the log of evd on that host")
}

/// A JSON body; a bad one is refused in the API's own form.
#[derive(Debug, FromRequest)]
#[from_request(via(Json), rejection(Refusal))]
pub struct Body<T>(pub T);

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        let error = ApiError::new(ErrorCode::Invalid, format!("the request is not understood: {rejection}"));
        Self(error.hint("is ev of the same version as evd?"))
    }
}
