//! What Level 3 costs, and how long a host's death is seen: `cargo xtask bench checkpoint` runs it. One JSON object on standard output.
//!
//! One lab; each guest is measured without protection first, then at Level 3: one that does nothing (`idle`, and `deaths` of its
//! hosts), and three that work (`work`).

mod deaths;
mod idle;
mod work;

use std::time::Duration;

use ev_tests::{Pool, TestLab};
use serde_json::{Map, Value};

/// How long answers, work and processor time are counted.
const MEASURED: Duration = Duration::from_secs(15);
/// After a change of level, before anything is measured.
const SETTLING: Duration = Duration::from_secs(3);
/// Of each guest.
const MEMORY_MIB: u32 = 1024;

/// `ev-checkpoints [KILLS [PART …]]`: parts are `cpu`, `dirty`, `pgbench` and `idle`; all of them if none is named.
fn main() {
    let kills: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let parts: Vec<String> = std::env::args().skip(2).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    let mut measured = Map::new();
    for (name, ratio) in work::ratios(&lab, pool, wanted) {
        measured.insert(name.to_owned(), ratio.into());
    }
    if wanted("idle") {
        measured.extend(idle::measure(&lab, pool, kills));
    }
    println!("{}", Value::Object(measured));
}
