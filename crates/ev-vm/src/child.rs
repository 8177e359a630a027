//! Starts a QEMU process: detached, unprivileged, with exactly the descriptors that it is to have.
//! One of the files that may hold unsafe code: what runs between fork and exec can't be had otherwise.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;

use crate::user::User;

/// What to start.
pub(crate) struct ChildSpec {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(&'static str, OsString)>,
    /// Whom to become; `None`: stay who we are.
    pub user: Option<User>,
    /// Working directory, open: the user need not be able to walk to it.
    pub directory: Option<OwnedFd>,
    /// Inherited with the numbers that they have here.
    pub inherited: Vec<OwnedFd>,
    /// Receives the process id as decimal digits and a line feed, before the program begins, and is inherited: a lock
    /// on it (flock) lives as long as the process.
    pub pid_file: Option<OwnedFd>,
    /// Standard output and error.
    pub output: File,
}

/// Starts it and returns its process id. All descriptors in `spec` are closed on this side.
pub(crate) fn spawn(spec: ChildSpec) -> io::Result<u32> {
    let ChildSpec { program, arguments, environment, user, directory, inherited, pid_file, output } = spec;
    let mut command = Command::new(program);
    command.args(arguments).envs(environment).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let prepare = move || {
        rustix::process::setsid()?;
        if let Some(pid_file) = &pid_file {
            write_pid(pid_file)?;
            keep(pid_file)?;
        }
        inherited.iter().try_for_each(keep)?;
        if let Some(directory) = &directory {
            rustix::process::fchdir(directory)?;
        }
        if let Some(user) = &user {
            rustix::thread::set_thread_groups(&user.groups)?;
            rustix::thread::set_thread_res_gid(user.gid, user.gid, user.gid)?;
            rustix::thread::set_thread_res_uid(user.uid, user.uid, user.uid)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        Ok(())
    };
    // SAFETY: `prepare` runs in the child between fork and exec, where only async-signal-safe calls are allowed: it
    // makes system calls by rustix (linux_raw: no libc, no lock, no allocation) on memory that was filled before the
    // fork. There is no safe way to set groups, session and working directory by descriptor.
    unsafe {
        command.pre_exec(prepare);
    }
    // Not waited for here: whoever watches its pidfd reaps it.
    command.spawn().map(|child| child.id())
}

fn keep(fd: &OwnedFd) -> io::Result<()> {
    rustix::io::fcntl_setfd(fd, FdFlags::empty()).map_err(io::Error::from)
}

/// Without allocation: see above.
fn write_pid(file: &OwnedFd) -> io::Result<()> {
    const DIGITS_MAX: usize = 10;
    let mut text = [b'\n'; DIGITS_MAX + 1];
    let mut start = DIGITS_MAX;
    let mut rest = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
    while rest > 0 && start > 0 {
        start -= 1;
        let digit = u8::try_from(rest % 10).unwrap_or_default();
        text[start] = b'0' + digit;
        rest /= 10;
    }
    rustix::fs::ftruncate(file.as_fd(), 0)?;
    rustix::io::pwrite(file.as_fd(), &text[start..], 0)?;
    Ok(())
}
