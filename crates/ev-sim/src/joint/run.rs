//! One schedule: some seconds of faults, some without, and what must be so then.

use ev_core::availability::keeper::Event;
use ev_core::checkpoint::{Phase, Primary};
use ev_core::ids::MemberId;
use ev_core::report::AmReport;
use ev_core::vm::Level;

use super::host::Life;
use super::world::{InFlight, STEP_MS, World};
use crate::availability::world::VM;

/// How long faults happen, and how long the world then has to come right.
const FAULTS_MS: u64 = 12_000;
const CALM_MS: u64 = 16_000;
/// A guest that tells nothing for so long is not seen.
const UNSEEN_MS: u64 = 2_000;

/// What a run came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Records that named a standby.
    pub protections: u64,
    /// Guests that went on from memory, and of them those whose old host stood still.
    pub went_on: u64,
    pub went_on_from_frozen: u64,
    pub boots: u64,
    /// Epochs that a standby confirmed, and frames that left.
    pub confirmed: u64,
    pub seen: u64,
}

impl Summary {
    /// Adds another run's counts.
    pub fn add(&mut self, other: Self) {
        self.protections += other.protections;
        self.went_on += other.went_on;
        self.went_on_from_frozen += other.went_on_from_frozen;
        self.boots += other.boots;
        self.confirmed += other.confirmed;
        self.seen += other.seen;
    }
}

/// Runs one seed.
///
/// # Panics
/// When something does not hold: the message says what, and at which time.
#[must_use]
pub fn run(seed: u64) -> Summary {
    let mut world = World::new(seed);
    let faulty = world.rng.within(0..16);
    while world.now_ms < FAULTS_MS + CALM_MS {
        if world.now_ms < FAULTS_MS {
            world.faults(faulty);
        } else {
            world.heal();
        }
        world.step();
        world.check();
        world.now_ms += STEP_MS;
        if world.calm && world.is_well() {
            return world.summary;
        }
    }
    world.check_end();
    world.summary
}

impl World {
    fn step(&mut self) {
        self.elect();
        self.deliver();
        self.tend_link();
        if self.now_ms.is_multiple_of(100) {
            self.heartbeats();
        }
        for index in 0..2 {
            if self.nodes[index].life != Life::Up {
                continue;
            }
            if self.now_ms.is_multiple_of(50) {
                self.tick_master(index);
            }
            if self.nodes[index].am.is_none() && self.rng.per_mille(20) {
                self.start_am(index);
            }
            if self.now_ms.is_multiple_of(50) {
                self.keep(index, Event::Tick);
            }
            self.report(index);
            self.run_disk(index);
            self.run_standby(index);
            self.run_takeover(index);
            self.run_guest(index);
            self.run_active(index);
            self.let_out(index);
        }
    }

    /// Stands in for Raft's election: a leader that does not reach a majority is replaced by a host that does, after a while;
    /// the old one learns of it late.
    fn elect(&mut self) {
        let sound =
            self.leader.is_some_and(|leader| self.nodes[leader].life == Life::Up && self.reaches_majority(leader));
        if sound {
            self.leader_lost_ms = None;
            return;
        }
        let lost = *self.leader_lost_ms.get_or_insert(self.now_ms);
        if self.now_ms - lost < self.rng.within(300..1_000) {
            return;
        }
        let preferred = usize::from(self.rng.per_mille(500));
        let able = |index: &usize| self.nodes[*index].life == Life::Up && self.reaches_majority(*index);
        if let Some(next) = [preferred, 1 - preferred].into_iter().find(able) {
            self.leader = Some(next);
            self.term += 1;
            self.leader_lost_ms = None;
            let now = self.nodes[next].clock(self.now_ms);
            self.nodes[next].master.elected(now);
        }
    }

