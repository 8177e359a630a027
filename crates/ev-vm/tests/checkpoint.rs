//! Checkpoints of a real guest with two processors, and its continuation in a second QEMU.

mod support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use ev_vm::checkpoint::{
    AtStop, Capture, CaptureError, Checkpoint, EpochBuffer, NotTaken, Processors, RestoreError, Standby, StateError,
};
use ev_vm::ram::PartlyDone;
use ev_vm::{EventKind, Guest, Qemu, QmpError, RunState};
use support::tracked::{
    Image, apply, copy_all, machines, nothing_else, round, running_tiny, said, tiny, tracked, until_said,
};
use support::{DiskServer, Ending, Folders, PATIENCE, Serial, heard, tcg, until};
use tokio::time::timeout;

const CHECKPOINTS: usize = 40;
const THREADS: usize = 2;

/// A checkpoint that QEMU did not come to in time is tried again with the same buffer.
async fn attempted(
    capture: &mut Capture,
    mut epoch: EpochBuffer,
    copying_max: Option<Duration>,
    at_stop: AtStop,
) -> Result<Checkpoint, NotTaken> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match capture.checkpoint(epoch, copying_max, Arc::clone(&at_stop)).await {
            Err(refused) if is_late(&refused.error) && Instant::now() < deadline => epoch = kept(refused),
            result => return result,
        }
    }
}

fn is_late(error: &CaptureError) -> bool {
    matches!(error, CaptureError::Qmp(QmpError::TimedOut { .. }))
}

fn kept(refused: NotTaken) -> EpochBuffer {
    *refused.epoch.expect("nothing was lost")
}

async fn taken(capture: &mut Capture, epoch: EpochBuffer) -> Checkpoint {
    attempted(capture, epoch, None, nothing_else()).await.unwrap()
}

async fn taken_first(capture: &mut Capture) -> Checkpoint {
    let epoch = capture.buffer().unwrap();
    taken(capture, epoch).await
}

/// The guest writes and verifies its memory all the time; it must go on exactly at its last checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_continues_in_a_second_qemu_at_its_last_checkpoint() {
    for (qemu, machine) in machines() {
        let (first, second) = (Folders::new(), Folders::new());
        let spec = tiny(&first, machine, 256, "ev.memory=48");
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        until_said(&first, "memory 1 round").await;

        let mut waiting = spec.clone();
        waiting.paths = second.paths.clone();
        waiting.memory = tracked(spec.memory_mib);
        let standby = Standby::prepare(&qemu, &tcg(), &waiting).await.unwrap();
        let ending = Ending(standby.guest().clone());
        let begin = || {
            let capture = Capture::start(&guest, THREADS).unwrap();
            copy_all(capture.tracker().memory(), standby.memory());
            let epoch = capture.buffer().unwrap();
            (capture, epoch)
        };
        let (mut capture, mut epoch) = begin();
        eprintln!("{:?}", capture.tracker().memory().layout());
        let mut device_state = Vec::new();
        for number in 0..CHECKPOINTS {
            epoch.clear();
            let (mut precopied, pass) = capture.precopy(epoch).await.unwrap();
            if number % 8 == 7 {
                let mut at = PartlyDone::default();
                while !capture.tracker().is_over(at) {
                    let part = Duration::from_millis(1);
                    match capture.precopy_standing(precopied, at, part).await {
                        Ok(done) => (precopied, at, _) = done,
                        Err(error) => {
                            // Unlike a checkpoint it can not be tried again: what was found before is lost.
                            assert!(is_late(&error), "{error}");
                            drop(capture);
                            (capture, precopied) = begin();
                            break;
                        }
                    }
                }
            }
            let checkpoint = taken(&mut capture, precopied).await;
            if number % 10 == 0 {
                eprintln!("{pass:?} {} pages in the pause, {:?}", checkpoint.pause_pages, checkpoint.times);
            }
            epoch = checkpoint.epoch;
            apply(&epoch.pages, standby.memory());
            device_state.clone_from(&epoch.device_state);
        }
        guest.kill().unwrap();
        guest.exited().await;
        let before = [0, 1].map(|thread| round(&said(&first), thread));

        let (guest, times) = standby.resume(&device_state).await.unwrap();
        eprintln!("{machine}: continued: {times:?}, {} bytes of device state", device_state.len());
        until("both threads' next rounds", || {
            let said = said(&second);
            (0..2).all(|thread| round(&said, thread) > before[thread] + 3)
        })
        .await;
        assert!(!guest.log_tail().contains("vmdescription"), "{}", guest.log_tail());
        drop(ending);
    }
}

