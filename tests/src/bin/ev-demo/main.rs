//! The main job on one machine, told as it happens: `cargo xtask demo` runs it.

mod level3;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ev_tests::{DebianGuest, Load, Pool, Postgres, Protected, Service, TestLab, in_client};

const VM: &str = "db01";
const MIB: u64 = 1 << 20;
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// Tells what happens, with the time since the beginning.
struct Story {
    start: Instant,
}

impl Story {
    fn tell(&self, text: &str) {
        println!("[{:7.1} s] {text}", self.start.elapsed().as_secs_f64());
    }
}

/// `ev-demo ROUNDS [lose-a-row]`
fn main() -> ExitCode {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    let lose_a_row = std::env::args().nth(2).is_some_and(|word| word == "lose-a-row");
    let story = Story { start: Instant::now() };
    if !lose_a_row {
        level3::tell(&story, rounds);
    }
    story.tell(
        "Level 2, in another lab: two hosts, a quorum server, a client outside; each in network namespaces of its own",
    );
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    story.tell("a pool of both hosts and the quorum server:");
    indent(&pool.ok("h1", &["pool-show"]));
    story.tell("taking in a real guest: Debian 12 with PostgreSQL, from a qcow2 image");
    pool.ok("h1", &DebianGuest::find().import_arguments(VM));
    story.tell("protecting it at Level 2: its disk on both hosts");
    pool.ok("h1", &["pvm-protect", VM, "--level", "2", "--wait"]);
    pool.ok("h1", &["pvm-start", VM]);
    story.tell("it boots; a client outside inserts rows and keeps count of the acknowledged ones");
    let load = Load::start(&lab, 0, Postgres::connect);
    let protected = Protected { lab: &lab, pool, vm: VM };
    if lose_a_row {
        load.wait_for_more(1, BOOT_LIMIT);
        in_client(&lab, || Postgres::connect()?.delete(0)).expect("the database takes it");
        story.tell("an acknowledged row was deleted behind the client's back, to see that it is missed");
    }
    let lost = tell_rounds(&story, &protected, &load, rounds);
    let report = load.stop();
    story.tell(&format!("the client stops after {} acknowledged rows", report.acknowledged));
    if lost == 0 {
        story.tell("nothing that was acknowledged was lost");
        ExitCode::SUCCESS
    } else {
        story.tell(&format!("{lost} acknowledged rows were LOST"));
        ExitCode::FAILURE
    }
}

/// Kills and brings back hosts in turn; how many acknowledged rows were lost, or 1 if the database is damaged.
fn tell_rounds(story: &Story, protected: &Protected<'_>, load: &Load, rounds: u32) -> usize {
    let mut asked = "h1".to_owned();
    let mut lost = 0;
    for round in 1..=rounds {
        protected.in_sync(&asked);
        story.tell(&format!("round {round}: both replicas are good; {} rows so far", load.acknowledged()));
        let takeover = protected.kill_active(load, &asked);
        story.tell(&format!(
            "{} was killed without warning; {} took over, and rows were acknowledged again {:.1} s after the death",
            takeover.dead,
            takeover.active,
            takeover.service_back.as_secs_f64()
        ));
        lost += check(story, protected, load.acknowledged());
        story.tell(&format!("{} is switched on again", takeover.dead));
        let back = protected.bring_back(&takeover);
        story.tell(&format!(
            "{} is in sync after {:.1} s: {} MiB of {} MiB moved, {}",
            takeover.dead,
            back.in_sync.as_secs_f64(),
            back.moved_bytes() / MIB,
            back.disk_bytes / MIB,
            if back.by_delta_copy() { "by delta copy" } else { "by full mirror copy" }
        ));
        indent(&protected.pool.ok(&takeover.active, &["pvm-show", VM]));
        asked = takeover.active;
    }
    lost
}

fn check(story: &Story, protected: &Protected<'_>, acknowledged: u64) -> usize {
    let missing = in_client(protected.lab, || Postgres::connect().and_then(|mut client| client.missing(acknowledged)));
    let lost = match missing {
        Ok(missing) => missing.len(),
        Err(error) => {
            story.tell(&format!("the database does not answer: {error}"));
            return 1;
        }
    };
    story.tell(&format!("of {acknowledged} acknowledged rows, {lost} are missing"));
    match Postgres::check_integrity(protected.lab) {
        Ok(()) => story.tell("pg_amcheck finds nothing wrong"),
        Err(complaint) => {
            story.tell("pg_amcheck complains:");
            indent(&complaint);
            return lost.max(1);
        }
    }
    lost
}

fn indent(text: &str) {
    for line in text.lines() {
        println!("            | {line}");
    }
}
