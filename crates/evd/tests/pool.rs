//! Pools made, joined, left, with right and wrong tokens, over restarts.

mod harness;

use ev_api::ErrorCode;
use ev_api::host::HostView;
use ev_api::pool::{PoolCreate, PoolView, TokenCreate, TokenCreated, TokenView};
use ev_api::vm::Done;
use harness::{Host, eventually, is_code, refusal, while_heard};

#[tokio::test]
async fn two_hosts_make_a_pool_and_each_finds_the_master() {
    let (a, b) = (Host::start(1), Host::start(2));
    is_code(&refusal(a.local().get::<PoolView>("/v1/pool").await), ErrorCode::Uninitialised, "ev pool-create");
    let created = a.create_pool().await;
    let joined = b.join(&a.token().await).await.unwrap();
    assert_eq!(joined.uuid, created.uuid);

    let hosts = eventually("both hosts hear each other", async || {
        let hosts: Vec<HostView> = b.local().get("/v1/hosts").await.ok()?;
        let all_heard = hosts.len() == 2
            && hosts.iter().all(|host| !host.paths.is_empty() && host.paths.iter().all(|path| path.heard));
        all_heard.then_some(hosts)
    })
    .await;
    assert!(hosts[0].master && !hosts[1].master);
    let pool: PoolView = b.local().get("/v1/pool").await.unwrap();
    assert!(pool.survives.contains("quorum server"), "{}", pool.survives);
    eventually("the alert that there is no third vote", async || {
        let pool: PoolView = a.local().get("/v1/pool").await.unwrap();
        pool.alerts.iter().any(|alert| alert.message.contains("no quorum server")).then_some(())
    })
    .await;

    // An administrator elsewhere asks the host that is not master, and is sent on.
    let pool: PoolView = b.remote(&created.token).get("/v1/pool").await.unwrap();
    assert_eq!(pool.master.as_deref(), Some("host1"));
}

#[tokio::test]
async fn tokens_work_once_and_for_their_pool_only() {
    let (a, b, c) = (Host::start(1), Host::start(2), Host::start(3));
    let created = a.create_pool().await;
    let token = a.token().await;
    b.join(&token).await.unwrap();

    is_code(&refusal(c.join(&token).await), ErrorCode::Unauthorized, "used already");
    let (head, tail) = token.split_at(token.find('@').unwrap() - 32);
    let unknown = format!("{head}{}{}", "0".repeat(32), &tail[32..]);
    is_code(&refusal(c.join(&unknown).await), ErrorCode::Unauthorized, "not known");
    let other_pool = token.replacen(&token[5..9], if &token[5..9] == "0000" { "1111" } else { "0000" }, 1);
    is_code(&refusal(c.join(&other_pool).await), ErrorCode::Refused, "nothing was sent");
    is_code(&refusal(c.join("rubbish").await), ErrorCode::Invalid, "not a join token");
    is_code(&refusal(c.join(&created.token).await), ErrorCode::Invalid, "not a join token");
    // What was refused left nothing behind.
    is_code(&refusal(c.local().get::<PoolView>("/v1/pool").await), ErrorCode::Uninitialised, "belongs to no pool");
    let hosts: Vec<HostView> = a.local().get("/v1/hosts").await.unwrap();
    assert_eq!(hosts.len(), 2);
    c.join(&a.token().await).await.unwrap();
}

#[tokio::test]
async fn a_host_serves_one_pool() {
    let (a, b) = (Host::start(1), Host::start(2));
    a.create_pool().await;
    b.create_pool().await;
    let second = a.local().post::<serde_json::Value>("/v1/pool", &PoolCreate { name: "another".into() }).await;
    is_code(&refusal(second), ErrorCode::Refused, "already belongs to pool office");
    is_code(&refusal(b.join(&a.token().await).await), ErrorCode::Refused, "already belongs to pool office");
}

