//! Style that a machine can check: sizes of files and functions, first lines, leftovers.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{quiet, workspace};

/// Most lines of a source file, its tests not counted.
const FILE_LINES_MAX: usize = 600;
/// Most lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

/// What must not be left in the sources. Written in two parts, so that this file does not find itself.
const LEFTOVERS: [(&str, &str); 9] = [
    ("todo", "!("),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("FIX", "ME"),
    ("XX", "X:"),
    ("#[ign", "ore"),
    // One machine's folders and package sources are not another's.
    ("/wo", "rk/"),
    ("/ro", "ot/"),
    ("debian", ".org"),
];

/// Checks every source file that git knows.
pub fn run() -> Result<()> {
    let listed = quiet(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
            .current_dir(workspace()),
    )?;
    let mut complaints = Vec::new();
    for name in listed.lines() {
        let path = workspace().join(name);
        if path.exists() {
            check_file(&path, name, &mut complaints)?;
        }
    }
    if complaints.is_empty() {
        return Ok(());
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    bail!("{} places are not tidy (STYLE.md says why)", complaints.len());
}

fn check_file(path: &Path, name: &str, complaints: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(path)?;
    if !text.starts_with("//! ") {
        complaints.push(format!("{name}:1: the first line says what the file is for (//! …)"));
    }
    let is_test = name.contains("/tests/") || name.ends_with("tests.rs") || name.starts_with("tests/");
    let code: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    if !is_test && code.len() > FILE_LINES_MAX {
        complaints.push(format!("{name}: {} lines without tests; at most {FILE_LINES_MAX}", code.len()));
    }
    check_functions(&code, name, complaints);
    for (number, line) in text.lines().enumerate() {
        if let Some((first, second)) = LEFTOVERS.iter().find(|(a, b)| line.contains(&format!("{a}{b}"))) {
            complaints.push(format!("{name}:{}: left behind: {first}{second}", number + 1));
        }
    }
    Ok(())
}

/// A function ends at the closing brace in its own column, which rustfmt guarantees.
fn check_functions(code: &[&str], name: &str, complaints: &mut Vec<String>) {
    for (start, line) in code.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let head = trimmed.split('(').next().unwrap_or_default();
        let is_function = head.split_whitespace().any(|word| word == "fn") && !trimmed.starts_with("//");
        if !is_function || line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        if let Some(length) = code[start..].iter().position(|line| *line == end)
            && length + 1 > FUNCTION_LINES_MAX
        {
            complaints.push(format!(
                "{name}:{}: function of {} lines; at most {FUNCTION_LINES_MAX}",
                start + 1,
                length + 1
            ));
        }
    }
}
