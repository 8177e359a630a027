//! Both hosts, the link, the record and the guest; what can happen, and what must hold at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ev_core::checkpoint::StandbyEvent;
use ev_core::ids::{Generation, HostId, MemberId};
use ev_core::mirror::{
    Action, CopyKind, Extent, Geometry, Health, History, Input, Message, OpId, Record, ReplicaInfo, Required, Settings,
    Trouble, Wish, Write,
};
use ev_core::time::Instant;

use super::disk::{Disk, SECTOR_BYTES, Sector};
use super::host::{Engine, Host, Pending, Process, Role, data_op};
use super::link::{Link, Packet};
use super::oracle::Oracle;
use super::protect::{Ahead, Behind, DISK, Lane};
use crate::rng::Rng;

pub const HOSTS: [HostId; 2] = [MemberId(1), MemberId(2)];
const REGION_SECTORS: u32 = 4;
const BLOCK_SECTORS: u32 = 2;
const REGIONS: u32 = 70;
pub const SECTORS: usize = 278;
const PARTNER_TIMEOUT: Duration = Duration::from_millis(1000);
/// Operations of the guest under way at once.
pub const GUEST_OPS_MAX: usize = 8;

/// What the guest asked for and has no answer to.
#[derive(Debug, Clone, Copy)]
pub enum Asked {
    Write { write: Write, value: Sector },
    Flush,
    Read { extent: Extent },
}

#[derive(Debug, Clone, Copy)]
pub struct GuestOp {
    pub asked: Asked,
    pub at: u64,
    /// The number under which the present process knows it.
    pub op: Option<OpId>,
}

/// How far an orderly end of the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The guest asks for nothing more; what it asked for is awaited.
    Wanted,
    Flushing(OpId),
    Tidying,
    /// The record says that the end was clean: all good replicas are the same.
    Clean,
}

/// Counts of what a run has seen, so that a test can see that the faults bite.
#[derive(Debug, Default, Clone, Copy)]
pub struct Summary {
    pub acknowledged: u64,
    pub recoveries: u64,
    pub delta_copies: u64,
    pub full_copies: u64,
    pub entrusted: u64,
    pub failed_disks: u64,
    pub clean_ends: u64,
    pub compared: u64,
    /// Times that the active host's own replica came back while the guest went on.
    pub came_home: u64,
    /// Epochs that were confirmed, and takeovers from memory.
    pub confirmed: u64,
    pub went_on: u64,
    /// Starts from a replica that was written ahead of.
    pub behind: u64,
}

impl Summary {
    /// Adds another run's counts.
    pub fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.recoveries += other.recoveries;
        self.delta_copies += other.delta_copies;
        self.full_copies += other.full_copies;
        self.entrusted += other.entrusted;
        self.failed_disks += other.failed_disks;
        self.clean_ends += other.clean_ends;
        self.compared += other.compared;
        self.came_home += other.came_home;
        self.confirmed += other.confirmed;
        self.went_on += other.went_on;
        self.behind += other.behind;
    }
}

pub struct World {
    /// Whether everything that happens is told on standard error (`EVENKEEL_TRACE`).
    tells: bool,
    pub rng: Rng,
    pub now: u64,
    pub geometry: Geometry,
    pub hosts: [Host; 2],
    pub link: Option<Link>,
    /// The pool's record.
    pub generation: Generation,
    pub active: HostId,
    pub good: BTreeSet<HostId>,
    /// Proposals on their way to the record's store.
    pub wishes: Vec<Wish>,
    pub guest: BTreeMap<u64, GuestOp>,
    pub guest_runs: bool,
    /// When the guest began.
    pub guest_since: u64,
    /// The guest's host has not taken its role under the newest start yet.
    pub recovering: bool,
    /// The guest is shutting down, or has ended cleanly.
    pub closing: Option<Closing>,
    pub next_guest: u64,
    next_instance: u64,
    pub oracle: Oracle,
    /// Regions that were ever written, or may be taken for written.
    pub touched: BTreeSet<u64>,
    pub copy_kind: Option<CopyKind>,
    /// No storage has failed so far, so that a comparison must find nothing.
    pub exact: bool,
    pub summary: Summary,
    /// Whether the guest is to be protected by checkpoints.
    pub protected: bool,
    /// The record lets the other host go on from the guest's memory.
    pub memory: bool,
    /// The record lets the guest go on from its memory, and it has not yet.
    pub continuing: bool,
    /// The guest was answered ahead of the other host's replica, which the record still counts on.
    pub ahead: Option<Ahead>,
    /// What the replicas that the guest is to be started from may lack.
    pub behind: Option<Behind>,
    pub lane: Lane,
    /// Proposals that concern the memory, by the record that they are made against.
    pub memory_held: Vec<Generation>,
    pub standby_lost: Vec<Generation>,
    pub next_session: u64,
    /// The guest does nothing until then.
    pub idle_until: u64,
}

