//! What continuous integration runs, and what a developer runs before a push.

use anyhow::Result;

use crate::run::{cargo, heading, show};
use crate::{dependencies, guests, second_qemu, setup, tidy};

/// Formatting, lints, documents, tidy, then all tests: the quick checks first.
pub fn all() -> Result<()> {
    setup::run()?;
    heading("formatting");
    show(cargo().args(["fmt", "--all", "--check"]))?;
    heading("sizes, first lines, leftovers");
    tidy::run()?;
    heading("licences, bans and sources of dependencies");
    dependencies::check()?;
    heading("lints");
    show(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    heading("documents");
    show(cargo().args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    test(&[])
}

/// Builds all programs, and what they load.
pub fn build() -> Result<()> {
    heading("building");
    show(cargo().args(["build", "--workspace", "--bins"]))?;
    // No program links it: QEMU loads it.
    show(cargo().args(["build", "--package", "ev-ramtrack"]))
}

/// Sets up, builds the programs that the scenarios run, and runs every test.
pub fn test(nextest: &[String]) -> Result<()> {
    setup::run()?;
    guests::make()?;
    build()?;
    heading("testing");
    let mut tests = cargo();
    tests.args(["nextest", "run", "--workspace"]).args(nextest);
    if let Some(root) = second_qemu::root() {
        tests.env("EVENKEEL_QEMU_10", root);
    }
    show(&mut tests)
}
