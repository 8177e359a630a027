//! The NBD clients of a disk: QEMU, or any other.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::SyncSender;

use ev_core::mirror::{Durability, Extent, Input, OpId, Write, WriteKind};

use super::engine::Engine;
use super::ring::{self, Tag};
use super::{Op, Origin, Thread};
use crate::buffer::{IoBuffer, SendQueue};
use crate::disk::spec::{DiskSpec, OpenError};
use crate::nbd::{Allocation, AllocationExtent, Connection, DoneReply, Export, NbdError, ReadReply, Request, Zeroing};

/// Requests of all clients under way at once. More are left in the clients' sockets until some are done.
const REQUESTS_MAX: usize = 256;
/// Bytes of requests under way at once; one request more is always taken.
const REQUEST_BYTES_MAX: u64 = 128 << 20;
/// Clients at once; one more is turned away.
const CLIENTS_MAX: usize = 32;

/// One client.
pub struct Client {
    socket: UnixStream,
    connection: Connection,
    out: SendQueue,
    receiving: bool,
    sending: bool,
    /// Its requests under way.
    requests: usize,
    /// Nothing more is taken from it; it goes when nothing of it is under way.
    leaving: bool,
}

/// How a request is answered.
pub enum Reply {
    Read(ReadReply),
    Done(DoneReply),
}

/// A request that waits for the gate, or has been answered.
pub enum Verdict {
    Done,
    Data(IoBuffer),
    Failed,
}

/// The disk's NBD socket. It is there as soon as the disk is open, so that the AM can give it to QEMU's user.
pub fn listen(spec: &DiskSpec) -> Result<Option<UnixListener>, OpenError> {
    let Some(path) = &spec.nbd_socket else { return Ok(None) };
    let _absent_is_fine = std::fs::remove_file(path);
    let bound = UnixListener::bind(path).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map(Some).map_err(|source| OpenError::NbdSocket { path: path.clone(), source })
}

impl Thread {
    /// Takes NBD clients while this host has a role for the disk. Others wait in the socket's queue until it has.
    pub fn serve(&mut self, serve: bool) {
        self.serving = serve;
        if !serve {
            for number in self.clients.numbers() {
                self.turn_out(number);
            }
        }
    }

    /// Ends the poll that is under way on the socket.
    pub fn stop_listening(&mut self) {
        self.serve(false);
        if let Some(listener) = self.listener.take() {
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        }
    }