pub fn place(host: HostId) -> usize {
    usize::from(host == HOSTS[1])
}

fn other(host: HostId) -> HostId {
    if host == HOSTS[0] { HOSTS[1] } else { HOSTS[0] }
}

impl World {
    /// Both replicas in step, or (`fresh`) the second one empty.
    pub fn new(seed: u64, fresh: bool) -> Self {
        let rng = Rng::new(seed);
        let size = u64::try_from(SECTORS).expect("small") * u64::from(SECTOR_BYTES);
        let geometry = Geometry::new(size, REGION_SECTORS * SECTOR_BYTES, BLOCK_SECTORS * SECTOR_BYTES);
        let one = Generation(1);
        let good = ReplicaInfo { health: Health::Good, history: History { current: one, bitmap_base: one } };
        let source = ReplicaInfo { health: Health::Good, history: History::NONE };
        let empty = ReplicaInfo { health: Health::Empty, history: History::NONE };
        let infos = if fresh { [source, empty] } else { [good, good] };
        let host = |index: usize| Host {
            id: HOSTS[index],
            disk: Disk::new(SECTORS, u64::from(REGIONS), infos[index]),
            process: None,
            powered: true,
            trouble_at: 0,
            frozen_until: 0,
            disk_stalled_until: 0,
            lost_power_at: 0,
            good_since: 0,
        };
        let mut world = Self {
            tells: std::env::var_os("EVENKEEL_TRACE").is_some(),
            rng,
            now: 1,
            geometry,
            hosts: [host(0), host(1)],
            link: None,
            generation: Generation(2),
            active: HOSTS[0],
            good: if fresh { BTreeSet::from([HOSTS[0]]) } else { BTreeSet::from(HOSTS) },
            wishes: Vec::new(),
            guest: BTreeMap::new(),
            guest_runs: true,
            guest_since: 0,
            recovering: true,
            closing: None,
            exact: true,
            next_guest: 1,
            next_instance: 0,
            oracle: Oracle::new(&vec![0; SECTORS]),
            touched: BTreeSet::new(),
            copy_kind: None,
            summary: Summary::default(),
            protected: false,
            memory: false,
            continuing: false,
            ahead: None,
            behind: None,
            lane: Lane::default(),
            memory_held: Vec::new(),
            standby_lost: Vec::new(),
            next_session: 0,
            idle_until: 0,
        };
        for place in 0..2 {
            world.start_process(place);
        }
        world
    }

