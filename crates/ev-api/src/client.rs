//! A typed client: over the local socket, or over HTTPS to any host of the pool, from which it finds the master.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::error::ApiError;
use crate::token::AdminToken;

/// How long one host may take to accept a connection before the next one is tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer may take, unless the call says otherwise.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a call follows "another host is the master" before it gives up.
pub const REDIRECTS_MAX: usize = 4;
/// Longest answer that is read into memory.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Body of a request.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A byte stream of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type BoxStream = Box<dyn Stream>;
type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the API is reached.
#[derive(Clone)]
pub enum Target {
    /// The socket of the `evd` on this machine; needs no token.
    Local(PathBuf),
    /// Hosts of the pool, any of which may know the master.
    Remote { addresses: Vec<SocketAddr>, token: AdminToken },
}

/// Why a call got no answer of the kind that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The API answered that it did not do it.
    #[error("{0}")]
    Api(ApiError),
    #[error("cannot reach {}: {}", .0.address, .0.source)]
    Unreachable(Box<Unreachable>),
    #[error("{address} is not a host of this pool: its certificate is not signed by the pool's authority ({source})")]
    NotThisPool { address: SocketAddr, source: std::io::Error },
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("the connection broke: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is not of the expected form ({0}): is the program on the other side of another version?")]
    Unreadable(serde_json::Error),
    #[error("hosts keep naming each other as pool master: an election is under way. Try again in a few seconds")]
    RedirectedInCircles,
}

/// The last address that was tried, and what happened there.
#[derive(Debug)]
pub struct Unreachable {
    pub address: String,
    pub source: std::io::Error,
}

fn broken(source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    ClientError::Broken(Box::new(source))
}

/// A client. Each call uses a connection of its own.
#[derive(Clone)]
pub struct Client {
    target: Target,
}

/// An empty body.
#[must_use]
pub fn empty_body() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

fn json_body(value: &impl Serialize) -> Result<Body, ClientError> {
    let bytes = serde_json::to_vec(value).map_err(ClientError::Unreadable)?;
    Ok(Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync())
}

impl Client {
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self { target }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.json(Method::GET, path, None::<&()>, ANSWER_TIMEOUT).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn post<R: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<R, ClientError> {
        self.json(Method::POST, path, Some(body), ANSWER_TIMEOUT).await
    }

