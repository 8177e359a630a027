//! Writes and verifies memory without end, so that a page that was lost, or belongs to another instant, is seen.
//!
//! | kernel parameter | what a thread for each processor does |
//! |---|---|
//! | `ev.memory=MIB` | fills its share of MIB with a pattern of round, thread, page and place; checks each page before it writes it anew |
//! | `ev.dirty=PAGES/MS` | one thread: writes a word into each of PAGES pages, then sleeps until MS milliseconds are over |
//! | `ev.touch=MIB` | one thread, once, before the others: writes each page of MIB, and keeps it |
//!
//! It says each round: `memory THREAD round N good`, or `memory THREAD round N BAD page P`.

use std::time::{Duration, Instant};

use crate::setup::parameter;

const PAGE_WORDS: usize = 512;
/// A round is told only this often, as the console is slow.
const TOLD_EVERY: Duration = Duration::from_millis(100);

type Page = [u64; PAGE_WORDS];

/// Starts what the kernel's command line asks for.
pub fn start(command_line: &str) {
    if let Some(mib) = parameter(command_line, "ev.touch").and_then(|mib| mib.parse::<usize>().ok()) {
        touch(mib);
    }
    if let Some(mib) = parameter(command_line, "ev.memory").and_then(|mib| mib.parse::<usize>().ok()) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let pages = mib * 256 / threads;
        for thread in 0..threads {
            std::thread::spawn(move || verify(thread, pages));
        }
    }
    if let Some((pages, ms)) = parameter(command_line, "ev.dirty").and_then(|value| value.split_once('/'))
        && let (Ok(pages), Ok(ms)) = (pages.parse(), ms.parse())
    {
        std::thread::spawn(move || dirty(pages, Duration::from_millis(ms)));
    }
}

fn word(round: u64, thread: usize, page: usize, place: usize) -> u64 {
    let place = u64::try_from(page * PAGE_WORDS + place).unwrap_or_default();
    let thread = u64::try_from(thread).unwrap_or_default();
    (round ^ thread << 56).wrapping_add(place).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn verify(thread: usize, count: usize) {
    let mut pages: Vec<Page> = vec![[0; PAGE_WORDS]; count];
    let mut told = Instant::now();
    let mut round = 0_u64;
    loop {
        let mut bad = None;
        for (number, page) in pages.iter_mut().enumerate() {
            for (place, found) in page.iter_mut().enumerate() {
                let expected = if round == 0 { 0 } else { word(round, thread, number, place) };
                if *found != expected {
                    bad.get_or_insert(number);
                }
                *found = word(round + 1, thread, number, place);
            }
        }
        round += 1;
        if let Some(page) = bad {
            println!("EVENKEEL-GUEST memory {thread} round {round} BAD page {page}");
        } else if told.elapsed() >= TOLD_EVERY {
            println!("EVENKEEL-GUEST memory {thread} round {round} good");
            told = Instant::now();
        }
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
