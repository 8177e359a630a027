//! The real guest: Debian 12 with systemd and PostgreSQL, in a qcow2 image that boots by itself.
//!
//! Built with mmdebstrap from the package source that this machine is set up with. The file system fills the disk without a
//! partition table, so that extlinux's boot sector is the disk's first one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::packages;
use crate::run::quiet;

/// Address of the guest on the VM network of a lab.
const ADDRESS: &str = "10.10.3.20";
/// PostgreSQL role and database that the scenarios use.
pub const DATABASE: &str = "app";
/// Its password; the guest exists only in a lab.
pub const PASSWORD: &str = "evenkeel";
/// Virtual size of the disk.
const DISK_SIZE: &str = "3G";
/// Raise when the recipe changes, so that a cached image is made anew.
pub const RECIPE_VERSION: u32 = 5;

const PACKAGES: &str =
    "systemd-sysv,dbus,udev,linux-image-cloud-amd64,initramfs-tools,postgresql-15,extlinux,iproute2,kmod,zstd";

/// What the guest needs to find its disk, file system and network; keeps the initial RAM disk small, which an emulated
/// processor unpacks slowly.
const INITRD_MODULES: &str = "virtio_pci\nvirtio_blk\nvirtio_net\next4\ncrc32c_generic\n";

const EXTLINUX_CONFIG: &str = "default debian\nprompt 0\ntimeout 0\nlabel debian\n  kernel /boot/vmlinuz\n  initrd /boot/initrd.img\n  \
     append root=/dev/vda ro console=ttyS0 net.ifnames=0 rootwait quiet systemd.show_status=true mitigations=off \
     no_timer_check\n";

fn network() -> String {
    format!("[Match]\nType=ether\n[Network]\nAddress={ADDRESS}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n")
}

const POSTGRES_CONFIG: &str = "listen_addresses = '*'\nshared_buffers = 32MB\nmax_connections = 100\ncheckpoint_timeout = 60s\n\
     fsync = on\nsynchronous_commit = on\nfull_page_writes = on\n";

/// Units that a lab's guest does without; each costs seconds on an emulated processor.
const MASKED_UNITS: [&str; 12] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-timesyncd.service",
    "systemd-networkd-wait-online.service",
    "systemd-update-utmp.service",
    "systemd-pstore.service",
    "man-db.timer",
    "logrotate.timer",
];

/// Builds the image at `image`, working below `work`, which it empties first. Takes about two minutes.
pub fn build(image: &Path, work: &Path) -> Result<()> {
    remove(work)?;
    fs::create_dir_all(work)?;
    let root = work.join("rootfs");
    bootstrap(&root)?;
    configure(&root)?;
    prepare_database(&root)?;
    let raw = work.join("disk.raw");
    make_disk(&root, &raw, &work.join("mnt"))?;
    let partial = image.with_extension("partial");
    quiet(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&partial))?;
    fs::rename(&partial, image)?;
    remove(work)
}

/// The Debian package sources that this machine itself uses.
fn package_sources() -> Result<PathBuf> {
    ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 0))
        .context("neither debian.sources nor sources.list below /etc/apt names a package source: set one up")
}

