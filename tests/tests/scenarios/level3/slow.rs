//! A link that carries less than the guest writes, and a standby whose disk is full: the guest goes on, is never unsafe, and all is said.

use std::time::{Duration, Instant};

use ev_lab::DiskKind;
use ev_tests::{BESIDE_LOAD, Level3View, Pool, Stream, System, TestLab, TinyGuest, TinyImage, eventually, in_client};

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
    // It is slowed, which is said.
    watched(&system, &stream, |level3| level3.stood_still_permille > SLOWED_PERMILLE);
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
    let (mut pauses, start) = (Vec::new(), Instant::now());
    let silence = loop {
        let before = system.protected("h1");
        stream.take_longest_gap();
        pauses.clear();
        watched(&system, &stream, |level3| {
            pauses.push(Duration::from_micros(level3.pause_p99_us));
            true
        });
        let silence = stream.take_longest_gap();
        // A client waits for another record, too, if a busy machine loses the standby meanwhile: then it is watched anew.
        if system.protected("h1").generation == before.generation {
            break silence;
        }
        assert!(start.elapsed() < LIMIT, "the standby is lost again and again");
    };
    pauses.sort_unstable();
    // One look in two at least: some seconds have few pauses, in which this machine itself may stand still.
    assert!(pauses[pauses.len() / 2] < PAUSE_MAX, "{pauses:?}");
    assert!(silence < SILENCE_MAX, "its answers were held back for {silence:?}");
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

/// Watches for a while, and until `seen`, that the guest stands still for less than a second at once.
fn watched(system: &System<'_>, stream: &Stream, mut seen: impl FnMut(&Level3View) -> bool) {
    let (start, mut was_seen) = (Instant::now(), false);
    while !was_seen || start.elapsed() < WATCHED {
        std::thread::sleep(Duration::from_millis(500));
        stream.assert_unbroken();
        let view = system.wait("h1", "a report", |view| view.level3.is_some());
        let level3 = view.level3.expect("it was waited for");
        println!("{:?}: {level3:?}", start.elapsed());
        assert!(Duration::from_micros(level3.pause_p99_us) < STANDSTILL_MAX, "{level3:?}");
        was_seen |= seen(&level3);
        assert!(start.elapsed() < LIMIT, "it did not come to that: {level3:?}");
    }
}

#[test]
fn a_full_disk_of_the_standby_costs_redundancy_until_there_is_room() {
    let lab = TestLab::up(2, 1);
    let (system, load) = System::tiny_with_writes(&lab);
    let (before, boot_id) = (system.protected("h1"), system.boot_id());
    lab.fill_disk("h2", DiskKind::Storage, 0).expect("fills");
    // In case what the load writes has its room already.
    let bulk = |work: &(dyn Fn(&mut TinyGuest) + Sync)| {
        let connect = || TinyGuest::connect(TinyImage::ADDRESS);
        in_client(&lab, || work(&mut eventually("the guest to be reached", LIMIT, connect)));
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
