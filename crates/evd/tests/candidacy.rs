//! Which levels a VM is offered on real hosts, and that it gets them.

mod harness;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use ev_api::ErrorCode;
use ev_api::client::Client;
use ev_api::vm::{BootSpec, CandidacyView, DiskSpec, Done, Protect, VmCreate, VmView};
use harness::{Host, eventually, is_code, refusal, while_heard};

/// The tracking library beside `evd`, as a build of everything leaves it.
fn build_library() {
    let evd = Path::new(env!("CARGO_BIN_EXE_evd"));
    let target = evd.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "ev-ramtrack", "--target-dir"]).arg(target);
    assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
}

fn tiny(name: &str) -> VmCreate {
    VmCreate {
        name: name.to_owned(),
        vcpus: 1,
        memory_mib: 64,
        uefi: false,
        boot: BootSpec::Disk,
        disks: vec![DiskSpec { size_bytes: 1 << 20, image: None }],
        nics: Vec::new(),
        host: Some("host1".to_owned()),
        start_order: 0,
        start: false,
    }
}

#[tokio::test]
async fn level_3_is_offered_and_given_where_memory_can_be_followed() {
    build_library();
    let (a, b) = (Host::start(1), Host::start(2));
    a.create_pool().await;
    b.join(&a.token().await).await.unwrap();
    let client = a.local();
    client.post::<VmView>("/v1/vms", &tiny("db01")).await.unwrap();

    eventually("all levels to be offered", async || {
        let levels: Vec<CandidacyView> = client.get("/v1/vms/db01/candidacy").await.ok()?;
        println!("{levels:?}");
        let offered: Vec<(u8, bool)> = levels.iter().map(|level| (level.level, level.candidate)).collect();
        (offered == [(1, true), (2, true), (3, true)]).then_some(())
    })
    .await;

    let protect = async |level: u8| {
        let request = Protect { level, host: None };
        while_heard(async || client.put::<Done>("/v1/vms/db01/protection", &request).await).await
    };
    for level in [2, 3, 2, 3, 0] {
        protect(level).await.unwrap();
        let vm: VmView = client.get("/v1/vms/db01").await.unwrap();
        assert_eq!((vm.level, vm.memory), (level, None));
    }
    is_code(&refusal(protect(4).await), ErrorCode::Invalid, "3 (system fault tolerance)");
}

/// What is said of level 3, once the other host is online and `said` finds it.
async fn at_level_3(client: &Client, said: impl Fn(&CandidacyView) -> bool) -> CandidacyView {
    eventually("what is said of level 3", async || {
        let levels: Vec<CandidacyView> = client.get("/v1/vms/db01/candidacy").await.ok()?;
        let online = |level: &CandidacyView| level.reasons.iter().all(|reason| !reason.contains("down or cut off"));
        levels.into_iter().find(|level| level.level == 3).filter(online).filter(&said)
    })
    .await
}

fn has_reason(view: &CandidacyView, parts: &[&str]) -> bool {
    !view.candidate && view.reasons.iter().any(|reason| parts.iter().all(|part| reason.contains(part)))
}

/// A QEMU that says that it is of another version, and does not name the machine type; or one that hides nothing.
fn install_qemu(program: &Path, version: Option<&str>, hidden: &str) {
    let real = "/usr/bin/qemu-system-x86_64";
    let text = match version {
        Some(version) => format!(
            "#!/bin/sh\ncase \"$*\" in\n-version) echo 'QEMU emulator version {version}';;\n\
             '-machine help') {real} -machine help | grep -v '^{hidden} ';;\n*) exec {real} \"$@\";;\nesac\n"
        ),
        None => format!("#!/bin/sh\nexec {real} \"$@\"\n"),
    };
    let new = program.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&new, program).unwrap();
}

#[tokio::test]
async fn another_qemu_is_refused_with_both_versions_until_it_is_upgraded() {
    build_library();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let qemu = folder.path().join("qemu");
    let a = Host::start(1);
    a.create_pool().await;
    let client = a.local();
    let vm: VmView = client.post("/v1/vms", &tiny("db01")).await.unwrap();
    install_qemu(&qemu, Some("99.1.2"), &vm.machine);
    let evd = Path::new(env!("CARGO_BIN_EXE_evd"));
    let b = Host::start_as(2, evd, &format!("qemu = '{}'\n", qemu.display()));
    b.join(&a.token().await).await.unwrap();

    let view = at_level_3(&client, |view| has_reason(view, &["host2 has QEMU 99.1.2"])).await;
    assert!(has_reason(&view, &["no machine type", &vm.machine]), "{view:?}");
    let request = Protect { level: 3, host: None };
    let protect = async || while_heard(async || client.put::<Done>("/v1/vms/db01/protection", &request).await).await;
    let refused = refusal(protect().await);
    is_code(&refused, ErrorCode::Refused, "cannot be protected with host host2");

    install_qemu(&qemu, None, "");
    at_level_3(&client, |view| view.candidate).await;
    protect().await.unwrap();
}

#[tokio::test]
async fn a_host_without_the_tracking_library_and_one_with_too_little_memory_are_refused_with_the_reason() {
    assert!(!Path::new("/usr/lib/evenkeel/libev_ramtrack.so").exists(), "installed here: the library would be found");
    build_library();
    let folder = tempfile::tempdir().unwrap();
    let evd = folder.path().join("evd");
    std::fs::copy(env!("CARGO_BIN_EXE_evd"), &evd).unwrap();
    let (a, b) = (Host::start(1), Host::start_as(2, &evd, ""));
    a.create_pool().await;
    b.join(&a.token().await).await.unwrap();
    let client = a.local();
    let tiny = VmCreate { memory_mib: 8 << 20, ..tiny("db01") };
    client.post::<VmView>("/v1/vms", &tiny).await.unwrap();

    let view = at_level_3(&client, |view| has_reason(view, &["host2", "MiB of memory that is not in use"])).await;
    assert!(has_reason(&view, &["on host2", "libev_ramtrack.so", "install Evenkeel anew"]), "{view:?}");
    assert!(has_reason(&view, &["host2 has", "8388608 are needed there with this VM's"]), "{view:?}");
    assert!(has_reason(&view, &["host1 has", "16777216 are needed"]), "the guest and a copy of it: {view:?}");
    eventually("nothing of it is asked below", async || {
        let levels: Vec<CandidacyView> = client.get("/v1/vms/db01/candidacy").await.ok()?;
        levels.iter().all(|level| level.level == 3 || level.candidate).then_some(())
    })
    .await;

    // Installed while the daemon runs, it is found.
    let library = Path::new(env!("CARGO_BIN_EXE_evd")).with_file_name("libev_ramtrack.so");
    std::fs::copy(library, folder.path().join("libev_ramtrack.so")).unwrap();
    at_level_3(&client, |view| !has_reason(view, &["on host2"])).await;
}
