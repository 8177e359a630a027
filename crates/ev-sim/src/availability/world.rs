//! Everything around the engines: real time, the store, messages in flight, links, and the invariants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use ev_core::authority::{Authority, AuthorityChange, Origin, Power};
use ev_core::availability::keeper::{Action, Event, Gate, Role};
use ev_core::availability::master::Path;
use ev_core::ids::{DiskId, Generation, HostId, MemberId, NetworkId, PoolId, VmId};
use ev_core::pool::{
    Command, CpuFacts, Member, MemberKind, MemoryTracking, Network, Outcome, PoolInfo, PoolState, Refusal, Stamped,
};
use ev_core::report::{AmReport, EndCause};
use ev_core::vm::{Boot, Desired, DiskConfig, Firmware, Level, Vm, VmConfig};
use uuid::Uuid;

use super::checkpoints::Link;
use super::content::Branches;
use super::host::{Checkpoint, Host, Life, Mirror, Qemu};
use super::run::Summary;
use crate::rng::Rng;

pub(crate) const VM: VmId = VmId(Uuid::from_u128(1));
pub(crate) const DISK: DiskId = DiskId(Uuid::from_u128(2));
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// One step of real time.
pub(super) const STEP_MS: u64 = 10;

/// A message or an effect under way.
pub(crate) enum InFlight {
    Report {
        from: usize,
        asked_at: ev_core::time::Instant,
        report: Box<AmReport>,
    },
    Directive {
        to: usize,
        asked_at: ev_core::time::Instant,
        vm: Box<Vm>,
        lease: Option<Duration>,
    },
    /// A command on its way to the store, from the member that led (or believed so) when it was sent, in its term.
    Commit {
        by: usize,
        term: u64,
        command: Command,
    },
    Propose {
        from: usize,
        seen: Generation,
        change: AuthorityChange,
    },
    Answer {
        to: usize,
        record: Option<Authority>,
    },
    Push {
        to: usize,
        vm: Box<Vm>,
    },
    /// Something that an AM asked its QEMU for is done.
    Done {
        on: usize,
        event: Event,
    },
}

/// What the outside has seen of the guest, and of which of its lives.
#[derive(Debug, Clone, Copy)]
struct Seen {
    since: Generation,
    of: Checkpoint,
    /// Real time at which this life was first seen.
    first_ms: Option<u64>,
}

