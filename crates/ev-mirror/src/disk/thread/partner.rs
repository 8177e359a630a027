//! The link to the partner: its stream on the ring, its greeting, and its silence.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ev_core::ids::HostId;
use ev_core::mirror::{Hello, Message, OpId};

use super::super::link::{LinkStream, LinkTls};
use super::super::spec::{DiskEvent, DiskRole, DiskSpec};
use super::Thread;
use super::engine::{Engine, Told};
use super::ring::{self, Tag};
use crate::buffer::IoBuffer;
use crate::link::codec::LinkIdentity;
use crate::link::session::{Session, SessionError};

/// After this time without a word to the partner a keep-alive is sent.
const KEEP_ALIVE: Duration = Duration::from_millis(100);
/// For so long the partner is still sent why its link is over.
const PARTING_TIME_MAX: Duration = Duration::from_millis(700);
/// A link that is wanted and not there is asked for this often.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// One connection to the partner.
pub struct Link {
    number: u32,
    socket: TcpStream,
    pub session: Session,
    peer: HostId,
    receiving: bool,
    sending: bool,
    /// It is over, except that the partner is still told why.
    parting: bool,
    pub heard: Instant,
    spoken: Instant,
    /// When the partner last took something of what is queued, and how often it had by then.
    taken: (Instant, u64),
}

/// A link on which nothing came for this long is given up, so that another path is tried before the partner timeout.
fn link_silence_max(partner_timeout: Duration) -> Duration {
    partner_timeout * 7 / 10
}

/// How sending went.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    WhatGoes,
    Broken,
}

impl Link {
    fn is_quiet(&self) -> bool {
        !self.receiving && !self.sending && !self.parting
    }

    /// How long the partner has taken nothing although there is something for it.
    pub fn stuck_for(&mut self) -> Duration {
        let sends = self.session.sends();
        if self.taken.1 != sends || self.session.queued_bytes() == 0 {
            self.taken = (Instant::now(), sends);
        }
        self.taken.0.elapsed()
    }

