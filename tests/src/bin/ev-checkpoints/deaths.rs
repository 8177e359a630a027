//! For how long a client has no answer when a host dies.

use std::time::Duration;

use ev_tests::{Stream, System, TinyImage};
use serde_json::{Map, Value, json};

use super::idle::Vm;

/// Kills the active host so many times, each time after its standby is back.
pub fn measure(vm: &Vm<'_>, system: &System<'_>, kills: usize) -> Map<String, Value> {
    let stream = Stream::start(vm.lab, TinyImage::ADDRESS);
    let mut asked = "h1".to_owned();
    let (mut blackouts, mut takeovers) = (Vec::new(), Vec::new());
    for kill in 1..=kills {
        let gone_on = system.kill_active(&stream, &asked);
        let takeover = vm.takeover(&gone_on.to);
        eprintln!(
            "kill {kill}: {} to {}, no answer for {:?}, of it the takeover {takeover:?}",
            gone_on.from, gone_on.to, gone_on.blackout
        );
        blackouts.push(gone_on.blackout);
        takeovers.extend(takeover);
        system.bring_back(&stream, &gone_on);
        asked = gone_on.to;
    }
    stream.stop();
    let (blackouts, takeovers) = (sorted_ms(&blackouts), sorted_ms(&takeovers));
    let at = |values: &[f64], share: usize| values.get(values.len().saturating_sub(1) * share / 100).copied();
    [
        ("kills", json!(kills)),
        ("blackout_median_ms", json!(at(&blackouts, 50))),
        ("blackout_worst_ms", json!(at(&blackouts, 100))),
        ("takeover_median_ms", json!(at(&takeovers, 50))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

fn sorted_ms(times: &[Duration]) -> Vec<f64> {
    let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1_000.0).collect();
    times.sort_by(f64::total_cmp);
    times
}
