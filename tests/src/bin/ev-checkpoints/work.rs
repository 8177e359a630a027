//! Work that a guest does in a given time at Level 3, as a ratio to the same guest without protection.

use std::time::{Duration, Instant};

use ev_tests::{DebianGuest, Pool, Postgres, System, TestLab, TinyGuest, TinyImage, eventually, in_client};

use super::{MEASURED, MEMORY_MIB, SETTLING};

/// How much both processors write and verify in turn: little enough for a processor's cache, and 400 MB/s of other pages.
const PROCESSOR_BOUND: &str = "ev.memory=1";
const DIRTYING: &str = "ev.memory=96";
/// A guest boots on an emulated processor.
const LIMIT: Duration = Duration::from_secs(300);
/// pgbench: rows (in 100,000), and clients. With fewer branches than clients it would measure how long they wait for each other; with few
/// clients, how long each waits for its answers.
const PGBENCH_SCALE: &str = "64";
const PGBENCH_CLIENTS: &str = "64";
/// Connecting so many clients to an emulated guest takes seconds of it.
const PGBENCH_TIME: Duration = Duration::from_secs(40);

/// Name and ratio of each kind of work.
pub fn ratios(lab: &TestLab, pool: Pool<'_>, wanted: impl Fn(&str) -> bool) -> Vec<(&'static str, f64)> {
    let tiny = TinyImage::find();
    let mut ratios = Vec::new();
    let busy = [("ratio_cpu", "cpu", PROCESSOR_BOUND), ("ratio_dirty", "dirty", DIRTYING)];
    for (name, vm, parameters) in busy.into_iter().filter(|(_, vm, _)| wanted(vm)) {
        let arguments = tiny.create_measured_arguments(vm, MEMORY_MIB, parameters);
        let system = System::unprotected(lab, pool, vm, &arguments);
        ratios.push((name, ratio(&system, name, || pages_per_s(lab))));
    }
    if wanted("pgbench") {
        ratios.push(("ratio_pgbench", pgbench_ratio(lab, pool)));
    }
    ratios
}

fn pgbench_ratio(lab: &TestLab, pool: Pool<'_>) -> f64 {
    let mut arguments = DebianGuest::find().import_arguments_with("db01", MEMORY_MIB);
    arguments.extend(["--vcpus", "2"].map(str::to_owned));
    let system = System::unprotected(lab, pool, "db01", &arguments);
    in_client(lab, || eventually("the database", LIMIT, Postgres::connect));
    pgbench(lab, &["--initialize", "--scale", PGBENCH_SCALE]);
    ratio(&system, "ratio_pgbench", || transactions_per_s(lab))
}

/// Without protection it is measured before and after: the host itself is not equally fast at all times. The guest ends after that.
fn ratio(system: &System<'_>, name: &str, work: impl Fn() -> f64) -> f64 {
    let before = work();
    system.pool.ok("h1", &["pvm-protect", system.vm, "--level", "3", "--wait"]);
    system.protected("h1");
    std::thread::sleep(SETTLING);
    let protected = work();
    system.pool.ok("h1", &["pvm-unprotect", system.vm, "--wait"]);
    std::thread::sleep(SETTLING);
    let after = work();
    eprintln!("{name}: {before:.1} and {after:.1} a second without protection, {protected:.1} at Level 3");
    system.pool.ok("h1", &["pvm-force-off", system.vm]);
    system.wait("h1", "the guest to end", |view| view.power == ev_api::vm::PowerState::Off);
    protected / f64::midpoint(before, after)
}

/// Of the guest's own verification.
fn pages_per_s(lab: &TestLab) -> f64 {
    in_client(lab, || {
        let pages =
            || eventually("the guest to answer", LIMIT, || TinyGuest::connect(TinyImage::ADDRESS)?.memory_pages());
        let (before, start) = (pages(), Instant::now());
        std::thread::sleep(MEASURED);
        let after = pages();
        let count = u32::try_from(after - before).expect("the pages of some seconds");
        f64::from(count) / start.elapsed().as_secs_f64()
    })
}

fn transactions_per_s(lab: &TestLab) -> f64 {
    // Each run finds the same: nothing to be written of the one before, no page that was changed since the database's checkpoint, and
    // (by pgbench itself) no dead rows in the small tables, through which each transaction would have to look.
    let done = in_client(lab, || Postgres::connect()?.checkpoint());
    done.unwrap_or_else(|error| panic!("the database made no checkpoint: {error}"));
    let seconds = PGBENCH_TIME.as_secs().to_string();
    let arguments = ["--client", PGBENCH_CLIENTS, "--jobs", "1", "--time", &seconds];
    let text = pgbench(lab, &arguments);
    let found = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    found.unwrap_or_else(|| panic!("pgbench told no rate: {text}"))
}

/// From the client's machine.
fn pgbench(lab: &TestLab, arguments: &[&str]) -> String {
    let mut command = lab.command("client", "pgbench").expect("a lab has a client");
    command
        .args(["--host", DebianGuest::ADDRESS, "--username", Postgres::USER])
        .args(arguments)
        .arg(Postgres::DATABASE);
    let output = command.env("PGPASSWORD", Postgres::PASSWORD).output().expect("pgbench starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    assert!(output.status.success(), "pgbench: {}", text(output.stderr));
    text(output.stdout)
}
