//! Several VMs are made redundant one after the other: those that wait say so, and nothing calls it an error.

use std::time::{Duration, Instant};

use ev_tests::{Pool, SystemView, TestLab, TinyImage};

/// Slow enough that the guests' memories are on their way for seconds.
const COPY_RATE: &str = "8M";
/// By then every AM has reported again.
const REPORTED: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn memories_are_sent_one_after_the_other_and_who_waits_is_queued() {
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    pool.ok("h1", &["pool-set", "--copy-rate", COPY_RATE, "--sync-at-once", "1"]);
    let names = ["a", "b", "c"];
    for (name, address) in names.iter().zip(["10.10.3.30", "10.10.3.31", "10.10.3.32"]) {
        let mut arguments = TinyImage::find().create_arguments(name, "64M", address);
        arguments.extend(["--host", "h1"].map(str::to_owned));
        pool.ok("h1", &arguments);
        pool.ok("h1", &["pvm-protect", name, "--level", "3", "--wait"]);
    }
    pool.ok("h1", &["pvm-start", "a", "b", "c"]);
    let (start, mut queued) = (Instant::now(), Vec::new());
    loop {
        let mut states = names.map(|name| state(pool, name));
        let on_their_way =
            |states: &[serde_json::Value]| states.iter().filter(|state| *state == "synchronising").count();
        if on_their_way(&states) > 1 {
            // One took over from the other between two looks, or its report is older.
            std::thread::sleep(REPORTED);
            states = names.map(|name| state(pool, name));
            assert!(on_their_way(&states) <= 1, "{states:?}");
        }
        queued.extend(states.iter().filter_map(|state| state.get("queued")?.get("position")?.as_u64()));
        if states.iter().all(|state| state == "protected") {
            break;
        }
        assert!(start.elapsed() < LIMIT, "{states:?}");
        let shown = pool.ok("h1", &["pvm-show", "c"]);
        // Of one that was begun, and lost its link, that may be said.
        let waits = shown.contains("the next attempt comes soon") && shown.contains("none was begun yet");
        assert!(!waits, "{shown}");
    }
    assert!(queued.contains(&1) && queued.contains(&2), "positions seen: {queued:?}");
}

/// What `ev pvm-show` says of Level 3; null before the guest runs.
fn state(pool: Pool<'_>, vm: &str) -> serde_json::Value {
    let view: SystemView = pool.json("h1", &["pvm-show", vm]);
    view.level3.map(|level3| level3.state).unwrap_or_default()
}