/// With a disk, a NIC and the firmware's memory: what a device does after the takeover works too.
#[tokio::test(flavor = "multi_thread")]
async fn a_continued_guest_uses_its_disk_and_its_serial_port() {
    for (qemu, machine) in machines() {
        let (first, second) = (Folders::new(), Folders::new());
        let _disk = DiskServer::start(&first.boot_disk(), &first.paths.nbd(0)).await;
        let _copy = DiskServer::start(&second.boot_disk(), &second.paths.nbd(0)).await;
        let mut spec = first.spec(machine);
        spec.memory = tracked(spec.memory_mib);
        let (guest, _) = heard(&qemu, spec, "READY\n").await;
        let mut waiting = second.spec(machine);
        waiting.memory = tracked(waiting.memory_mib);
        let standby = Standby::prepare(&qemu, &tcg(), &waiting).await.unwrap();
        let _ending = Ending(standby.guest().clone());
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        copy_all(capture.tracker().memory(), standby.memory());
        let epoch = taken_first(&mut capture).await.epoch;
        apply(&epoch.pages, standby.memory());
        guest.kill().unwrap();
        guest.exited().await;

        let (guest, _) = standby.resume(&epoch.device_state).await.unwrap();
        let mut serial = Serial::connect(&second.paths).await;
        serial.send("w").await;
        serial.expect("b").await;
        let statistics = guest.qmp().await.unwrap().disk_statistics(0).await.unwrap();
        assert_eq!(statistics.write_bytes, 512);
        // It can be protected anew at once.
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        taken_first(&mut capture).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stands_still_is_left_so_and_one_that_is_gone_is_told() {
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let guest = Ending(Guest::start(&qemu, &tcg(), &tiny(&folders, machine, 128, "")).await.unwrap());
        let qmp = guest.qmp().await.unwrap();
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        let mut epoch = taken_first(&mut capture).await.epoch;
        assert_eq!(qmp.status().await.unwrap(), RunState::Running);

        qmp.stop().await.unwrap();
        let refused = capture.checkpoint(epoch, None, nothing_else()).await.expect_err("the guest stands still");
        assert!(matches!(refused.error, CaptureError::NotRunning { state: RunState::Paused }), "{refused:?}");
        assert_eq!(qmp.status().await.unwrap(), RunState::Paused);
        qmp.cont().await.unwrap();
        epoch = taken(&mut capture, kept(refused)).await.epoch;

        guest.kill().unwrap();
        guest.exited().await;
        let refused = capture.checkpoint(epoch, None, nothing_else()).await.expect_err("the guest is gone");
        assert!(matches!(refused.error, CaptureError::Qmp(QmpError::Closed { .. })), "{refused:?}");
    }
}

/// A disk server that does not answer (an AM that waits for a record) keeps QEMU from stopping in time. Nothing is lost by
/// that: the same buffer gives a whole checkpoint later.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_delays_the_checkpoint_and_loses_no_page() {
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let disk = DiskServer::start(&folders.boot_disk(), &folders.paths.nbd(0)).await;
        let mut spec = folders.spec(machine);
        spec.memory = tracked(spec.memory_mib);
        let (guest, mut serial) = heard(&qemu, spec, "READY\n").await;
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        let image = Image::of(capture.tracker().memory());
        let mut epoch = capture.buffer().unwrap();

        disk.freeze();
        serial.send("r").await;
        // The request is in flight, or will be at the next attempt.
        let refused = loop {
            match capture.checkpoint(epoch, None, nothing_else()).await {
                Ok(taken) => epoch = taken.epoch,
                Err(refused) => break refused,
            }
        };
        assert!(is_late(&refused.error), "{refused:?}");
        disk.thaw();
        serial.expect("a").await;
        let taken = taken(&mut capture, kept(refused)).await;
        nothing_is_missing(&guest, &capture, image, taken.epoch).await;
    }
}