    /// Tells what happens, for whoever replays a seed.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            eprintln!("{:>7} {}", self.now, what());
        }
    }

    pub fn instant(&self) -> Instant {
        Instant(self.now * 1_000_000)
    }

    fn settings() -> Settings {
        Settings { partner_timeout: PARTNER_TIMEOUT, copy_bytes_per_s: None }
    }

    /// The record, as that host has to act by it.
    pub fn role_of(&self, host: HostId) -> Role {
        if self.active == host {
            let partner = other(host);
            let good = Required { local: self.good.contains(&host), partner: self.good.contains(&partner) };
            Role::Coordinator(Record { generation: self.generation, partner: Some(partner), good })
        } else {
            Role::Replica { coordinator: self.active, generation: self.generation }
        }
    }

    pub fn start_process(&mut self, place: usize) {
        if !self.hosts[place].powered || self.hosts[place].process.is_some() {
            return;
        }
        self.next_instance += 1;
        let (geometry, instance) = (self.geometry, self.next_instance);
        self.hosts[place].start_process(geometry, instance);
    }

    pub fn is_frozen(&self, place: usize) -> bool {
        self.now < self.hosts[place].frozen_until
    }

    /// A record reaches a host.
    pub fn deliver_role(&mut self, place: usize, role: Role) {
        if self.is_frozen(place) {
            return;
        }
        self.tell(|| format!("host {place} learns {role:?}"));
        self.learn(place, role);
        let now = self.instant();
        let Host { process, disk, .. } = &mut self.hosts[place];
        let Some(process) = process else { return };
        if process.take_role(now, disk, role) {
            self.drop_link(place);
            let Host { process, disk, .. } = &mut self.hosts[place];
            if let Some(process) = process {
                process.tell(now, disk, Input::LinkDown);
            }
        }
        self.after(place);
    }

    /// That host lets go of its end of the link.
    pub fn drop_link(&mut self, place: usize) {
        if let Some(link) = &mut self.link {
            link.held[place] = false;
            link.to[place].clear();
            if !link.held[1 - place] {
                self.link = None;
            }
        }
    }

    pub fn kill_process(&mut self, place: usize) {
        if self.hosts[place].process.is_none() {
            return;
        }
        self.tell(|| format!("host {place}: the process is killed"));
        if let Some(link) = &mut self.link {
            link.cut(&mut self.rng);
        }
        self.drop_link(place);
        self.lane_ends();
        let rng = &mut self.rng;
        self.hosts[place].kill_process(false, rng);
        self.forget_ops(place);
    }

    pub fn cut_power(&mut self, place: usize) {
        if !self.hosts[place].powered {
            return;
        }
        self.tell(|| format!("host {place} loses its power"));
        if let Some(link) = &mut self.link {
            link.cut(&mut self.rng);
        }
        self.drop_link(place);
        self.now += 1;
        self.lane_ends();
        let now = self.now;
        let rng = &mut self.rng;
        self.hosts[place].cut_power(now, rng);
        self.forget_ops(place);
        if self.active == HOSTS[place] {
            self.recovering = false;
            self.continuing = false;
        }
        // A guest whose only replica lost what was not flushed can't go on, wherever it runs.
        if self.guest_runs && (self.active == HOSTS[place] || self.good == BTreeSet::from([HOSTS[place]])) {
            self.guest_runs = false;
            self.closing = None;
        }
    }

    /// The guest's operations will have to be sent to the next process.
    fn forget_ops(&mut self, place: usize) {
        if self.active == HOSTS[place] {
            if matches!(self.closing, Some(Closing::Flushing(_) | Closing::Tidying)) {
                self.closing = Some(Closing::Wanted);
            }
            for op in self.guest.values_mut() {
                op.op = None;
            }
        }
    }

    pub fn connect(&mut self) {
        for place in 0..2 {
            let ready = !self.is_frozen(place)
                && self.hosts[place]
                    .process
                    .as_ref()
                    .is_some_and(|process| process.next_role.is_none() && !matches!(process.engine, Engine::None));
            if !ready {
                return;
            }
        }
        // The hello of a real link is refused when both sides have the same role.
        let coordinators =
            self.hosts.iter().filter(|host| host.process.as_ref().is_some_and(|p| p.coordinator().is_some()));
        if coordinators.count() != 1 {
            return;
        }
        let now = self.instant();
        let held = self.link.as_ref().map_or([false, false], |link| link.held);
        self.link = Some(Link::new());
        for (place, held) in held.into_iter().enumerate() {
            let Host { process, disk, .. } = &mut self.hosts[place];
            if let Some(process) = process {
                if held {
                    process.tell(now, disk, Input::LinkDown);
                }
                process.tell(now, disk, Input::LinkUp);
            }
            self.after(place);
        }
    }

    /// The side at `place` sees that the link is gone.
    pub fn notice_cut(&mut self, place: usize) {
        let gone = self
            .link
            .as_ref()
            .is_some_and(|link| link.held[place] && (link.cut || !link.held[1 - place]) && link.to[place].is_empty());
        if !gone || self.is_frozen(place) {
            return;
        }
        self.drop_link(place);
        let now = self.instant();
        let Host { process, disk, .. } = &mut self.hosts[place];
        if let Some(process) = process {
            process.tell(now, disk, Input::LinkDown);
        }
        self.after(place);
    }

    /// Delivers the next message to that side.
    pub fn deliver(&mut self, place: usize) {
        let now = self.now;
        let arrives = |link: &&mut Link| link.held[place] && link.stalled_until[place] <= now;
        if self.is_frozen(place) {
            return;
        }
        let Some(packet) = self.link.as_mut().filter(arrives).and_then(|link| link.to[place].pop_front()) else {
            return;
        };
        self.tell(|| format!("host {place} gets {:?}", packet.message));
        match packet.message {
            Message::CopyBegin { .. } => self.is_copied(place),
            Message::CopyData { .. } if self.copy_kind.is_some() => {
                let health = self.hosts[place].disk.superblock().health;
                assert_eq!(health, Health::Copying, "the target says what it is before its first byte changes");
            }
            _ => {}
        }
        let now = self.instant();
        let Host { process, disk, .. } = &mut self.hosts[place];
        let Some(process) = process else { return };
        if let (Some(op), Some(data)) = (data_op(&packet.message), packet.data) {
            process.data.insert(op, data);
        }
        process.tell(now, disk, Input::Received(packet.message));
        self.after(place);
    }

    /// What this host's replica holds is from here on what the other one holds. If that one has lost its power, and no guest has begun
    /// since, what it had not flushed is not to be found here either.
    fn is_copied(&mut self, place: usize) {
        let (since, lost) = {
            let source = &self.hosts[1 - place];
            (source.good_since, source.lost_power_at)
        };
        let target = &mut self.hosts[place];
        target.good_since = self.now;
        if lost > since.max(self.guest_since) {
            (target.good_since, target.lost_power_at) = (since, lost);
        }
    }

    /// Ends one operation on that host's storage.
    pub fn complete(&mut self, place: usize) {
        if self.is_frozen(place) || self.now < self.hosts[place].disk_stalled_until {
            return;
        }
        let now = self.instant();
        let Host { process, disk, .. } = &mut self.hosts[place];
        let Some(process) = process else { return };
        if process.pending.is_empty() {
            return;
        }
        let count = u64::try_from(process.pending.len()).expect("few");
        let index = usize::try_from(self.rng.within(0..count)).expect("few");
        if self.tells {
            eprintln!("host {place} ends {:?}", process.pending[index]);
        }
        // A copy of its own replica begins.
        let disowns = matches!(&process.pending[index], Pending::Superblock(info) if info.health == Health::Copying)
            && process.coordinator().is_some();
        process.complete(index, now, disk, usize::try_from(BLOCK_SECTORS).expect("small"));
        if disowns {
            self.hosts[place].good_since = self.now;
        }
        self.after(place);
    }

    /// Carries out what an engine asked for that concerns others, and changes the engine when it may.
    pub fn after(&mut self, place: usize) {
        loop {
            let now = self.instant();
            let Host { process, disk, .. } = &mut self.hosts[place];
            let Some(process) = process else { return };
            let changed = process.change_engine(now, disk, Self::settings());
            self.try_recover(place);
            self.try_go_on(place);
            let Some(process) = &mut self.hosts[place].process else { return };
            let actions = std::mem::take(&mut process.outbox);
            if actions.is_empty() && !changed {
                return;
            }
            for action in actions {
                self.carry_out(place, action);
            }
            self.check();
        }
    }

    fn carry_out(&mut self, place: usize, action: Action) {
        self.tell(|| format!("host {place}: {action:?}"));
        match action {
            Action::Send(message) => self.send(place, message),
            Action::Acknowledge(proof) => self.acknowledged(place, proof.op()),
            Action::Answer { op, .. } => self.answered(place, op),
            Action::Fail { op } => self.failed(place, op),
            Action::CloseLink(_) => self.drop_link(place),
            Action::Wish(wish) => {
                let engine = self.hosts[place].process.as_ref().and_then(Process::coordinator);
                assert!(engine.is_none_or(|engine| engine.ahead().is_none()), "{wish:?} while writing ahead");
                self.wishes.push(wish);
            }
            Action::Trouble(Trouble::LocalFailed) => self.summary.failed_disks += 1,
            Action::Trouble(_) => {}
            Action::Verified(verified) => self.verified(verified),
            Action::Marked(outcome) => self.marked(place, outcome.is_ok()),
            Action::AheadStuck { .. } => self.stuck(place),
            Action::EpochStaged { session, epoch, flushed } => {
                self.standby(place, StandbyEvent::DiskStaged { session, disk: DISK, epoch, flushed });
            }
            Action::EpochApplied { session, epoch } => {
                self.standby(place, StandbyEvent::DiskApplied { session, disk: DISK, epoch });
            }
            Action::EpochsLost { .. } => self.standby(place, StandbyEvent::Failed),
            Action::Forget { op } => {
                if let Some(process) = self.hosts[place].process.as_mut().filter(|process| !process.is_busy(op)) {
                    process.data.remove(&op);
                }
            }
            Action::Local { .. } | Action::Commit(_) | Action::Superblock(_) | Action::Stage { .. } => {
                unreachable!("kept by the process")
            }
        }
    }

    fn send(&mut self, place: usize, message: Message) {
        self.check_copy(place, &message);
        let Some(process) = &self.hosts[place].process else { return };
        let data = data_op(&message).map(|op| process.data.get(&op).cloned().expect("what is sent has its data"));
        if let Some(link) = self.link.as_mut().filter(|link| link.held[place] && link.held[1 - place] && !link.cut) {
            link.to[1 - place].push_back(Packet { message, data });
        }
    }

    /// Time passes, and both engines are told.
    pub fn tick(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        let now = self.instant();
        for place in 0..2 {
            if self.is_frozen(place) {
                continue;
            }
            let Host { process, disk, .. } = &mut self.hosts[place];
            if let Some(process) = process {
                process.tell(now, disk, Input::Tick);
            }
            self.knock(place);
            self.after(place);
        }
    }
}
