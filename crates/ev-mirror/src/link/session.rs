//! The link as TLS bytes in and messages out, and the other way round: the frames of [`super::codec`] in a rustls session.
//!
//! There is no socket here, as in [`crate::nbd`]: receive into [`Session::space`], say so by [`Session::received`], take
//! messages from [`Session::next`]; queue messages by [`Session::send`] and send what [`Session::front`] gives.

use std::io::{self, IoSlice, Read, Write};

use super::codec::{Decoder, FrameError, Message, encode};
use crate::buffer::{BufferPool, IoBuffer};

/// Bytes that are received from the socket at once.
const WINDOW_BYTES: usize = 256 << 10;
/// An emptied send buffer that has grown beyond this is given back to the system.
const SEND_KEPT_BYTES_MAX: usize = 4 << 20;

/// The link can't go on and is to be closed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the link's TLS session failed: {0}; reconnect")]
    Tls(#[from] rustls::Error),
    #[error("the partner closed the link")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// One connected link.
#[derive(Debug)]
pub struct Session {
    tls: rustls::Connection,
    decoder: Decoder,
    /// Ciphertext that rustls has not taken yet.
    window: Box<[u8]>,
    begin: usize,
    end: usize,
    /// Header of the message that is being queued.
    head: Vec<u8>,
    /// Ciphertext that is being sent; not touched until all of it is.
    sending: Vec<u8>,
    sent: usize,
}

impl Session {
    /// Over a TLS session whose handshake is over, for a disk of `size_bytes`.
    #[must_use]
    pub fn new(mut tls: rustls::Connection, size_bytes: u64) -> Self {
        // What is queued is bounded by the requests in flight, and must never be taken in part.
        tls.set_buffer_limit(None);
        Self {
            tls,
            decoder: Decoder::new(size_bytes),
            window: vec![0; WINDOW_BYTES].into_boxed_slice(),
            begin: 0,
            end: 0,
            head: Vec::new(),
            sending: Vec::new(),
            sent: 0,
        }
    }

    /// Where the next bytes from the socket belong. Keeps its place until [`Session::received`]. Call it only when
    /// [`Session::next`] had nothing more.
    pub fn space(&mut self) -> &mut [u8] {
        assert!(self.begin == self.end, "everything received is looked at before more is");
        self.begin = 0;
        self.end = 0;
        &mut self.window
    }

    /// `count` bytes were received into the space.
    pub fn received(&mut self, count: usize) {
        self.end = count;
    }

    /// The next complete message; `None` when more bytes are needed.
    pub fn next(&mut self, pool: &mut BufferPool) -> Result<Option<Message<IoBuffer>>, SessionError> {
        loop {
            if let Some(message) = self.decoder.next(pool)? {
                return Ok(Some(message));
            }
            match self.tls.reader().read(self.decoder.space()) {
                Ok(0) => return Err(SessionError::Closed),
                Ok(count) => self.decoder.received(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.begin == self.end {
                        return Ok(None);
                    }
                    self.decrypt()?;
                }
                Err(_) => return Err(SessionError::Closed),
            }
        }
    }

    /// Lets rustls take some of the window.
    fn decrypt(&mut self) -> Result<(), SessionError> {
        let mut rest = &self.window[self.begin..self.end];
        let before = rest.len();
        // Reading from memory fails only when rustls holds more than it should take, which next() prevents.
        self.tls.read_tls(&mut rest).map_err(|_| SessionError::Closed)?;
        self.begin += before - rest.len();
        self.tls.process_new_packets()?;
        Ok(())
    }

    /// Queues a message.
    pub fn send<D: AsRef<[u8]>>(&mut self, message: &Message<D>) {
        self.head.clear();
        let data = encode(message, &mut self.head);
        let mut slices = [IoSlice::new(&self.head), IoSlice::new(data)];
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let count = self.tls.writer().write_vectored(left).expect("without a limit nothing is refused");
            IoSlice::advance_slices(&mut left, count);
        }
    }

    /// The bytes to send next; empty when nothing waits. They keep their place until [`Session::sent`].
    pub fn front(&mut self) -> &[u8] {
        if self.sent == self.sending.len() {
            self.sent = 0;
            self.sending.clear();
            self.sending.shrink_to(SEND_KEPT_BYTES_MAX);
            while self.tls.wants_write() {
                self.tls.write_tls(&mut self.sending).expect("memory takes all");
            }
        }
        &self.sending[self.sent..]
    }

    /// `count` of the bytes that [`Session::front`] returned were sent.
    pub fn sent(&mut self, count: usize) {
        assert!(count <= self.sending.len() - self.sent, "more bytes sent than were handed out");
        self.sent += count;
    }

    /// Queues the end of the TLS session, so that the partner can tell it from a cut.
    pub fn close(&mut self) {
        self.tls.send_close_notify();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ev_core::ids::{Generation, MemberId, PoolId};
    use ev_wire::identity::{self, Identity, Peer};
    use uuid::Uuid;

    use super::*;
    use crate::link::codec::Sequence;
    use crate::nbd::Durability;

    fn identity(authority: &identity::PoolAuthority, member: u64) -> Identity {
        let key = identity::new_key_and_request().unwrap();
        let peer = Peer { pool: authority.pool(), role: identity::Role::Host, member: MemberId(member) };
        let certificate = identity::sign_request(authority, &key.request_pem, peer, "host", &[]).unwrap();
        Identity::from_pem(&certificate, &key.key_pem, authority.certificate_pem()).unwrap()
    }

    fn shake(from: &mut rustls::Connection, to: &mut rustls::Connection) {
        let mut bytes = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets().unwrap();
        }
    }

    /// Two sessions whose handshake is over.
    fn pair() -> (Session, Session) {
        let pool = PoolId(Uuid::from_u128(1));
        let authority = identity::create_authority(pool).unwrap();
        let name = identity::server_name(pool);
        let client = rustls::ClientConnection::new(identity(&authority, 1).client_config(), name).unwrap();
        let server = rustls::ServerConnection::new(Arc::clone(&identity(&authority, 2).server_config())).unwrap();
        let (mut client, mut server) = (client.into(), server.into());
        for _ in 0..3 {
            shake(&mut client, &mut server);
            shake(&mut server, &mut client);
        }
        (Session::new(client, 1 << 40), Session::new(server, 1 << 40))
    }

    fn carry(from: &mut Session, to: &mut Session, part: usize) -> Result<Vec<Message<IoBuffer>>, SessionError> {
        let mut pool = BufferPool::default();
        let mut messages = Vec::new();
        loop {
            let front = from.front();
            let count = front.len().min(part);
            if count == 0 {
                return Ok(messages);
            }
            let space = to.space();
            let count = count.min(space.len());
            space[..count].copy_from_slice(&front[..count]);
            from.sent(count);
            to.received(count);
            while let Some(message) = to.next(&mut pool)? {
                messages.push(message);
            }
        }
    }

    fn messages() -> Vec<Message<IoBuffer>> {
        let mut data = IoBuffer::new(3 << 20);
        data.data_mut().fill(0x3c);
        let refused = Message::Refused(crate::link::codec::Refusal::OtherPool);
        vec![
            refused,
            Message::Flush { sequence: Sequence(1) },
            Message::Write { sequence: Sequence(2), offset: 512, durability: Durability::AtFlush, data },
            Message::History { sequence: Sequence(3), current: Generation(4), bitmap_base: Generation(5) },
        ]
    }

    #[test]
    fn messages_pass_in_both_directions_in_any_parts() {
        let (mut client, mut server) = pair();
        for part in [usize::MAX, 1000, 17] {
            messages().iter().for_each(|message| client.send(message));
            messages().iter().for_each(|message| server.send(message));
            assert!(carry(&mut client, &mut server, part).unwrap() == messages());
            assert!(carry(&mut server, &mut client, part).unwrap() == messages());
        }
    }

    #[test]
    fn an_orderly_end_and_rubbish_are_errors() {
        let (mut client, mut server) = pair();
        client.close();
        assert!(matches!(carry(&mut client, &mut server, usize::MAX), Err(SessionError::Closed)));
        let (_, mut server) = pair();
        server.space()[..100].fill(0x41);
        server.received(100);
        assert!(matches!(server.next(&mut BufferPool::default()), Err(SessionError::Tls(_))));
    }
}