/// With a pass right before, the pause looks for nothing if the guest rested meanwhile, and finds all if it did not.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_rests_is_not_looked_through_in_the_pause_and_no_page_is_missed() {
    // Each guest wakes up now and then, one far more often. The other one rests only once it has set up all its devices.
    for (parameters, sign, rests) in [("ev.dirty=50/100", "ready", true), ("ev.dirty=2000/3", "dirties", false)] {
        for (qemu, machine) in machines() {
            let folders = Folders::new();
            let guest = running_tiny(&folders, &qemu, machine, parameters, sign).await;
            let mut capture = Capture::start(&guest, THREADS).unwrap();
            let memory = Arc::clone(capture.tracker().memory());
            let mut image = Image::of(&memory);
            let stood = Arc::new(Mutex::new(None));
            let seen = Arc::clone(&stood);
            let look: AtStop = Arc::new(move || {
                *seen.lock().unwrap() = Some(Image::of(&memory));
                Ok(())
            });
            let (mut epoch, mut looked) = (capture.buffer().unwrap(), 0);
            for _ in 0..CHECKPOINTS {
                epoch.clear();
                (epoch, _) = capture.precopy(epoch).await.unwrap();
                let taken = attempted(&mut capture, epoch, None, Arc::clone(&look)).await.unwrap();
                image.apply(&taken.epoch.pages);
                assert!(stood.lock().unwrap().take() == Some(image.clone()), "a written page was missed");
                looked += usize::from(taken.looked);
                epoch = taken.epoch;
            }
            if rests {
                assert!(looked < CHECKPOINTS / 2, "{machine}: looked through in {looked} of {CHECKPOINTS} pauses");
            } else {
                assert!(looked > 0, "{machine}: this guest writes so often that it must be seen");
            }
        }
    }
}

/// A guest with more to copy than goes in the time goes on, and it is as if no checkpoint had been tried.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_copied_in_time_is_left_for_the_next_attempt_and_no_page_is_lost() {
    const ATTEMPTS: u64 = 5;
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let guest = running_tiny(&folders, &qemu, machine, "ev.memory=16", "memory 0 round").await;
        let qmp = guest.qmp().await.unwrap();
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        let image = Image::of(capture.tracker().memory());
        let mut epoch = capture.buffer().unwrap();
        let marks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&marks);
        let mark: AtStop = Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        for attempt in 0..ATTEMPTS {
            let refused = attempted(&mut capture, epoch, Some(Duration::ZERO), Arc::clone(&mark)).await;
            let refused = refused.expect_err("there is no time for more than the first piece of memory");
            assert!(matches!(refused.error, CaptureError::TooMuch { .. }), "{refused:?}");
            epoch = kept(refused);
            assert_eq!(qmp.status().await.unwrap(), RunState::Running);
            if attempt % 2 == 0 {
                (epoch, _) = capture.precopy(epoch).await.unwrap();
            }
            // After the pass, as a guest that has rested since has nothing to copy. A whole round of its writes lies between the two.
            let before = round(&said(&folders), 0);
            until("the guest to go on", || round(&said(&folders), 0) > before + 1).await;
        }
        assert_eq!(marks.load(Ordering::SeqCst), 0, "none of these was the end of an epoch");
        let whole = async {
            loop {
                // One that QEMU did not finish in time may have left its mark too.
                marks.store(0, Ordering::SeqCst);
                match capture.checkpoint(epoch, Some(PATIENCE), Arc::clone(&mark)).await {
                    Err(refused) if is_late(&refused.error) => epoch = kept(refused),
                    result => return result.unwrap(),
                }
            }
        };
        let taken = timeout(PATIENCE, whole).await.unwrap();
        assert_eq!(marks.load(Ordering::SeqCst), 1);
        let pages = usize::try_from(capture.tracker().memory().layout().pages()).unwrap();
        assert!(taken.epoch.pages.copies() <= pages * THREADS, "passes take no memory over and over");
        nothing_is_missing(&guest, &capture, image, taken.epoch).await;
    }
}

