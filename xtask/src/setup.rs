//! Installs what is missing: Debian packages, cargo-nextest, a second QEMU. Does nothing, quickly, when all is there.

use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::run::{cargo, heading, quiet, show};
use crate::{packages, second_qemu};

/// Packages that the product, its guests, its tests and its benchmarks use.
const PACKAGES: [&str; 18] = [
    "busybox-static",
    "cpio",
    "e2fsprogs",
    "fio",
    "iproute2",
    "kmod",
    "libnbd-bin",
    "mmdebstrap",
    "nftables",
    "ovmf",
    "postgresql-client-15",
    "postgresql-15",
    "qemu-system-x86",
    "qemu-utils",
    "seabios",
    "tcpdump",
    "xfsprogs",
    "zstd",
];

/// The two that must come from the same suite: a newer `qemu-utils` and an older `qemu-system-x86` exclude each other.
const QEMU_PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// Installs what is missing.
pub fn run() -> Result<()> {
    ensure!(
        is_root(),
        "this needs root: it installs packages and makes network namespaces. Run it again as root (sudo -E cargo xtask …)"
    );
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|package| !installed(package)).collect();
    if !missing.is_empty() {
        heading(&format!("installing {}", missing.join(" ")));
        install(&missing)?;
    }
    second_qemu::ensure()?;
    if Command::new("cargo-nextest").arg("--version").output().is_err() {
        heading("installing cargo-nextest");
        show(cargo().args(["install", "--locked", "cargo-nextest"]))?;
    }
    Ok(())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// Installs packages without a question. When QEMU is among them, both of its packages are asked for at the version that
/// `qemu-system-x86` would have: a newer `qemu-utils` from another suite is replaced.
fn install(missing: &[&str]) -> Result<()> {
    packages::update_lists(&[])?;
    let mut wanted: Vec<String> =
        missing.iter().filter(|name| !QEMU_PACKAGES.contains(name)).map(|name| (*name).to_owned()).collect();
    if missing.iter().any(|name| QEMU_PACKAGES.contains(name)) {
        let version = candidate("qemu-system-x86")?;
        wanted.extend(QEMU_PACKAGES.map(|name| format!("{name}={version}")));
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--allow-downgrades"];
    arguments.extend(wanted.iter().map(String::as_str));
    let mut apt = Command::new("apt-get");
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    packages::with_patience(|| quiet(&mut apt)).map(drop)
}

/// The version of a package that apt would install.
fn candidate(package: &str) -> Result<String> {
    let policy = quiet(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    match line {
        Some(version) if version != "(none)" => Ok(version.to_owned()),
        _ => bail!("no package source offers {package}: check /etc/apt/sources.list.d"),
    }
}
