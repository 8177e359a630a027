//! Real NBD clients against the server's codec: libnbd's tools, QEMU's, and fio.

mod memory_server;

use std::process::Command;

use memory_server::MemoryServer;

const SIZE: usize = 64 << 20;

/// Runs a program to its end and returns its standard output; `Err` holds both outputs of a failed one.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("can't run {program}: {error}; run `cargo xtask setup`"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(stdout)
    } else {
        Err(format!("{stdout}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// Bytes that repeat nowhere soon, with a hole in the middle.
fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(SIZE / 8)
    .flatten()
    .collect();
    bytes[20 << 20..30 << 20].fill(0);
    bytes
}

#[test]
fn nbdinfo_sees_all_that_is_offered() {
    let server = MemoryServer::start(SIZE);
    let info = run("nbdinfo", &[&server.uri()]).unwrap();
    for expected in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export-size: 67108864",
        "base:allocation",
        "can_multi_conn: true",
        "can_flush: true",
        "can_fua: true",
        "can_trim: true",
        "can_zero: true",
        "can_df: true",
        "can_fast_zero: false",
        "is_read_only: false",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(info.contains(expected), "{expected} in {info}");
    }
    assert!(run("nbdinfo", &["--list", &server.uri()]).unwrap().contains("export=\"memory\""));
    let named = server.uri().replace("///", "///memory");
    assert!(run("nbdinfo", &["--size", &named]).unwrap().contains("67108864"));
    let unknown = server.uri().replace("///", "///nothing");
    assert!(run("nbdinfo", &["--size", &unknown]).is_err());
}

#[test]
fn nbdcopy_there_and_back_and_the_map() {
    let server = MemoryServer::start(SIZE);
    let source = server.path("source.raw");
    let back = server.path("back.raw");
    let pattern = pattern();
    std::fs::write(&source, &pattern).unwrap();
    run("nbdcopy", &["--connections=4", "--requests=64", source.to_str().unwrap(), &server.uri()]).unwrap();
    assert!(*server.disk.lock().unwrap() == pattern);
    run("nbdcopy", &["--flush", &server.uri(), back.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(&back).unwrap() == pattern);
    let map = run("nbdinfo", &["--map", &server.uri()]).unwrap();
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    let zero: Vec<_> = lines.iter().filter(|line| line[2] == "3").map(|line| (line[0], line[1])).collect();
    assert_eq!(zero, [("20971520", "10485760")], "{map}");
}

#[test]
fn qemu_img_converts_and_compares() {
    let server = MemoryServer::start(SIZE);
    let source = server.path("source.raw");
    std::fs::write(&source, pattern()).unwrap();
    let source = source.to_str().unwrap();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &server.uri()]).unwrap();
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &server.uri()]).unwrap();
    server.disk.lock().unwrap()[12_345] ^= 1;
    let difference = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &server.uri()]).unwrap_err();
    assert!(difference.contains("Content mismatch at offset"), "{difference}");
}

#[test]
fn qemu_io_writes_reads_zeroes_discards_and_fua() {
    let server = MemoryServer::start(SIZE);
    let commands = [
        "write -P 17 4096 1M",
        "write -f -P 18 512 512",
        "read -P 18 512 512",
        "read -P 17 8192 65536",
        "write -z 8192 8192",
        "read -P 0 8192 8192",
        "write -z -u 16384 4096",
        "discard 1M 4096",
        "flush",
        "aio_write -P 33 32M 32M",
        "aio_flush",
        "read -P 33 32M 32M",
        "alloc 0 4096",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    let uri = server.uri();
    arguments.push(&uri);
    let output = run("qemu-io", &arguments).unwrap();
    assert!(!output.contains("Pattern verification failed") && !output.contains("error"), "{output}");
    let disk = server.disk.lock().unwrap();
    assert!(disk[512..1024].iter().all(|&byte| byte == 18));
    assert!(disk[32 << 20..].iter().all(|&byte| byte == 33));
}

#[test]
fn fio_verifies_what_it_wrote_deep_in_the_queue() {
    let server = MemoryServer::start(SIZE);
    let uri = format!("--uri={}", server.uri());
    let arguments = [
        "--name=verify",
        "--ioengine=nbd",
        uri.as_str(),
        "--rw=randwrite",
        "--bsrange=512-256k",
        "--blockalign=512",
        "--iodepth=32",
        "--size=64M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--randseed=1",
        "--verify_state_save=0",
    ];
    let output = run("fio", &arguments).unwrap();
    assert!(output.contains("err= 0"), "{output}");
}