/// QEMU gives up in the middle of saving its devices. The guest goes on all the same, and no page is lost.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_can_not_be_saved_cost_the_checkpoint_and_nothing_else() {
    const ATTEMPTS: usize = 3;
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let guest = running_tiny(&folders, &qemu, machine, "ev.memory=16", "memory 0 round").await;
        let qmp = guest.qmp().await.unwrap();
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        let mut image = Image::of(capture.tracker().memory());
        let taken = taken_first(&mut capture).await;
        image.apply(&taken.epoch.pages);
        let mut epoch = taken.epoch;
        epoch.clear();
        // QEMU empties the file first.
        seal_against_growing(&guest, "evenkeel-device-state");
        for _ in 0..ATTEMPTS {
            let refused = attempted(&mut capture, epoch, None, nothing_else()).await;
            let refused = refused.expect_err("the state has no room");
            assert!(matches!(refused.error, CaptureError::Qmp(QmpError::Refused { .. })), "{refused:?}");
            epoch = kept(refused);
            assert_eq!(qmp.status().await.unwrap(), RunState::Running);
            let before = round(&said(&folders), 0);
            until("the guest to go on", || round(&said(&folders), 0) > before + 1).await;
        }
        nothing_is_missing(&guest, &capture, image, epoch).await;
    }
}

/// With the epoch's pages, and those written since, the image is the guest's memory.
async fn nothing_is_missing(guest: &Guest, capture: &Capture, mut image: Image, mut epoch: EpochBuffer) {
    image.apply(&epoch.pages);
    guest.qmp().await.unwrap().stop().await.unwrap();
    epoch.clear();
    capture.tracker().copy_written(&mut epoch.pages).unwrap();
    image.apply(&epoch.pages);
    assert_eq!(image.differences(capture.tracker()), []);
}