    /// Ends what is under way on the socket.
    fn shut(&mut self) {
        self.parting = false;
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Thread {
    /// A new stream takes the place of the one in use.
    pub fn take_link(&mut self, stream: LinkStream) {
        self.let_go_of_link();
        if matches!(self.engine, Engine::Idle(_)) {
            return;
        }
        let tls = match stream.tls {
            LinkTls::Client(client) => rustls::Connection::Client(*client),
            LinkTls::Server(server) => rustls::Connection::Server(*server),
        };
        if let Err(error) = stream.socket.set_nonblocking(false).and_then(|()| stream.socket.set_nodelay(true)) {
            tracing::warn!(disk = %self.spec.disk, %error, "a link's socket can't be set up");
            return;
        }
        self.link_number = self.link_number.wrapping_add(1);
        let now = Instant::now();
        self.link = Some(Link {
            number: self.link_number,
            socket: stream.socket,
            session: Session::new(tls, self.identity()),
            peer: stream.peer,
            receiving: false,
            sending: false,
            parting: false,
            heard: now,
            spoken: now,
            taken: (now, 0),
        });
        self.link_is_up = false;
        self.tell(Told::LinkUp);
        // The handshake may have read on into our first frame.
        self.take_messages();
    }

    fn identity(&self) -> LinkIdentity {
        let DiskSpec { pool, vm, disk, size_bytes, .. } = &self.spec;
        LinkIdentity {
            pool: *pool,
            vm: *vm,
            disk: *disk,
            size_bytes: *size_bytes,
            region_bytes: self.store.region_bytes(),
        }
    }

    /// Lets go of the link, if there is one, tells the engine, and asks for another one.
    pub fn drop_link(&mut self) {
        if self.let_go_of_link() {
            self.asked_for_link = None;
            self.ask_for_link();
        }
    }

    /// Like [`Thread::drop_link`], but what is queued for the partner is sent first: why it is refused.
    fn part_from_link(&mut self) {
        if let Some(link) = &mut self.link {
            link.parting = true;
            link.spoken = Instant::now();
        }
        self.drop_link();
    }

    /// Whether there was one.
    fn let_go_of_link(&mut self) -> bool {
        let Some(mut link) = self.link.take() else { return false };
        if !link.parting {
            link.shut();
        }
        self.old_links.push(link);
        self.tell(Told::LinkDown);
        if let Engine::Replica(_) = self.engine {
            // What was not begun comes again with the next link, but for what is staged.
            self.ops.retain(|number, op| op.busy || number.is_staged() || number.is_beside());
        }
        true
    }

    /// Tells the AM that a link is wanted, now and then.
    pub fn ask_for_link(&mut self) {
        let wanted = match &self.role {
            Some((_, DiskRole::Coordinator { partner: Some(_), .. } | DiskRole::Replica { .. })) => true,
            Some((_, DiskRole::Coordinator { partner: None, .. } | DiskRole::Idle)) | None => false,
        };
        let due = self.asked_for_link.is_none_or(|at| at.elapsed() >= ASK_AGAIN);
        if wanted && self.link.is_none() && due && !self.ending {
            self.asked_for_link = Some(Instant::now());
            self.event(DiskEvent::LinkDown { disk: self.spec.disk });
        }
    }

    /// Sends what is queued and listens for more.
    pub fn pump_link(&mut self) -> io::Result<()> {
        if self.send_to_link()? == Sent::Broken {
            self.drop_link();
        }
        let full = self.is_staging_full();
        if let Some(link) = &mut self.link
            && !link.receiving
            && !full
        {
            let socket = link.socket.as_raw_fd();
            self.ring.receive(socket, link.session.space(), Tag::LinkReceive(link.number))?;
            link.receiving = true;
        }
        self.pump_parting()?;
        self.old_links.retain(|link| !link.is_quiet());
        Ok(())
    }

    /// Sends at once what the socket takes, and the rest by the ring.
    fn send_to_link(&mut self) -> io::Result<Sent> {
        while let Some(link) = &mut self.link
            && !link.sending
        {
            let front = link.session.front();
            if front.is_empty() {
                break;
            }
            match ring::send_now(&link.socket, front) {
                Ok(Some(count)) => link.session.sent(count),
                Ok(None) => {
                    link.sending = true;
                    self.ring.send(link.socket.as_raw_fd(), front, Tag::LinkSend(link.number))?;
                }
                Err(_) => return Ok(Sent::Broken),
            }
        }
        Ok(Sent::WhatGoes)
    }

    /// Sends the last words of links that are over, for a while.
    fn pump_parting(&mut self) -> io::Result<()> {
        for link in self.old_links.iter_mut().filter(|link| link.parting) {
            if link.spoken.elapsed() >= PARTING_TIME_MAX {
                link.shut();
            } else if !link.sending {
                let socket = link.socket.as_raw_fd();
                let front = link.session.front();
                if front.is_empty() {
                    link.shut();
                } else {
                    self.ring.send(socket, front, Tag::LinkSend(link.number))?;
                    link.sending = true;
                }
            }
        }
        Ok(())
    }

    pub fn link_received(&mut self, number: u32, result: io::Result<u32>) {
        let Some(link) = self.link.as_mut().filter(|link| link.number == number) else {
            if let Some(old) = self.old_links.iter_mut().find(|link| link.number == number) {
                old.receiving = false;
            }
            return;
        };
        link.receiving = false;
        match result {
            Ok(count) if count > 0 => {
                link.heard = Instant::now();
                link.session.received(length(count));
                self.take_messages();
            }
            Ok(_) | Err(_) => self.drop_link(),
        }
    }

    pub fn link_sent(&mut self, number: u32, result: io::Result<u32>) {
        let Some(link) = self.link.as_mut().filter(|link| link.number == number) else {
            if let Some(old) = self.old_links.iter_mut().find(|link| link.number == number) {
                old.sending = false;
                match result {
                    Ok(count) if count > 0 && old.parting => old.session.sent(length(count)),
                    Ok(_) | Err(_) => old.parting = false,
                }
            }
            return;
        };
        link.sending = false;
        match result {
            Ok(count) if count > 0 => link.session.sent(length(count)),
            Ok(_) | Err(_) => self.drop_link(),
        }
    }

    fn take_messages(&mut self) {
        while let Some(link) = &mut self.link {
            match link.session.next(&mut self.pool) {
                Ok(Some((message, data))) => self.receive(message, data),
                Ok(None) => return,
                Err(error @ SessionError::Refuse(_)) => {
                    self.trouble(error.to_string());
                    self.part_from_link();
                }
                Err(error @ SessionError::Refused(_)) => {
                    self.trouble(error.to_string());
                    self.drop_link();
                }
                Err(error) => {
                    tracing::info!(disk = %self.spec.disk, %error, "the link to the partner ended");
                    self.drop_link();
                }
            }
        }
    }

    fn receive(&mut self, message: Message, data: Option<IoBuffer>) {
        if let Message::Hello(hello) = &message {
            return self.greeted(*hello);
        }
        if let (Some(op), Some(buffer)) = (data_op(&message), data) {
            self.keep_data(op, buffer);
        }
        let before = self.actions.len();
        self.tell(Told::Received(message));
        self.keep_staged(before);
    }

    /// Data that came with a message is the operation's, unless the kernel works on the operation's own.
    fn keep_data(&mut self, op: OpId, buffer: IoBuffer) {
        let entry = self.op_entry(op);
        if !entry.busy {
            entry.data = Some(buffer);
        }
    }

    fn greeted(&mut self, hello: Hello) {
        if self.link.as_ref().is_some_and(|link| link.peer != hello.host) {
            self.trouble(format!("a link's certificate is not that of the host that it says it is ({})", hello.host));
            self.drop_link();
            return;
        }
        self.tell(Told::Received(Message::Hello(hello)));
        if self.link.is_some() && !self.link_is_up {
            self.link_is_up = true;
            self.link_trouble = None;
            self.event(DiskEvent::LinkUp { disk: self.spec.disk });
        }
    }

    /// Queues a message of the engine.
    pub fn send(&mut self, message: &Message) {
        let data = data_op(message).and_then(|op| self.ops.get(&op)).and_then(|op| op.data.as_ref());
        self.count_ahead(message);
        if let Some(link) = &mut self.link {
            link.session.send(message, data.map_or(&[], IoBuffer::data));
            link.spoken = Instant::now();
        }
    }

    /// Says something now and then, and gives up a link that is silent.
    pub fn tick_link(&mut self) {
        self.excuse_silence();
        self.give_up_stuck_link();
        let Some(link) = &self.link else { return self.ask_for_link() };
        if link.heard.elapsed() >= link_silence_max(self.spec.partner_timeout) {
            tracing::info!(disk = %self.spec.disk, "the link to the partner is silent; another path is tried");
            self.drop_link();
        } else if link.spoken.elapsed() >= KEEP_ALIVE {
            self.send(&Message::KeepAlive);
        }
    }
}

fn length(bytes: u32) -> usize {
    usize::try_from(bytes).expect("usize holds 32 bits")
}

/// The operation whose data a message carries.
fn data_op(message: &Message) -> Option<OpId> {
    match message {
        Message::Write { op, .. } | Message::ReadData { op } | Message::CopyData { op, .. } => Some(*op),
        Message::Hello(_)
        | Message::Regions { .. }
        | Message::KeepAlive
        | Message::Flush { .. }
        | Message::EpochEnd { .. }
        | Message::Read { .. }
        | Message::Ack { .. }
        | Message::History { .. }
        | Message::CopyBegin { .. }
        | Message::HashRequest { .. }
        | Message::Hashes { .. }
        | Message::CopyEnd { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_path_is_tried_before_any_partner_timeout_and_not_before_the_partner_was_to_speak() {
        for (partner_timeout_ms, silence_ms) in [(200, 140), (500, 350), (1_000, 700), (30_000, 21_000)] {
            let silence = link_silence_max(Duration::from_millis(partner_timeout_ms));
            assert_eq!(silence, Duration::from_millis(silence_ms));
            assert!(silence < Duration::from_millis(partner_timeout_ms) && silence > KEEP_ALIVE);
        }
    }
}