#[tokio::test]
async fn a_revoked_token_is_refused_at_once() {
    let a = Host::start(1);
    let created = a.create_pool().await;
    let name = || "backup script".to_owned();
    let made = a.local().post::<TokenCreated>("/v1/tokens", &TokenCreate { name: name() }).await.unwrap();
    let by_made = a.remote(&made.token);
    let tokens: Vec<TokenView> = by_made.get("/v1/tokens").await.unwrap();
    let mut names: Vec<_> = tokens.iter().map(|token| (token.name.as_str(), token.yours)).collect();
    names.sort_unstable();
    assert_eq!(names, [("backup script", true), ("ev pool-create", false)]);
    assert!(tokens.iter().all(|token| token.created.is_some() && !made.token.contains(&token.id)), "{tokens:?}");
    let id = &tokens.iter().find(|token| token.yours).unwrap().id;
    for wrong in ["", "5", "000000000000"] {
        assert!(a.local().delete::<Done>(&format!("/v1/tokens/{wrong}")).await.is_err(), "{wrong:?}");
    }
    a.remote(&created.token).delete::<Done>(&format!("/v1/tokens/{id}")).await.unwrap();
    is_code(&refusal(by_made.get::<PoolView>("/v1/pool").await), ErrorCode::Unauthorized, "revoked");
    a.remote(&created.token).get::<PoolView>("/v1/pool").await.unwrap();
    let long = a.local().post::<TokenCreated>("/v1/tokens", &TokenCreate { name: "x".repeat(64) }).await;
    is_code(&refusal(long), ErrorCode::Invalid, "63 bytes");
}

#[tokio::test]
async fn bad_names_make_no_pool() {
    let a = Host::start(1);
    for name in ["", "a b", "-a", &"x".repeat(64)] {
        let made = a.local().post::<serde_json::Value>("/v1/pool", &PoolCreate { name: name.to_owned() }).await;
        is_code(&refusal(made), ErrorCode::Invalid, "name");
    }
    a.create_pool().await;
}

#[tokio::test]
async fn only_administrators_are_answered_and_only_root_on_the_host_joins() {
    let a = Host::start(1);
    let created = a.create_pool().await;
    let wrong = format!("{}{}", &created.token[..created.token.len() - 32], "0".repeat(32));
    is_code(&refusal(a.remote(&wrong).get::<PoolView>("/v1/pool").await), ErrorCode::Unauthorized, "not one of");
    let another = a
        .remote(&created.token)
        .post::<TokenCreated>("/v1/tokens", &TokenCreate { name: "another".into() })
        .await
        .unwrap();
    a.remote(&another.token).get::<PoolView>("/v1/pool").await.unwrap();
    let made = a.remote(&created.token).post::<serde_json::Value>("/v1/pool", &PoolCreate { name: "b".into() }).await;
    is_code(&refusal(made), ErrorCode::Unauthorized, "on the host itself");
    let status = a.remote(&created.token).get::<serde_json::Value>("/v1/local/status").await;
    is_code(&refusal(status), ErrorCode::Unauthorized, "only hosts");
}

#[tokio::test]
async fn killed_daemons_come_back_into_their_pool() {
    let (mut a, mut b) = (Host::start(1), Host::start(2));
    let created = a.create_pool().await;
    b.join(&a.token().await).await.unwrap();
    a.kill();
    b.restart();
    a.restart();
    for host in [&a, &b] {
        let pool = eventually("the pool has a master again", async || {
            host.local().get::<PoolView>("/v1/pool").await.ok().filter(|pool| pool.master.is_some())
        })
        .await;
        assert_eq!((pool.uuid, pool.members.len()), (created.uuid, 2));
    }
}

#[tokio::test]
async fn a_removed_host_forgets_the_pool_and_can_join_again() {
    let (a, b) = (Host::start(1), Host::start(2));
    a.create_pool().await;
    b.join(&a.token().await).await.unwrap();
    eventually("the hosts hear each other", async || {
        let hosts: Vec<HostView> = a.local().get("/v1/hosts").await.unwrap();
        hosts.iter().all(|host| host.state == ev_api::host::HostState::Online).then_some(())
    })
    .await;
    is_code(&refusal(a.local().delete::<Done>("/v1/hosts/nobody").await), ErrorCode::NotFound, "ev host-list");
    is_code(&refusal(a.local().delete::<Done>("/v1/hosts/host1").await), ErrorCode::Refused, "master");
    while_heard(async || a.local().delete::<Done>("/v1/hosts/host2").await).await.unwrap();
    eventually("the removed host has forgotten the pool", async || {
        let answer = b.local().get::<PoolView>("/v1/pool").await;
        (answer.is_err() && !b.state().join("pool").exists()).then_some(())
    })
    .await;
    b.join(&a.token().await).await.unwrap();
}
