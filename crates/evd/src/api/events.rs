//! Events and alerts.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use ev_api::event::{AlertView, EventView, Severity};
use ev_core::pool::PoolState;
use serde::Deserialize;

use super::answer::Answer;
use crate::app::App;
use crate::member::Member;
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
    Ok(Json(alerts_now(&member, &member.state()).await))
}

/// Those of the pool state, and that it has no master if it has none: the one thing that no master can record.
pub async fn alerts_now(member: &Member, state: &PoolState) -> Vec<AlertView> {
    let mut alerts: Vec<AlertView> = Vec::new();
    if member.node.status().leadership.master.is_none() {
        let for_ms = u64::try_from(member.node.leaderless_for().as_millis()).unwrap_or(u64::MAX);
        alerts.push(AlertView {
            severity: Severity::Critical,
            object: member.pool_name.clone(),
            message: format!(
                "the pool has no master: no VM can be started, taken over or changed; {}. All else here is what this host knew last",
                member.node.silence().await
            ),
            action: "bring back the members that don't answer, or the network to them".to_owned(),
            since: view::time(view::unix_ms_now().saturating_sub(for_ms)),
        });
    }
    alerts.extend(state.alerts.values().map(view::alert));
    alerts
}
