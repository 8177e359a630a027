//! The connected stream to the partner's AM, as the AM hands it over to the disk's thread.

use std::net::TcpStream;

use ev_core::ids::HostId;

/// A TLS session whose handshake is over.
#[derive(Debug)]
pub enum LinkTls {
    /// This side connected.
    Client(Box<rustls::ClientConnection>),
    /// This side accepted.
    Server(Box<rustls::ServerConnection>),
}

/// A connected stream to the partner. What the AMs say to each other to find out which disk a stream is for must be
/// over: the next plaintext byte in each direction belongs to the disk. Bytes that the session has already read beyond that
/// are kept and used.
#[derive(Debug)]
pub struct LinkStream {
    /// From `tokio_rustls::TlsStream::into_inner` and `tokio::net::TcpStream::into_std`.
    pub socket: TcpStream,
    pub tls: LinkTls,
    /// Who the other side is, by its certificate.
    pub peer: HostId,
}
