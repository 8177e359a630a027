//! The state before a copy on a file system that shares blocks between files: XFS on a loop device. Needs root.

use std::process::Command;

use ev_mirror::metadata::UndoMethod;

/// Set for a test that runs on such a file system.
const EXPECTED: &str = "EVENKEEL_EXPECT_REFLINK";
const TEST: &str = "the_state_before_an_interrupted_copy_can_be_had_back";

pub fn check(method: UndoMethod) {
    if std::env::var_os(EXPECTED).is_some() {
        assert_eq!(method, UndoMethod::Reflink);
    }
}

/// The mount is in a namespace of its own, so that it goes with the process.
#[test]
fn xfs_keeps_the_state_before_a_copy_by_reflink() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e; truncate -s 1G image; mkfs.xfs -q -m reflink=1 image; mkdir mount; mount -o loop image mount; \
         TMPDIR=$PWD/mount {EXPECTED}=1 \"$0\" --exact {TEST} --nocapture"
    );
    let test = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(test)
        .current_dir(folder.path())
        .output()
        .unwrap_or_else(|error| panic!("can't run unshare: {error}; run `cargo xtask setup`"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "root and a loop device are needed: {text}");
}
