//! Connected streams between the two sides, TLS handshake included.

use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use ev_core::ids::HostId;
use ev_mirror::{LinkStream, LinkTls};
use ev_wire::identity::{self, Identity};

/// Connects to the replica, if it listens.
pub fn connect(address: SocketAddr, papers: &Identity, peer: HostId) -> Result<LinkStream> {
    let mut socket = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    socket.set_nodelay(true)?;
    let name = identity::server_name(papers.peer().pool);
    let mut tls = rustls::ClientConnection::new(papers.client_config(), name)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).context("shaking hands with the replica")?;
    }
    Ok(LinkStream { socket, tls: LinkTls::Client(Box::new(tls)), peer })
}

/// Takes one connection after the other from the coordinator.
pub fn accept_each(
    address: SocketAddr,
    papers: &Identity,
    peer: HostId,
    each: impl Fn(LinkStream) -> Result<()>,
) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    loop {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let mut tls = rustls::ServerConnection::new(papers.server_config())?;
        let mut shake = || -> std::io::Result<()> {
            while tls.is_handshaking() {
                tls.complete_io(&mut socket)?;
            }
            Ok(())
        };
        match shake() {
            Ok(()) => each(LinkStream { socket, tls: LinkTls::Server(Box::new(tls)), peer })?,
            Err(error) => eprintln!("replica: no handshake: {error}"),
        }
    }
}
