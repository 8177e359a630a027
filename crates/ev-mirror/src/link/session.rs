//! The link as TLS bytes in and messages out, and the other way round: the frames of [`super::codec`] in a rustls session.
//!
//! There is no socket here, as in [`crate::nbd`]: receive into [`Session::space`], say so by [`Session::received`], take
//! messages from [`Session::next`]; queue messages by [`Session::send`] and send what [`Session::front`] gives.

use std::io::{self, IoSlice, Read, Write};

use ev_core::mirror::{Message, OpId, Outcome};

use super::codec::{
    ACKS_MAX, Decoder, FrameError, Incoming, LinkHello, LinkIdentity, LinkVersion, Refusal, encode, encode_acks,
    encode_hello, encode_refusal,
};
use crate::buffer::{BufferPool, IoBuffer};

/// Bytes that are received from the socket at once.
const WINDOW_BYTES: usize = 256 << 10;
/// Once so much ciphertext is gathered it is sent, before more is taken from rustls (in pieces of up to 1 MiB): the buffer stays
/// warm, and its memory is neither given back nor asked for again.
const SEND_BYTES: usize = 512 << 10;

/// Most plaintext in a TLS record, and what a record adds to it (RFC 8446: header, content type, tag).
const RECORD_BYTES_MAX: u64 = 16 << 10;
const RECORD_OVERHEAD_BYTES: u64 = 22;

/// The link can't go on and is to be closed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the link's TLS session failed: {0}; reconnect")]
    Tls(#[from] rustls::Error),
    #[error("the partner closed the link")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Our refusal is queued: send what [`Session::front`] gives before closing.
    #[error("the link is refused: {0}")]
    Refuse(Refusal),
    #[error("the partner refused the link: {0}")]
    Refused(Refusal),
}

/// One connected link.
#[derive(Debug)]
pub struct Session {
    tls: rustls::Connection,
    identity: LinkIdentity,
    decoder: Decoder,
    /// Acknowledgements that go out in one frame, before the next message or when bytes are asked for.
    acks: Vec<(OpId, Outcome)>,
    /// Ciphertext that rustls has not taken yet.
    window: Box<[u8]>,
    begin: usize,
    end: usize,
    /// Header of the message that is being queued.
    head: Vec<u8>,
    /// Ciphertext that is being sent; not touched until all of it is.
    sending: Vec<u8>,
    sent: usize,
    /// The version to speak, once the partner has said its own.
    version: Option<LinkVersion>,
    /// Bytes of ciphertext that were queued, and that were sent, since nothing was left to be sent.
    queued_bytes: u64,
    sent_bytes: u64,
    /// How often something was sent.
    sends: u64,
}

impl Session {
    /// Over a TLS session whose handshake is over, for the disk of `identity`.
    #[must_use]
    pub fn new(mut tls: rustls::Connection, identity: LinkIdentity) -> Self {
        // What is queued is bounded by the requests in flight, and must never be taken in part.
        tls.set_buffer_limit(None);
        Self {
            tls,
            identity,
            decoder: Decoder::new(identity.size_bytes),
            acks: Vec::new(),
            window: vec![0; WINDOW_BYTES].into_boxed_slice(),
            begin: 0,
            end: 0,
            head: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            version: None,
            queued_bytes: 0,
            sent_bytes: 0,
            sends: 0,
        }
    }

    /// The version that both sides speak; `None` before the partner's hello.
    #[must_use]
    pub fn version(&self) -> Option<LinkVersion> {
        self.version
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes.saturating_sub(self.sent_bytes)
    }

