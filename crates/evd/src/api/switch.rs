//! The role switch at Level 3: the guest goes on from its memory on the other host while both live.
//!
//! It is what the pool master does when the active host dies, asked for by a person: nothing that the outside has seen is undone, and the host
//! that was active becomes the standby by itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use ev_api::vm::Done;
use ev_api::{ApiError, ErrorCode};
use ev_core::authority::{AuthorityChange, Power};
use ev_core::ids::HostId;
use ev_core::pool::{Command, PoolState};
use ev_core::vm::{Level, Vm};

use super::answer::Answer;
use super::resolve;
use crate::app::App;

/// How often another change of the record may come in between.
const TRIES: u32 = 3;

pub async fn switch(State(app): State<Arc<App>>, Path(text): Path<String>) -> Answer<Done> {
    let member = app.member()?;
    let mut tried = 0;
    loop {
        tried += 1;
        let state = member.state();
        let vm = resolve::vm(&state, &text)?;
        let host = holder(&state, vm)?;
        let change = AuthorityChange::Continue { host };
        let command = Command::VmAuthority { id: vm.id, if_generation: vm.authority.generation, change };
        match member.propose(command).await {
            Ok(_) => {
                return Ok(Json(Done { notes: vec![format!("{} goes on on {}", vm.name, state.member_name(host))] }));
            }
            Err(error) if error.error == ErrorCode::Conflict && tried < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The host that can go on from the guest's memory.
fn holder(state: &PoolState, vm: &Vm) -> Result<HostId, ApiError> {
    let refused = |message: String, hint: &str| Err(ApiError::new(ErrorCode::Refused, message).hint(hint));
    if vm.level != Level::System {
        let message = format!("{} is at level {}: no other host has its memory", vm.name, vm.level.number());
        return refused(message, "protect it at level 3 first: ev pvm-protect --level 3 --wait");
    }
    if vm.authority.power == Power::Off {
        return refused(format!("{} is off", vm.name), "start it: ev pvm-start --host chooses where");
    }
    match vm.authority.memory {
        Some(host) => Ok(host),
        None => {
            let other = vm.hosts.iter().find(|host| Some(**host) != vm.authority.active);
            let name = other.map_or_else(|| "the other host".to_owned(), |host| state.member_name(*host));
            refused(
                format!("{name} does not hold the memory of {} now", vm.name),
                "ev pvm-show says why; wait until it is protected",
            )
        }
    }
}
