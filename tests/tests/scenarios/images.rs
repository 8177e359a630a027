//! Images taken in from outside: bad ones are refused, and nothing is left of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use ev_api::vm::VmView;
use ev_tests::{Pool, TestLab};

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain")
}

#[test]
fn images_that_point_elsewhere_or_are_damaged_are_refused_and_good_ones_taken() {
    let lab = TestLab::up(1, 0);
    let pool = Pool::create(&lab);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let (good, backed, cut, rubbish) =
        (path("good.qcow2"), path("backed.qcow2"), path("cut.qcow2"), path("rubbish.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "preallocation=full", text(&good), "8M"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", text(&backed), "8M"]);
    let bytes = std::fs::read(&good).expect("there");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).expect("room");
    std::fs::write(&rubbish, [&b"QFI\xfb\0\0\0\x03"[..], &[0xff; 4096]].concat()).expect("room");

    for bad in [&backed, &cut, &rubbish, &path("missing.qcow2")] {
        let failure = pool.ev("h1", &["vm-import", "v", text(bad)]).expect_err("it is refused");
        println!("{failure}");
        assert!(!failure.message.contains("panick"), "{failure}");
        let vms: Vec<VmView> = pool.json("h1", &["vm-list"]);
        assert!(vms.is_empty(), "{vms:?}");
    }
    pool.ok("h1", &["vm-import", "v", text(&good)]);
    let vms: Vec<VmView> = pool.json("h1", &["vm-list"]);
    assert_eq!(vms.len(), 1);
    assert_eq!(vms[0].disks[0].size_bytes, 8 << 20);
    pool.ev("h1", &["vm-import", "v", text(&good)]).expect_err("the name is taken");
    pool.ok("h1", &["vm-delete", "v", "--yes"]);
}
