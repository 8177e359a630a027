//! Everything around the hosts: real time, the pool state and who may change it, messages in flight, and what must hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ev_core::authority::{Authority, Origin, Power};
use ev_core::availability::keeper::{Event, Gate};
use ev_core::availability::master::Path;
use ev_core::ids::{Generation, HostId, MemberId};
use ev_core::mirror::{Health, History, ReplicaInfo};
use ev_core::pool::{Command, Outcome, PoolState, Refusal, Stamped};
use ev_core::report::AmReport;
use ev_core::vm::{Level, Vm};

use super::guest::Known;
use super::host::{Life, Node};
use super::link::Link;
use super::run::Summary;
pub(super) use crate::availability::world::{DISK, InFlight};
use crate::availability::world::{VM, first_state};
use crate::mirror::disk::Disk;
use crate::mirror::host::Host as Storage;
use crate::rng::Rng;

pub(super) const GRACE: Duration = Duration::from_secs(10);
/// One step of real time.
pub(super) const STEP_MS: u64 = 10;
/// The disk.
pub(super) const SECTORS: usize = 32;
pub(super) const REGION_SECTORS: u32 = 4;
pub(super) const BLOCK_SECTORS: u32 = 2;
const REGIONS: u64 = 8;

pub(super) struct World {
    pub rng: Rng,
    pub now_ms: u64,
    pub nodes: [Node; 2],
    pub quorum_up: bool,
    /// Cut pairs of members (0, 1: hosts; 2: the quorum server).
    pub cuts: BTreeSet<(usize, usize)>,
    /// The private links between the two AMs.
    pub private_cut: bool,
    pub state: PoolState,
    first: PoolState,
    pub leader: Option<usize>,
    pub term: u64,
    pub leader_lost_ms: Option<u64>,
    pub queue: VecDeque<(u64, InFlight)>,
    pub starts: BTreeMap<Generation, usize>,
    /// Who held the memory when the record let a guest go on, by the new `since`.
    pub holders: BTreeMap<Generation, HostId>,
    pub link: Link,
    /// How long a guest's memory usually takes to the standby.
    pub bulk_ms: u64,
    pub instances: u64,
    pub known: Known,
    pub summary: Summary,
    /// Faults are over: messages are no longer lost or late.
    pub calm: bool,
    traces: bool,
}

