//! The task that keeps one QEMU: carries out orders on it, repeats what failed, and tells what happens to it.

use std::time::Duration;

use ev_core::ids::Generation;
use ev_vm::{Event, EventKind, Guest, GuestSpec, Qemu, RunState};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{broadcast, mpsc};
use tokio::time::sleep;

use super::{GuestNotice, Notice, Order, accelerator_name};

/// Pause before an order that QEMU did not carry out is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How long a QEMU that is taken up may take to say how it is.
const STATUS_WAIT: Duration = Duration::from_secs(1);

/// What the processors are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Stand,
}

pub async fn start(
    since: Generation,
    qemu: Qemu,
    spec: GuestSpec,
    mut orders: mpsc::Receiver<Order>,
    notices: mpsc::Sender<Notice>,
) {
    let launch = async {
        let accelerator = qemu.accelerator(&spec.user).await;
        if let Some(notice) = accelerator.notice() {
            tracing::warn!("{notice}");
        }
        let guest = Guest::start(&qemu, &accelerator, &spec).await;
        guest.map(|guest| (guest, accelerator_name(&accelerator)))
    };
    tokio::pin!(launch);
    // Orders that come during the launch are kept: the last wish, and whether it is to be ended.
    let mut wish = None;
    let mut kill = false;
    let launched = loop {
        tokio::select! {
            launched = &mut launch => break launched,
            Some(order) = orders.recv() => match order {
                Order::Pause => wish = Some(Wish::Stand),
                Order::Resume => wish = Some(Wish::Run),
                Order::Kill => kill = true,
                Order::Powerdown => {}
            },
        }
    };
    match launched {
        Ok((guest, accelerator)) => {
            if kill {
                kill_now(&guest);
            }
            let up = GuestNotice::Up { guest: guest.clone(), accelerator: Some(accelerator), running: true };
            let _ = notices.send((since, up)).await;
            keep(since, guest, wish, orders, notices).await;
        }
        Err(error) => {
            let _ = notices.send((since, GuestNotice::StartFailed(error.to_string()))).await;
        }
    }
}

pub async fn attached(since: Generation, guest: Guest, orders: mpsc::Receiver<Order>, notices: mpsc::Sender<Notice>) {
    // A QEMU that does not answer at once, or stands still, is to be told to go on: that does a running one no harm.
    let status = async { guest.qmp().await?.status().await };
    let running = match tokio::time::timeout(STATUS_WAIT, status).await {
        Ok(Ok(RunState::Paused | RunState::IoError)) | Ok(Err(_)) | Err(_) => false,
        Ok(Ok(
            RunState::Running
            | RunState::Shutdown
            | RunState::GuestPanicked
            | RunState::InternalError
            | RunState::Other(_),
        )) => true,
    };
    let accelerator = tokio::time::timeout(STATUS_WAIT, accelerator_of(&guest)).await.ok().flatten();
    let up = GuestNotice::Up { guest: guest.clone(), accelerator, running };
    let _ = notices.send((since, up)).await;
    keep(since, guest, None, orders, notices).await;
}

/// What a running QEMU says of its accelerator.
async fn accelerator_of(guest: &Guest) -> Option<String> {
    let qmp = guest.qmp().await.ok()?;
    let answer = qmp.execute("query-kvm", serde_json::json!({})).await.ok()?;
    let kvm = answer.get("enabled")?.as_bool()?;
    Some(if kvm { "kvm" } else { "tcg" }.to_owned())
}

async fn keep(
    since: Generation,
    guest: Guest,
    wish: Option<Wish>,
    mut orders: mpsc::Receiver<Order>,
    notices: mpsc::Sender<Notice>,
) {
    let (told, mut events) = mpsc::channel(super::NOTICES_MAX);
    let exited = guest.exited();
    let watched = watch(&guest, &told);
    tokio::pin!(exited, watched);
    let mut doing: Option<BoxFuture<'_, GuestNotice>> = wish.map(|wish| carry_out(&guest, wish).boxed());
    let mut pressing: Option<BoxFuture<'_, ()>> = None;
    let mut shutdown = None;
    let mut note = |kind| {
        if let EventKind::Shutdown(reason) = kind {
            shutdown = Some(reason);
        }
    };
    let exit = loop {
        tokio::select! {
            exit = &mut exited => break exit,
            order = orders.recv() => match order {
                Some(Order::Pause) => doing = Some(carry_out(&guest, Wish::Stand).boxed()),
                Some(Order::Resume) => doing = Some(carry_out(&guest, Wish::Run).boxed()),
                Some(Order::Powerdown) => pressing = Some(press_power(&guest).boxed()),
                Some(Order::Kill) => kill_now(&guest),
                None => return,
            },
            done = next(&mut doing) => {
                doing = None;
                let _ = notices.send((since, done)).await;
            }
            () = next(&mut pressing) => pressing = None,
            Some(kind) = events.recv() => note(kind),
            () = &mut watched => {}
        }
    };
    while let Ok(kind) = events.try_recv() {
        note(kind);
    }
    let gone = GuestNotice::Gone { exit, shutdown, log: guest.log_tail() };
    let _ = notices.send((since, gone)).await;
}

/// The result of the work under way; never returns while there is none.
async fn next<T>(work: &mut Option<BoxFuture<'_, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

fn kill_now(guest: &Guest) {
    if let Err(error) = guest.kill() {
        tracing::error!(pid = guest.pid(), %error, "cannot end QEMU; end this process by hand");
    }
}

/// Carries out the wish, however often QEMU has to be asked.
async fn carry_out(guest: &Guest, wish: Wish) -> GuestNotice {
    loop {
        let attempt = async {
            let qmp = guest.qmp().await?;
            match wish {
                Wish::Stand => qmp.stop().await.map(|_| GuestNotice::Paused),
                Wish::Run => qmp.cont().await.map(|()| GuestNotice::Resumed),
            }
        };
        match attempt.await {
            Ok(done) => return done,
            Err(error) => tracing::warn!(%error, ?wish, "QEMU did not do it yet; trying again"),
        }
        sleep(RETRY_PAUSE).await;
    }
}

async fn press_power(guest: &Guest) {
    let attempt = async { guest.qmp().await?.system_powerdown().await };
    if let Err(error) = attempt.await {
        tracing::warn!(%error, "pressing the guest's power button failed");
    }
}

/// Forwards events, over a new connection when one is lost, for ever.
async fn watch(guest: &Guest, told: &mpsc::Sender<EventKind>) {
    loop {
        if let Ok(qmp) = guest.qmp().await {
            let mut events = qmp.events();
            loop {
                match events.recv().await {
                    Ok(Event { kind, .. }) => drop(told.try_send(kind)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}