    fn tick_master(&mut self, index: usize) {
        let now = self.nodes[index].clock(self.now_ms);
        if self.leader != Some(index) && self.rng.per_mille(100) {
            self.nodes[index].master.deposed();
        }
        let mut commands = Vec::new();
        self.nodes[index].master.tick(now, self.now_ms, &self.state, &mut commands);
        let term = self.term;
        for command in commands {
            self.send(InFlight::Commit { by: index, term, command });
        }
    }

    fn report(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Some(am) = node.am.as_ref().filter(|_| self.now_ms >= node.next_report_ms) else { return };
        let record = &am.keeper.vm().authority;
        let report = AmReport {
            vm: VM,
            host: node.id,
            generation: record.generation,
            power: record.power,
            guest: am.keeper.guest_state(),
            disks: Vec::new(),
            accelerator: None,
            level3: None,
            troubles: Vec::new(),
        };
        let asked_at = node.clock(self.now_ms);
        self.nodes[index].next_report_ms = self.now_ms + 400;
        if self.calm || !self.rng.per_mille(50) {
            self.send(InFlight::Report { from: index, asked_at, report: Box::new(report) });
        }
    }

    fn faults(&mut self, faulty: u64) {
        if !self.rng.per_mille(faulty) {
            return;
        }
        let index = usize::from(self.rng.per_mille(500));
        let active = usize::from(self.vm().authority.active == Some(MemberId(2)));
        match self.rng.within(0..18) {
            0 => self.crash(active),
            1 => self.crash(index),
            2 | 3 => self.freeze(active),
            4..=7 => self.revive(index),
            8 => {
                let pair = [(0, 1), (0, 2), (1, 2)][usize::try_from(self.rng.within(0..3)).unwrap_or(0)];
                self.cuts.insert(pair);
            }
            9 => self.cuts.clear(),
            10 => self.quorum_up = !self.quorum_up,
            11 => self.private_cut = !self.private_cut,
            12 => self.crash_am(index),
            13 => self.kill_guest(active),
            14 => {
                let host = self.nodes[1 - active].id;
                self.keep(active, Event::SwitchTo { host });
            }
            15 if self.rng.per_mille(300) => self.change_level(),
            15 => self.freeze(index),
            16 => {
                self.crash(0);
                self.crash(1);
            }
            // The link is made anew.
            _ => self.cut_link(index),
        }
    }

    fn freeze(&mut self, index: usize) {
        if self.nodes[index].life == Life::Up {
            self.trace(|| format!("host {index} stands still"));
            self.nodes[index].life = Life::Frozen;
        }
    }

    fn revive(&mut self, index: usize) {
        match self.nodes[index].life {
            Life::Up => {}
            Life::Frozen => {
                self.trace(|| format!("host {index} goes on"));
                self.nodes[index].life = Life::Up;
            }
            Life::Down => {
                self.nodes[index].life = Life::Up;
                self.nodes[index].storage.powered = true;
                self.start_am(index);
            }
        }
    }

    fn heal(&mut self) {
        if !self.calm {
            self.trace(|| "the faults end".to_owned());
            self.calm = true;
            self.cuts.clear();
            self.quorum_up = true;
            self.private_cut = false;
            for index in 0..2 {
                self.revive(index);
            }
        }
        self.set_level(Level::System);
    }

    /// The guest is seen, and can go on on the other host.
    fn is_well(&self) -> bool {
        let record = &self.vm().authority;
        let protected = self.nodes.iter().any(|node| {
            let phase = node.am.as_ref().and_then(|am| am.primary.as_ref()).map(Primary::phase);
            record.active == Some(node.id) && phase == Some(Phase::Protected)
        });
        record.memory.is_some() && protected && self.now_ms - self.known.told_ms < UNSEEN_MS
    }

    fn check_end(&self) {
        let phases: Vec<Option<Phase>> = self
            .nodes
            .iter()
            .map(|node| node.am.as_ref().and_then(|am| am.primary.as_ref()).map(Primary::phase))
            .collect();
        if !self.is_well() {
            self.fail(&format!("long after the last fault the guest is not protected or not seen; {phases:?}"));
        }
    }
}