/// Storage with a good replica, as after a first copy.
fn storage(id: HostId) -> Storage {
    let one = Generation(1);
    let info = ReplicaInfo { health: Health::Good, history: History { current: one, bitmap_base: one } };
    Storage {
        id,
        disk: Disk::new(SECTORS, REGIONS, info),
        process: None,
        powered: true,
        trouble_at: 0,
        frozen_until: 0,
        disk_stalled_until: 0,
        lost_power_at: 0,
        good_since: 0,
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = [1, 2]
            .map(|id| Node::new(storage(MemberId(id)), rng.within(1..1 << 40) + (1 << 30), rng.within(975..1_026)));
        let bulk_ms = if rng.per_mille(700) { 40 } else { 400 };
        let mut world = Self {
            rng,
            now_ms: 0,
            nodes,
            quorum_up: true,
            cuts: BTreeSet::new(),
            private_cut: false,
            state: first_state(Level::System),
            first: first_state(Level::System),
            leader: None,
            term: 0,
            leader_lost_ms: Some(0),
            queue: VecDeque::new(),
            starts: BTreeMap::new(),
            holders: BTreeMap::new(),
            link: Link::default(),
            bulk_ms,
            instances: 0,
            known: Known::new(),
            summary: Summary::default(),
            calm: false,
            traces: std::env::var_os("EVENKEEL_TRACE").is_some(),
        };
        for index in 0..2 {
            world.start_am(index);
        }
        world
    }

    pub(super) fn vm(&self) -> &Vm {
        &self.state.vms[&VM]
    }

    pub(super) fn first_vm(&self) -> Vm {
        self.first.vms[&VM].clone()
    }

    pub(super) fn trace(&self, what: impl FnOnce() -> String) {
        if self.traces {
            eprintln!("{:6} ms  {}", self.now_ms, what());
        }
    }

    pub(super) fn fail(&self, what: &str) -> ! {
        panic!("at {} ms: {what}; {:?}", self.now_ms, self.vm().authority);
    }

    /// Whether two members can talk now.
    pub(super) fn connected(&self, a: usize, b: usize) -> bool {
        let up = |index: usize| if index == 2 { self.quorum_up } else { self.nodes[index].life == Life::Up };
        up(a) && up(b) && (a == b || !self.cuts.contains(&(a.min(b), a.max(b))))
    }

    /// Whether a host reaches a majority of the three voters, itself included.
    pub(super) fn reaches_majority(&self, host: usize) -> bool {
        (0..3).filter(|other| self.connected(host, *other)).count() >= 2
    }

    pub(super) fn send(&mut self, message: InFlight) {
        let late = if !self.calm && self.rng.per_mille(30) { 2_000 } else { 40 };
        let at = self.now_ms + self.rng.within(0..late);
        self.queue.push_back((at, message));
    }

    /// Delivers what is due, in the order of sending.
    pub(super) fn deliver(&mut self) {
        let now_ms = self.now_ms;
        if !self.queue.iter().any(|(at, _)| *at <= now_ms) {
            return;
        }
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(|(at, _)| *at <= now_ms);
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
                    let Command::VmAuthority { if_generation: seen, .. } = command else { return };
                    if let Outcome::Refused(_) = self.commit(command) {
                        self.nodes[by].master.proposal_refused(VM, seen);
                    }
                }
            }
            InFlight::Propose { from, seen, change } => {
                let Some(leader) = self.leader.filter(|leader| self.connected(from, *leader)) else { return };
                if self.reaches_majority(leader) {
                    match self.commit(Command::VmAuthority { id: VM, if_generation: seen, change }) {
                        Outcome::Authority(record) | Outcome::Refused(Refusal::Superseded(record)) => {
                            self.send(InFlight::Answer { to: from, record: Some(record) });
                        }
                        // Not told to the keeper, which asks again when its patience is over.
                        Outcome::Done | Outcome::MemberAdded(_) | Outcome::Refused(_) => {}
                    }
                }
            }
            InFlight::Answer { to, record } => self.keep(to, Event::ProposalAnswered { record }),
            InFlight::Push { to, vm } => self.keep(to, Event::Vm(vm)),
            // A process that stands still finds it when it goes on.
            InFlight::Done { on, event } if self.nodes[on].life == Life::Frozen => {
                self.queue.push_back((self.now_ms + STEP_MS, InFlight::Done { on, event }));
            }
            InFlight::Done { on, event } => self.keep(on, event),
        }
    }

    fn report_arrives(&mut self, from: usize, asked_at: ev_core::time::Instant, report: AmReport) {
        let Some(leader) = self.leader.filter(|leader| self.connected(from, *leader)) else { return };
        // The read index: the leader must reach a majority now, else it does not answer.
        if self.reaches_majority(leader) {
            let now = self.nodes[leader].clock(self.now_ms);
            let lease = self.nodes[leader].master.report(now, report, &self.state);
            let vm = Box::new(self.vm().clone());
            self.send(InFlight::Directive { to: from, asked_at, vm, lease });
        }
    }

    pub(super) fn commit(&mut self, command: Command) -> Outcome {
        let memory = self.vm().authority.memory;
        self.trace(|| format!("{command:?}"));
        let outcome = self.state.apply(Stamped { unix_ms: self.now_ms, command });
        self.trace(|| format!("  {outcome:?}"));
        if let Outcome::Authority(record) = &outcome {
            self.note_record(record, memory);
            let vm = Box::new(self.vm().clone());
            for to in 0..2 {
                if self.rng.per_mille(700) {
                    self.send(InFlight::Push { to, vm: vm.clone() });
                }
            }
        }
        outcome
    }

    fn note_record(&mut self, record: &Authority, memory: Option<HostId>) {
        self.summary.protections += u64::from(memory.is_none() && record.memory.is_some());
        if let (Origin::Memory, Power::On { since }) = (record.origin, record.power)
            && since == record.generation
        {
            self.holders.insert(since, memory.expect("the record named a holder"));
        }
    }

    /// Somebody raises or lowers the level.
    pub(super) fn change_level(&mut self) {
        let level = if self.vm().level == Level::System { Level::Component } else { Level::System };
        self.set_level(level);
    }

    pub(super) fn set_level(&mut self, level: Level) {
        if self.vm().level != level && self.leader.is_some_and(|leader| self.reaches_majority(leader)) {
            let hosts = self.vm().hosts.clone();
            self.commit(Command::VmPlace { id: VM, level, hosts });
        }
    }

    /// What was on its way to a process that is gone.
    pub(super) fn forget_connections(&mut self, index: usize) {
        self.queue.retain(|(_, message)| match message {
            InFlight::Directive { to, .. } | InFlight::Answer { to, .. } | InFlight::Push { to, .. } => *to != index,
            InFlight::Done { on, .. } => *on != index,
            InFlight::Report { .. } | InFlight::Commit { .. } | InFlight::Propose { .. } => true,
        });
    }

    /// Heartbeats of all hosts that can hear each other on the management network or a private link.
    pub(super) fn heartbeats(&mut self) {
        for (from, to) in [(0, 1), (1, 0)] {
            let both_up = self.nodes[from].life == Life::Up && self.nodes[to].life == Life::Up;
            let (sender, now) = (self.nodes[from].id, self.nodes[to].clock(self.now_ms));
            if self.connected(from, to) {
                self.nodes[to].master.heartbeat(now, sender, Path(0));
            }
            if both_up && !self.private_cut {
                self.nodes[to].master.heartbeat(now, sender, Path(1));
            }
        }
    }

    /// What must hold at every instant, beside what the guest shows.
    pub(super) fn check(&self) {
        let free: Vec<usize> = (0..2).filter(|index| self.nodes[*index].lets_out_freely(self.now_ms)).collect();
        if free.len() > 1 {
            self.fail("both hosts let out what nobody confirmed");
        }
        let [index] = free[..] else { return };
        let leased = matches!(self.nodes[index].am.as_ref().map(|am| am.gate), Some(Gate::OpenUntil(_)));
        if self.vm().authority.active != Some(self.nodes[index].id) && !leased {
            self.fail("a host acts without a lease against the record");
        }
        for node in &self.nodes {
            let health = node.storage.disk.superblock().health;
            if self.vm().authority.holds_all_good(node.id) && health != Health::Good {
                self.fail(&format!("the record calls the replica of host {} good, and it is {health:?}", node.id));
            }
        }
    }
}