fn seal_against_growing(guest: &Guest, name: &str) {
    let mut files = std::fs::read_dir(format!("/proc/{}/fd", guest.pid())).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains(name));
    let path = files.find(|path| named(path)).expect("QEMU has it open");
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    rustix::fs::fcntl_add_seals(file, rustix::fs::SealFlags::GROW).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_nobody_waits_for_leaves_the_guest_running_and_is_not_taken_for_whole() {
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let guest = Ending(Guest::start(&qemu, &tcg(), &tiny(&folders, machine, 128, "")).await.unwrap());
        let mut events = guest.qmp().await.unwrap().events();
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        let (one, two) = (capture.buffer().unwrap(), capture.buffer().unwrap());
        // Under way until it is given up.
        let (given_up, until_given_up) = mpsc::channel::<()>();
        let until_given_up = Mutex::new(until_given_up);
        let at_stop: AtStop = Arc::new(move || {
            let _ = until_given_up.lock().unwrap().recv();
            Ok(())
        });
        assert!(timeout(Duration::ZERO, capture.checkpoint(one, None, at_stop)).await.is_err());
        drop(given_up);
        let resumed = async { while events.recv().await.unwrap().kind != EventKind::Resume {} };
        timeout(PATIENCE, resumed).await.expect("the guest was not let go on");
        let refused = capture.checkpoint(two, None, nothing_else()).await;
        assert!(refused.is_err_and(|refused| matches!(refused.error, CaptureError::Incomplete)));
        // A new capture, with the whole memory, goes on.
        drop(capture);
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        taken_first(&mut capture).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_not_the_machines_is_refused() {
    for (qemu, machine) in machines() {
        let (first, second) = (Folders::new(), Folders::new());
        let spec = tiny(&first, machine, 128, "");
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        let epoch = taken_first(&mut capture).await.epoch;
        let state = epoch.device_state;
        let mut altered = state.clone();
        altered[8..40].fill(0xff);
        let cut = [&state[..state.len() / 2], &[0]].concat();

        for (what, state) in
            [("another format", &b"QEVM\0\0\0\x02x\0"[..]), ("garbage", &altered), ("half a state", &cut)]
        {
            let mut waiting = spec.clone();
            waiting.paths = second.paths.clone();
            waiting.memory = tracked(spec.memory_mib);
            let standby = Standby::prepare(&qemu, &tcg(), &waiting).await.unwrap();
            let ending = Ending(standby.guest().clone());
            let refused = standby.resume(state).await;
            let expected = match &refused {
                Err(RestoreError::State(StateError::Header)) => what == "another format",
                Err(RestoreError::Ended { .. } | RestoreError::Refused { .. }) => what != "another format",
                Err(_) | Ok(_) => false,
            };
            assert!(expected, "{what}: {refused:?}");
            ending.kill().unwrap();
            ending.exited().await;
        }
    }
}

/// One that writes all the time, and one that waits for input.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_nothing_to_do_is_seen_to_rest_and_a_busy_one_is_not() {
    const LOOKS: usize = 400;
    let rested = async |folders: &Folders, machine: &str, qemu: &Qemu, parameters: &str, sign: &str| {
        let guest = running_tiny(folders, qemu, machine, parameters, sign).await;
        let mut processors = Processors::of(&guest).await.unwrap();
        let mut rested = 0;
        for _ in 0..LOOKS {
            tokio::time::sleep(Duration::from_millis(2)).await;
            rested += usize::from(processors.rest());
        }
        guest.kill().unwrap();
        guest.exited().await;
        assert!(!processors.rest(), "nothing is to be captured of one that has ended");
        rested
    };
    for (qemu, machine) in machines() {
        let (busy, idle) = (Folders::new(), Folders::new());
        let of_busy = rested(&busy, machine, &qemu, "ev.memory=8", "memory 1 round").await;
        let of_idle = rested(&idle, machine, &qemu, "", "ready").await;
        // A busy one sleeps too while it waits for QEMU's main thread.
        assert!(of_busy < LOOKS / 10 && of_idle > LOOKS * 2 / 3, "{machine}: {of_busy} and {of_idle} of {LOOKS}");
    }
}

/// Linux rewrites its own code while all processors run it. An emulated one that goes on with what was there before hangs, or
/// worse; checkpoints make that likelier, as they make writes to memory take longer.
#[tokio::test(flavor = "multi_thread")]
async fn processors_run_the_code_that_another_one_has_just_changed() {
    const CHANGES: u64 = 2_000;
    for (qemu, machine) in machines() {
        let folders = Folders::new();
        let guest = running_tiny(&folders, &qemu, machine, "ev.code=on", "code changed").await;
        let mut capture = Capture::start(&guest, THREADS).unwrap();
        let mut epoch = capture.buffer().unwrap();
        let (mut changes, mut since) = (0, Instant::now());
        while changes < CHANGES {
            epoch = taken(&mut capture, epoch).await.epoch;
            epoch.clear();
            let now = code_changes(&said(&folders));
            if now > changes {
                (changes, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < PATIENCE, "{machine}: the guest hangs after it changed its code {changes} times");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// How often the guest has changed its code.
fn code_changes(said: &str) -> u64 {
    let count = |line: &str| line.strip_prefix("EVENKEEL-GUEST code changed ")?.split(' ').next()?.parse().ok();
    said.lines().rev().find_map(count).unwrap_or_default()
}
