//! Events and alerts.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use ev_api::event::{AlertView, EventView};
use ev_core::pool::PoolState;
use serde::Deserialize;

use super::answer::Answer;
use crate::app::App;
use crate::view;

/// Longest that a question for new events is kept open.
const WAIT_S_MAX: u64 = 30;

#[derive(Debug, Deserialize)]
pub struct Since {
    /// Only those after this number.
    since: Option<u64>,
    /// If there is none yet: how long to wait for one.
    #[serde(default)]
    wait_s: u64,
}

fn after(state: &PoolState, since: Option<u64>) -> Vec<EventView> {
    state.events.iter().filter(|event| Some(event.number) > since).map(|event| view::event(event)).collect()
}

pub async fn list(State(app): State<Arc<App>>, Query(since): Query<Since>) -> Answer<Vec<EventView>> {
    let member = app.member()?;
    let mut states = member.states();
    let wait = Duration::from_secs(since.wait_s.min(WAIT_S_MAX));
    let first = after(&states.borrow_and_update(), since.since);
    if !first.is_empty() || wait.is_zero() {
        return Ok(Json(first));
    }
    let news = async {
        while states.changed().await.is_ok() {
            let events = after(&states.borrow_and_update(), since.since);
            if !events.is_empty() {
                return events;
            }
        }
        Vec::new()
    };
    Ok(Json(tokio::time::timeout(wait, news).await.unwrap_or_default()))
}

pub async fn alerts(State(app): State<Arc<App>>) -> Answer<Vec<AlertView>> {
    let member = app.member()?;
    Ok(Json(member.state().alerts.values().map(view::alert).collect()))
}
