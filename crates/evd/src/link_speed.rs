//! How fast the link to another host is, over the path that checkpoints would take: tried when somebody asks about level 3.

use std::net::SocketAddr;
use std::time::Duration;

use ev_api::{ApiError, ErrorCode};
use ev_core::candidacy::{LINK_FAST_MBIT_PER_S, LinkSpeed};
use ev_core::ids::HostId;
use ev_core::pool::Member as PoolMember;
use ev_wire::transport::measure;
use hyper::Request;
use tokio::time::Instant;

use crate::heartbeats::path_name;
use crate::member::Member;
use crate::proxy;

/// How long all attempts together may take to begin: candidacy is to be answered within two seconds.
const TIME_MAX: Duration = Duration::from_millis(1_000);
/// A link that seems slow is tried again: the host may just have been busy.
const ATTEMPTS_MAX: u32 = 3;

/// From `from` to `to`: measured there if that is another host.
///
/// # Errors
/// `from` can't be reached, or can't reach `to`.
pub async fn between(member: &Member, from: &PoolMember, to: &PoolMember) -> Result<LinkSpeed, ApiError> {
    if from.id == member.host {
        return here(member, to.id).await;
    }
    let unknown = |why: String| ApiError::new(ErrorCode::Internal, why);
    let api = from.api.ok_or_else(|| unknown(format!("host {} has no API address", from.name)))?;
    let request = Request::get(format!("/v1/local/link-speed/{}", to.id))
        .header(hyper::header::HOST, "host")
        .body(axum::body::Body::empty())
        .map_err(|error| unknown(error.to_string()))?;
    proxy::json(proxy::forward(member.tls(), api, request).await?).await
}

/// From this host.
///
/// # Errors
/// There is no such host, or no path leads to it.
pub async fn here(member: &Member, to: HostId) -> Result<LinkSpeed, ApiError> {
    let state = member.state();
    let other = state.hosts().find(|host| host.id == to);
    let other = other.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no host {to}")))?;
    let mut why = String::new();
    for (network, address) in paths(other) {
        match at(member, to, network, address).await {
            Ok(speed) => return Ok(speed),
            Err(error) => why = error,
        }
    }
    Err(ApiError::new(ErrorCode::Unreachable, why).hint("see ev host-list for the paths between the hosts"))
}

/// The other host's addresses in the order in which links use them: private ones first.
fn paths(other: &PoolMember) -> impl Iterator<Item = (String, SocketAddr)> {
    let private = (1..).zip(&other.private).map(|(path, address)| (path_name(path), *address));
    let all = private.chain([(path_name(0), other.peer.ip())]);
    let port = other.peer.port();
    all.map(move |(network, address)| (network, SocketAddr::new(address, port)))
}

/// The best of some attempts.
async fn at(member: &Member, to: HostId, network: String, address: SocketAddr) -> Result<LinkSpeed, String> {
    let until = Instant::now() + TIME_MAX;
    let mut best = LinkSpeed { network, mbit_per_s: 0 };
    for attempt in 0..ATTEMPTS_MAX {
        match measure(member.tls(), member.pool, to, address).await {
            Ok(throughput) => best.mbit_per_s = best.mbit_per_s.max(throughput.mbit_per_s()),
            Err(error) if attempt == 0 => return Err(error.to_string()),
            Err(_) => break,
        }
        if best.mbit_per_s >= LINK_FAST_MBIT_PER_S || Instant::now() >= until {
            break;
        }
    }
    Ok(best)
}
