//! The tiny guest: Debian's kernel and an initramfs with busybox, the virtio modules and our program as its init.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache::{self, Inputs};
use super::cpio::Archive;
use super::kernel::{self, Kernel};
use crate::run::{cargo, quiet};

/// Modules in the order in which they are loaded: each after those it needs.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];
const BUSYBOX: &str = "/bin/busybox";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// `target/guests/tiny/{vmlinuz,initrd}`.
pub fn ensure() -> Result<()> {
    let kernel = kernel::ensure()?;
    let inputs = Inputs::default()
        .text(&kernel.release)
        .path("guests/tiny/Cargo.toml")?
        .path("guests/tiny/src")?
        .path("xtask/src/guests/tiny.rs")?;
    cache::ensure("tiny", &inputs, |folder| build(&kernel, folder)).map(|_| ())
}

fn build(kernel: &Kernel, folder: &Path) -> Result<()> {
    let program = read(&build_program()?)?;
    let mut archive = Archive::default();
    for name in ["dev", "proc", "sys", "bin", "modules"] {
        archive.folder(name);
    }
    // Without it the kernel gives its first program no standard output.
    archive.character_device("dev/console", 5, 1);
    archive.program("init", &program);
    archive.program("bin/busybox", &read(Path::new(BUSYBOX))?);
    for (number, module) in MODULES.iter().enumerate() {
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.program(&format!("modules/{number:02}-{name}"), &read(&kernel.module(module))?);
    }
    fs::write(folder.join("initrd"), archive.finish())?;
    fs::copy(kernel.image(), folder.join("vmlinuz"))?;
    Ok(())
}

/// Our program, linked statically: the guest has no libraries.
fn build_program() -> Result<PathBuf> {
    let target = super::folder().join("build");
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--package", "ev-guest-tiny"]);
    cargo.args(["--target", TRIPLE, "--target-dir"]).arg(&target);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols").env_remove("CARGO_ENCODED_RUSTFLAGS");
    quiet(&mut cargo)?;
    Ok(target.join(TRIPLE).join("debug/ev-guest-tiny"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("could not read {}; `cargo xtask setup` puts it there", path.display()))
}
