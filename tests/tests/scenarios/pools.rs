//! Pools: what a user does to make one, what it says of itself, and what it refuses.

use std::time::Duration;

use ev_api::event::{AlertView, Severity};
use ev_api::host::HostView;
use ev_api::pool::{JoinToken, PoolView};
use ev_tests::{Pool, TestLab, eventually};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_pool_of_two_hosts_alone_says_what_it_does_not_survive() {
    let lab = TestLab::up(2, 0);
    let pool = Pool::create(&lab);
    let view: PoolView = pool.json("h1", &["pool-show"]);
    assert_eq!(view.members.len(), 2);
    assert_eq!(view.members.iter().filter(|member| member.votes).count(), 1);
    assert!(!view.alerts.is_empty(), "{view:?}");
    let hosts: Vec<HostView> = pool.json("h2", &["host-list"]);
    assert_eq!(hosts.len(), 2);

    // The first host votes alone: without it nothing is decided, and the other one says so.
    lab.kill("h1").expect("dies");
    eventually("h2 to miss the master", LIMIT, || {
        let view: PoolView = pool.try_json("h2", &["pool-show"]).map_err(|failure| failure.to_string())?;
        let missed =
            view.alerts.iter().any(|alert| alert.severity == Severity::Critical && alert.message.contains("h1"));
        if view.master.is_none() && missed && view.survives.contains("no master") {
            return Ok(());
        }
        Err(format!("{view:?}"))
    });
    let alerts: Vec<AlertView> = pool.json("h2", &["alert-list"]);
    assert!(alerts.iter().any(|alert| alert.message.contains("no master")), "{alerts:?}");
    let refused = pool.ev("h2", &["vm-create", "v", "--disk", "1G"]).expect_err("nobody can decide");
    assert!(refused.message.contains("h1"), "it says who is missing: {refused}");
    lab.start("h1").expect("starts");
    eventually("the pool to go on", LIMIT, || {
        let view: PoolView = pool.try_json("h2", &["pool-show"]).map_err(|failure| failure.to_string())?;
        let over = view.master.is_some() && view.alerts.iter().all(|alert| alert.severity != Severity::Critical);
        if over { Ok(()) } else { Err(format!("{view:?}")) }
    });
}

#[test]
fn wrong_and_used_tokens_second_pools_and_unknown_names_are_refused_with_a_way_out() {
    let lab = TestLab::up(3, 1);
    let pool = Pool::of(&lab);
    eventually("evd", LIMIT, || pool.ev("h1", &["pool-create", "office"]));
    let refused = |host: &str, arguments: &[&str]| {
        let failure = pool.ev(host, arguments).expect_err("it is refused");
        println!("{host}: {failure}");
        assert!(failure.code.is_some_and(|code| code != 0 && code != 101), "{failure}");
        assert!(failure.message.len() > 20, "{failure}");
        failure.message
    };
    refused("h1", &["pool-create", "another"]);
    refused("h2", &["host-join", "rubbish"]);
    let token: JoinToken = pool.json("h1", &["host-token"]);
    let mut wrong = token.token.clone();
    wrong.replace_range(wrong.len() - 4.., "AAAA");
    refused("h2", &["host-join", &wrong]);
    eventually("evd to join", LIMIT, || pool.ev("h2", &["host-join", &token.token]));
    eventually("a used token to be refused", LIMIT, || {
        let used = refused("h3", &["host-join", &token.token]);
        // Before that, evd may not be there.
        if used.contains("token") { Ok(()) } else { Err(used) }
    });
    refused("h1", &["pvm-show", "nobody"]);
    refused("h1", &["pvm-start", "nobody"]);
    refused("h1", &["host-remove", "nobody"]);
    refused("h1", &["quorum-remove", "nobody"]);
    refused("h1", &["quorum-add", "third", "rubbish"]);
    refused("h1", &["vm-create", "v", "--disk", "1000B", "--nic", "vm"]);
    refused("h1", &["vm-create", "v", "--disk", "1G", "--nic", "nowhere"]);
    let view: PoolView = pool.json("h1", &["pool-show"]);
    assert_eq!(view.members.len(), 2);
    assert_eq!(view.vms, 0);
}
