//! One host: its clock, its master engine, its storage, the AM's process, and the guest.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ev_core::availability::keeper::{Gate, Keeper, Role};
use ev_core::availability::master::Master;
use ev_core::checkpoint::{Epoch, Output, Primary, Session, Standby};
use ev_core::ids::{Generation, HostId};
use ev_core::mirror::OpId;
use ev_core::time::Instant;

use crate::mirror::disk::Sector;
use crate::mirror::host::Host as Storage;

/// What a host is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Up,
    Frozen,
    Down,
}

/// The guest's memory: what it found on its disk when it began, and what it has written since and was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Memory {
    /// Number of the boot.
    pub boot: u64,
    pub found: Rc<Vec<Sector>>,
    pub written: Vec<(usize, Sector)>,
    /// So many of them are flushed.
    pub flushed: usize,
}

impl Memory {
    /// What its disk holds.
    pub(super) fn disk(&self) -> Vec<Sector> {
        let mut disk = self.found.as_ref().clone();
        for (sector, value) in &self.written {
            disk[*sector] = *value;
        }
        disk
    }
}

/// What the guest waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Its firmware reads the first sector.
    Boot,
    Write {
        sector: usize,
        value: Sector,
    },
    /// Covers so many writes.
    Flush {
        written: usize,
    },
}

/// A running QEMU. It outlives its AM.
#[derive(Debug, Clone)]
pub(super) struct Qemu {
    pub since: Generation,
    /// `None`: it has not booted.
    pub memory: Option<Memory>,
    /// Stopped for want of a lease.
    pub stopped: bool,
    /// With the number under which the present AM knows it.
    pub asked: Option<(Asked, Option<OpId>)>,
}

/// What the guest told the outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub epoch: Epoch,
    pub written: usize,
    pub flushed: usize,
}

/// A pause of the guest for a checkpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    pub session: Session,
    pub epoch: Epoch,
    pub since_ms: u64,
}

/// What goes on from memory here, one day.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub engine: Standby,
    pub session: Option<Session>,
    /// A QEMU is being started for it.
    pub begins: Option<(Session, u64)>,
    pub staged: BTreeMap<Epoch, Memory>,
    pub image: Option<(Epoch, Memory)>,
    /// Epochs whose memory is to be applied.
    pub work: VecDeque<Epoch>,
    /// What the takeover came to.
    pub outcome: Option<Option<Epoch>>,
}

/// The AM's process, but for its disk thread, which `storage` has.
pub(super) struct Am {
    pub keeper: Keeper,
    pub gate: Gate,
    pub role: Option<Role>,
    /// The link that it knows of.
    pub link: Option<u64>,
    pub primary: Option<Primary>,
    pub session: Option<Session>,
    /// No session is begun before that.
    pub retry_ms: u64,
    pub output: Output,
    pub held: VecDeque<Frame>,
    pub filled_at: Option<(Session, u64)>,
    pub pause: Option<Pause>,
    pub waiting: Option<Waiting>,
    /// What was the standby, while the guest is about to go on here, and under which record.
    pub taking: Option<Waiting>,
    pub continuing: Option<Generation>,
    /// Answers that wait for the gate.
    pub answers: Vec<OpId>,
}

pub(super) struct Node {
    pub id: HostId,
    pub life: Life,
    offset_ns: u64,
    rate_per_mille: u64,
    pub master: Master,
    pub storage: Storage,
    pub am: Option<Am>,
    pub qemu: Option<Qemu>,
    /// The durable marker.
    pub started: Generation,
    pub next_report_ms: u64,
    /// When what was not flushed was lost here, or what a replica had staged.
    pub lost_ms: u64,
}

impl Node {
    pub(super) fn new(storage: Storage, offset_ns: u64, rate_per_mille: u64) -> Self {
        Self {
            id: storage.id,
            life: Life::Up,
            offset_ns,
            rate_per_mille,
            master: Master::new(storage.id),
            storage,
            am: None,
            qemu: None,
            started: Generation::NONE,
            next_report_ms: 0,
            lost_ms: 0,
        }
    }

    /// This host's clock at a real time.
    pub(super) fn clock(&self, real_ms: u64) -> Instant {
        Instant(self.offset_ns + real_ms * 1_000 * self.rate_per_mille)
    }

    pub(super) fn gate_is_open(&self, real_ms: u64) -> bool {
        match self.am.as_ref().map(|am| am.gate) {
            None | Some(Gate::Closed) => false,
            Some(Gate::Open) => true,
            Some(Gate::OpenUntil(until)) => self.clock(real_ms) < until,
        }
    }

    /// Whether what the guest does is seen outside without anyone's confirmation.
    pub(super) fn lets_out_freely(&self, real_ms: u64) -> bool {
        let free = self.am.as_ref().is_some_and(|am| am.output == Output::Free);
        self.life == Life::Up && self.qemu.is_some() && free && self.gate_is_open(real_ms)
    }
}

impl Am {
    pub(super) fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            gate: Gate::Closed,
            role: None,
            link: None,
            primary: None,
            session: None,
            retry_ms: 0,
            output: Output::Free,
            held: VecDeque::new(),
            filled_at: None,
            pause: None,
            waiting: None,
            taking: None,
            continuing: None,
            answers: Vec::new(),
        }
    }

    /// The guest is gone, and with it what was held for it.
    pub(super) fn forget_guest(&mut self) {
        self.primary = None;
        self.session = None;
        self.output = Output::Free;
        self.held.clear();
        self.filled_at = None;
        self.pause = None;
        self.answers.clear();
    }
}