    /// `PUT path` with a JSON body.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn put<R: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<R, ClientError> {
        self.json(Method::PUT, path, Some(body), ANSWER_TIMEOUT).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn delete<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.json(Method::DELETE, path, None::<&()>, ANSWER_TIMEOUT).await
    }

    /// Any method with a JSON body or none, and its own time limit.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn json<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        timeout: Duration,
    ) -> Result<R, ClientError> {
        let work = self.follow(|| {
            let body = body.map_or_else(|| Ok(empty_body()), json_body)?;
            Request::builder()
                .method(method.clone())
                .uri(path)
                .header(header::CONTENT_TYPE, "application/json")
                .body(body)
                .map_err(broken)
        });
        let response = tokio::time::timeout(timeout, async { read_answer(work.await?).await })
            .await
            .map_err(|_| ClientError::TimedOut(timeout))??;
        serde_json::from_slice(&response).map_err(ClientError::Unreadable)
    }

    /// `PUT path` with a body that can be made anew for each host that is tried.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn upload<R: DeserializeOwned>(
        &self,
        path: &str,
        length_bytes: u64,
        mut body: impl FnMut() -> std::io::Result<Body>,
    ) -> Result<R, ClientError> {
        let response = self
            .follow(|| {
                Request::builder()
                    .method(Method::PUT)
                    .uri(path)
                    .header(header::CONTENT_LENGTH, length_bytes)
                    .body(body().map_err(broken)?)
                    .map_err(broken)
            })
            .await?;
        serde_json::from_slice(&read_answer(response).await?).map_err(ClientError::Unreadable)
    }

    /// `GET path` with an upgrade to a plain byte stream.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn upgrade(&self, path: &str) -> Result<TokioIo<hyper::upgrade::Upgraded>, ClientError> {
        let response = self
            .follow(|| {
                Request::builder()
                    .uri(path)
                    .header(header::CONNECTION, "upgrade")
                    .header(header::UPGRADE, "evenkeel-stream")
                    .body(empty_body())
                    .map_err(broken)
            })
            .await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(match read_answer(response).await {
                Err(error) => error,
                Ok(_) => ClientError::Broken("the host did not switch to a byte stream".into()),
            });
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(broken)?))
    }

    /// Sends the request to one host after the other until one answers, and on to the master where one is named.
    async fn follow(
        &self,
        mut request: impl FnMut() -> Result<Request<Body>, ClientError>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut master = None;
        for _ in 0..REDIRECTS_MAX {
            let (stream, host) = self.connect(master).await?;
            let response = self.send(stream, &host, request()?).await?;
            if response.status() != StatusCode::MISDIRECTED_REQUEST {
                return Ok(response);
            }
            let error = read_error(response).await?;
            match error.master {
                Some(address) => master = Some(address),
                None => return Err(ClientError::Api(error)),
            }
        }
        Err(ClientError::RedirectedInCircles)
    }

    async fn send(
        &self,
        stream: BoxStream,
        host: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, ClientError> {
        let headers = request.headers_mut();
        if let Ok(value) = header::HeaderValue::from_str(host) {
            headers.insert(header::HOST, value);
        }
        if let Target::Remote { token, .. } = &self.target {
            let value = header::HeaderValue::from_str(&format!("Bearer {token}")).map_err(broken)?;
            headers.insert(header::AUTHORIZATION, value);
        }
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(broken)
    }

    fn connect(&self, master: Option<SocketAddr>) -> BoxFuture<'_, Result<(BoxStream, String), ClientError>> {
        Box::pin(async move {
            let (addresses, token) = match &self.target {
                Target::Local(path) => {
                    let stream = UnixStream::connect(path).await.map_err(|source| {
                        ClientError::Unreachable(Box::new(Unreachable { address: path.display().to_string(), source }))
                    })?;
                    let stream: BoxStream = Box::new(stream);
                    return Ok((stream, "localhost".to_owned()));
                }
                Target::Remote { addresses, token } => (addresses, token),
            };
            let config = crate::tls::client_config(token.fingerprint).map_err(broken)?;
            let connector = tokio_rustls::TlsConnector::from(config);
            let mut last = None;
            for address in master.iter().chain(addresses) {
                match connect_tls(&connector, *address).await {
                    Ok(stream) => return Ok((stream, address.to_string())),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.unwrap_or_else(|| ClientError::Broken("no address of a host is known".into())))
        })
    }
}

async fn connect_tls(connector: &tokio_rustls::TlsConnector, address: SocketAddr) -> Result<BoxStream, ClientError> {
    let unreachable = |source| ClientError::Unreachable(Box::new(Unreachable { address: address.to_string(), source }));
    let attempt = async {
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        let name = rustls_pki_types::ServerName::IpAddress(address.ip().into());
        connector.connect(name, stream).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::InvalidData => ClientError::NotThisPool { address, source },
            _ => unreachable(source),
        })
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
        Ok(stream) => Ok(Box::new(stream?)),
        Err(_) => Err(unreachable(std::io::ErrorKind::TimedOut.into())),
    }
}

async fn read_answer(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    if !response.status().is_success() {
        return Err(ClientError::Api(read_error(response).await?));
    }
    read_body(response).await
}

async fn read_body(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let limited = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    Ok(limited.collect().await.map_err(ClientError::Broken)?.to_bytes())
}

async fn read_error(response: Response<Incoming>) -> Result<ApiError, ClientError> {
    let body = read_body(response).await?;
    serde_json::from_slice(&body).map_err(ClientError::Unreadable)
}

/// `text` as one segment of a path or value of a query.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