fn bootstrap(root: &Path) -> Result<()> {
    let sources = package_sources()?;
    packages::with_patience(|| {
        remove(root)?;
        quiet(
            Command::new("mmdebstrap")
                .args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}")])
                .args(["man", "locale", "doc"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")))
                .arg("bookworm")
                .arg(root)
                .arg(&sources),
        )
    })?;
    Ok(())
}

fn configure(root: &Path) -> Result<()> {
    let write = |path: &str, text: &str| -> Result<()> {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a path below the root has a parent")?)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("etc/hostname", "db01\n")?;
    write("etc/hosts", "127.0.0.1 localhost db01\n")?;
    write("etc/fstab", "/dev/vda / ext4 defaults,noatime 0 1\n")?;
    write("etc/systemd/network/10-lab.network", &network())?;
    write("etc/systemd/journald.conf.d/lab.conf", "[Journal]\nStorage=volatile\n")?;
    write("etc/initramfs-tools/modules", INITRD_MODULES)?;
    write("etc/initramfs-tools/conf.d/lab", "MODULES=list\nCOMPRESS=zstd\nFSTYPE=ext4\n")?;
    write("boot/extlinux/extlinux.conf", EXTLINUX_CONFIG)?;
    write("etc/postgresql/15/main/conf.d/lab.conf", POSTGRES_CONFIG)?;
    write(
        "etc/postgresql/15/main/pg_hba.conf",
        "local all all peer\nhost all all 127.0.0.1/32 scram-sha-256\nhost all all 10.10.3.0/24 scram-sha-256\n",
    )?;
    for unit in MASKED_UNITS {
        let link = root.join("etc/systemd/system").join(unit);
        let _absent_is_fine = fs::remove_file(&link);
        symlink("/dev/null", &link).with_context(|| format!("masking {unit}"))?;
    }
    quiet(chroot(root, "systemctl").args(["enable", "systemd-networkd.service", "postgresql.service"]))?;
    quiet(chroot(root, "sh").args([
        "-c",
        "ln -sf boot/vmlinuz-* /vmlinuz && cd /boot && ln -sf vmlinuz-* vmlinuz && ln -sf initrd.img-* initrd.img",
    ]))?;
    let mounts = Mounts::of(root)?;
    quiet(chroot(root, "update-initramfs").args(["-u", "-k", "all"]))?;
    mounts.release()
}

/// Page checksums on, a role with rights for `pg_amcheck`, a database. In single-user mode, so that no server runs here.
fn prepare_database(root: &Path) -> Result<()> {
    let mounts = Mounts::of(root)?;
    let as_postgres = |script: &str| quiet(chroot(root, "su").args(["postgres", "-s", "/bin/sh", "-c", script]));
    as_postgres("/usr/lib/postgresql/15/bin/pg_checksums --enable -D /var/lib/postgresql/15/main")?;
    let single = "/usr/lib/postgresql/15/bin/postgres --single -D /var/lib/postgresql/15/main \
                  -c config_file=/etc/postgresql/15/main/postgresql.conf -c dynamic_shared_memory_type=mmap";
    as_postgres(&format!(
        "printf '%s\\n' \"CREATE ROLE {DATABASE} LOGIN SUPERUSER PASSWORD '{PASSWORD}'\" \"CREATE DATABASE {DATABASE} OWNER {DATABASE}\" | {single} postgres"
    ))?;
    as_postgres(&format!("echo 'CREATE EXTENSION amcheck' | {single} {DATABASE}"))?;
    mounts.release()
}

fn make_disk(root: &Path, raw: &Path, mount_point: &Path) -> Result<()> {
    fs::create_dir_all(mount_point)?;
    quiet(Command::new("truncate").args(["-s", DISK_SIZE]).arg(raw))?;
    // extlinux reads neither 64-bit block numbers nor checksummed metadata.
    quiet(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "^64bit,^metadata_csum,^metadata_csum_seed,^orphan_file"])
            .arg(raw),
    )?;
    quiet(Command::new("mount").args(["-o", "loop"]).arg(raw).arg(mount_point))?;
    let filled = fill(root, mount_point);
    let unmounted = quiet(Command::new("umount").arg(mount_point));
    filled?;
    unmounted.map(drop)
}

fn fill(root: &Path, mount_point: &Path) -> Result<()> {
    quiet(Command::new("cp").arg("-a").arg(root.join(".")).arg(mount_point))?;
    let mounts = Mounts::of(mount_point)?;
    let installed = quiet(chroot(mount_point, "extlinux").args(["--install", "/boot/extlinux"]));
    mounts.release()?;
    installed.map(drop)
}

/// Removes a folder, and no file of what a build that was ended had mounted in it: the machine's own `/dev`, for one.
fn remove(folder: &Path) -> Result<()> {
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| point.replace("\\040", " "));
    // A mount stands after the one that it lies in.
    for point in points.filter(|point| Path::new(point).starts_with(&folder)).collect::<Vec<_>>().iter().rev() {
        quiet(Command::new("umount").arg(point))?;
    }
    fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))
}

/// `/proc` and `/dev` inside a folder that programs are run in.
struct Mounts {
    points: Vec<PathBuf>,
}

impl Mounts {
    fn of(root: &Path) -> Result<Self> {
        let mut mounts = Self { points: Vec::new() };
        for name in ["proc", "dev"] {
            let point = root.join(name);
            quiet(Command::new("mount").arg("--bind").arg(Path::new("/").join(name)).arg(&point))?;
            mounts.points.push(point);
        }
        Ok(mounts)
    }

    fn release(mut self) -> Result<()> {
        while let Some(point) = self.points.pop() {
            quiet(Command::new("umount").arg(&point))?;
        }
        Ok(())
    }
}

impl Drop for Mounts {
    /// After an error: best effort, so that the error is what the user sees.
    fn drop(&mut self) {
        for point in self.points.iter().rev() {
            let _the_first_error_counts = Command::new("umount").arg(point).status();
        }
    }
}

fn chroot(root: &Path, program: &str) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).arg(program).env("LC_ALL", "C").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Says early what would fail late.
pub fn check_tools() -> Result<()> {
    for tool in ["mmdebstrap", "mkfs.ext4", "qemu-img"] {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output()?.status.success();
        ensure!(found, "{tool} is missing: run `cargo xtask setup`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_in_a_folder_outlives_it() {
        let outside = tempfile::tempdir().expect("a folder");
        fs::write(outside.path().join("kept"), "").expect("a file");
        let folder = tempfile::tempdir().expect("a folder");
        let work = folder.path().join("a work");
        let point = work.join("rootfs/dev");
        fs::create_dir_all(&point).expect("a folder");
        quiet(Command::new("mount").arg("--bind").arg(outside.path()).arg(&point)).expect("mounts");
        remove(&work).expect("is removed");
        assert!(outside.path().join("kept").exists() && !work.exists());
        remove(&work).expect("nothing is there");
    }
}
