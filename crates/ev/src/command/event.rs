//! `event-list`, `alert-list`.

use ev_api::client::{Client, ClientError};
use ev_api::event::{AlertView, EventView};

use crate::args::Format;
use crate::exit::Failure;
use crate::output::{self, table, time};

/// How long the pool may keep a question for new events open.
const FOLLOW_WAIT_S: u64 = 20;
/// After a failure of the connection, before it is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// What is wrong now.
pub fn alert_table(alerts: &[AlertView]) -> String {
    table(
        ["SINCE", "SEVERITY", "OBJECT", "ALERT"],
        alerts.iter().map(|alert| {
            let text = format!("{}\nTo do: {}", alert.message, alert.action);
            [time(alert.since), super::pool::severity(alert.severity), alert.object.clone(), text]
        }),
    )
}

pub async fn alerts(client: &Client, format: Format) -> Result<(), Failure> {
    let alerts: Vec<AlertView> = client.get("/v1/alerts").await?;
    output::show(
        format,
        &alerts,
        |alerts| {
            if alerts.is_empty() { "No alerts.".to_owned() } else { alert_table(alerts) }
        },
    )
}

fn line(event: &EventView) -> String {
    let severity = super::pool::severity(event.severity);
    format!("{:>6}  {}  {severity:8}  {:20}  {}\n", event.number, time(event.time), event.object, event.message)
}

fn path(since: Option<u64>, wait_s: u64) -> String {
    let since = since.map_or_else(String::new, |number| format!("since={number}&"));
    format!("/v1/events?{since}wait_s={wait_s}")
}

pub async fn list(client: &Client, format: Format, mut since: Option<u64>, follow: bool) -> Result<(), Failure> {
    if !follow {
        let events: Vec<EventView> = client.get(&path(since, 0)).await?;
        return output::show(format, &events, |events| events.iter().map(line).collect());
    }
    loop {
        match client.get::<Vec<EventView>>(&path(since, FOLLOW_WAIT_S)).await {
            Ok(events) => {
                for event in &events {
                    print_one(format, event)?;
                    since = since.max(Some(event.number));
                }
            }
            Err(error @ (ClientError::Unreachable(_) | ClientError::Broken(_) | ClientError::RedirectedInCircles)) => {
                eprintln!("ev: {error}; trying again");
                tokio::time::sleep(RETRY).await;
            }
            Err(ClientError::Api(error)) if error.error == ev_api::ErrorCode::NoMaster => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// With JSON: one object a line.
fn print_one(format: Format, event: &EventView) -> Result<(), Failure> {
    match format {
        Format::Table => output::print(&line(event)),
        Format::Json => {
            let json = serde_json::to_string(event)
                .map_err(|error| Failure::local(format!("cannot print the event as JSON: {error}")))?;
            output::print(&format!("{json}\n"))
        }
    }
}
