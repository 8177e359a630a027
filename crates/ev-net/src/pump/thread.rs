//! The pump's thread: waits for the socket, the TAP, news of what may leave and the order to end, and moves a batch of frames per
//! wakeup.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ev_core::ids::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::hold::OutputHold;
use crate::learned::Learned;
use crate::tap::Tap;

use super::NicPumpSpec;
use super::counters::{Shared, add};
use super::outbound::{Outbound, WhatWasRead};
use super::stream::{FRAME_BYTES_MAX, FrameReader, FrameWriter, READ_BYTES_MAX};

/// Most frames that are taken from the TAP before the other direction is looked at.
const BATCH_FRAMES_MAX: usize = 64;
/// Most held frames that leave before the other direction is looked at.
const LET_GO_FRAMES_MAX: usize = 1024;
/// Pause between two attempts to connect to QEMU: a guest that starts must not wait for its network.
const CONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// Pause after something that should not happen, so that it does not keep a processor busy.
const TROUBLE_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Pump {
    name: String,
    socket: PathBuf,
    tap: Tap,
    mac: MacAddress,
    shared: Arc<Shared>,
    orders: Orders,
    hold: Arc<OutputHold>,
    qemu: Option<UnixStream>,
    next_connect: Instant,
    reader: FrameReader,
    writer: FrameWriter,
    outbound: Outbound,
    learned: Learned,
    frame: Box<[u8]>,
}

/// Descriptors that become readable when other threads want something.
pub(super) struct Orders {
    /// The pump is to end.
    pub end: Arc<OwnedFd>,
    /// What was held may leave, or never will.
    pub verdicts: Arc<OwnedFd>,
}

/// What can be done now.
struct Ready {
    end: bool,
    verdicts: bool,
    tap: bool,
    qemu_read: bool,
    qemu_write: bool,
}

impl Pump {
    pub(super) fn new(spec: NicPumpSpec, shared: Arc<Shared>, orders: Orders) -> Self {
        let NicPumpSpec { name, socket, tap, mac, gate, hold } = spec;
        let outbound = Outbound::new(tap.clone(), gate, Arc::clone(&hold), Arc::clone(&shared));
        Self {
            name,
            socket,
            tap,
            mac,
            shared,
            orders,
            hold,
            qemu: None,
            next_connect: Instant::now(),
            reader: FrameReader::new(),
            writer: FrameWriter::new(),
            outbound,
            learned: Learned::default(),
            frame: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
        }
    }

    pub(super) fn run(mut self) {
        loop {
            if self.qemu.is_none() {
                self.connect();
            }
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(nic = self.name, %error, "could not wait for frames");
                    std::thread::sleep(TROUBLE_PAUSE);
                    continue;
                }
            };
            if ready.end {
                return;
            }
            if ready.verdicts {
                self.hear_verdicts();
            }
            self.outbound.let_go(LET_GO_FRAMES_MAX);
            if ready.qemu_read {
                self.carry_out();
            }
            if ready.tap {
                self.carry_in();
            }
            if ready.tap || ready.qemu_write {
                self.hand_over();
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut qemu_flags = PollFlags::empty();
        // While too much is held, frames wait in QEMU.
        qemu_flags.set(PollFlags::IN, self.outbound.has_room(READ_BYTES_MAX));
        qemu_flags.set(PollFlags::OUT, !self.writer.waiting().is_empty());
        // While QEMU does not read, frames wait in the TAP's queue.
        let tap_flags = if self.writer.has_room() { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(&*self.orders.end, PollFlags::IN),
            PollFd::new(&*self.orders.verdicts, PollFlags::IN),
            PollFd::from_borrowed_fd(self.tap.fd(), tap_flags),
        ];
        // Asked for nothing, poll would still tell, and tell again, that a QEMU has gone whose last frames there is no room for.
        let asked = self.qemu.as_ref().filter(|_| !qemu_flags.is_empty());
        fds.extend(asked.map(|qemu| PollFd::new(qemu, qemu_flags)));
        let timeout = match &self.qemu {
            _ if self.outbound.can_let_go() => Some(Duration::ZERO),
            Some(_) => None,
            None => Some(self.next_connect.saturating_duration_since(Instant::now())),
        };
        let timeout = timeout.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has = |index: usize, flags: PollFlags| fds.get(index).is_some_and(|fd| fd.revents().intersects(flags));
        let lost = PollFlags::HUP | PollFlags::ERR;
        if has(2, PollFlags::ERR) {
            // The device was removed under us, or is down: no frames, and no reason to spin.
            std::thread::sleep(TROUBLE_PAUSE);
        }
        Ok(Ready {
            end: has(0, PollFlags::IN),
            verdicts: has(1, PollFlags::IN),
            tap: has(2, PollFlags::IN),
            qemu_read: qemu_flags.contains(PollFlags::IN) && has(3, PollFlags::IN | lost),
            qemu_write: has(3, PollFlags::OUT | lost),
        })
    }

