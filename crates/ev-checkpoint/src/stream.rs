//! The memory stream: a connected TLS stream that a thread reads or writes, and that can be broken from elsewhere.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustls::{ClientConnection, ServerConnection, StreamOwned};

/// A write that makes no progress for so long has failed: the standby is given up long before that.
const WRITE_STALL_MAX: Duration = Duration::from_secs(5);

/// The stream. One thread owns it.
pub struct MemoryStream(Inner);

enum Inner {
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
    #[cfg(test)]
    Plain(TcpStream),
}

/// Breaks a stream that a thread is blocked on.
#[derive(Debug)]
pub struct Cut(TcpStream);

impl Cut {
    /// The thread's next read or write fails.
    pub fn cut(&self) {
        // Fails only when it is broken already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.cut();
    }
}

impl MemoryStream {
    /// Of the side that connected, after the handshake.
    ///
    /// # Errors
    /// The socket's.
    pub fn client(tls: ClientConnection, socket: TcpStream) -> io::Result<(Self, Cut)> {
        let cut = prepare(&socket)?;
        Ok((Self(Inner::Client(Box::new(StreamOwned::new(tls, socket)))), cut))
    }

    /// Of the side that accepted, after the handshake.
    ///
    /// # Errors
    /// The socket's.
    pub fn server(tls: ServerConnection, socket: TcpStream) -> io::Result<(Self, Cut)> {
        let cut = prepare(&socket)?;
        Ok((Self(Inner::Server(Box::new(StreamOwned::new(tls, socket)))), cut))
    }

    #[cfg(test)]
    pub(crate) fn plain(socket: TcpStream) -> io::Result<(Self, Cut)> {
        let cut = prepare(&socket)?;
        Ok((Self(Inner::Plain(socket)), cut))
    }
}

fn prepare(socket: &TcpStream) -> io::Result<Cut> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(WRITE_STALL_MAX))?;
    socket.try_clone().map(Cut)
}

impl Read for MemoryStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Client(stream) => stream.read(into),
            Inner::Server(stream) => stream.read(into),
            #[cfg(test)]
            Inner::Plain(stream) => stream.read(into),
        }
    }
}

impl Write for MemoryStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Client(stream) => stream.write(bytes),
            Inner::Server(stream) => stream.write(bytes),
            #[cfg(test)]
            Inner::Plain(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::Client(stream) => stream.flush(),
            Inner::Server(stream) => stream.flush(),
            #[cfg(test)]
            Inner::Plain(stream) => stream.flush(),
        }
    }
}
