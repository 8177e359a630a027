//! Measures how long a guest (TCG, 2 vCPUs) stands still for a checkpoint. One JSON object a line on standard output.
//!
//! `pause [--qemu10] [--checkpoints N] GIB/TOUCHED_MIB/DIRTY_PAGES …`: memory size, memory that the guest has written at
//! least once, pages that it writes in each epoch of 50 ms.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use ev_vm::checkpoint::{Capture, Checkpoint};
use ev_vm::{Guest, Qemu};
use support::tracked::{machines, nothing_else, tiny, until_said};
use support::{Ending, Folders, tcg};

const EPOCH: Duration = Duration::from_millis(50);
fn threads() -> usize {
    std::env::var("THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}
/// Pre-copying ends when a pass finds fewer pages, or after this many passes.
const PRECOPY_PAGES_MIN: u32 = 256;
const PRECOPY_PASSES_MAX: usize = 3;

struct Case {
    gib: u32,
    touched_mib: u32,
    dirty_pages: u32,
}

#[tokio::main]
async fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let newest = arguments.iter().position(|argument| argument == "--qemu10").map(|at| arguments.remove(at));
    let mut checkpoints = 200;
    if let Some(at) = arguments.iter().position(|argument| argument == "--checkpoints") {
        arguments.remove(at);
        checkpoints = arguments.remove(at).parse().expect("a number");
    }
    let mut machines = machines();
    let (qemu, machine) = if newest.is_some() { machines.pop() } else { machines.drain(..).next() }.expect("a QEMU");
    for argument in &arguments {
        let numbers: Vec<u32> = argument.split('/').map(|number| number.parse().expect("a number")).collect();
        let [gib, touched_mib, dirty_pages] = numbers[..] else { panic!("GIB/TOUCHED_MIB/DIRTY_PAGES") };
        let qemu = qemu.clone();
        let case = Case { gib, touched_mib, dirty_pages };
        // A task of its own, as in the product: the main one would be woken from another thread each time.
        tokio::spawn(async move { measure(&qemu, machine, &case, checkpoints).await }).await.unwrap();
    }
}

async fn measure(qemu: &Qemu, machine: &str, case: &Case, checkpoints: usize) {
    let folders = Folders::new();
    let mut parameters = String::new();
    if case.touched_mib > 0 {
        parameters.push_str(&format!("ev.touch={} ", case.touched_mib));
    }
    if case.dirty_pages > 0 {
        parameters.push_str(&format!("ev.dirty={}/{}", case.dirty_pages, EPOCH.as_millis()));
    }
    let spec = tiny(&folders, machine, case.gib * 1024, &parameters);
    let guest = Ending(Guest::start(qemu, &tcg(), &spec).await.unwrap());
    until_said(&folders, "ready on port").await;
    let mut capture = Capture::start(&guest, threads()).unwrap();
    let mut epoch = capture.buffer().unwrap();
    let mut taken = Vec::new();
    let mut precopied = Vec::new();
    let mut next = Instant::now();
    for number in 0..checkpoints + 20 {
        epoch.clear();
        for _ in 0..PRECOPY_PASSES_MAX {
            let (filled, report) = capture.precopy(epoch).await.unwrap();
            epoch = filled;
            precopied.push(report.time);
            if report.pages < PRECOPY_PAGES_MIN {
                break;
            }
        }
        let checkpoint = capture.checkpoint(epoch, None, nothing_else()).await.unwrap();
        let Checkpoint { epoch: filled, pause_pages, looked, times } = checkpoint;
        epoch = filled;
        if number >= 20 {
            taken.push((times, pause_pages, epoch.pages.copies(), looked));
        }
        next = (next + EPOCH).max(Instant::now());
        tokio::time::sleep_until(next.into()).await;
    }
    let of = |name: &str, mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| values[(values.len() - 1) * percent / 100];
        format!("\"{name}\":{{\"median\":{:.2},\"p99\":{:.2}}}", at(50), at(99))
    };
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let fields = [
        of("pause_ms", taken.iter().map(|(times, ..)| ms(times.running)).collect()),
        of("stopped_ms", taken.iter().map(|(times, ..)| ms(times.stopped)).collect()),
        of("devices_saved_ms", taken.iter().map(|(times, ..)| ms(times.devices_saved)).collect()),
        of("copied_ms", taken.iter().map(|(times, ..)| ms(times.copied)).collect()),
        of("last_pass_ms", taken.iter().map(|(times, ..)| ms(times.last_pass)).collect()),
        of("precopy_ms", precopied.iter().map(|time| ms(*time)).collect()),
        of("pause_pages", taken.iter().map(|(_, pages, ..)| f64::from(*pages)).collect()),
        of("epoch_pages", taken.iter().map(|(_, _, pages, _)| f64::from(u32::try_from(*pages).unwrap())).collect()),
    ];
    let looked = taken.iter().filter(|(.., looked)| *looked).count();
    let Case { gib, touched_mib, dirty_pages } = case;
    println!(
        "{{\"machine\":\"{machine}\",\"gib\":{gib},\"touched_mib\":{touched_mib},\"dirty_pages\":{dirty_pages},\"looked\":{looked},{}}}",
        fields.join(",")
    );
}
