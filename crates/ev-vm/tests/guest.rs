//! Guests with a real QEMU, both versions where the second one is there: start, control, loss of every connection.

mod support;

use std::time::Duration;

use ev_vm::guest::StartError;
use ev_vm::{BootSource, EventKind, Exit, Guest, QmpError, RunState, ShutdownReason, StartState, Stopped};
use support::{DiskServer, Ending, Folders, PATIENCE, Serial, USER, heard, qemus, tcg, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::broadcast;
use tokio::time::timeout;

const MACHINE: &str = "pc-q35-7.2";

async fn next(events: &mut broadcast::Receiver<ev_vm::Event>, wanted: impl Fn(&EventKind) -> bool) -> EventKind {
    let wait = async {
        loop {
            let event = events.recv().await.expect("the connection was lost");
            if wanted(&event.kind) {
                return event.kind;
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("the event did not come")
}

#[tokio::test]
async fn a_guest_boots_from_its_disk_stops_goes_on_and_switches_itself_off() {
    for qemu in qemus() {
        let folders = Folders::new();
        let _disk = DiskServer::start(&folders.boot_disk(), &folders.paths.nbd(0)).await;
        let mut spec = folders.spec(MACHINE);
        spec.start = StartState::Stopped;
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        let qmp = guest.qmp().await.unwrap();
        assert_eq!(qmp.version().await.unwrap(), qemu.probe().await.unwrap().version);
        assert_eq!(qmp.status().await.unwrap(), RunState::Paused);
        let mut serial = Serial::connect(&folders.paths).await;
        let mut events = qmp.events();
        qmp.cont().await.unwrap();
        next(&mut events, |kind| *kind == EventKind::Resume).await;
        serial.expect("READY\n").await;
        assert_eq!(qmp.status().await.unwrap(), RunState::Running);

        timeout(PATIENCE, stopped_and_drained(&qmp)).await.expect("QEMU's answer within the time of a stop");
        assert_eq!(qmp.status().await.unwrap(), RunState::Paused);
        serial.send("x").await;
        assert!(serial.is_silent(Duration::from_millis(300)).await);
        qmp.cont().await.unwrap();
        serial.expect("x").await;

        serial.send("w").await;
        serial.expect("b").await;
        let statistics = qmp.disk_statistics(0).await.unwrap();
        assert_eq!(statistics.write_bytes, 512);
        assert!(statistics.read_bytes >= 1024);

        serial.send("s").await;
        let off = next(&mut events, |kind| matches!(kind, EventKind::Shutdown(_))).await;
        assert_eq!(off, EventKind::Shutdown(ShutdownReason::GuestShutdown));
        assert_eq!(timeout(PATIENCE, guest.exited()).await.unwrap(), Exit::Code(0));
        timeout(PATIENCE, qmp.closed()).await.unwrap();
        assert!(matches!(qmp.status().await, Err(QmpError::Closed { .. })));
        assert!(Guest::attach(&folders.paths).await.unwrap().is_none());
        assert!(std::fs::read_to_string(folders.paths.serial_log()).unwrap().contains("READY"));
    }
}

#[tokio::test]
async fn qemu_is_unprivileged_sandboxed_and_in_a_session_of_its_own() {
    for qemu in qemus() {
        let folders = Folders::new();
        let _disk = DiskServer::start(&folders.boot_disk(), &folders.paths.nbd(0)).await;
        let guest = Ending(Guest::start(&qemu, &tcg(), &folders.spec(MACHINE)).await.unwrap());
        let pid = guest.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_once(':').unwrap().1.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let id = |flag| {
            let output = std::process::Command::new("id").args([flag, USER]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(field("Uid:"), vec![id("-u"); 4]);
        assert_eq!(field("Gid:"), vec![id("-g"); 4]);
        assert_eq!(field("Seccomp:"), ["2"]);
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
        assert_eq!(session, pid.to_string());
    }
}

#[tokio::test]
async fn a_killed_client_is_replaced_and_a_killed_qemu_is_told() {
    for qemu in qemus() {
        let folders = Folders::new();
        let _disk = DiskServer::start(&folders.boot_disk(), &folders.paths.nbd(0)).await;
        let first = Ending(Guest::start(&qemu, &tcg(), &folders.spec(MACHINE)).await.unwrap());
        let second = Guest::attach(&folders.paths).await.unwrap().expect("it runs");
        assert_eq!(second.pid(), first.pid());
        // A second start is refused.
        let again = Guest::start(&qemu, &tcg(), &folders.spec(MACHINE)).await;
        assert!(matches!(again, Err(StartError::AlreadyRuns { pid }) if pid == first.pid()), "{again:?}");
        // The first one's connection holds QEMU's only place; without it the second one is served.
        let pid = first.pid();
        drop(UnixStream::connect(folders.paths.qmp()).await.unwrap());
        let refused = ev_vm::Qmp::connect(&folders.paths.qmp(), Duration::from_millis(200)).await;
        assert!(matches!(refused, Err(QmpError::NoGreeting { .. })), "{refused:?}");

        let qmp = second.qmp();
        drop(qmp);
        assert_eq!(second.pid(), pid);
        second.kill().unwrap();
        // The kernel tells how a child ended to the first who asks. Only here one process watches it twice.
        let exits = async { [first.exited().await, second.exited().await] };
        let exits = timeout(PATIENCE, exits).await.unwrap();
        assert!(exits.contains(&Exit::Signal(9)), "{exits:?}");
        assert!(Guest::attach(&folders.paths).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_new_client_takes_over_the_control_socket() {
    for qemu in qemus() {
        let folders = Folders::new();
        let _disk = DiskServer::start(&folders.boot_disk(), &folders.paths.nbd(0)).await;
        let guest = Guest::start(&qemu, &tcg(), &folders.spec(MACHINE)).await.unwrap();
        drop(guest);
        let guest = Ending(Guest::attach(&folders.paths).await.unwrap().expect("it runs"));
        let qmp = timeout(PATIENCE, async {
            loop {
                if let Ok(qmp) = guest.qmp().await {
                    return qmp;
                }
            }
        })
        .await
        .expect("QEMU serves the next client");
        assert_eq!(qmp.status().await.unwrap(), RunState::Running);
        let answers = qmp
            .execute_all(
                PATIENCE,
                &[
                    ("stop", serde_json::Value::Null),
                    ("no-such", serde_json::Value::Null),
                    ("query-status", serde_json::Value::Null),
                ],
            )
            .await;
        assert!(answers[0].is_ok());
        assert!(matches!(&answers[1], Err(QmpError::Refused { class, .. }) if class == "CommandNotFound"));
        assert_eq!(answers[2].as_ref().unwrap()["status"], "paused");
        qmp.quit().await.unwrap();
        timeout(PATIENCE, guest.exited()).await.unwrap();
    }
}

#[tokio::test]
async fn the_nic_socket_takes_one_client_after_the_other() {
    for qemu in qemus() {
        let folders = Folders::new();
        let _disk = DiskServer::start(&folders.boot_disk(), &folders.paths.nbd(0)).await;
        let guest = Ending(Guest::start(&qemu, &tcg(), &folders.spec(MACHINE)).await.unwrap());
        let qmp = guest.qmp().await.unwrap();
        let mut events = qmp.events();
        for round in 0..3 {
            let mut client = UnixStream::connect(folders.paths.nic(0)).await.unwrap();
            next(&mut events, |kind| matches!(kind, EventKind::NicConnected(name) if name == "nic-0")).await;
            // QEMU's own announcement of the NIC comes out as frames: length, then bytes.
            qmp.announce_self(1).await.unwrap();
            let mut header = [0; 4];
            timeout(PATIENCE, client.read_exact(&mut header))
                .await
                .unwrap_or_else(|_| panic!("no frame in round {round}"))
                .unwrap();
            let length = usize::try_from(u32::from_be_bytes(header)).unwrap();
            assert!((42..=1514).contains(&length), "{length}");
            let mut frame = vec![0; length];
            client.read_exact(&mut frame).await.unwrap();
            assert_eq!(frame[6..12], [0x52, 0x54, 0, 0, 0, 1]);
            // A partial frame at the end must not confuse the next connection.
            client.write_all(&[0, 0, 0, 60, 1, 2, 3]).await.unwrap();
            drop(client);
            next(&mut events, |kind| matches!(kind, EventKind::NicDisconnected(name) if name == "nic-0")).await;
        }
    }
}

#[tokio::test]
async fn a_disk_server_that_is_restarted_is_found_again_and_the_guest_notices_nothing() {
    for qemu in qemus() {
        let folders = Folders::new();
        let image = folders.boot_disk();
        let disk = DiskServer::start(&image, &folders.paths.nbd(0)).await;
        let (guest, mut serial) = heard(&qemu, folders.spec(MACHINE), "READY\n").await;
        serial.send("w").await;
        serial.expect("b").await;
        disk.kill();
        serial.send("w").await;
        assert!(serial.is_silent(Duration::from_millis(500)).await);
        // Control goes on meanwhile.
        assert_eq!(guest.qmp().await.unwrap().status().await.unwrap(), RunState::Running);
        let _disk = DiskServer::start(&image, &folders.paths.nbd(0)).await;
        serial.expect("c").await;
        assert_eq!(std::fs::read(&image).unwrap()[512], b'c');
    }
}

#[tokio::test]
async fn a_disk_server_that_comes_later_than_qemu_is_waited_for() {
    for qemu in qemus() {
        let folders = Folders::new();
        let image = folders.boot_disk();
        let spec = folders.spec(MACHINE);
        let accelerator = tcg();
        let serve = async {
            let alive = || Guest::attach(&folders.paths);
            while alive().await.unwrap().is_none() {
                tokio::task::yield_now().await;
            }
            DiskServer::start(&image, &folders.paths.nbd(0)).await
        };
        let (guest, _disk) = tokio::join!(Guest::start(&qemu, &accelerator, &spec), serve);
        let _guest = Ending(guest.unwrap());
        until("the guest's words", || log_has(&folders, "READY")).await;
    }
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_no_qemu() {
    for qemu in qemus() {
        let folders = Folders::new();
        let spec = folders.spec(MACHINE);
        let accelerator = tcg();
        let process = tokio::select! {
            started = Guest::start(&qemu, &accelerator, &spec) => panic!("without its disk: {started:?}"),
            process = async {
                loop {
                    if let Some(process) = Guest::attach(&folders.paths).await.unwrap() {
                        return process;
                    }
                    tokio::task::yield_now().await;
                }
            } => process,
        };
        timeout(PATIENCE, process.exited()).await.unwrap();
        assert!(Guest::attach(&folders.paths).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_stop_while_the_disk_server_is_away_stops_the_processors_at_once() {
    for qemu in qemus() {
        let folders = Folders::new();
        let image = folders.boot_disk();
        let disk = DiskServer::start(&image, &folders.paths.nbd(0)).await;
        let (guest, mut serial) = heard(&qemu, folders.spec(MACHINE), "READY\n").await;
        disk.kill();
        serial.send("w").await;
        let pid = guest.pid();
        let qmp = guest.qmp().await.unwrap();
        request_in_flight(&qmp).await;
        let stopped = timeout(PATIENCE, qmp.stop()).await.unwrap().unwrap();
        let (old, new) = (Stopped::WaitingForDisks, Stopped::Unconfirmed);
        let version = qemu.probe().await.unwrap().version;
        assert_eq!(stopped, if version.major < 9 { old } else { new });
        let before = processor_ticks(pid);
        assert!(serial.is_silent(Duration::from_millis(500)).await);
        assert!(processor_ticks(pid) <= before + 2, "the guest's processors stand still");
        let _disk = DiskServer::start(&image, &folders.paths.nbd(0)).await;
        // Answered only once the request in flight is.
        assert_eq!(timeout(PATIENCE, paused(&qmp)).await.unwrap(), RunState::Paused);
        qmp.cont().await.unwrap();
        serial.expect("b").await;
    }
}

/// QEMU has the disk flushed before it answers: if that took it longer than a stop waits for, the guest is let go on first.
async fn stopped_and_drained(qmp: &ev_vm::Qmp) {
    loop {
        match qmp.stop().await.unwrap() {
            Stopped::Drained => return,
            Stopped::WaitingForDisks => assert_eq!(paused(qmp).await, RunState::Paused),
            Stopped::Unconfirmed => panic!("no request was in flight"),
        }
        qmp.cont().await.unwrap();
    }
}

/// Waits until the guest has asked its disk for something that was not answered yet.
async fn request_in_flight(qmp: &ev_vm::Qmp) {
    let queue = serde_json::json!({ "path": "/machine/peripheral/virtio-disk-0/virtio-backend", "queue": 0 });
    let asked = async {
        loop {
            let status = qmp.execute("x-query-virtio-queue-status", queue.clone()).await.unwrap();
            if status["inuse"].as_u64().unwrap() > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asked).await.expect("a request in flight");
}

/// Time that a process has used, in ticks of 10 ms.
fn processor_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

async fn paused(qmp: &ev_vm::Qmp) -> RunState {
    loop {
        match qmp.status().await {
            Ok(state) => return state,
            Err(QmpError::TimedOut { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn uefi_finds_its_variables_again() {
    for qemu in qemus() {
        let folders = Folders::new();
        let _disk = DiskServer::start(&folders.boot_disk(), &folders.paths.nbd(0)).await;
        let mut spec = folders.spec(MACHINE);
        spec.firmware = ev_core::vm::Firmware::Uefi;
        spec.memory_mib = 256;
        // OVMF names itself on the serial port once it looks for something to boot.
        let (guest, _serial) = heard(&qemu, spec, "BdsDxe").await;
        let flash = std::fs::metadata(folders.paths.uefi_vars()).unwrap();
        assert!(flash.len() > 100_000);
        guest.qmp().await.unwrap().quit().await.unwrap();
        timeout(PATIENCE, guest.exited()).await.unwrap();
    }
}

#[tokio::test]
async fn a_kernel_boots_with_its_command_line_and_initrd_without_any_disk() {
    for qemu in qemus() {
        let folders = Folders::new();
        let mut spec = folders.spec(MACHINE);
        let initrd = folders.paths.library("initrd");
        std::fs::write(&initrd, "content of the initrd\n").unwrap();
        let command_line = "console=ttyS0 a=b,c".to_owned();
        spec.boot = BootSource::Kernel { kernel: folders.kernel(), initrd: Some(initrd.clone()), command_line };
        spec.disks.clear();
        spec.vcpus = 3;
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        until("the guest's words", || log_has(&folders, "console=ttyS0 a=b,c content of the initrdEND")).await;
        guest.kill().unwrap();
        timeout(PATIENCE, guest.exited()).await.unwrap();
        // A file that QEMU's user may not read is named.
        std::fs::set_permissions(&initrd, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let refused = Guest::start(&qemu, &tcg(), &spec).await;
        assert!(matches!(&refused, Err(StartError::NotReadable { path }) if *path == initrd), "{refused:?}");
    }
}

fn log_has(folders: &Folders, text: &str) -> bool {
    std::fs::read_to_string(folders.paths.serial_log()).is_ok_and(|log| log.contains(text))
}

#[tokio::test]
async fn an_iso_boots_before_the_disk() {
    for qemu in qemus() {
        let folders = Folders::new();
        let disk = folders.boot_disk();
        std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let _disk = DiskServer::start(&disk, &folders.paths.nbd(0)).await;
        let mut spec = folders.spec(MACHINE);
        spec.boot = BootSource::Iso(folders.boot_iso());
        let _guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        until("the guest's words", || log_has(&folders, "READY")).await;
    }
}

#[tokio::test]
async fn all_disks_and_nics_have_their_places() {
    for qemu in qemus() {
        let folders = Folders::new();
        let image = folders.boot_disk();
        let mut spec = folders.spec(MACHINE);
        let disk = spec.disks.remove(0);
        let _disk = DiskServer::start(&image, &disk.nbd_socket).await;
        spec.disks = vec![disk; ev_core::vm::DISKS_MAX];
        spec.nics = vec![spec.nics[0]; ev_core::vm::NICS_MAX];
        let guest = Ending(Guest::start(&qemu, &tcg(), &spec).await.unwrap());
        let qmp = guest.qmp().await.unwrap();
        let buses = qmp.execute("query-pci", serde_json::Value::Null).await.unwrap();
        let slots: Vec<u64> =
            buses[0]["devices"].as_array().unwrap().iter().map(|device| device["slot"].as_u64().unwrap()).collect();
        assert!((4..=0x1b).all(|slot| slots.contains(&slot)), "{slots:?}");
    }
}

#[tokio::test]
async fn what_keeps_qemu_from_starting_is_told() {
    let qemu = qemus().remove(0);
    let folders = Folders::new();
    let mut spec = folders.spec("pc-q35-99.0");
    assert!(matches!(Guest::start(&qemu, &tcg(), &spec).await, Err(StartError::NoMachine { .. })));
    spec.machine = MACHINE.to_owned();
    spec.cpu_model = "i8080".to_owned();
    assert!(matches!(Guest::start(&qemu, &tcg(), &spec).await, Err(StartError::NoProcessorModel { .. })));
    spec.cpu_model = "qemu64".to_owned();
    spec.user = "root".to_owned();
    assert!(matches!(Guest::start(&qemu, &tcg(), &spec).await, Err(StartError::User(_))));
    spec.user = USER.to_owned();
    spec.boot = BootSource::Iso(folders.paths.library("no-such-file"));
    assert!(matches!(Guest::start(&qemu, &tcg(), &spec).await, Err(StartError::File { .. })));
    spec.boot = BootSource::Disk;
    spec.disks.clear();
    spec.memory_mib = 0;
    let error = Guest::start(&qemu, &tcg(), &spec).await.unwrap_err();
    assert!(matches!(&error, StartError::Ended { log, .. } if !log.is_empty()), "{error}");
    assert!(Guest::attach(&folders.paths).await.unwrap().is_none());
}
