//! Checkpoints of a real guest with two processors, and its continuation in a second QEMU.

mod support;

use ev_vm::Guest;
use ev_vm::checkpoint::{Capture, Standby};
use support::tracked::{Ending, apply, copy_all, machines, round, said, tiny, tracked, until_said};
use support::{Folders, tcg, until};

const CHECKPOINTS: usize = 40;
const THREADS: usize = 2;

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
        let mut capture = Capture::start(&guest, THREADS).await.unwrap();
        eprintln!("{:?}", capture.tracker().memory().layout());
        copy_all(capture.tracker().memory(), standby.memory());

        let mut epoch = capture.buffer().unwrap();
        let mut device_state = Vec::new();
        for number in 0..CHECKPOINTS {
            epoch.clear();
            let (precopied, pass) = capture.precopy(epoch).await.unwrap();
            let checkpoint = capture.checkpoint(precopied).await.unwrap();
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
