//! One side of a mirrored disk without a pool: the coordinator commits its own records. For benchmarks and experiments only;
//! without a pool nothing stops two coordinators.
//!
//! `mirror-disk papers FOLDER`, then `mirror-disk replica …` and `mirror-disk coordinator …` with the same papers.

mod link;
mod papers;
mod ready;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use ev_core::ids::{DiskId, Generation, HostId, MemberId, VmId};
use ev_mirror::{Disk, DiskEvent, DiskRole, DiskSpec, Gate, Initial};
use uuid::Uuid;

use self::ready::Ready;

const COORDINATOR: HostId = MemberId(1);
const REPLICA: HostId = MemberId(2);
/// Events that wait while one is handled.
const EVENTS_MAX: usize = 64;
const PARTNER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a pool's authority and both hosts' certificates
    Papers { folder: PathBuf },
    /// Serve the disk on a unix socket; the file `SOCKET.ready` is there while both replicas are in step, and tells of the copy
    Coordinator(Side),
    /// Keep the second replica
    Replica(Side),
}

#[derive(Args)]
struct Side {
    #[arg(long)]
    papers: PathBuf,
    /// The replica; its metadata is made beside it
    #[arg(long)]
    replica: PathBuf,
    #[arg(long)]
    size_bytes: u64,
    /// Where the replica listens for the coordinator
    #[arg(long)]
    link: SocketAddr,
    /// Where the coordinator serves NBD
    #[arg(long)]
    socket: PathBuf,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Papers { folder } => papers::make(&folder),
        Command::Coordinator(side) => coordinator(&side),
        Command::Replica(side) => replica(&side),
    }
}

fn open(side: &Side, host: HostId, initial: Initial) -> Result<(Disk, std::sync::mpsc::Receiver<DiskEvent>)> {
    let papers = papers::load(&side.papers, host)?;
    let spec = DiskSpec {
        pool: papers.peer().pool,
        vm: VmId(Uuid::from_u128(1)),
        disk: DiskId(Uuid::from_u128(2)),
        host,
        size_bytes: side.size_bytes,
        replica: side.replica.clone(),
        metadata: side.replica.with_extension("meta"),
        nbd_socket: (host == COORDINATOR).then(|| side.socket.clone()),
        copy_rate_limit: None,
        partner_timeout: PARTNER_TIMEOUT,
    };
    if !spec.metadata.exists() {
        Disk::create(&spec, initial).context("creating the disk")?;
    }
    let gate = Arc::new(Gate::new());
    gate.open_always();
    let (events, received) = sync_channel(EVENTS_MAX);
    Ok((Disk::open(spec, gate, events).context("opening the disk")?, received))
}

/// Serves the disk and grants each of its wishes at once, as a pool would by committing a record.
fn coordinator(side: &Side) -> Result<()> {
    let (disk, events) = open(side, COORDINATOR, Initial::Source)?;
    let papers = papers::load(&side.papers, COORDINATOR)?;
    let ready = Ready::beside(&side.socket);
    let mut generation = Generation(1);
    let mut good = BTreeSet::from([COORDINATOR]);
    let act = |generation, good: &BTreeSet<HostId>| {
        disk.role(generation, DiskRole::Coordinator { partner: Some(REPLICA), good: good.clone() }, true)
    };
    act(generation, &good)?;
    let mut linked = Instant::now();
    for event in events {
        eprintln!("coordinator: {event:?}");
        match event {
            DiskEvent::ReplicaLost { seen, .. } if seen == generation => {
                generation = generation.next();
                good = BTreeSet::from([COORDINATOR]);
                act(generation, &good)?;
                ready.withdraw()?;
            }
            DiskEvent::ReplicaGood { seen, .. } if seen == generation => {
                let copy_time = linked.elapsed();
                generation = generation.next();
                good = BTreeSet::from([COORDINATOR, REPLICA]);
                act(generation, &good)?;
                ready.tell(&disk, copy_time)?;
            }
            // Asked for again every half second, so one attempt is enough.
            DiskEvent::LinkDown { .. } => match link::connect(side.link, &papers, REPLICA) {
                Ok(stream) => disk.link(stream)?,
                Err(error) => eprintln!("coordinator: {error:#}"),
            },
            DiskEvent::LinkUp { .. } => linked = Instant::now(),
            DiskEvent::ReplicaLost { .. }
            | DiskEvent::ReplicaGood { .. }
            | DiskEvent::Trouble { .. }
            | DiskEvent::EpochStaged { .. }
            | DiskEvent::EpochApplied { .. }
            | DiskEvent::EpochsLost { .. }
            | DiskEvent::AheadStuck { .. } => {}
        }
    }
    Ok(())
}

fn replica(side: &Side) -> Result<()> {
    let (disk, events) = open(side, REPLICA, Initial::Target)?;
    let papers = papers::load(&side.papers, REPLICA)?;
    disk.role(Generation(1), DiskRole::Replica { coordinator: COORDINATOR }, true)?;
    std::thread::spawn(move || events.into_iter().for_each(|event| eprintln!("replica: {event:?}")));
    link::accept_each(side.link, &papers, COORDINATOR, |stream| Ok(disk.link(stream)?))
}
