//! `pvm-stats`: what Level 3 costs a guest, once or again and again.

use std::time::Duration;

use ev_api::client::{Client, ClientError};
use ev_api::vm::{Level3View, VmView};
use ev_api::{ApiError, ErrorCode};
use serde::Serialize;

use super::pvm::{level3_state, path};
use crate::args::Format;
use crate::exit::Failure;
use crate::output::{self, bytes, facts};

/// Lines between two headers.
const HEADER_EVERY: usize = 20;
/// A hole in what a pool without a master answers is waited out.
const RETRY: Duration = Duration::from_secs(1);

/// One look.
#[derive(Debug, Serialize)]
struct Stats {
    time: jiff::Timestamp,
    vm: String,
    level: u8,
    active: Option<String>,
    standby: Option<String>,
    level3: Option<Level3View>,
}

impl Stats {
    fn of(vm: VmView) -> Self {
        let VmView { name, level, active, standby, level3, .. } = vm;
        Self { time: jiff::Timestamp::now(), vm: name, level, active, standby, level3 }
    }

    /// Nothing is measured at the levels below.
    fn level3(&self) -> Result<&Level3View, Failure> {
        self.level3.as_ref().ok_or_else(|| {
            let why = if self.level == 3 { "does not run" } else { "is not at level 3" };
            Failure::local(format!("{} {why}, so that there are no checkpoints to measure", self.vm))
                .hint("ev pvm-show and ev disk-show say how it stands otherwise")
        })
    }
}

/// Prints one look, or one each interval until the reader goes away.
pub async fn stats(client: &Client, format: Format, vm: &str, follow: Option<Duration>) -> Result<(), Failure> {
    let Some(interval) = follow else {
        let stats = Stats::of(client.get(&path(vm, "")).await?);
        stats.level3()?;
        return output::show(format, &stats, |stats| stats.level3.as_ref().map(all).unwrap_or_default());
    };
    let mut printed = 0;
    loop {
        match client.get::<VmView>(&path(vm, "")).await {
            Ok(view) => {
                let stats = Stats::of(view);
                if printed % HEADER_EVERY == 0 && format == Format::Table {
                    output::print(&header())?;
                }
                printed += 1;
                print_one(format, &stats)?;
                tokio::time::sleep(interval).await;
            }
            // The host that was asked may have died: the guest did not, and others answer.
            Err(ClientError::Unreachable(_) | ClientError::Broken(_) | ClientError::RedirectedInCircles)
            | Err(ClientError::Api(ApiError { error: ErrorCode::NoMaster | ErrorCode::NotMaster, .. })) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn print_one(format: Format, stats: &Stats) -> Result<(), Failure> {
    match format {
        Format::Table => match stats.level3() {
            Ok(level3) => output::print(&line(stats, level3)),
            // It may be started, or protected, while somebody looks on.
            Err(_) => output::print(&format!("{}  no checkpoints now\n", output::time(stats.time))),
        },
        Format::Json => {
            let json = serde_json::to_string(stats)
                .map_err(|error| Failure::local(format!("cannot print the answer as JSON: {error}")))?;
            output::print(&format!("{json}\n"))
        }
    }
}

fn all(level3: &Level3View) -> String {
    facts([
        ("State", level3_state(&level3.state)),
        ("Checkpoint", format!("{} confirmed, one every {}", level3.confirmed, ms(level3.epoch_us))),
        ("Pause", format!("{} (median), {} (p99)", ms(level3.pause_median_us), ms(level3.pause_p99_us))),
        ("Stands still", format!("{} of the time", permille(level3.stood_still_permille))),
        ("Sent", format!("{} pages/s, {}/s", level3.pages_per_s, bytes(level3.bytes_per_s))),
        ("Added latency", format!("{} (median), {} (p99)", ms(level3.latency_median_us), ms(level3.latency_p99_us))),
        ("Standby's lag", format!("{} (median)", ms(level3.lag_median_us))),
        (
            "Last blackout",
            level3.blackout_us.map_or_else(|| "-".to_owned(), |us| format!("{}, when it went on on this host", ms(us))),
        ),
        ("Last session", level3.last_end.clone().map_or_else(|| "-".to_owned(), |why| format!("ended: {why}"))),
    ])
}

const WIDTHS: [usize; 10] = [25, 14, 9, 9, 9, 7, 9, 11, 9, 9];

fn row(cells: [String; 10]) -> String {
    let cells: Vec<String> = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("{}\n", cells.join(" ").trim_end())
}

fn header() -> String {
    row(["TIME", "STATE", "EPOCH", "PAUSE", "P99", "STILL", "PAGES/S", "BYTES/S", "LATENCY", "LAG"].map(str::to_owned))
}

fn line(stats: &Stats, level3: &Level3View) -> String {
    let state = level3_state(&level3.state);
    row([
        output::time(stats.time),
        state.split(':').next().unwrap_or_default().to_owned(),
        ms(level3.epoch_us),
        ms(level3.pause_median_us),
        ms(level3.pause_p99_us),
        permille(level3.stood_still_permille),
        level3.pages_per_s.to_string(),
        bytes(level3.bytes_per_s),
        ms(level3.latency_median_us),
        ms(level3.lag_median_us),
    ])
}

fn permille(part: u64) -> String {
    format!("{}.{} %", part / 10, part % 10)
}

fn ms(microseconds: u64) -> String {
    format!("{}.{} ms", microseconds / 1_000, microseconds % 1_000 / 100)
}

#[cfg(test)]
mod tests {
    use ev_api::vm::Level3State;

    use super::*;

    fn level3() -> Level3View {
        Level3View {
            state: Level3State::Simplex("the link was lost".to_owned()),
            confirmed: 42,
            epoch_us: 12_345,
            pause_median_us: 2_499,
            pause_p99_us: 4_000,
            stood_still_permille: 0,
            pages_per_s: 812,
            bytes_per_s: 3 << 20,
            latency_median_us: 9_870,
            latency_p99_us: 21_000,
            lag_median_us: 999,
            last_end: Some("the link was lost".to_owned()),
            blackout_us: None,
        }
    }

    #[test]
    fn columns_stand_below_their_names() {
        let stats = Stats {
            time: jiff::Timestamp::UNIX_EPOCH,
            vm: "db01".to_owned(),
            level: 3,
            active: Some("alpha".to_owned()),
            standby: Some("beta".to_owned()),
            level3: Some(level3()),
        };
        let (header, line) = (header(), line(&stats, &level3()));
        for (name, value) in [("STATE", "simplex"), ("EPOCH", "12.3 ms"), ("LATENCY", "9.8 ms"), ("LAG", "0.9 ms")] {
            assert_eq!(header.find(name), line.find(value), "{name}\n{header}{line}");
        }
    }

    #[test]
    fn a_guest_without_checkpoints_is_refused_with_the_reason() {
        let vm = |level| Stats {
            time: jiff::Timestamp::UNIX_EPOCH,
            vm: "db01".to_owned(),
            level,
            active: None,
            standby: None,
            level3: None,
        };
        assert!(vm(2).level3().unwrap_err().to_string().contains("db01 is not at level 3"));
        assert!(vm(3).level3().unwrap_err().to_string().contains("db01 does not run"));
    }
}