    pub fn pump_listener(&mut self) -> io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        if self.serving && !self.accepting {
            self.accepting = true;
            self.ring.poll(listener.as_raw_fd(), Tag::Accept)?;
        }
        Ok(())
    }

    pub fn accept(&mut self) {
        self.accepting = false;
        if !self.serving {
            return;
        }
        while let Some(Ok((socket, _))) = self.listener.as_ref().map(UnixListener::accept) {
            if self.clients.numbers().len() >= CLIENTS_MAX {
                tracing::warn!(disk = %self.spec.disk, "too many NBD clients; one was turned away");
                continue;
            }
            let mut out = SendQueue::default();
            let export = Export { name: self.export_name(), size_bytes: self.spec.size_bytes };
            let connection = Connection::new(export, &mut out);
            self.clients.insert(Client {
                socket,
                connection,
                out,
                receiving: false,
                sending: false,
                requests: 0,
                leaving: false,
            });
        }
    }

    fn export_name(&self) -> String {
        self.spec.disk.to_string()
    }

    /// Takes requests, sends replies, and lets go of clients that are done.
    pub fn pump_clients(&mut self) -> io::Result<()> {
        for number in self.clients.numbers() {
            self.take_requests(number);
            self.send_replies(number)?;
            let room = self.has_room();
            let Some(client) = self.clients.get_mut(number) else { continue };
            if !client.receiving && !client.leaving && room {
                client.receiving = true;
                let socket = client.socket.as_raw_fd();
                self.ring.receive(socket, client.connection.space(), Tag::ClientReceive(number))?;
            }
            // At the end nothing is waited for that may never be answered; the client asks the next process again.
            let answered = client.requests == 0 || self.ending;
            if client.leaving && !client.receiving && !client.sending && answered {
                self.clients.remove(number);
            }
        }
        Ok(())
    }

    /// Sends at once what the socket takes, and the rest by the ring.
    fn send_replies(&mut self, number: u32) -> io::Result<()> {
        while let Some(client) = self.clients.get_mut(number)
            && !client.sending
            && !client.out.is_empty()
        {
            match ring::send_now(&client.socket, client.out.front()) {
                Ok(Some(count)) => client.out.sent(count, &mut self.pool),
                Ok(None) => {
                    client.sending = true;
                    let socket = client.socket.as_raw_fd();
                    return self.ring.send(socket, client.out.front(), Tag::ClientSend(number));
                }
                Err(_) => {
                    client.out = SendQueue::default();
                    self.turn_out(number);
                }
            }
        }
        Ok(())
    }

    fn turn_out(&mut self, number: u32) {
        if let Some(client) = self.clients.get_mut(number) {
            client.leaving = true;
            let _ = client.socket.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn client_received(&mut self, number: u32, result: io::Result<u32>) {
        let Some(client) = self.clients.get_mut(number) else { return };
        client.receiving = false;
        match result {
            Ok(count) if count > 0 => client.connection.received(usize::try_from(count).expect("usize holds 32 bits")),
            Ok(_) | Err(_) => self.turn_out(number),
        }
    }

    pub fn client_sent(&mut self, number: u32, result: io::Result<u32>) {
        let Some(client) = self.clients.get_mut(number) else { return };
        client.sending = false;
        match result {
            Ok(count) => client.out.sent(usize::try_from(count).expect("usize holds 32 bits"), &mut self.pool),
            Err(_) => {
                client.out = SendQueue::default();
                self.turn_out(number);
            }
        }
    }

    /// Whether another request may be taken.
    fn has_room(&self) -> bool {
        let limits = self.requests < REQUESTS_MAX && self.request_bytes < REQUEST_BYTES_MAX;
        // What comes while the role changes is for the new one.
        limits && self.role_set && !self.is_too_far_ahead()
    }

    /// Takes what has come from a client, as long as there is room for more.
    fn take_requests(&mut self, number: u32) {
        while self.has_room() {
            let Some(client) = self.clients.get_mut(number) else { return };
            if client.receiving || client.leaving {
                return;
            }
            match client.connection.next(&mut client.out, &mut self.pool) {
                Ok(Some(Request::Disconnect)) => {
                    client.leaving = true;
                    return;
                }
                Ok(Some(request)) => self.begin(number, request),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(disk = %self.spec.disk, %error, "an NBD client was disconnected");
                    self.turn_out(number);
                    return;
                }
            }
        }
    }

    fn begin(&mut self, client: u32, request: Request) {
        match request {
            Request::Read { extent, reply } => {
                let op = self.guest_op(client, Reply::Read(reply), None, extent.length);
                self.input(Input::Read { op, extent });
            }
            Request::Write { extent, data, durability, reply } => {
                let op = self.guest_op(client, Reply::Done(reply), Some(data), extent.length);
                self.guest_write(op, extent, WriteKind::Data, durability);
            }
            Request::WriteZeroes { extent, zeroing, durability, reply } => {
                let op = self.guest_op(client, Reply::Done(reply), None, 0);
                self.guest_write(op, extent, kind_of(zeroing), durability);
            }
            Request::Trim { extent, durability, reply } => {
                let op = self.guest_op(client, Reply::Done(reply), None, 0);
                self.guest_write(op, extent, WriteKind::Trim, durability);
            }
            Request::Flush { reply } => {
                let op = self.guest_op(client, Reply::Done(reply), None, 0);
                self.input(Input::Flush { op });
            }
            Request::BlockStatus { extent, reply } => {
                let extents = self.allocation(extent);
                if let Some(client) = self.clients.get_mut(client) {
                    reply.extents(extents, &mut client.out);
                }
            }
            Request::Disconnect => unreachable!("handled by the caller"),
        }
    }

    fn guest_write(&mut self, op: OpId, extent: Extent, kind: WriteKind, durability: Durability) {
        self.write_bytes += u64::from(extent.length);
        self.input(Input::Write { op, write: Write { extent, kind, durability } });
    }

    fn guest_op(&mut self, client: u32, reply: Reply, data: Option<IoBuffer>, bytes: u32) -> OpId {
        if let Some(client) = self.clients.get_mut(client) {
            client.requests += 1;
        }
        self.requests += 1;
        self.request_bytes += u64::from(bytes);
        if matches!(reply, Reply::Read(_)) {
            self.read_bytes += u64::from(bytes);
        }
        self.next_op += 1;
        // On a replica the coordinator's numbers count.
        let first = if matches!(self.engine, Engine::Replica(_)) { OpId::BESIDE } else { 0 };
        let op = OpId(first + self.next_op);
        self.ops.insert(op, Op { data, origin: Origin::Guest { client, reply, bytes }, busy: false, over: false });
        op
    }

    /// A flush that the AM asked for.
    pub fn control_flush(&mut self, done: SyncSender<bool>) {
        self.next_op += 1;
        let op = OpId(self.next_op);
        self.ops.insert(op, Op { data: None, origin: Origin::Control(done), busy: false, over: false });
        self.input(Input::Flush { op });
    }

    /// An input that only a coordinator takes; fails what it was about otherwise.
    fn input(&mut self, input: Input) {
        let now = crate::gate::boot_time();
        match &mut self.engine {
            Engine::Coordinator(coordinator) => coordinator.step(now, input, &mut self.actions),
            Engine::Replica(_) => self.serve_beside(input),
            Engine::Idle(_) => match input {
                Input::Read { op, .. } | Input::Write { op, .. } | Input::Flush { op } => {
                    self.actions.push(ev_core::mirror::Action::Fail { op });
                }
                Input::LocalDone { .. }
                | Input::LocalHashes { .. }
                | Input::Committed { .. }
                | Input::SuperblockStored { .. }
                | Input::LinkUp
                | Input::LinkDown
                | Input::Received(_)
                | Input::Record(_)
                | Input::Tick
                | Input::Verify { .. }
                | Input::MarkEpoch { .. }
                | Input::EndAhead
                | Input::WasAhead
                | Input::Tidy => {}
            },
        }
    }

    /// Whether a guest may hear of what was done. While it writes ahead, what it does with that knowledge is held where it would be
    /// seen; and whoever asks a replica is no guest yet.
    fn lets_out(&self) -> bool {
        self.gate.is_open() || self.is_ahead() || matches!(self.engine, Engine::Replica(_))
    }

    /// Ends an operation towards whoever asked for it. A guest hears of it only while the gate is open.
    pub fn conclude(&mut self, op: OpId, verdict: Verdict) {
        let Some(entry) = self.ops.get_mut(&op) else { return };
        match std::mem::replace(&mut entry.origin, Origin::Engine) {
            Origin::Guest { client, reply, bytes } => {
                self.requests -= 1;
                self.request_bytes -= u64::from(bytes);
                if self.held.is_empty() && self.lets_out() {
                    self.answer(client, reply, verdict);
                } else {
                    self.held.push_back((client, reply, verdict));
                }
            }
            Origin::Control(done) if matches!(verdict, Verdict::Done) => {
                // At once: a partner that goes now has flushed, and later the log would have to name what it may lack.
                self.coordinate(Input::Tidy);
                self.tidying.push(done);
            }
            Origin::Control(done) => {
                let _ = done.try_send(false);
            }
            Origin::Engine => {}
        }
        self.drop_op(op);
    }

    /// Lets out what waited for the gate.
    pub fn release_held(&mut self) {
        while !self.held.is_empty() && self.lets_out() {
            if let Some((client, reply, verdict)) = self.held.pop_front() {
                self.answer(client, reply, verdict);
            }
        }
    }

    fn answer(&mut self, number: u32, reply: Reply, verdict: Verdict) {
        let Some(client) = self.clients.get_mut(number) else { return };
        client.requests -= 1;
        let out = &mut client.out;
        match (reply, verdict) {
            (Reply::Read(reply), Verdict::Data(buffer)) => reply.data(buffer, out, &mut self.pool),
            (Reply::Read(reply), Verdict::Done | Verdict::Failed) => reply.fail(NbdError::Io, out),
            (Reply::Done(reply), Verdict::Done) => reply.done(out),
            (Reply::Done(reply), Verdict::Data(_) | Verdict::Failed) => reply.fail(NbdError::Io, out),
        }
    }

    /// Which parts are holes, as far as this host's replica knows and counts.
    fn allocation(&self, extent: Extent) -> Vec<AllocationExtent> {
        let all = |allocation| vec![AllocationExtent { length: extent.length, allocation }];
        if self.engine.local_state() != ev_core::report::ReplicaState::Online {
            return all(Allocation::Data);
        }
        super::holes::within(self.store.replica_file(), extent).unwrap_or_else(|_| all(Allocation::Data))
    }
}

fn kind_of(zeroing: Zeroing) -> WriteKind {
    match zeroing {
        Zeroing::MayDeallocate => WriteKind::Zeroes,
        Zeroing::KeepAllocated => WriteKind::ZeroesAllocated,
    }
}