    /// Before verdicts are asked for, so that one that changes later is told anew.
    fn hear_verdicts(&self) {
        if let Err(error) = rustix::io::read(&*self.orders.verdicts, &mut [0_u8; 8])
            && error != Errno::AGAIN
        {
            tracing::debug!(nic = self.name, %error, "could not hear what may leave");
        }
    }

    fn connect(&mut self) {
        if Instant::now() < self.next_connect {
            return;
        }
        self.next_connect = Instant::now() + CONNECT_INTERVAL;
        match connect_now(&self.socket) {
            Ok(qemu) => {
                tracing::debug!(nic = self.name, "connected to QEMU");
                self.qemu = Some(qemu);
                add(&self.shared.connections, 1);
                self.shared.connected.store(true, Ordering::Relaxed);
            }
            // It is not there yet, or not any more.
            Err(error) => tracing::trace!(nic = self.name, %error, "QEMU is not there"),
        }
    }

    fn disconnect(&mut self) {
        self.qemu = None;
        self.reader.clear();
        self.writer.clear();
        self.shared.connected.store(false, Ordering::Relaxed);
        tracing::debug!(nic = self.name, "lost the connection to QEMU");
    }

    /// One read, and all whole frames in it.
    fn carry_out(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        match rustix::io::read(qemu, self.reader.space()) {
            Ok(0) => return self.disconnect(),
            Ok(bytes) => self.reader.filled(bytes),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.disconnect(),
        }
        // After the read: see there.
        let read = WhatWasRead { turn: self.hold.turn_of_what_was_read(), at: Instant::now() };
        loop {
            match self.reader.next() {
                Ok(Some(frame)) => {
                    if self.learned.note_sent(self.mac, frame) {
                        self.shared.set_learned(self.learned.addresses());
                    }
                    self.outbound.take(read, frame);
                }
                Ok(None) => return,
                Err(out_of_step) => {
                    tracing::warn!(nic = self.name, ?out_of_step, "QEMU sent an impossible length; connecting anew");
                    return self.disconnect();
                }
            }
        }
    }

    /// A batch from the TAP into the buffer for QEMU.
    fn carry_in(&mut self) {
        for _ in 0..BATCH_FRAMES_MAX {
            if !self.writer.has_room() {
                return;
            }
            let bytes = match rustix::io::read(self.tap.fd().as_fd(), &mut *self.frame) {
                Ok(bytes) => bytes,
                // Empty; or down, of which `wait` takes care.
                Err(_) => return,
            };
            let frame = &self.frame[..bytes];
            if self.learned.note_received(self.mac, frame) {
                self.shared.set_learned(self.learned.addresses());
            }
            if self.qemu.is_some() {
                self.writer.push(frame);
                add(&self.shared.received_frames, 1);
                add(&self.shared.received_bytes, bytes);
            } else {
                add(&self.shared.dropped_to_guest, 1);
            }
        }
    }

    /// What waits in the buffer to QEMU, as far as it takes it.
    fn hand_over(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        if self.writer.waiting().is_empty() {
            return;
        }
        // Not `write`: a lost connection must be an error and not a signal.
        match rustix::net::send(qemu, self.writer.waiting(), rustix::net::SendFlags::NOSIGNAL) {
            Ok(bytes) => self.writer.wrote(bytes),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.disconnect(),
        }
    }
}

/// Without waiting: a QEMU that has another client has no place in its queue, and a blocked thread could not be ended.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
