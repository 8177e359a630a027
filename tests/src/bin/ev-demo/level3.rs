//! Level 3 as it happens: hosts die, and a client keeps its one connection. Its latency is drawn at the end.

use std::time::Duration;

use ev_tests::{Answered, StreamReport, System, TestLab};

use super::{Story, indent};

/// Time that a line of the graph stands for, at least; more if the graph would be longer than [`LINES_MAX`].
const LINE_MIN: Duration = Duration::from_millis(250);
const LINES_MAX: u32 = 60;
/// A bar of this many characters stands for the highest latency.
const BAR_CHARACTERS: f64 = 50.0;

/// Kills each host in turn, so many times in all. The scenario's own checks end the program with a message if the guest or its
/// client noticed anything.
pub fn tell(story: &Story, kills: u32) {
    story.tell("Level 3: a lab with two hosts and a quorum server; a guest with two processors that verifies its memory all the time");
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    story.tell("its memory, processors and disk are on both hosts now; a client outside sends a message every 5 ms over one connection");
    let (mut asked, mut owners) = ("h1".to_owned(), vec!["h1".to_owned()]);
    for kill in 1..=kills {
        let gone_on = system.kill_active(&stream, &asked);
        story.tell(&format!(
            "kill {kill}: {} was killed without warning; the guest went on on {}, and the client had no answer for {:.0} ms",
            gone_on.from,
            gone_on.to,
            gone_on.blackout.as_secs_f64() * 1_000.0
        ));
        let took = system.bring_back(&stream, &gone_on);
        story.tell(&format!(
            "{} is switched on again, and the guest is protected again after {:.1} s, while it runs",
            gone_on.from,
            took.as_secs_f64()
        ));
        owners.push(gone_on.to.clone());
        asked = gone_on.to;
    }
    indent(&system.pool.ok(&asked, &["pvm-show", system.vm]));
    let owners: Vec<&str> = owners.iter().map(String::as_str).collect();
    let report = system.unnoticed(stream, &owners);
    story.tell(&format!(
        "{} messages answered in order over the one connection, none lost; {} pages of memory verified, {} bad",
        report.answered, report.memory.pages, report.memory.bad_pages
    ));
    story.tell("the client's highest latency over time:");
    indent(&graph(&report));
}

/// One line for each stretch of time, with the highest latency in it.
fn graph(report: &StreamReport) -> String {
    let end = report.trace.last().map_or(Duration::ZERO, |answer| answer.at);
    let line = LINE_MIN.max(end / LINES_MAX);
    let highest = report.trace.iter().map(|answer| answer.latency).max().unwrap_or_default().as_secs_f64();
    let mut lines = Vec::new();
    let mut from = Duration::ZERO;
    while from < end {
        let until = from + line;
        let within = |answer: &&Answered| answer.at >= from && answer.at < until;
        let worst = report.trace.iter().filter(within).map(|answer| answer.latency).max().unwrap_or_default();
        let share = if highest > 0.0 { worst.as_secs_f64() / highest } else { 0.0 };
        let bar: String = std::iter::repeat_n('#', bar_length(share)).collect();
        lines.push(format!("{:6.1} s {:7.1} ms {bar}", from.as_secs_f64(), worst.as_secs_f64() * 1_000.0));
        from = until;
    }
    lines.join("\n")
}

/// Characters for a share of the highest.
fn bar_length(share: f64) -> usize {
    let characters = (share * BAR_CHARACTERS).ceil();
    (0..=50)
        .rev()
        .find(|length: &u32| f64::from(*length) <= characters)
        .and_then(|length| usize::try_from(length).ok())
        .unwrap_or(0)
}
