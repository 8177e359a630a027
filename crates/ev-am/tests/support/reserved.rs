//! An address for a listener that a test starts later.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// Keeps an address from being given to anyone who asks for just a free port. Whoever names it can listen there.
pub struct Reserved(TcpSocket);

impl Reserved {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}
