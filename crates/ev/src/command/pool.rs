//! `pool-*`, `login`, `token-*`, `network-*`, `library-list`.

use ev_api::client::{Client, escape};
use ev_api::library::LibraryView;
use ev_api::pool::{
    MemberKind, NetworkAdd, NetworkView, PoolCreate, PoolCreated, PoolView, SettingsView, TokenCreate, TokenCreated,
    TokenView,
};

use ev_api::vm::Done;
use hyper::Method;

use crate::args::{Format, Global};
use crate::connect::{self, Remembered};
use crate::exit::Failure;
use crate::output::{self, facts, or_dash, table, word, yes_no};

/// For calls that only change the pool state.
const SHORT: std::time::Duration = std::time::Duration::from_secs(60);

pub async fn create(global: &Global, name: String) -> Result<(), Failure> {
    let created: PoolCreated = connect::local(global).post("/v1/pool", &PoolCreate { name }).await?;
    let remembered =
        Remembered { name: created.name.clone(), addresses: vec![created.address], token: created.token.clone() };
    if let Err(failure) = connect::remember(&remembered) {
        eprintln!("ev: {failure}");
    }
    output::show(global.output, &created, |created| {
        format!(
            "Pool {} made; this host is its first member.\n\n\
             Administrator's token (shown only now): {}\n\n\
             Next: ev host-token, then ev host-join on the second host.",
            created.name, created.token
        )
    })
}

pub async fn login(global: &Global, address: &str) -> Result<(), Failure> {
    let token = global.token.as_deref().ok_or_else(|| Failure::usage("ev login needs --token (or EV_TOKEN)"))?;
    let target = connect::remote(address, token)?;
    let client = Client::new(target);
    let pool: PoolView = client.get("/v1/pool").await?;
    let hosts: Vec<ev_api::host::HostView> = client.get("/v1/hosts").await?;
    let remembered = Remembered {
        name: pool.name.clone(),
        addresses: hosts.iter().map(|host| host.api_address).collect(),
        token: token.to_owned(),
    };
    let path = connect::remember(&remembered)?;
    output::show(global.output, &pool, |pool| format!("Pool {} remembered in {}.", pool.name, path.display()))
}

pub async fn show(client: &Client, format: Format) -> Result<(), Failure> {
    let pool: PoolView = client.get("/v1/pool").await?;
    output::show(format, &pool, |pool| {
        let mut text = facts([
            ("Pool", pool.name.clone()),
            ("UUID", pool.uuid.to_string()),
            ("Master", or_dash(pool.master.as_deref())),
            ("Survives", pool.survives.clone()),
            ("VMs", pool.vms.to_string()),
            ("Networks", pool.networks.iter().map(|network| network.name.as_str()).collect::<Vec<_>>().join(", ")),
        ]);
        text.push_str("\n\n");
        text.push_str(&table(
            ["ID", "MEMBER", "KIND", "ADDRESS", "VOTES", "REACHABLE"],
            pool.members.iter().map(|member| {
                let kind = match (member.kind, member.master) {
                    (MemberKind::Host, true) => "host, master",
                    (MemberKind::Host, false) => "host",
                    (MemberKind::QuorumServer, _) => "quorum server",
                };
                [
                    member.id.to_string(),
                    member.name.clone(),
                    kind.to_owned(),
                    member.address.to_string(),
                    yes_no(member.votes),
                    yes_no(member.reachable),
                ]
            }),
        ));
        if !pool.alerts.is_empty() {
            text.push_str("\n\n");
            text.push_str(&super::event::alert_table(&pool.alerts));
        }
        text
    })
}

/// Shows the settings, having changed those that are given.
pub async fn set(client: &Client, format: Format, change: SettingsView) -> Result<(), Failure> {
    let settings: SettingsView = if change == SettingsView::default() {
        client.get("/v1/settings").await?
    } else {
        client.json(Method::PUT, "/v1/settings", Some(&change), SHORT).await?
    };
    output::show(format, &settings, |settings| {
        let rate = settings.copy_rate_limit_bytes.filter(|rate| *rate > 0);
        let interval = settings.scrub_interval_s.filter(|seconds| *seconds > 0);
        facts([
            ("Copies", rate.map_or("no limit".to_owned(), |rate| format!("at most {} a second", output::bytes(rate)))),
            ("Comparisons", interval.map_or("only on demand".to_owned(), every)),
            ("Blackouts", settings.blackout_ms.map_or("-".to_owned(), |ms| format!("at most about {ms} ms"))),
            ("Memory to standbys", settings.sync_at_once.map_or("-".to_owned(), |vms| format!("{vms} VMs at once"))),
        ])
    })
}

fn every(seconds: u64) -> String {
    match seconds {
        seconds if seconds.is_multiple_of(86_400) => format!("every {} days", seconds / 86_400),
        seconds if seconds.is_multiple_of(3_600) => format!("every {} hours", seconds / 3_600),
        seconds => format!("every {seconds} seconds"),
    }
}

pub async fn token_list(client: &Client, format: Format) -> Result<(), Failure> {
    let tokens: Vec<TokenView> = client.get("/v1/tokens").await?;
    output::show(format, &tokens, |tokens| {
        table(
            ["ID", "NAME", "CREATED", "YOURS"],
            tokens.iter().map(|token| {
                let name = Some(token.name.as_str()).filter(|name| !name.is_empty());
                let created = token.created.map_or_else(|| "-".to_owned(), output::time);
                [token.id.clone(), or_dash(name), created, yes_no(token.yours)]
            }),
        )
    })
}

pub async fn token_revoke(client: &Client, id: &str) -> Result<(), Failure> {
    let done: Done = client.delete(&format!("/v1/tokens/{}", escape(id))).await?;
    super::host::print_notes(&done);
    Ok(())
}

pub async fn token_create(client: &Client, format: Format, name: String) -> Result<(), Failure> {
    let created: TokenCreated = client.post("/v1/tokens", &TokenCreate { name }).await?;
    output::show(format, &created, |created| created.token.clone())
}

fn network_table(networks: &[NetworkView]) -> String {
    table(
        ["NETWORK", "BRIDGE", "UUID"],
        networks.iter().map(|network| [network.name.clone(), network.bridge.clone(), network.uuid.to_string()]),
    )
}

pub async fn network_list(client: &Client, format: Format) -> Result<(), Failure> {
    let networks: Vec<NetworkView> = client.get("/v1/networks").await?;
    output::show(format, &networks, |networks| network_table(networks))
}

pub async fn network_add(client: &Client, format: Format, name: String, bridge: Option<String>) -> Result<(), Failure> {
    let network: NetworkView = client.post("/v1/networks", &NetworkAdd { name, bridge }).await?;
    output::show(format, &network, |network| network_table(std::slice::from_ref(network)))
}

pub async fn library_list(client: &Client, format: Format) -> Result<(), Failure> {
    let files: Vec<LibraryView> = client.get("/v1/library").await?;
    output::show(format, &files, |files| {
        table(
            ["FILE", "SIZE", "BLAKE3"],
            files.iter().map(|file| [file.name.clone(), output::bytes(file.size_bytes), file.blake3.clone()]),
        )
    })
}

/// The word for a severity, as tables show it.
pub fn severity(value: ev_api::event::Severity) -> String {
    word(&value)
}
