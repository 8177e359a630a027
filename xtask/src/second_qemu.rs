//! QEMU 10.0 beside the installed 7.2: unpacked from Debian's backports, not installed, so that both can be tested.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::packages;
use crate::run::{heading, quiet, target};

const SUITE: &str = "bookworm-backports";
/// QEMU itself first.
const PACKAGES: [&str; 5] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "ipxe-qemu"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where it is: a program of the usual name, which finds its own data and modules.
pub fn program() -> PathBuf {
    folder().join("qemu-system-x86_64")
}

/// The folder that its packages were unpacked in, if they were.
pub fn root() -> Option<PathBuf> {
    let root = folder().join("root");
    root.join("usr/bin/qemu-system-x86_64").exists().then_some(root)
}

fn folder() -> PathBuf {
    target().join("qemu-10.0")
}

/// Unpacks it if it is not there. A machine that has no Debian package source goes without, and is told so.
pub fn ensure() -> Result<()> {
    if program().exists() {
        return Ok(());
    }
    heading(&format!("unpacking a second QEMU from {SUITE}"));
    let Some(source) = debian_source()? else {
        eprintln!("found no Debian package source on this machine: tests of the second QEMU are left out");
        return Ok(());
    };
    let fresh = folder().with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    let options = private_apt(&fresh.join("apt"), &source)?;
    packages::update_lists(&options)?;
    let names = PACKAGES.map(|name| available(name, &options));
    ensure!(
        names[0].ends_with(SUITE),
        "the package source {source} has no {} in {SUITE}: name one in /etc/apt that has",
        PACKAGES[0]
    );
    packages::with_patience(|| packages::unpack(&names, &options, &fresh.join("root")))?;
    fs::remove_dir_all(fresh.join("apt"))?;
    if folder().exists() {
        fs::remove_dir_all(folder())?;
    }
    fs::rename(&fresh, folder())?;
    write_program()
}

/// The backports' package if there is one, else the usual one.
fn available(name: &str, options: &[String]) -> String {
    let list = quiet(Command::new("apt-cache").args(options).args(["madison", name])).unwrap_or_default();
    if list.contains(SUITE) { format!("{name}/{SUITE}") } else { name.to_owned() }
}

/// The address of the Debian archive that this machine installs from.
fn debian_source() -> Result<Option<String>> {
    let targets = quiet(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(CODENAME) $(COMPONENT) $(SITE) $(REPO_URI)",
    ]))?;
    let uri = targets.lines().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["bookworm", "main", _, uri] => Some(uri.to_owned()),
            _ => None,
        }
    });
    Ok(uri)
}

/// Apt's options for lists of its own, so that the machine's set-up stays as it is.
fn private_apt(folder: &Path, source: &str) -> Result<Vec<String>> {
    for name in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let list = folder.join("sources.list");
    let lines =
        format!("deb [signed-by={KEYRING}] {source} bookworm main\ndeb [signed-by={KEYRING}] {source} {SUITE} main\n");
    fs::write(&list, lines).with_context(|| format!("writing {}", list.display()))?;
    let option = |name: &str, path: &Path| format!("--option={name}={}", path.display());
    Ok(vec![
        option("Dir::Etc::SourceList", &list),
        option("Dir::Etc::SourceParts", Path::new("/dev/null")),
        option("Dir::State::Lists", &folder.join("lists")),
        option("Dir::Cache", &folder.join("cache")),
        "--option=APT::Sandbox::User=root".to_owned(),
        // Else apt calls it a success when it got none of these lists. Of the machine's own, some may be out of order and not matter.
        "--option=APT::Update::Error-Mode=any".to_owned(),
    ])
}

/// One line of shell that starts the unpacked program with its own data, modules and libraries.
fn write_program() -> Result<()> {
    let text = "#!/bin/sh\nroot=$(dirname \"$0\")/root; QEMU_MODULE_DIR=\"$root/usr/lib/x86_64-linux-gnu/qemu\" exec \
                \"$root/usr/bin/qemu-system-x86_64\" -L \"$root/usr/share/qemu\" -L \"$root/usr/share/seabios\" \"$@\"\n";
    fs::write(program(), text)?;
    fs::set_permissions(program(), fs::Permissions::from_mode(0o755))?;
    Ok(())
}
