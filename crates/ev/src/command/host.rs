//! `host-*`, `quorum-*`.

use std::time::Duration;

use ev_api::client::{Client, escape};
use ev_api::host::{HostState, HostView};
use ev_api::pool::{JoinPool, JoinToken, JoinTokenRequest, JoinedPool, QuorumAdd};
use ev_api::token::{BadToken, JoinTokenText};
use ev_api::vm::Done;
use hyper::Method;

use crate::args::{Format, Global};
use crate::connect;
use crate::exit::Failure;
use crate::output::{self, table, time, word, yes_no};

/// Joining waits for the consensus group to change.
const JOIN_TIMEOUT: Duration = Duration::from_secs(120);
/// A host that has joined is heard by the pool master within this time, or something is wrong with its networks.
const HEARD_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

pub async fn token(client: &Client, format: Format, minutes: u32) -> Result<(), Failure> {
    let request = JoinTokenRequest { valid_s: u64::from(minutes) * 60 };
    let token: JoinToken = client.post("/v1/tokens/host", &request).await?;
    output::show(format, &token, |token| {
        format!("{}\n\nUse it once, before {}: ev host-join TOKEN", token.token, time(token.expires))
    })
}

pub async fn quorum_add(client: &Client, name: String, invitation: String) -> Result<(), Failure> {
    let request = QuorumAdd { name, invitation };
    let done: Done = client.json(Method::POST, "/v1/quorum-servers", Some(&request), JOIN_TIMEOUT).await?;
    print_notes(&done);
    Ok(())
}

pub async fn join(global: &Global, token: String) -> Result<(), Failure> {
    token.parse::<JoinTokenText>().map_err(|error: BadToken| Failure::usage(error.to_string()))?;
    let request = JoinPool { token };
    let local = connect::local(global);
    let mut joined: JoinedPool = local.json(Method::POST, "/v1/pool/join", Some(&request), JOIN_TIMEOUT).await?;
    if !is_heard(&local, joined.id).await {
        joined
            .warnings
            .push("the pool master does not hear this host yet; ev host-list says on which paths".to_owned());
    }
    output::show(global.output, &joined, |joined| {
        let mut text = format!("Host {} is now a member of pool {}.", joined.host, joined.pool);
        for warning in &joined.warnings {
            text.push_str("\nNote: ");
            text.push_str(warning);
        }
        text
    })
}

/// Whether the pool master hears the new host in time: only then can VMs be placed on it.
async fn is_heard(local: &Client, id: u64) -> bool {
    let heard = async {
        loop {
            let hosts: Vec<HostView> = local.get("/v1/hosts").await.unwrap_or_default();
            if hosts.iter().any(|host| host.id == id && host.state == HostState::Online) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(HEARD_TIMEOUT, heard).await.is_ok()
}

pub async fn remove(client: &Client, host: &str, force: bool) -> Result<(), Failure> {
    let path = format!("/v1/hosts/{}?force={force}", escape(host));
    let done: Done = client.json(Method::DELETE, &path, None::<&()>, JOIN_TIMEOUT).await?;
    print_notes(&done);
    Ok(())
}

pub async fn quorum_remove(client: &Client, name: &str) -> Result<(), Failure> {
    let path = format!("/v1/quorum-servers/{}", escape(name));
    let done: Done = client.json(Method::DELETE, &path, None::<&()>, JOIN_TIMEOUT).await?;
    print_notes(&done);
    Ok(())
}

/// Notes go to standard error: they are for people.
pub fn print_notes(done: &Done) {
    for note in &done.notes {
        eprintln!("Note: {note}");
    }
}

pub async fn list(client: &Client, format: Format) -> Result<(), Failure> {
    let hosts: Vec<HostView> = client.get("/v1/hosts").await?;
    output::show(format, &hosts, |hosts| {
        table(
            ["ID", "HOST", "STATE", "MASTER", "VOTES", "ADDRESS", "QEMU", "ACCELERATOR", "SILENT PATHS", "RUNS"],
            hosts.iter().map(|host| {
                [
                    host.id.to_string(),
                    host.name.clone(),
                    word(&host.state),
                    yes_no(host.master),
                    yes_no(host.votes),
                    host.api_address.ip().to_string(),
                    host.qemu_version.clone(),
                    host.accelerator.clone(),
                    silent_paths(host),
                    host.vms.join(", "),
                ]
            }),
        )
    })
}

fn silent_paths(host: &HostView) -> String {
    let silent: Vec<String> =
        host.paths.iter().filter(|path| !path.heard).map(|path| format!("{} by {}", path.from, path.network)).collect();
    if silent.is_empty() { "-".to_owned() } else { silent.join(", ") }
}
