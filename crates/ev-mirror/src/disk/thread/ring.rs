//! The io_uring of a disk's thread: what is under way, and who it was for.
//!
//! The kernel works on memory that user space owns, so each operation's memory must stay where it is until its completion.
//! The owners see to that: a client's window and queue, a link's session, and an operation's buffer are kept until the
//! completion that names them was taken; the thread waits for all of them before it ends ([`Ring::in_flight`]).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// Operations that fit the submission queue; more are submitted in several system calls.
const ENTRIES: u32 = 256;
/// The kernel that had no memory for an operation is asked again after this time, without limit: there is nothing else to do.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(1);

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
    /// Operations that found no room, in order: the kernel can't take those before them at the moment. No more than the thread
    /// begins, which has limits of its own.
    no_room: VecDeque<squeue::Entry>,
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
        Ok(Self { ring, no_room: VecDeque::new(), in_flight: 0, urgent: false })
    }

    /// Number of operations whose completion was not taken yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn push(&mut self, entry: &squeue::Entry, tag: Tag, haste: Haste) -> io::Result<()> {
        self.no_room.push_back(entry.clone().user_data(tag.pack()));
        self.in_flight += 1;
        self.urgent |= haste == Haste::Now;
        self.fill();
        if self.no_room.is_empty() { Ok(()) } else { self.submit() }
    }

    /// Moves what found no room to the submission queue, as far as there is some now.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.no_room.front() {
            // SAFETY: the entry's memory and descriptors stay valid until its completion was taken; see the file's doc.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.no_room.pop_front();
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

    /// What the kernel can't take at the moment is submitted by the next wait.
    fn submit(&mut self) -> io::Result<()> {
        self.urgent = false;
        loop {
            self.fill();
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(0) => return Ok(()),
                Ok(_) if self.no_room.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) if passes(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
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
        if !self.no_room.is_empty() {
            self.submit()?;
        }
        let timeout = if self.no_room.is_empty() { timeout } else { SHORTAGE_PAUSE };
        let timeout = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            Err(error) if passes(&error) => {
                if error.raw_os_error() == Some(libc::EAGAIN) {
                    std::thread::sleep(SHORTAGE_PAUSE);
                }
                Ok(())
            }
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

/// Whether the kernel only can't take operations now: a signal, completions that are to be taken first, or a shortage of memory.
fn passes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// The kernel takes lengths of 32 bits; what is longer goes in parts anyway.
fn clamp(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const NOT_NOW: [i32; 3] = [libc::EINTR, libc::EBUSY, libc::EAGAIN];
    const SOME_TIME: Duration = Duration::from_secs(10);

    /// Runs the test on a thread for which the kernel fails to submit while it is to wait for so many completions.
    fn while_kernel_refuses(to_wait_for: u32, error: i32, test: impl FnOnce(Ring) + Send + 'static) {
        let thread = std::thread::spawn(move || {
            let ring = Ring::new().unwrap();
            refuse(to_wait_for, u32::try_from(error).unwrap());
            test(ring);
        });
        thread.join().unwrap();
    }

    /// For as long as this thread lives.
    fn refuse(to_wait_for: u32, error: u32) {
        let step = |code: u32, jump_unless: u8, k: u32| libc::sock_filter {
            code: u16::try_from(code).unwrap(),
            jt: 0,
            jf: jump_unless,
            k,
        };
        let (load, unless) = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
        let number = std::mem::offset_of!(libc::seccomp_data, nr);
        let third = std::mem::offset_of!(libc::seccomp_data, args) + 2 * size_of::<u64>();
        let mut steps = [
            step(load, 0, u32::try_from(number).unwrap()),
            step(unless, 3, u32::try_from(libc::SYS_io_uring_enter).unwrap()),
            step(load, 0, u32::try_from(third).unwrap()),
            step(unless, 1, to_wait_for),
            step(libc::BPF_RET, 0, libc::SECCOMP_RET_ERRNO | error),
            step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog { len: u16::try_from(steps.len()).unwrap(), filter: steps.as_mut_ptr() };
        // SAFETY: plain numbers.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // SAFETY: the filter and its steps live across the call, which copies them.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    fn more_than_the_queue_takes_waits_for_a_kernel_that_takes_none_now() {
        for error in NOT_NOW {
            while_kernel_refuses(0, error, |mut ring| {
                let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
                let numbers = 0..ENTRIES + 44;
                for number in numbers.clone() {
                    ring.poll(ready.as_raw_fd(), Tag::Local(number)).unwrap();
                }
                let (mut came, deadline) = (Vec::new(), Instant::now() + SOME_TIME);
                while ring.in_flight() > 0 {
                    assert!(Instant::now() < deadline, "{} are still under way", ring.in_flight());
                    ring.wait(SOME_TIME).unwrap();
                    ring.completions(&mut came);
                }
                assert!(came.iter().map(|(tag, _)| *tag).eq(numbers.map(Tag::Local)), "all of them, in order");
            });
        }
    }

    #[test]
    fn a_wait_that_the_kernel_does_not_take_now_is_over_and_loses_nothing() {
        for error in NOT_NOW {
            while_kernel_refuses(1, error, |mut ring| {
                let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
                ring.poll(ready.as_raw_fd(), Tag::Wake).unwrap();
                ring.wait(SOME_TIME).unwrap();
                let mut came = Vec::new();
                ring.completions(&mut came);
                assert!(came.is_empty());
                ring.look_out(SOME_TIME).unwrap();
                ring.completions(&mut came);
                assert!(matches!(came[..], [(Tag::Wake, Ok(_))]), "{came:?}");
            });
        }
    }
}