    /// Changes whenever the partner has taken some of them.
    #[must_use]
    pub fn sends(&self) -> u64 {
        self.sends
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

    /// The next complete message, with the data of its operation if it has any; `None` when more bytes are needed.
    pub fn next(&mut self, pool: &mut BufferPool) -> Result<Option<(Message, Option<IoBuffer>)>, SessionError> {
        loop {
            let incoming = self.decoder.next(pool);
            if let Err(FrameError::Version { oldest, newest }) = incoming {
                let refusal = version_refusal(oldest, newest);
                self.refuse(&refusal);
                return Err(SessionError::Refuse(refusal));
            }
            match incoming? {
                Some(Incoming::Message(message, data)) => return Ok(Some((message, data))),
                Some(Incoming::Hello(theirs)) => {
                    match self.identity.check(&theirs) {
                        Ok(version) => self.version = Some(version),
                        Err(refusal) => {
                            self.refuse(&refusal);
                            return Err(SessionError::Refuse(refusal));
                        }
                    }
                    return Ok(Some((Message::Hello(theirs.hello), None)));
                }
                Some(Incoming::Refused(refusal)) => return Err(SessionError::Refused(refusal)),
                None => {}
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

    /// Queues a message. `data` is that of its operation, for messages that carry any; it is encrypted at once, so
    /// that the caller may go on using the buffer.
    pub fn send(&mut self, message: &Message, data: &[u8]) {
        if let Message::Ack { op, outcome } = message {
            self.acks.push((*op, *outcome));
            if self.acks.len() == ACKS_MAX {
                self.send_acks();
            }
            return;
        }
        self.send_acks();
        self.head.clear();
        let data = match message {
            Message::Hello(hello) => {
                encode_hello(&LinkHello::new(self.identity, *hello), &mut self.head);
                &[]
            }
            other => encode(other, data, &mut self.head),
        };
        self.queued_bytes += put(&mut self.tls, &self.head, data);
    }

    fn send_acks(&mut self) {
        if !self.acks.is_empty() {
            self.head.clear();
            encode_acks(&self.acks, &mut self.head);
            self.acks.clear();
            self.queued_bytes += put(&mut self.tls, &self.head, &[]);
        }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.head.clear();
        encode_refusal(refusal, &mut self.head);
        self.queued_bytes += put(&mut self.tls, &self.head, &[]);
        self.tls.send_close_notify();
    }

    /// The bytes to send next; empty when nothing waits. They keep their place until [`Session::sent`].
    pub fn front(&mut self) -> &[u8] {
        if self.sent == self.sending.len() {
            self.sent = 0;
            self.sending.clear();
            self.send_acks();
            while self.tls.wants_write() && self.sending.len() < SEND_BYTES {
                self.tls.write_tls(&mut self.sending).expect("memory takes all");
            }
            if self.sending.is_empty() {
                self.queued_bytes = 0;
                self.sent_bytes = 0;
            }
        }
        &self.sending[self.sent..]
    }

    /// `count` of the bytes that [`Session::front`] returned were sent.
    pub fn sent(&mut self, count: usize) {
        assert!(count <= self.sending.len() - self.sent, "more bytes sent than were handed out");
        self.sent += count;
        self.sent_bytes += u64::try_from(count).expect("usize fits 64 bits");
        self.sends += 1;
    }

    /// Queues the end of the TLS session, so that the partner can tell it from a cut.
    pub fn close(&mut self) {
        self.send_acks();
        self.tls.send_close_notify();
    }
}

/// For a hello that can't even be decoded, because no version is known to both sides.
fn version_refusal(theirs_oldest: LinkVersion, theirs_newest: LinkVersion) -> Refusal {
    let (ours_oldest, ours_newest) = (LinkVersion::OLDEST, LinkVersion::NEWEST);
    Refusal::Version { ours_oldest, ours_newest, theirs_oldest, theirs_newest }
}

/// Encrypts both as one stretch, so that a small message is one TLS record. Gives how long that is.
fn put(tls: &mut rustls::Connection, head: &[u8], data: &[u8]) -> u64 {
    let length = u64::try_from(head.len() + data.len()).expect("usize fits 64 bits");
    let mut slices = [IoSlice::new(head), IoSlice::new(data)];
    let mut left = &mut slices[..];
    while left.iter().any(|slice| !slice.is_empty()) {
        let count = tls.writer().write_vectored(left).expect("without a limit nothing is refused");
        IoSlice::advance_slices(&mut left, count);
    }
    length + length.div_ceil(RECORD_BYTES_MAX) * RECORD_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ev_core::ids::{DiskId, Generation, MemberId, PoolId, VmId};
    use ev_core::mirror::{Durability, Epochs, Extent, Health, Hello, History, ReplicaInfo, Write, WriteKind};
    use ev_wire::identity::{self, Identity, Peer};
    use uuid::Uuid;

    use super::*;

    const DISK: LinkIdentity = LinkIdentity {
        pool: PoolId(Uuid::from_u128(1)),
        vm: VmId(Uuid::from_u128(2)),
        disk: DiskId(Uuid::from_u128(3)),
        size_bytes: 1 << 40,
        region_bytes: 1 << 20,
    };

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
        (Session::new(client, DISK), Session::new(server, DISK))
    }

    type Carried = Vec<(Message, Option<IoBuffer>)>;

    fn carry(from: &mut Session, to: &mut Session, part: usize) -> Result<Carried, SessionError> {
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

    fn hello() -> Message {
        let replica = ReplicaInfo { health: Health::Good, history: History::NONE };
        Message::Hello(Hello {
            host: MemberId(1),
            instance: 2,
            generation: Generation(3),
            replica,
            epochs: Epochs::None,
        })
    }

    fn messages() -> Carried {
        let mut data = IoBuffer::new(3 << 20);
        data.data_mut().fill(0x3c);
        let write = Write {
            extent: Extent { offset: 512, length: 3 << 20 },
            kind: WriteKind::Data,
            durability: Durability::AtFlush,
        };
        let ack = |op| (Message::Ack { op: OpId(op), outcome: Outcome::Done }, None);
        vec![
            (hello(), None),
            ack(1),
            ack(2),
            (Message::Flush { op: OpId(3) }, None),
            (Message::Write { op: OpId(4), write }, Some(data)),
            ack(5),
        ]
    }

    fn send(session: &mut Session) {
        for (message, data) in messages() {
            session.send(&message, data.as_ref().map_or(&[], IoBuffer::data));
        }
    }

    #[test]
    fn messages_pass_in_both_directions_in_any_parts() {
        let (mut client, mut server) = pair();
        for part in [usize::MAX, 1000, 17] {
            send(&mut client);
            send(&mut server);
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

    #[test]
    fn another_disk_is_refused_and_told_why() {
        let (mut client, server) = pair();
        let ours = DiskId(Uuid::from_u128(99));
        let mut server = Session { identity: LinkIdentity { disk: ours, ..DISK }, ..server };
        client.send(&hello(), &[]);
        let refusal = Refusal::OtherDisk { ours, theirs: DISK.disk };
        let refused = carry(&mut client, &mut server, usize::MAX);
        assert!(matches!(refused, Err(SessionError::Refuse(found)) if found == refusal));
        let told = Refusal::OtherDisk { ours: DISK.disk, theirs: ours };
        let refused = carry(&mut server, &mut client, usize::MAX);
        assert!(matches!(refused, Err(SessionError::Refused(found)) if found == told));
    }
}
