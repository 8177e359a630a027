//! Real NBD clients against the disk's thread: what they write is on both replicas.

use std::process::Command;

use crate::pair::Pair;
use crate::{MIB, SIZE_BYTES};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("can't run {program}: {error}; run `cargo xtask setup`"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn uri(pair: &Pair) -> String {
    format!("nbd+unix:///?socket={}", pair.a.socket().display())
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

#[test]
fn what_qemu_writes_is_on_both() {
    let pair = Pair::in_step(SIZE_BYTES);
    let uri = uri(&pair);
    let output = run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 17 1M 3M",
            "-c",
            "write -f -P 18 512 512",
            "-c",
            "write -z 2M 64k",
            "-c",
            "discard 3M 64k",
            "-c",
            "aio_write -P 19 64M 8M",
            "-c",
            "aio_flush",
            "-c",
            "flush",
            "-c",
            "read -P 18 512 512",
            "-c",
            "read -P 0 2M 64k",
            "-c",
            "read -P 19 64M 8M",
            &uri,
        ],
    );
    assert!(!output.contains("failed") && !output.contains("error"), "{output}");
    let disk = pair.close_and_compare();
    assert!(disk[512..1024].iter().all(|byte| *byte == 18));
    assert!(disk[at(MIB)..at(2 * MIB)].iter().all(|byte| *byte == 17));
    assert!(disk[at(2 * MIB)..at(2 * MIB) + (64 << 10)].iter().all(|byte| *byte == 0));
    assert!(disk[at(64 * MIB)..at(72 * MIB)].iter().all(|byte| *byte == 19));
}

#[test]
fn an_image_that_qemu_img_brings_is_on_both_and_comes_back() {
    let pair = Pair::in_step(SIZE_BYTES);
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    let (image, uri) = (image.to_str().unwrap(), uri(&pair));
    run("qemu-img", &["create", "-q", "-f", "qcow2", image, &SIZE_BYTES.to_string()]);
    run("qemu-io", &["-c", "write -P 33 5M 20M", "-c", "write -P 34 200M 56M", image]);
    run("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", image, &uri]);
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", image, &uri]);
    let disk = pair.close_and_compare();
    assert!(disk[at(200 * MIB)..at(256 * MIB)].iter().all(|byte| *byte == 34));
}

#[test]
fn fio_verifies_deep_in_the_queue_while_the_partner_goes_and_comes_back() {
    let mut pair = Pair::in_step_with_short_timeout(SIZE_BYTES);
    let uri = format!("--uri={}", uri(&pair));
    let fio = std::thread::spawn(move || {
        run(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                uri.as_str(),
                "--rw=randwrite",
                "--bsrange=512-256k",
                "--blockalign=512",
                "--iodepth=32",
                "--size=128M",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--do_verify=1",
                "--randseed=1",
                "--verify_state_save=0",
                "--fsync=64",
            ],
        )
    });
    for _ in 0..3 {
        pair.until_report("some writes", |report| report.write_bytes > 8 << 20);
        pair.cut();
        pair.until_good(&[crate::A]);
        pair.connect();
        pair.until_good(&[crate::A, crate::B]);
    }
    assert!(fio.join().unwrap().contains("err= 0"));
    pair.close_and_compare();
}
