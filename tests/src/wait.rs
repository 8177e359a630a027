//! Waiting for what others bring about.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Looks until there is what was waited for, and returns it.
///
/// # Panics
/// If it is not there in time; the message has what the last look said instead.
#[track_caller]
pub fn eventually<T, E: Display>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) if Instant::now() >= deadline => {
                panic!("waited {} s in vain for {what}; the last look said: {instead}", limit.as_secs())
            }
            Err(_) => std::thread::sleep(LOOK_INTERVAL),
        }
    }
}
