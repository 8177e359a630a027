//! Requests that another host of the pool must answer are carried to it, over HTTPS with this host's certificate:
//! from the local socket to the pool master, from the master to the host that holds an image or a console.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use ev_api::{ApiError, ErrorCode};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long the other host may take to accept the connection, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends `request` to the API at `to` and answers what that answers; joins both byte streams after an upgrade.
///
/// # Errors
/// The host can't be reached or broke off.
pub async fn forward(tls: Arc<ClientConfig>, to: SocketAddr, mut request: Request<Body>) -> Result<Response, ApiError> {
    let unreachable = |error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Unreachable, format!("cannot reach the host at {to}: {error}"))
            .hint("see ev host-list for the state of the hosts")
    };
    request.headers_mut().remove(header::AUTHORIZATION);
    *request.uri_mut() = request
        .uri()
        .path_and_query()
        .and_then(|path| path.as_str().parse().ok())
        .unwrap_or_else(|| hyper::Uri::from_static("/"));
    let inbound = hyper::upgrade::on(&mut request);

    let attempt = async {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(tls).connect(rustls::pki_types::ServerName::IpAddress(to.ip().into()), stream).await
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, attempt)
        .await
        .map_err(|_| unreachable(&"no answer"))?
        .map_err(|error| unreachable(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
    tokio::spawn(connection.with_upgrades());
    let mut response = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let outbound = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(inbound), Ok(outbound)) = (inbound.await, outbound.await) {
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(inbound), &mut TokioIo::new(outbound)).await;
            }
        });
    }
    Ok(response.map(Body::new))
}

/// Most bytes of another daemon's answer that are read into memory.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Reads the JSON answer of another daemon, or the error that it answered.
///
/// # Errors
/// That error, or the answer is not of the expected form.
pub async fn json<T: serde::de::DeserializeOwned>(response: Response) -> Result<T, ApiError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Internal, format!("another host's answer is not understood: {error}"))
            .hint("are all hosts of the same version?")
    };
    let success = response.status().is_success();
    let body =
        axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.map_err(|error| unreadable(&error))?;
    if success {
        serde_json::from_slice(&body).map_err(|error| unreadable(&error))
    } else {
        Err(serde_json::from_slice(&body).map_err(|error| unreadable(&error))?)
    }
}
