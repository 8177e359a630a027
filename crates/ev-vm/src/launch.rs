//! From a [`GuestSpec`] to a started QEMU process: folders, links to its sockets, open files, the lock that says that
//! it lives.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use ev_core::vm::{DISKS_MAX, Firmware, NICS_MAX};
use rustix::fs::FlockOperation;

use crate::accelerator::Accelerator;
use crate::args::{OpenFiles, OpenUefi, command_line};
use crate::child::{ChildSpec, spawn};
use crate::firmware::Ovmf;
use crate::guest::StartError;
use crate::qemu::{Qemu, Version};
use crate::ram::prepare::{OtherBlocks, prepare};
use crate::spec::{BootSource, CHECKPOINT_SOCKET, GuestPaths, GuestSpec, INCOMING_SOCKET, Memory, SAVE_SOCKET};
use crate::user::{User, UserError};

/// Longest path of a unix socket, in bytes (`sockaddr_un`).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The first version with `-machine aux-ram-share`.
const SHARES_OTHER_BLOCKS: Version = Version { major: 10, minor: 0, micro: 0 };

fn file_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StartError + 'a {
    move |source| StartError::File { what, path: path.to_owned(), source }
}

/// Locks `qemu.pid`. The lock goes over to QEMU and lives as long as it: whoever can't get it knows that QEMU runs,
/// and that the number in the file is QEMU's.
pub(crate) fn lock_pid_file(paths: &GuestPaths) -> Result<OwnedFd, StartError> {
    let path = paths.pid_file();
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
    let file = open.map_err(file_error("could not open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file.into()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::AlreadyRuns { pid: read_pid(&path).unwrap_or_default() }),
        Err(error) => Err(file_error("could not lock", &path)(error.into())),
    }
}

/// The number in `qemu.pid`. Means something only while the file is locked.
pub(crate) fn read_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether the QEMU of these folders lives.
pub(crate) fn is_locked(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Refuses what QEMU would refuse less clearly, or not at all.
fn check(spec: &GuestSpec) -> Result<(), StartError> {
    if let Memory::Tracked(memory) = &spec.memory
        && memory.file.bytes() != spec.memory_bytes()
    {
        return Err(StartError::MemorySize { file_bytes: memory.file.bytes(), guest_bytes: spec.memory_bytes() });
    }
    if spec.disks.len() > DISKS_MAX || spec.nics.len() > NICS_MAX {
        return Err(StartError::TooManyDevices { disks: spec.disks.len(), nics: spec.nics.len() });
    }
    let sockets = spec.disks.iter().map(|disk| crate::spec::from_qemu_dir(&spec.paths, &disk.nbd_socket));
    for path in sockets.chain([spec.paths.nic(NICS_MAX)]) {
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX || path.to_str().is_none() {
            return Err(StartError::SocketPath { path });
        }
    }
    Ok(())
}

/// Starts QEMU and returns its process id; all that it needs has been prepared.
pub(crate) fn launch(
    qemu: &Qemu,
    version: Version,
    accelerator: &Accelerator,
    spec: &GuestSpec,
) -> Result<u32, StartError> {
    check(spec)?;
    let user = User::find(&spec.user)?;
    let lock = lock_pid_file(&spec.paths)?;
    let directory = prepare_folder(spec, &user)?;
    let mut inherited = Vec::new();
    let mut files = open_files(spec, &user, &mut inherited)?;
    let mut environment = qemu.environment();
    if let Memory::Tracked(memory) = &spec.memory {
        let others = if version >= SHARES_OTHER_BLOCKS { OtherBlocks::Shared } else { OtherBlocks::Private };
        let prepared = prepare(memory, others, &mut inherited).map_err(|(path, source)| StartError::File {
            what: "could not open",
            path,
            source,
        })?;
        files.ram = Some(prepared.ram);
        files.other_blocks = Some(others);
        environment.extend(prepared.environment);
    }
    let log = spec.paths.log();
    let output = OpenOptions::new().append(true).create(true).mode(0o640).open(&log);
    let child = ChildSpec {
        program: qemu.program.clone(),
        arguments: command_line(qemu, accelerator, spec, &files),
        environment,
        user: Some(user),
        directory: Some(directory),
        inherited,
        pid_file: Some(lock),
        output: output.map_err(file_error("could not open", &log))?,
    };
    tracing::debug!(program = %child.program.display(), arguments = ?child.arguments, "starting QEMU");
    spawn(child).map_err(|source| StartError::Spawn { program: qemu.program.clone(), source })
}

/// QEMU's own folder, empty but for the serial log, and links to the sockets that QEMU will make in it.
fn prepare_folder(spec: &GuestSpec, user: &User) -> Result<OwnedFd, StartError> {
    let run_dir = &spec.paths.run_dir;
    let folder = spec.paths.qemu_dir();
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(file_error("could not create", &folder)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let own = || -> io::Result<()> {
        chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        // QEMU reaches the disk servers' sockets, one step up, without being able to list or change what is there.
        let mode = fs::metadata(run_dir)?.mode();
        fs::set_permissions(run_dir, fs::Permissions::from_mode(mode & 0o7777 | 0o011))
    };
    own().map_err(file_error("could not hand over to QEMU's user", &folder))?;
    let nics = (0..spec.nics.len()).map(|index| format!("nic-{index}.sock"));
    for name in ["qmp.sock", "serial.sock", "vnc.sock", INCOMING_SOCKET, CHECKPOINT_SOCKET, SAVE_SOCKET]
        .map(str::to_owned)
        .into_iter()
        .chain(nics)
    {
        let link = run_dir.join(&name);
        let relink = || -> io::Result<()> {
            remove(&folder.join(&name))?;
            remove(&link)?;
            symlink(Path::new(crate::spec::QEMU_DIR).join(&name), &link)
        };
        relink().map_err(file_error("could not make the link", &link))?;
    }
    File::open(&folder).map(OwnedFd::from).map_err(file_error("could not open", &folder))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn open_files(spec: &GuestSpec, user: &User, inherited: &mut Vec<OwnedFd>) -> Result<OpenFiles, StartError> {
    let mut files = OpenFiles::default();
    // `-kernel` and `-initrd` take names only: this one opens the file anew, with the user's rights to the file.
    let mut by_name = |path: &Path| -> Result<String, StartError> {
        let file = open_for(user, path)?;
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        inherited.push(file);
        Ok(name)
    };
    match &spec.boot {
        BootSource::Disk => {}
        BootSource::Kernel { kernel, initrd, command_line: _ } => {
            files.kernel = Some(by_name(kernel)?);
            files.initrd = initrd.as_deref().map(by_name).transpose()?;
        }
        BootSource::Iso(path) => {
            let file = File::open(path).map_err(file_error("could not open", path))?;
            files.iso = Some(file.as_raw_fd());
            inherited.push(file.into());
        }
    }
    if spec.firmware == Firmware::Uefi {
        files.uefi = Some(open_uefi(&spec.paths.uefi_vars(), inherited)?);
    }
    Ok(files)
}

fn open_uefi(variables: &Path, inherited: &mut Vec<OwnedFd>) -> Result<OpenUefi, StartError> {
    let ovmf = Ovmf::find(variables).ok_or(StartError::NoFirmware)?;
    ovmf.ensure_variables(variables).map_err(file_error("could not create the UEFI variables", variables))?;
    let file = OpenOptions::new().read(true).write(true).open(variables);
    let file = file.map_err(file_error("could not open the UEFI variables", variables))?;
    let descriptor = file.as_raw_fd();
    inherited.push(file.into());
    Ok(OpenUefi { code: ovmf.code.to_string_lossy().into_owned(), variables: descriptor })
}

fn open_for(user: &User, path: &Path) -> Result<OwnedFd, StartError> {
    let file = File::open(path).map_err(file_error("could not open", path))?;
    let metadata = file.metadata().map_err(file_error("could not look at", path))?;
    let (mode, owner, group) = (metadata.mode(), metadata.uid(), metadata.gid());
    let readable = if owner == user.uid.as_raw() {
        mode & 0o400 != 0
    } else if group == user.gid.as_raw() {
        mode & 0o040 != 0
    } else {
        mode & 0o004 != 0
    };
    if !readable {
        return Err(StartError::NotReadable { path: path.to_owned() });
    }
    Ok(file.into())
}

/// Lets QEMU's user connect to the unix socket at `path` (of a disk server), besides its owner.
///
/// # Errors
/// No such user, or the socket can't be given to it.
pub fn allow_connect(path: &Path, user: &str) -> Result<(), AllowError> {
    let user = User::find(user)?;
    let give = || {
        chown(path, None, Some(user.gid.as_raw()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
    };
    give().map_err(|source| AllowError::Socket { path: path.to_owned(), source })
}

/// Why a socket could not be opened to QEMU.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AllowError {
    #[error(transparent)]
    User(#[from] UserError),
    #[error("could not let QEMU's user connect to {}: {source}; ev-am must run as root", path.display())]
    Socket { path: PathBuf, source: io::Error },
}
