//! Licences, bans and sources of all dependencies, by `deny.toml`. Cargo-deny reads the same file and checks more; it is used
//! when it is installed, and its absence (it takes minutes to build) leaves nothing of this out.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run::{cargo, quiet, show, workspace};

#[derive(Deserialize)]
struct Rules {
    licenses: Licences,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licences {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
}

/// What `cargo metadata` says of them.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None: a crate of this workspace.
    source: Option<String>,
}

/// Checks them all.
pub fn check() -> Result<()> {
    if quiet(cargo().args(["deny", "--version"])).is_ok() {
        return show(cargo().args(["deny", "--offline", "check", "licenses", "bans", "sources"]));
    }
    let path = workspace().join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let rules: Rules = toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let text =
        quiet(cargo().args(["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("reading cargo's metadata")?;
    let complaints: Vec<String> = metadata.packages.iter().flat_map(|package| complaints(package, &rules)).collect();
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("dependencies that deny.toml does not allow:\n{}", complaints.join("\n"))
}

fn complaints(package: &Package, rules: &Rules) -> Vec<String> {
    let Some(source) = &package.source else { return Vec::new() };
    let name = format!("{} {}", package.name, package.version);
    let mut complaints = Vec::new();
    if !source.starts_with("registry+") {
        complaints.push(format!("{name}: comes from {source}; use a released version"));
    }
    if rules.bans.deny.iter().any(|ban| ban.name == package.name) {
        complaints.push(format!("{name}: banned; use another crate"));
    }
    let licence = package.license.as_deref().unwrap_or_default();
    if !allowed(licence, &rules.licenses.allow) {
        complaints.push(format!("{name}: licence {licence:?}; allow it in deny.toml if it fits, or use another crate"));
    }
    complaints
}

/// Whether an SPDX expression can be met with allowed licences: `AND` binds tighter than `OR`; old crates write `/` for `OR`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    either(&mut words, allow) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allow: &BTreeSet<String>) -> bool {
    let mut any = both(words, allow);
    while words.next_if_eq(&"OR").is_some() {
        any |= both(words, allow);
    }
    any
}

fn both(words: &mut Words<'_>, allow: &BTreeSet<String>) -> bool {
    let mut all = one(words, allow);
    while words.next_if_eq(&"AND").is_some() {
        all &= one(words, allow);
    }
    all
}

fn one(words: &mut Words<'_>, allow: &BTreeSet<String>) -> bool {
    match words.next() {
        Some("(") => {
            let inner = either(words, allow);
            words.next_if_eq(&")").is_some() && inner
        }
        Some(name) => match words.next_if_eq(&"WITH") {
            Some(_) => words.next().is_some_and(|exception| allow.contains(&format!("{name} WITH {exception}"))),
            None => allow.contains(name),
        },
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions() {
        let allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned).into();
        let ok = |expression| allowed(expression, &allow);
        assert!(ok("MIT"));
        assert!(ok("GPL-3.0 OR MIT"));
        assert!(ok("MIT/GPL-3.0"));
        assert!(ok("(GPL-3.0 OR Apache-2.0) AND Unicode-3.0"));
        assert!(ok("Apache-2.0 WITH LLVM-exception"));
        assert!(!ok("GPL-3.0"));
        assert!(!ok("MIT AND GPL-3.0"));
        assert!(!ok("GPL-3.0 OR MIT AND ISC"));
        assert!(!ok(""));
        assert!(!ok("(MIT"));
    }
}
