//! Pools: what a user does to make one, what it says of itself, and what it refuses.

use ev_api::host::HostView;
use ev_api::pool::{JoinToken, PoolView};
use ev_tests::{Pool, TestLab};

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
}

#[test]
fn wrong_and_used_tokens_second_pools_and_unknown_names_are_refused_with_a_way_out() {
    let lab = TestLab::up(3, 1);
    let pool = Pool::of(&lab);
    ev_tests::eventually("evd", std::time::Duration::from_secs(20), || pool.ev("h1", &["pool-create", "office"]));
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
    pool.ok("h2", &["host-join", &token.token]);
    let used = refused("h3", &["host-join", &token.token]);
    assert!(used.contains("token"), "{used}");
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
