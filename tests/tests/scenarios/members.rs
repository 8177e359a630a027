//! Members come and go: a host that died for good is replaced by a new one; a pool is used from a machine without evd.

use std::time::Duration;

use ev_api::pool::{JoinToken, PoolView, TokenCreated, TokenView};
use ev_api::vm::VmView;
use ev_tests::{Load, Pool, Protected, TestLab, TinyGuest, TinyImage, eventually};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_host_that_died_for_good_is_replaced_while_the_guest_runs() {
    let lab = TestLab::up(3, 1);
    let pool = Pool::of(&lab);
    eventually("evd on h1 to make the pool", LIMIT, || pool.ev("h1", &["pool-create", "office"]));
    join(&pool, "h2");
    pool.add_quorum_server("q1");
    pool.ok("h1", &TinyImage::find().create_arguments("tiny", "256M", TinyImage::ADDRESS));
    pool.ok("h1", &["pvm-protect", "tiny", "--level", "2", "--wait"]);
    pool.ok("h1", &["pvm-start", "tiny"]);
    let load = Load::start(&lab, 0, || TinyGuest::connect(TinyImage::ADDRESS));
    let protected = Protected { lab: &lab, pool, vm: "tiny" };
    load.wait_for_more(50, LIMIT);
    protected.in_sync("h1");
    let boot_id = protected.boot_id();

    lab.kill("h2").expect("dies");
    load.wait_for_more(50, LIMIT);
    let refused = pool.ev("h1", &["host-remove", "h2"]).expect_err("it can't be told");
    assert!(refused.message.contains("--force"), "{refused}");
    let refused = pool.ev("h1", &["host-remove", "h2", "--force"]).expect_err("it has a replica");
    assert!(refused.message.contains("tiny"), "{refused}");
    pool.ok("h1", &["pvm-unprotect", "tiny", "--wait"]);
    pool.ok("h1", &["host-remove", "h2", "--force"]);
    join(&pool, "h3");
    pool.ok("h1", &["pvm-protect", "tiny", "--level", "2", "--host", "h3", "--wait"]);
    load.wait_for_more(50, LIMIT);
    assert_eq!(protected.in_sync("h1").hosts, ["h1", "h3"]);
    assert_eq!(protected.boot_id(), boot_id, "the guest ran on through all of it");

    lab.start("h2").expect("starts");
    eventually("h2 to know that it is out", LIMIT, || match pool.ev("h2", &["pool-show"]) {
        Err(failure) if failure.message.contains("belongs to no pool") => Ok(()),
        said => Err(format!("{said:?}")),
    });
    // Without h1, the other two have to be a majority.
    let view = eventually("all members to vote", LIMIT, || {
        let view: PoolView = pool.try_json("h1", &["pool-show"]).map_err(|failure| failure.to_string())?;
        if view.members.iter().all(|member| member.votes && member.reachable) {
            Ok(view)
        } else {
            Err(format!("{view:?}"))
        }
    });
    assert_eq!(view.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(), ["h1", "q1", "h3"]);
    lab.kill("h1").expect("dies");
    load.wait_for_more(50, LIMIT);
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(1..=1);
}

#[test]
fn a_machine_without_evd_logs_in_once_and_uses_the_pool_through_any_host() {
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    let address = |host: &str| {
        let view: PoolView = pool.json("h1", &["pool-show"]);
        let member = view.members.into_iter().find(|member| member.name == host);
        member.expect("a member").address.ip().to_string()
    };
    let (first, second) = (address("h1"), address("h2"));
    // The quorum server's machine has no evd.
    let unknown = pool.ev("q1", &["vm-list"]).expect_err("it knows no pool");
    assert!(unknown.message.contains("ev login"), "{unknown}");
    let token: TokenCreated = pool.json("h2", &["token-create", "--name", "q1"]);
    let mut wrong = token.token.clone();
    let last = wrong.pop().expect("it has letters");
    wrong.push(if last == 'A' { 'B' } else { 'A' });
    let refused = pool.ev("q1", &["login", &second, "--token", &wrong]).expect_err("a wrong token");
    assert!(refused.message.contains("token"), "{refused}");
    pool.ok("q1", &["login", &second, "--token", &token.token]);
    pool.ok("q1", &["vm-create", "web01", "--disk", "64M", "--nic", "vm"]);
    let vms: Vec<VmView> = pool.json("q1", &["vm-list"]);
    assert_eq!(vms.len(), 1);
    let named: PoolView = pool.json("q1", &["pool-show", "--pool", &first]);
    assert_eq!(named.name, "office");

    for host in ["h2", "h1"] {
        lab.kill(host).expect("dies");
        eventually("the other host to answer", LIMIT, || pool.try_json::<Vec<VmView>>("q1", &["vm-list"]));
        lab.start(host).expect("starts");
        eventually("both hosts to be back", LIMIT, || {
            let view: PoolView = pool.try_json("q1", &["pool-show"]).map_err(|failure| failure.to_string())?;
            if view.members.iter().all(|member| member.reachable) { Ok(()) } else { Err(format!("{view:?}")) }
        });
    }

    let tokens: Vec<TokenView> = pool.json("q1", &["token-list"]);
    let mine = tokens.iter().find(|token| token.yours).expect("it is listed");
    assert_eq!((mine.name.as_str(), tokens.len()), ("q1", 2));
    pool.ok("h1", &["token-revoke", &mine.id]);
    let refused = pool.ev("q1", &["vm-list"]).expect_err("it is revoked");
    assert!(refused.message.contains("revoked"), "{refused}");
}

fn join(pool: &Pool<'_>, host: &str) {
    let token: JoinToken = pool.json("h1", &["host-token"]);
    eventually("evd to join", LIMIT, || pool.ev(host, &["host-join", &token.token]));
}