/// Confirmed just before the guest went on elsewhere, frames may still come so long after it was seen there.
const LATE_MS: u64 = 600;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now_ms: u64,
    pub(super) hosts: [Host; 2],
    pub(super) quorum_up: bool,
    /// Cut pairs of members (0, 1: hosts; 2: the quorum server).
    pub(super) cuts: BTreeSet<(usize, usize)>,
    /// The private links between the two AMs.
    pub(super) private_cut: bool,
    /// A host that loses power at a time.
    pub(super) doomed: Option<(usize, u64)>,
    pub(super) state: PoolState,
    first: PoolState,
    pub(super) leader: Option<usize>,
    pub(super) term: u64,
    pub(super) leader_lost_ms: Option<u64>,
    queue: VecDeque<(u64, InFlight)>,
    starts: BTreeMap<Generation, usize>,
    /// Who held the memory when the record let a guest go on, by the new `since`.
    holders: BTreeMap<Generation, HostId>,
    pub(super) memories: Branches,
    pub(super) disks: Branches,
    /// What the outside has seen.
    seen: Option<Seen>,
    pub(super) link: Link,
    pub(super) summary: Summary,
    /// Faults are over: messages are no longer lost or late.
    pub(super) calm: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut disks = Branches::default();
        let empty = disks.fork(None, 0);
        let hosts = [1, 2].map(|id| Host::new(MemberId(id), rng.within(0..1 << 40), rng.within(975..1_026), empty));
        let level = if rng.per_mille(600) { Level::System } else { Level::Component };
        let mut world = Self {
            rng,
            now_ms: 0,
            hosts,
            quorum_up: true,
            cuts: BTreeSet::new(),
            private_cut: false,
            doomed: None,
            state: first_state(level),
            first: first_state(level),
            leader: None,
            term: 0,
            leader_lost_ms: Some(0),
            queue: VecDeque::new(),
            starts: BTreeMap::new(),
            holders: BTreeMap::new(),
            memories: Branches::default(),
            disks,
            seen: None,
            link: Link::default(),
            summary: Summary::default(),
            calm: false,
        };
        for index in 0..2 {
            world.start_am(index);
        }
        world
    }

    pub(super) fn vm(&self) -> &Vm {
        &self.state.vms[&VM]
    }

    /// Whether two members can talk now.
    pub(super) fn connected(&self, a: usize, b: usize) -> bool {
        let up = |index: usize| if index == 2 { self.quorum_up } else { self.hosts[index].life == Life::Up };
        up(a) && up(b) && (a == b || !self.cuts.contains(&(a.min(b), a.max(b))))
    }

    /// Whether a host reaches a majority of the three voters, itself included.
    pub(super) fn reaches_majority(&self, host: usize) -> bool {
        (0..3).filter(|other| self.connected(host, *other)).count() >= 2
    }

    pub(super) fn start_am(&mut self, index: usize) {
        // The configuration file may be old: any record up to the newest. The first one is the oldest that there is.
        let vm = if self.rng.per_mille(500) { self.vm().clone() } else { self.first.vms[&VM].clone() };
        let actions = self.hosts[index].start_am(self.now_ms, GRACE, vm);
        self.perform(index, actions);
    }

    pub(super) fn send(&mut self, message: InFlight) {
        let late =
            if !self.calm && self.rng.per_mille(50) { self.rng.within(0..3_000) } else { self.rng.within(0..60) };
        self.queue.push_back((self.now_ms + late, message));
    }

    /// Delivers what is due, in the order of sending.
    pub(super) fn deliver(&mut self) {
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(|(at, _)| *at <= self.now_ms);
        self.queue = later.into();
        for (_, message) in due {
            self.arrive(message);
        }
    }

    fn arrive(&mut self, message: InFlight) {
        match message {
            InFlight::Report { from, asked_at, report } => self.report_arrives(from, asked_at, *report),
            InFlight::Directive { to, asked_at, vm, lease } => {
                self.keep(to, Event::Vm(vm));
                self.keep(to, Event::Directive { asked_at, lease });
            }
            InFlight::Commit { by, term, command } => {
                if self.term == term && self.leader == Some(by) && self.reaches_majority(by) {
                    let seen = match &command {
                        Command::VmAuthority { if_generation, .. } => Some(*if_generation),
                        _ => None,
                    };
                    let outcome = self.commit(command);
                    if let (Some(seen), Outcome::Refused(_)) = (seen, outcome) {
                        self.hosts[by].master.proposal_refused(VM, seen);
                    }
                }
            }
            InFlight::Propose { from, seen, change } => self.proposal_arrives(from, seen, change),
            InFlight::Answer { to, record } => self.keep(to, Event::ProposalAnswered { record }),
            InFlight::Push { to, vm } => self.keep(to, Event::Vm(vm)),
            // A frozen process finds it when it is thawed.
            InFlight::Done { on, event } if self.hosts[on].life == Life::Frozen => {
                self.queue.push_back((self.now_ms + STEP_MS, InFlight::Done { on, event }));
            }
            InFlight::Done { on, event } => self.keep(on, event),
        }
    }

    fn report_arrives(&mut self, from: usize, asked_at: ev_core::time::Instant, report: AmReport) {
        let Some(leader) = self.leader.filter(|leader| self.connected(from, *leader)) else { return };
        // The read index: the leader must reach a majority now, else it does not answer.
        if !self.reaches_majority(leader) {
            return;
        }
        let now = self.hosts[leader].clock(self.now_ms);
        let lease = self.hosts[leader].master.report(now, report, &self.state);
        let vm = Box::new(self.vm().clone());
        self.send(InFlight::Directive { to: from, asked_at, vm, lease });
    }

    fn proposal_arrives(&mut self, from: usize, seen: Generation, change: AuthorityChange) {
        let Some(leader) = self.leader.filter(|leader| self.connected(from, *leader)) else { return };
        if self.reaches_majority(leader) {
            let record = match self.commit(Command::VmAuthority { id: VM, if_generation: seen, change }) {
                Outcome::Authority(record) | Outcome::Refused(Refusal::Superseded(record)) => Some(record),
                Outcome::Done | Outcome::MemberAdded(_) | Outcome::Refused(_) => None,
            };
            self.send(InFlight::Answer { to: from, record });
        }
    }

    pub(super) fn commit(&mut self, command: Command) -> Outcome {
        let Authority { active, memory, .. } = self.vm().authority;
        self.trace(|| format!("{command:?}"));
        let outcome = self.state.apply(Stamped { unix_ms: self.now_ms, command });
        if let Outcome::Authority(record) = &outcome {
            if record.active != active {
                self.summary.takeovers += 1;
            }
            if let (Origin::Memory, Power::On { since }) = (record.origin, record.power)
                && since == record.generation
            {
                self.holders.insert(since, memory.expect("the record named a holder"));
            }
            self.trace(|| format!("{record:?}"));
            let vm = Box::new(self.vm().clone());
            for to in 0..2 {
                if self.rng.per_mille(700) {
                    self.send(InFlight::Push { to, vm: vm.clone() });
                }
            }
        }
        outcome
    }

    /// Tells a host's keeper what happened and performs what it asks for. A host that is frozen or down hears nothing.
    pub(super) fn keep(&mut self, index: usize, event: Event) {
        let now = self.hosts[index].clock(self.now_ms);
        if self.hosts[index].life != Life::Up {
            return;
        }
        let Some(keeper) = &mut self.hosts[index].keeper else { return };
        let mut actions = Vec::new();
        keeper.step(now, event, &mut actions);
        self.perform(index, actions);
    }

    fn perform(&mut self, index: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start { since } => self.start_guest(index, since),
                Action::Continue { since } => self.continue_guest(index, since),
                Action::Pause => self.pause(index, true, Event::PausedNow),
                Action::Resume => self.pause(index, false, Event::ResumedNow),
                Action::End { cause } => {
                    self.hosts[index].qemu = None;
                    self.send(InFlight::Done { on: index, event: Event::Ended { cause, clean: false } });
                }
                Action::PowerDown => {
                    self.hosts[index].qemu = None;
                    let event = Event::Ended { cause: EndCause::GuestShutdown, clean: true };
                    self.send(InFlight::Done { on: index, event });
                }
                Action::Propose { seen, change } => self.send(InFlight::Propose { from: index, seen, change }),
                Action::Gate(gate) => self.hosts[index].gate = gate,
                Action::SetRoles { role, .. } => self.set_role(index, role),
                Action::Leave => self.hosts[index].crash_am(),
            }
        }
    }

    fn set_role(&mut self, index: usize, role: Role) {
        let was = self.hosts[index].pair.role.replace(role);
        let coordinates = |role: Option<Role>| matches!(role, Some(Role::Coordinator { .. }));
        if coordinates(Some(role)) && !coordinates(was) {
            self.becomes_coordinator(index);
        }
    }

    fn pause(&mut self, index: usize, paused: bool, done: Event) {
        if let Some(qemu) = &mut self.hosts[index].qemu {
            qemu.paused = paused;
        }
        self.send(InFlight::Done { on: index, event: done });
    }

    fn mark_started(&mut self, index: usize, since: Generation) {
        let host = &mut self.hosts[index];
        assert!(host.started < since, "a guest was started twice on one host under {since}");
        host.started = since;
        if let Some(other) = self.starts.insert(since, index) {
            panic!("the guest of {since} was started on host {other} and on host {index}");
        }
    }

    /// The guest boots: its memory is new, its disks are what lies here.
    fn start_guest(&mut self, index: usize, since: Generation) {
        self.mark_started(index, since);
        let (memory, disk) = (self.memories.fork(None, self.now_ms), self.hosts[index].disk);
        if let Some(seen) = self.seen {
            assert!(
                self.disks.contain(disk, seen.of.disk),
                "at {} ms host {index} starts from {disk:?}, and {seen:?} was seen",
                self.now_ms
            );
        }
        self.hosts[index].pair.image = None;
        self.hosts[index].qemu = Some(Qemu { since, memory, disk, wrote: false, paused: false });
        self.seen = Some(Seen { since, of: Checkpoint { memory, disk }, first_ms: None });
        self.send(InFlight::Done { on: index, event: Event::Started });
    }

    fn continue_guest(&mut self, index: usize, since: Generation) {
        self.mark_started(index, since);
        assert_eq!(self.holders.get(&since), Some(&self.hosts[index].id), "it goes on where nobody held its memory");
        let Some(qemu) = self.go_on(index) else {
            let why = EndCause::StartFailed("the memory is lost".to_owned());
            return self.send(InFlight::Done { on: index, event: Event::Ended { cause: why, clean: false } });
        };
        let of = Checkpoint { memory: qemu.memory, disk: qemu.disk };
        if let Some(seen) = self.seen {
            let all = self.memories.contain(of.memory, seen.of.memory) && self.disks.contain(of.disk, seen.of.disk);
            assert!(all, "at {} ms the guest goes on from {of:?}, and {seen:?} was seen", self.now_ms);
        }
        self.seen = Some(Seen { since, of, first_ms: None });
        self.hosts[index].qemu = Some(qemu);
        self.summary.went_on += 1;
        self.summary.went_on_from_frozen += u64::from(self.hosts[1 - index].life == Life::Frozen);
        self.send(InFlight::Done { on: index, event: Event::Started });
    }

    /// The guest does something and writes it, as far as it may.
    pub(super) fn run_guest(&mut self, index: usize) {
        let acknowledges = self.hosts[index].keeper.is_some() && self.acknowledges(index);
        let in_step = matches!(self.hosts[index].pair.mirror, Mirror::InStep { .. });
        let now_ms = self.now_ms;
        let host = &mut self.hosts[index];
        let pausing = host.pair.pausing.is_some();
        let Some(qemu) = host.qemu.as_mut().filter(|qemu| !qemu.paused && !pausing) else { return };
        qemu.memory = qemu.memory.at(now_ms);
        if acknowledges {
            if !qemu.wrote {
                qemu.disk = self.disks.fork(Some(qemu.disk), now_ms);
                qemu.wrote = true;
            }
            qemu.disk = qemu.disk.at(now_ms);
            let disk = qemu.disk;
            host.disk = disk;
            if in_step {
                self.hosts[1 - index].disk = disk;
            }
        }
    }

    /// Somebody raises or lowers the level.
    pub(super) fn change_level(&mut self) {
        let level = match self.vm().level {
            Level::System => Level::Component,
            Level::Unprotected | Level::Restart | Level::Component => Level::System,
        };
        if self.leader.is_some_and(|leader| self.reaches_majority(leader)) {
            let hosts = self.vm().hosts.clone();
            self.commit(Command::VmPlace { id: VM, level, hosts });
        }
    }

    /// A host loses power; a leader does not come back as one.
    pub(super) fn crash(&mut self, index: usize) {
        self.hosts[index].crash();
        self.forget_connections(index);
        if self.leader == Some(index) {
            self.leader = None;
        }
    }

    /// The AM's process dies; the guest lives on.
    pub(super) fn crash_am(&mut self, index: usize) {
        self.hosts[index].crash_am();
        self.forget_connections(index);
    }

    /// What was on its way to a process that is gone.
    fn forget_connections(&mut self, index: usize) {
        self.queue.retain(|(_, message)| match message {
            InFlight::Directive { to, .. } | InFlight::Answer { to, .. } | InFlight::Push { to, .. } => *to != index,
            InFlight::Done { on, .. } => *on != index,
            InFlight::Report { .. } | InFlight::Commit { .. } | InFlight::Propose { .. } => true,
        });
    }

    /// QEMU dies by itself.
    pub(super) fn kill_guest(&mut self, index: usize) {
        if self.hosts[index].qemu.take().is_some() {
            let event = Event::Ended { cause: EndCause::Crashed("killed".to_owned()), clean: false };
            self.send(InFlight::Done { on: index, event });
        }
    }

    /// What must hold at every instant.
    pub(super) fn check(&mut self) {
        let free: Vec<usize> = (0..2).filter(|index| self.hosts[*index].lets_out_freely(self.now_ms)).collect();
        assert!(free.len() < 2, "both hosts' gates are open at {} ms", self.now_ms);
        if let [index] = free[..] {
            let newest = self.vm().authority.generation;
            let named = self.vm().authority.active == Some(self.hosts[index].id);
            assert!(
                named || matches!(self.hosts[index].gate, Gate::OpenUntil(_)),
                "host {index} acts without a lease against record {newest}"
            );
        }
        for index in 0..2 {
            self.look_outside(index);
        }
    }

    /// What is seen of the guest on this host.
    fn look_outside(&mut self, index: usize) {
        let (Some(out), Some(qemu)) = (self.hosts[index].lets_out(self.now_ms), self.hosts[index].qemu) else { return };
        if self.hosts[index].let_out.is_some_and(|(last, _)| last == out) {
            return;
        }
        self.hosts[index].let_out = Some((out, self.now_ms));
        let seen = self.seen.get_or_insert(Seen { since: qemu.since, of: out, first_ms: None });
        let news = !self.memories.contain(seen.of.memory, out.memory);
        if qemu.since == seen.since {
            seen.first_ms.get_or_insert(self.now_ms);
        }
        if news {
            assert!(
                qemu.since == seen.since && self.memories.contain(out.memory, seen.of.memory),
                "at {} ms host {index} lets {out:?} out, and {seen:?} was seen",
                self.now_ms
            );
            seen.of = out;
        }
    }

    /// A host lets go what was confirmed.
    pub(super) fn released(&self, index: usize) {
        let (Some(seen), Some(qemu)) = (self.seen, self.hosts[index].qemu) else { return };
        let late = qemu.since < seen.since && seen.first_ms.is_some_and(|first| self.now_ms - first > LATE_MS);
        assert!(
            !late || !self.hosts[index].gate_is_open(self.now_ms),
            "at {} ms host {index} lets frames out long after the guest was seen elsewhere",
            self.now_ms
        );
    }

    pub(super) fn trace(&self, what: impl FnOnce() -> String) {
        if std::env::var_os("EVENKEEL_TRACE").is_some() {
            eprintln!("{:6} ms  {}", self.now_ms, what());
        }
    }

    /// Heartbeats of all hosts that can hear each other on the management network or a private link.
    pub(super) fn heartbeats(&mut self) {
        for (from, to) in [(0, 1), (1, 0)] {
            let both_up = self.hosts[from].life == Life::Up && self.hosts[to].life == Life::Up;
            let sender = self.hosts[from].id;
            let now = self.hosts[to].clock(self.now_ms);
            if self.connected(from, to) {
                self.hosts[to].master.heartbeat(now, sender, Path(0));
            }
            if both_up && !self.private_cut {
                self.hosts[to].master.heartbeat(now, sender, Path(1));
            }
        }
    }
}

