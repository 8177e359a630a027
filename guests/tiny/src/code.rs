//! Has the kernel change its own code without end while all processors run it: what emulators get wrong first.
//!
//! | kernel parameter | what happens |
//! |---|---|
//! | `ev.code=on` | one thread switches the scheduler's statistics on and off, for which the kernel rewrites instructions in its scheduler (`kernel.sched_schedstats`, a static key); for each processor, one thread sleeps and wakes |
//!
//! It says how often it did so: `code changed N times`. If a processor goes on with instructions that are no longer there, it says
//! nothing any more.

use std::fs;
use std::time::{Duration, Instant};

use crate::setup::parameter;

const SWITCH: &str = "/proc/sys/kernel/sched_schedstats";
/// Short, so that the scheduler hardly rests.
const SLEEP: Duration = Duration::from_micros(50);
/// The console is slow.
const TOLD_EVERY: Duration = Duration::from_millis(100);

/// Starts what the kernel's command line asks for.
pub fn start(command_line: &str) {
    if parameter(command_line, "ev.code").is_none() {
        return;
    }
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(SLEEP);
            }
        });
    }
    std::thread::spawn(change);
}

fn change() {
    let mut told = Instant::now();
    for count in 1_u64.. {
        if let Err(error) = fs::write(SWITCH, if count % 2 == 0 { "0" } else { "1" }) {
            println!("EVENKEEL-GUEST could not write {SWITCH}: {error}");
            return;
        }
        if told.elapsed() >= TOLD_EVERY {
            println!("EVENKEEL-GUEST code changed {count} times");
            told = Instant::now();
        }
    }
}
