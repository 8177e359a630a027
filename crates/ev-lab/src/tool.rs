//! Running the system's tools (`ip`, `nft`, `mount`, …), quietly unless they fail.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::LabError;

/// Between two looks at a condition that the kernel brings about by itself.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Runs a tool to its end; its standard output on success.
pub fn run(program: &str, args: &[&str]) -> Result<String, LabError> {
    run_with_input(program, args, "")
}

/// Runs a tool with `input` on its standard input.
pub fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<String, LabError> {
    let spawn_error = |cause| LabError::Spawn { program: program.to_owned(), cause };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn_error)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends before it has read everything says why by its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(spawn_error)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let line = std::iter::once(program).chain(args.iter().copied()).collect::<Vec<_>>().join(" ");
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Tool { line, status: output.status, stderr })
}

/// Waits until `done` says so, or fails after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result<(), LabError> {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() >= deadline {
            return Err(LabError::Timeout { what: what.to_owned(), seconds: limit.as_secs() });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// A path as an argument; the lab makes its own paths, of plain characters.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
