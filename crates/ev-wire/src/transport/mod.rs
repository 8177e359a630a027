//! Calls between members over mutual TLS: [`PeerServer`] answers, [`PeerClient`] asks.

mod client;
mod server;
mod speed;

use std::pin::Pin;
use std::time::Duration;

pub use client::{CallError, PeerClient};
pub use server::{Door, Doors, PeerHandler, PeerServer, ServerStream, StreamHandler};
pub use speed::{SpeedError, Throughput, measure};

/// A future in a box, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How long a TCP connection and TLS handshake may take, on either side.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a client pings on a connection.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// A client whose server sent nothing (not even a pong) for this long drops the connection; its calls fail.
const CLIENT_SILENCE_MAX: Duration = Duration::from_millis(1_500);
/// A server whose client sent nothing for this long drops the connection.
const SERVER_SILENCE_MAX: Duration = Duration::from_secs(10);
/// Most frames waiting to be written on one connection; more wait in their callers, within their timeouts.
const WRITE_QUEUE_FRAMES_MAX: usize = 64;
