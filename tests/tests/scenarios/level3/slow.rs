//! A link that carries less than the guest writes, and a standby whose disk is full: the guest goes on, is never unsafe, and all is said.

use std::time::{Duration, Instant};

use ev_lab::DiskKind;
use ev_tests::{BESIDE_LOAD, Pool, Stream, System, TestLab, TinyGuest, TinyImage, in_client};

use super::SLOW_BITS_PER_S;

/// For so long it is watched what becomes of it.
const WATCHED: Duration = Duration::from_secs(15);
/// A guest must not stand still for longer.
const STANDSTILL_MAX: Duration = Duration::from_secs(1);
const BLACKOUT: Duration = Duration::from_millis(20);
/// What a pause may take then, by programs that are not optimised, on a machine that both hosts share with the guest: it may be late to
/// notice that time is over.
const PAUSE_MAX: Duration = Duration::from_millis(150);
/// A client waits for two checkpoints of hundreds of megabytes.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Pauses alone make up a tenth of the time.
const SLOWED_PERMILLE: u64 = 250;
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_guest_that_writes_more_than_the_link_carries_is_slowed_and_goes_on() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    for host in ["h1", "h2"] {
        lab.set_private_rate(host, Some(SLOW_BITS_PER_S));
    }
    let (stood_still, _) = watched(&system, &stream, STANDSTILL_MAX);
    assert!(stood_still > SLOWED_PERMILLE, "it is slowed, which is said: only {stood_still} of a thousand");
    // A dead host is no matter either way.
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

/// It writes a word into each of 400 MB of pages, again and again without a rest: more than is copied in so short a time.
#[test]
fn a_guest_that_writes_faster_than_its_pages_are_copied_stands_still_for_hardly_longer_than_was_set() {
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    pool.ok("h1", &["pool-set", "--blackout", &BLACKOUT.as_millis().to_string()]);
    let parameters = "ev.dirty=100000/0 ev.memory=16/50";
    let arguments = TinyImage::find().create_measured_arguments("tiny", 768, parameters);
    let system = System::unprotected(&lab, pool, "tiny", &arguments);
    let stream = Stream::start(&lab, TinyImage::ADDRESS);
    system.goes_on(&stream);
    system.pool.ok("h1", &["pvm-protect", system.vm, "--level", "3", "--wait"]);
    system.protected("h1");
    stream.take_longest_gap();
    let (_, silence) = watched(&system, &stream, PAUSE_MAX);
    assert!(silence < SILENCE_MAX, "its answers were held back for {silence:?}");
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

/// Watches for a while that the guest stands still for `pause_max` at most at once; returns which part of the time it stood still, in
/// thousandths, and for how long at most it did not answer.
fn watched(system: &System<'_>, stream: &Stream, pause_max: Duration) -> (u64, Duration) {
    let (start, mut stood_still, mut silence) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < WATCHED {
        std::thread::sleep(Duration::from_millis(500));
        let view = system.view("h1");
        let level3 = view.level3.expect("it is at level 3");
        let gap = stream.take_longest_gap();
        println!("{:?}: {level3:?}, gap {gap:?}", start.elapsed());
        assert!(Duration::from_micros(level3.pause_p99_us) < pause_max, "{level3:?}");
        stood_still = stood_still.max(level3.stood_still_permille);
        silence = silence.max(gap);
    }
    (stood_still, silence)
}

#[test]
fn a_full_disk_of_the_standby_costs_redundancy_until_there_is_room() {
    let lab = TestLab::up(2, 1);
    let (system, load) = System::tiny_with_writes(&lab);
    let (before, boot_id) = (system.protected("h1"), system.boot_id());
    lab.fill_disk("h2", DiskKind::Storage, 0).expect("fills");
    // In case what the load writes has its room already.
    let bulk = |work: &(dyn Fn(&mut TinyGuest) + Sync)| {
        in_client(&lab, || work(&mut TinyGuest::connect(TinyImage::ADDRESS).expect("it answers")));
    };
    bulk(&|guest: &mut TinyGuest| guest.fill(BESIDE_LOAD.0, BESIDE_LOAD.1, 7).expect("written, on one host"));
    load.wait_for_more(100, LIMIT);
    system.simplex("h1");
    lab.unfill_disk("h2", DiskKind::Storage).expect("empties");
    system.protected_anew("h1", &before);
    lab.kill("h1").expect("dies");
    load.wait_for_more(50, LIMIT);
    bulk(&|guest: &mut TinyGuest| guest.check(BESIDE_LOAD.0, BESIDE_LOAD.1, 7).expect("all of it is there"));
    assert_eq!(system.boot_id(), boot_id, "the guest went on");
    println!("{:?}", load.stop());
}
