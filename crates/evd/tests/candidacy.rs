//! Which levels a VM is offered on real hosts, and that it gets them.

mod harness;

use std::path::Path;
use std::process::Command;

use ev_api::ErrorCode;
use ev_api::vm::{BootSpec, CandidacyView, DiskSpec, Done, Protect, VmCreate, VmView};
use harness::{Host, eventually, is_code, refusal};

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

    let levels = eventually("the other host is online", async || {
        let levels: Vec<CandidacyView> = client.get("/v1/vms/db01/candidacy").await.ok()?;
        levels.iter().any(|level| level.candidate).then_some(levels)
    })
    .await;
    let offered: Vec<(u8, bool)> = levels.iter().map(|level| (level.level, level.candidate)).collect();
    assert_eq!(offered, [(1, true), (2, true), (3, true)], "{levels:?}");

    let protect = async |level: u8| {
        let request = Protect { level, host: None };
        client.put::<Done>("/v1/vms/db01/protection", &request).await
    };
    for level in [2, 3, 2, 3, 0] {
        protect(level).await.unwrap();
        let vm: VmView = client.get("/v1/vms/db01").await.unwrap();
        assert_eq!((vm.level, vm.memory), (level, None));
    }
    is_code(&refusal(protect(4).await), ErrorCode::Invalid, "3 (system fault tolerance)");
}
