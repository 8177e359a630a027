//! `cargo xtask demo`: the main job on one machine. The story itself is `tests/src/bin/ev-demo/`.

use std::process::Command;

use anyhow::Result;

use crate::run::{heading, show, target};
use crate::{ci, guests, setup};

/// Sets up, builds, and runs the story; fails if anything acknowledged was lost.
pub fn run(rounds: u32, lose_a_row: bool) -> Result<()> {
    setup::run()?;
    guests::make()?;
    ci::build()?;
    heading("two hosts, a quorum server, guests, a client; hosts die");
    let mut demo = Command::new(target().join("debug/ev-demo"));
    demo.arg(rounds.to_string()).args(lose_a_row.then_some("lose-a-row"));
    show(&mut demo)
}
