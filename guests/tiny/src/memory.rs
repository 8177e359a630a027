//! Writes and verifies memory without end, so that a page that was lost, or belongs to another instant, is seen.
//!
//! | kernel parameter | what a thread for each processor does |
//! |---|---|
//! | `ev.memory=MIB[/MS]` | fills its share of MIB with a pattern of round, thread, page and place; checks each page before it writes it anew; rests for MS milliseconds between two rounds |
//! | `ev.dirty=PAGES/MS` | one thread: writes a word into each of PAGES pages, then sleeps until MS milliseconds are over |
//! | `ev.touch=MIB` | one thread, once, before the others: writes each page of MIB, and keeps it |
//!
//! It says each round: `memory THREAD round N good`, or `memory THREAD round N BAD page P`; and keeps count for the service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::setup::parameter;

const PAGE_WORDS: usize = 512;
/// A round is told only this often, as the console is slow.
const TOLD_EVERY: Duration = Duration::from_millis(100);

type Page = [u64; PAGE_WORDS];

/// What the verifying threads have found so far.
#[derive(Debug, Default)]
pub struct Verified {
    /// Whole rounds, by thread.
    rounds: Vec<AtomicU64>,
    /// By all threads.
    pages: AtomicU64,
    bad_pages: AtomicU64,
}

impl Verified {
    /// `THREADS LOWEST-ROUND PAGES BAD-PAGES`: a thread that stands still shows as a lowest round that does not rise.
    pub fn words(&self) -> String {
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let lowest = self.rounds.iter().map(read).min().unwrap_or_default();
        format!("{} {lowest} {} {}", self.rounds.len(), read(&self.pages), read(&self.bad_pages))
    }
}

/// Starts what the kernel's command line asks for.
pub fn start(command_line: &str) -> Arc<Verified> {
    if let Some(mib) = parameter(command_line, "ev.touch").and_then(|mib| mib.parse::<usize>().ok()) {
        touch(mib);
    }
    let verified = parameter(command_line, "ev.memory").and_then(start_verifiers).unwrap_or_default();
    if let Some((pages, ms)) = parameter(command_line, "ev.dirty").and_then(|value| value.split_once('/'))
        && let (Ok(pages), Ok(ms)) = (pages.parse(), ms.parse())
    {
        std::thread::spawn(move || dirty(pages, Duration::from_millis(ms)));
    }
    verified
}

/// One for each processor; `None` if the parameter says nothing that they could do.
fn start_verifiers(parameter: &str) -> Option<Arc<Verified>> {
    let (mib, ms) = parameter.split_once('/').unwrap_or((parameter, "0"));
    let (mib, rest) = (mib.parse::<usize>().ok()?, Duration::from_millis(ms.parse().ok()?));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rounds = (0..threads).map(|_| AtomicU64::new(0)).collect();
    let verified = Arc::new(Verified { rounds, ..Verified::default() });
    for thread in 0..threads {
        let verified = Arc::clone(&verified);
        std::thread::spawn(move || verify(thread, mib * 256 / threads, rest, &verified));
    }
    Some(verified)
}

fn word(round: u64, thread: usize, page: usize, place: usize) -> u64 {
    let place = u64::try_from(page * PAGE_WORDS + place).unwrap_or_default();
    let thread = u64::try_from(thread).unwrap_or_default();
    (round ^ thread << 56).wrapping_add(place).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn verify(thread: usize, count: usize, rest: Duration, verified: &Verified) {
    let mut pages: Vec<Page> = vec![[0; PAGE_WORDS]; count];
    let mut told = Instant::now();
    let mut round = 0_u64;
    loop {
        let mut bad = None;
        for (number, page) in pages.iter_mut().enumerate() {
            let mut good = true;
            for (place, found) in page.iter_mut().enumerate() {
                let expected = if round == 0 { 0 } else { word(round, thread, number, place) };
                good &= *found == expected;
                *found = word(round + 1, thread, number, place);
            }
            if !good {
                bad.get_or_insert(number);
                verified.bad_pages.fetch_add(1, Ordering::SeqCst);
            }
            verified.pages.fetch_add(1, Ordering::SeqCst);
        }
        round += 1;
        verified.rounds[thread].store(round, Ordering::SeqCst);
        if let Some(page) = bad {
            println!("EVENKEEL-GUEST memory {thread} round {round} BAD page {page}");
        } else if told.elapsed() >= TOLD_EVERY {
            println!("EVENKEEL-GUEST memory {thread} round {round} good");
            told = Instant::now();
        }
        std::thread::sleep(rest);
    }
}

fn dirty(count: usize, period: Duration) {
    let mut pages: Vec<Page> = vec![[1; PAGE_WORDS]; count];
    println!("EVENKEEL-GUEST dirties {count} pages");
    let mut next = Instant::now();
    for round in 0_u64.. {
        for page in &mut pages {
            page[0] = round;
        }
        std::hint::black_box(&pages);
        next += period;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn touch(mib: usize) {
    let mut pages: Vec<Page> = vec![[1; PAGE_WORDS]; mib * 256];
    std::hint::black_box(&mut pages);
    std::mem::forget(pages);
    println!("EVENKEEL-GUEST touched {mib} MiB");
}
