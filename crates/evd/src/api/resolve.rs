//! Objects by the words users have for them: a name, `uuid=…`, for members also `id=…`.

use ev_api::{ApiError, ErrorCode};
use ev_core::ids::{MemberId, VmId};
use ev_core::pool::{Member, MemberKind, Network, PoolState};
use ev_core::vm::Vm;
use uuid::Uuid;

fn uuid_of(text: &str) -> Option<Uuid> {
    text.strip_prefix("uuid=")?.parse().ok()
}

fn missing(kind: &str, text: &str, list: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no {kind} {text} in this pool"))
        .hint(format!("{list} shows them"))
}

/// # Errors
/// There is none.
pub fn vm<'a>(state: &'a PoolState, text: &str) -> Result<&'a Vm, ApiError> {
    let found = match uuid_of(text) {
        Some(uuid) => state.vms.get(&VmId(uuid)),
        None => state.vm_named(text),
    };
    found.ok_or_else(|| missing("VM", text, "ev vm-list"))
}

fn member<'a>(state: &'a PoolState, text: &str, kind: MemberKind) -> Option<&'a Member> {
    let found = if let Some(id) = text.strip_prefix("id=") {
        state.members.get(&MemberId(id.parse().ok()?))
    } else if let Some(uuid) = uuid_of(text) {
        state.members.values().find(|member| member.uuid == uuid)
    } else {
        state.member_named(text)
    };
    found.filter(|member| member.kind == kind)
}

/// # Errors
/// There is none.
pub fn host<'a>(state: &'a PoolState, text: &str) -> Result<&'a Member, ApiError> {
    member(state, text, MemberKind::Host).ok_or_else(|| missing("host", text, "ev host-list"))
}

/// # Errors
/// There is none.
pub fn quorum_server<'a>(state: &'a PoolState, text: &str) -> Result<&'a Member, ApiError> {
    member(state, text, MemberKind::QuorumServer).ok_or_else(|| missing("quorum server", text, "ev pool-show"))
}

/// # Errors
/// There is none.
pub fn network<'a>(state: &'a PoolState, text: &str) -> Result<&'a Network, ApiError> {
    let uuid = uuid_of(text);
    let found = state.networks.values().find(|network| match uuid {
        Some(uuid) => network.id.0 == uuid,
        None => network.name == text,
    });
    found.ok_or_else(|| missing("network", text, "ev network-list"))
}