fn member(id: u64, kind: MemberKind) -> Member {
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    Member {
        id: MemberId(id),
        uuid: Uuid::from_u128(u128::from(id)),
        name: format!("m{id}"),
        kind,
        peer: address,
        api: None,
        heartbeat_port: 1,
        link_port_base: 1,
        private: Vec::new(),
        cpu: CpuFacts::default(),
        qemu_version: String::new(),
        machines: Vec::new(),
        memory_tracking: MemoryTracking::Untried,
    }
}

/// A pool of two hosts and a quorum server with one PVM, in sync, wished to run.
pub(crate) fn first_state(level: Level) -> PoolState {
    let mut state = PoolState::default();
    let mut apply = |command| {
        let outcome = state.apply(Stamped { unix_ms: 0, command });
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    };
    let pool = PoolInfo { id: PoolId(Uuid::from_u128(9)), name: "pool".to_owned() };
    let network = Network { id: NetworkId(Uuid::from_u128(8)), name: "vm".to_owned(), bridge: "ekbr-vm".to_owned() };
    let first = Box::new(member(1, MemberKind::Host));
    apply(Command::PoolCreate { pool, first, network, admin_token: String::new() });
    apply(Command::MemberAdd { member: Box::new(member(2, MemberKind::Host)) });
    apply(Command::MemberAdd { member: Box::new(member(3, MemberKind::QuorumServer)) });
    let config = VmConfig {
        vcpus: 1,
        memory_mib: 64,
        firmware: Firmware::Bios,
        machine: "pc-q35-7.2".to_owned(),
        cpu_model: "qemu64".to_owned(),
        boot: Boot::Disk,
        disks: vec![DiskConfig { id: DISK, size_bytes: 512 }],
        nics: Vec::new(),
        start_order: 0,
    };
    let host: HostId = MemberId(1);
    apply(Command::VmCreate { id: VM, name: "vm".to_owned(), config: Box::new(config), host });
    let hosts = [MemberId(1), MemberId(2)].into_iter().collect();
    apply(Command::VmPlace { id: VM, level, hosts });
    let change = AuthorityChange::ReplicaGood { disk: DISK, host: MemberId(2) };
    apply(Command::VmAuthority { id: VM, if_generation: Generation(2), change });
    apply(Command::VmDesire { id: VM, desired: Desired::Running });
    state
}
