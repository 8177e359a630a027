//! What Level 3 costs, over the last seconds: pauses, epochs, bytes, lag.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ev_core::checkpoint::Epoch;
use ev_core::report::{Level3Report, Level3State};
use ev_net::OutputHold;

/// Pauses that are remembered.
const PAUSES_MAX: usize = 1024;
/// Rates are over this time.
const WINDOW: Duration = Duration::from_secs(5);

/// How old the figures of a report may be: to make them takes time.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Where the newest report is found.
#[derive(Debug)]
pub struct Board {
    report: Arc<Mutex<Level3Report>>,
    /// What it says, and since when.
    made: Option<(Level3State, Instant)>,
}

impl Board {
    pub fn new(report: Arc<Mutex<Level3Report>>) -> Self {
        Self { report, made: None }
    }

    /// At once if the state is another one; figures alone seldom.
    pub fn renew(&mut self, state: Level3State, stats: &Stats, hold: &OutputHold) {
        let is_new = |(last, at): &(Level3State, Instant)| *last == state && at.elapsed() < REPORT_INTERVAL;
        if self.made.as_ref().is_some_and(is_new) {
            return;
        }
        self.made = Some((state.clone(), Instant::now()));
        *self.report.lock().expect("a report is only copied under the lock") = stats.report(state, hold);
    }
}

/// The newest pauses, and what was sent.
#[derive(Debug, Default)]
pub struct Stats {
    pauses: VecDeque<(Instant, Duration)>,
    /// Beside pauses.
    brakes: VecDeque<(Instant, Duration)>,
    lags: VecDeque<Duration>,
    /// Ends of pauses whose checkpoint was not confirmed.
    unconfirmed: VecDeque<(Epoch, Instant)>,
    /// Counters as they were read, for the rates.
    sent: VecDeque<(Instant, u64, u64)>,
    confirmed: Epoch,
    pub last_end: Option<String>,
    blackout: Option<Duration>,
}

impl Stats {
    /// `blackout`: when the guest went on here from its memory.
    pub fn new(blackout: Option<Duration>) -> Self {
        Self { blackout, ..Self::default() }
    }

    /// A session begins: its epochs count from one again.
    pub fn begin(&mut self) {
        self.unconfirmed.clear();
        self.sent.clear();
        self.confirmed = Epoch::NONE;
    }

    pub fn paused(&mut self, epoch: Epoch, pause: Duration) {
        keep(&mut self.pauses, (Instant::now(), pause));
        self.unconfirmed.push_back((epoch, Instant::now()));
    }

    /// For the sake of the guest's pace.
    pub fn stood_still(&mut self, time: Duration) {
        keep(&mut self.brakes, (Instant::now(), time));
    }

    pub fn confirmed(&mut self, epoch: Epoch) {
        self.confirmed = self.confirmed.max(epoch);
        while let Some((first, at)) = self.unconfirmed.front().copied().filter(|(first, _)| *first <= epoch) {
            tracing::trace!(%first, "confirmed");
            keep(&mut self.lags, at.elapsed());
            self.unconfirmed.pop_front();
        }
    }

    /// What was sent in this session so far.
    pub fn sent(&mut self, pages: u64, bytes: u64) {
        let now = Instant::now();
        self.sent.push_back((now, pages, bytes));
        while self.sent.len() > 2 && self.sent.front().is_some_and(|(at, ..)| now - *at > WINDOW) {
            self.sent.pop_front();
        }
    }

    pub fn report(&self, state: Level3State, hold: &OutputHold) -> Level3Report {
        let now = Instant::now();
        let recent: Vec<Duration> =
            self.pauses.iter().filter(|(at, _)| now - *at <= WINDOW).map(|(_, pause)| *pause).collect();
        let brakes = self.brakes.iter().filter(|(at, _)| now - *at <= WINDOW).map(|(_, time)| *time);
        let stood_still: Duration = recent.iter().copied().chain(brakes).sum();
        let epochs = u64::try_from(recent.len()).unwrap_or(u64::MAX);
        let (pages_per_s, bytes_per_s) = self.rates();
        let added = hold.added_delay();
        Level3Report {
            state,
            confirmed: self.confirmed.0,
            epoch_us: micros(WINDOW).checked_div(epochs).unwrap_or(0),
            pause_median_us: percentile(&recent, 50),
            pause_p99_us: percentile(&recent, 99),
            stood_still_permille: micros(stood_still) * 1_000 / micros(WINDOW),
            pages_per_s,
            bytes_per_s,
            latency_median_us: added.map_or(0, |added| added.median_us),
            latency_p99_us: added.map_or(0, |added| added.p99_us),
            lag_median_us: percentile(&self.lags.iter().copied().collect::<Vec<_>>(), 50),
            last_end: self.last_end.clone(),
            blackout_us: self.blackout.map(micros),
        }
    }

    fn rates(&self) -> (u64, u64) {
        let (Some((from, pages, bytes)), Some((to, pages_now, bytes_now))) = (self.sent.front(), self.sent.back())
        else {
            return (0, 0);
        };
        let ms = u64::try_from((*to - *from).as_millis()).unwrap_or(u64::MAX);
        let rate = |before: u64, now: u64| (now.saturating_sub(before) * 1_000).checked_div(ms).unwrap_or(0);
        (rate(*pages, *pages_now), rate(*bytes, *bytes_now))
    }
}

fn keep<T>(values: &mut VecDeque<T>, value: T) {
    if values.len() >= PAUSES_MAX {
        values.pop_front();
    }
    values.push_back(value);
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Of the values; 0 if there are none.
fn percentile(values: &[Duration], percent: usize) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(at).copied().map_or(0, micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let values: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (50_000, 99_000));
        assert_eq!(percentile(&[], 50), 0);
    }
}
