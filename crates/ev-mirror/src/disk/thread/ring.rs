//! The io_uring of a disk's thread: what is under way, and who it was for.
//!
//! The kernel works on memory that user space owns, so each operation's memory must stay where it is until its completion.
//! The owners see to that: a client's window and queue, a link's session, and an operation's buffer are kept until the
//! completion that names them was taken; the thread waits for all of them before it ends ([`Ring::in_flight`]).

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// Operations that fit the submission queue; more are submitted in several system calls.
const ENTRIES: u32 = 256;

/// What an operation was for. Packed into the 64 bits that the kernel gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// The handle has sent a command.
    Wake,
    /// A client connects to the NBD socket.
    Accept,
    ClientReceive(u32),
    ClientSend(u32),
    /// With the number of the link, so that a late completion of an earlier link is not taken for this one's.
    LinkReceive(u32),
    LinkSend(u32),
    /// Local I/O, by its slot.
    Local(u32),
    /// The maps' flush.
    Maps,
}

impl Tag {
    fn pack(self) -> u64 {
        let (kind, number) = match self {
            Self::Wake => (1, 0),
            Self::Accept => (2, 0),
            Self::ClientReceive(number) => (3, number),
            Self::ClientSend(number) => (4, number),
            Self::LinkReceive(number) => (5, number),
            Self::LinkSend(number) => (6, number),
            Self::Local(number) => (7, number),
            Self::Maps => (8, 0),
        };
        (kind << 32) | u64::from(number)
    }

    fn unpack(bits: u64) -> Self {
        let number = u32::try_from(bits & u64::from(u32::MAX)).expect("masked");
        match bits >> 32 {
            1 => Self::Wake,
            2 => Self::Accept,
            3 => Self::ClientReceive(number),
            4 => Self::ClientSend(number),
            5 => Self::LinkReceive(number),
            6 => Self::LinkSend(number),
            7 => Self::Local(number),
            8 => Self::Maps,
            _ => unreachable!("the kernel gives back what pack made"),
        }
    }
}

/// When the kernel is to hear of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// Others work on it while this thread does something else.
    Now,
    /// It only waits for others.
    WithTheWait,
}

/// What the kernel said of an operation.
pub type Completion = (Tag, io::Result<u32>);

pub struct Ring {
    ring: IoUring,
    in_flight: usize,
    /// Something was pushed that is not to wait for what the thread does next by itself.
    urgent: bool,
}

/// Longest stretch that is sent by [`send_now`].
const SEND_NOW_BYTES_MAX: usize = 64 << 10;

/// Sends what the socket takes at this moment, if it is little. `None` when it is to go by the ring.
///
/// For a small message a system call of its own beats the ring: there is no completion to come back for, which at depth 1
/// is a whole round of the thread.
pub fn send_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    if bytes.len() > SEND_NOW_BYTES_MAX {
        return Ok(None);
    }
    match rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Ring {
    pub fn new() -> io::Result<Self> {
        // Completions are run by the one thread that waits for them, not by interrupts: Linux 6.1 and newer.
        let fast = IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(ENTRIES);
        let ring = match fast {
            Ok(ring) => ring,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(ENTRIES)?,
            Err(error) => return Err(error),
        };
        Ok(Self { ring, in_flight: 0, urgent: false })
    }

    /// Number of operations whose completion was not taken yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn push(&mut self, entry: &squeue::Entry, tag: Tag, haste: Haste) -> io::Result<()> {
        let entry = entry.clone().user_data(tag.pack());
        loop {
            // SAFETY: the entry's memory and descriptors stay valid until its completion was taken; see the file's doc.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                self.in_flight += 1;
                self.urgent |= haste == Haste::Now;
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// Completes when the descriptor can be read.
    pub fn poll(&mut self, descriptor: RawFd, tag: Tag) -> io::Result<()> {
        let events = u32::try_from(libc::POLLIN).expect("a small constant");
        self.push(&opcode::PollAdd::new(types::Fd(descriptor), events).build(), tag, Haste::WithTheWait)
    }

    pub fn receive(&mut self, socket: RawFd, space: &mut [u8], tag: Tag) -> io::Result<()> {
        let length = clamp(space.len());
        self.push(&opcode::Recv::new(types::Fd(socket), space.as_mut_ptr(), length).build(), tag, Haste::WithTheWait)
    }

    pub fn send(&mut self, socket: RawFd, bytes: &[u8], tag: Tag) -> io::Result<()> {
        let entry = opcode::Send::new(types::Fd(socket), bytes.as_ptr(), clamp(bytes.len()));
        self.push(&entry.flags(libc::MSG_NOSIGNAL).build(), tag, Haste::Now)
    }

    pub fn read(&mut self, file: RawFd, space: &mut [u8], offset: u64, tag: Tag) -> io::Result<()> {
        let entry = opcode::Read::new(types::Fd(file), space.as_mut_ptr(), clamp(space.len()));
        self.push(&entry.offset(offset).build(), tag, Haste::Now)
    }

    /// `durable`: on stable storage when it completes.
    pub fn write(&mut self, file: RawFd, bytes: &[u8], offset: u64, durable: bool, tag: Tag) -> io::Result<()> {
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let entry = opcode::Write::new(types::Fd(file), bytes.as_ptr(), clamp(bytes.len()));
        self.push(&entry.offset(offset).rw_flags(flags).build(), tag, Haste::Now)
    }

    pub fn allocate(&mut self, file: RawFd, mode: i32, offset: u64, length: u64, tag: Tag) -> io::Result<()> {
        self.push(&opcode::Fallocate::new(types::Fd(file), length).offset(offset).mode(mode).build(), tag, Haste::Now)
    }

    pub fn sync(&mut self, file: RawFd, tag: Tag) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fd(file)).flags(types::FsyncFlags::DATASYNC);
        self.push(&entry.build(), tag, Haste::Now)
    }

    /// Submits what was pushed, without waiting, if there is anything in it that is not to stand back for what the thread does next.
    pub fn submit_urgent(&mut self) -> io::Result<()> {
        if self.urgent { self.submit() } else { Ok(()) }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.urgent = false;
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(_) => Ok(()),
            // The next wait submits it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Submits what was pushed and looks out for a completion for up to `time` without sleeping. [`Ring::wait`] is to follow.
    pub fn look_out(&mut self, time: Duration) -> io::Result<()> {
        self.submit()?;
        let began = Instant::now();
        while !self.something_came() && began.elapsed() < time {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn something_came(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Submits what was pushed and waits for a completion, or for `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.urgent = false;
        let timeout = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes all completions that are there.
    pub fn completions(&mut self, into: &mut Vec<Completion>) {
        let queue = self.ring.completion();
        for entry in queue {
            self.in_flight -= 1;
            let result = entry.result();
            let outcome = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            into.push((Tag::unpack(entry.user_data()), outcome));
        }
    }
}

/// The kernel takes lengths of 32 bits; what is longer goes in parts anyway.
fn clamp(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
