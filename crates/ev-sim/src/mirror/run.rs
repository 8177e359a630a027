//! One schedule: a seed's worth of events and faults, then peace, then the last look.

use super::host::{Engine, Process};
use super::world::{HOSTS, Summary, World, place};

/// Events with faults.
const STORM_STEPS: u64 = 900;
/// The same with a guest that is protected by checkpoints: it takes a while until it is.
const PROTECTED_STEPS: u64 = 1500;
/// How often such a guest does nothing for a while, and for how long: then the write-intent log is emptied.
const IDLE_PER_MILLE: u64 = 3;
const IDLE_MS: u64 = 9_000;
/// Events that peace may take until everything is in step; far more than ever needed.
const PEACE_STEPS: u64 = 40_000;

/// How likely each fault is in this schedule, in a thousand events.
#[derive(Debug, Clone, Copy)]
struct Weather {
    cut_link: u64,
    kill: u64,
    power: u64,
    both_power: u64,
    takeover: u64,
    disk_fails: u64,
    bad_sector: u64,
    drop_wish: u64,
    stall: u64,
    freeze: u64,
    clean_end: u64,
    /// The memory's stream breaks, and the guest is told to go on elsewhere.
    lane: u64,
    switch: u64,
    /// How fast the memory is sent: sometimes it comes after the disk's part of several epochs.
    memory_pace: u64,
}

/// No faults.
const CALM: Weather = Weather {
    cut_link: 0,
    kill: 0,
    power: 0,
    both_power: 0,
    takeover: 0,
    disk_fails: 0,
    bad_sector: 0,
    drop_wish: 0,
    stall: 0,
    freeze: 0,
    clean_end: 0,
    lane: 0,
    switch: 0,
    memory_pace: 1000,
};

impl Weather {
    /// Protection by checkpoints takes a while to begin, and ends with most faults.
    fn calmer(self) -> Self {
        Self {
            cut_link: self.cut_link / 4,
            kill: self.kill / 4,
            power: self.power / 4,
            both_power: self.both_power / 2,
            takeover: self.takeover / 4,
            freeze: self.freeze / 2,
            stall: self.stall / 2,
            ..self
        }
    }
}

impl World {
    fn weather(&mut self) -> Weather {
        let mut some = |most: u64| if self.rng.per_mille(500) { self.rng.within(0..most + 1) } else { 0 };
        Weather {
            cut_link: some(12),
            kill: some(6),
            power: some(6),
            both_power: some(3),
            takeover: some(6),
            disk_fails: some(3),
            bad_sector: some(4),
            drop_wish: some(300),
            stall: some(10),
            freeze: some(5),
            clean_end: some(5),
            lane: 6,
            switch: 8,
            memory_pace: 1000,
        }
    }

    /// What only a guest that is protected by checkpoints sees.
    fn level3(&mut self, weather: Weather) {
        if !self.protected {
            return;
        }
        if self.rng.per_mille(weather.lane) {
            self.lane_ends();
        }
        if self.rng.per_mille(IDLE_PER_MILLE) {
            self.idle_until = self.now + IDLE_MS;
        }
        if self.now < self.idle_until && self.rng.per_mille(100) {
            let milliseconds = self.rng.within(100..250);
            self.tick(milliseconds);
        }
        if self.memory && self.rng.per_mille(weather.switch) {
            self.continue_guest();
        }
        match self.rng.within(0..8) {
            0..=2 => self.protect(),
            3 | 4 if self.rng.per_mille(weather.memory_pace) => self.hear_active(),
            3 | 4 => {}
            5 | 6 => self.hear_standby(),
            _ => self.commit_memory(),
        }
    }

    fn any_place(&mut self) -> usize {
        usize::from(self.rng.per_mille(500))
    }

    fn faults(&mut self, weather: Weather) {
        let mut place = self.any_place();
        if self.rng.per_mille(weather.cut_link)
            && let Some(link) = &mut self.link
        {
            link.cut(&mut self.rng);
        }
        if self.rng.per_mille(weather.kill) {
            self.kill_process(place);
        }
        place = self.any_place();
        if self.rng.per_mille(weather.power) {
            self.cut_power(place);
        }
        if self.rng.per_mille(weather.both_power) {
            self.cut_power(0);
            self.cut_power(1);
        }
        if self.rng.per_mille(weather.takeover) {
            self.start_guest();
        }
        if self.rng.per_mille(weather.disk_fails) {
            // One disk at a time: with both gone there is nothing to be kept.
            if !self.hosts[1 - place].disk.failed {
                self.exact = false;
                self.hosts[place].disk.failed = true;
                self.hosts[place].trouble_at = self.now;
            }
        }
        if self.rng.per_mille(weather.bad_sector) && self.hosts[1 - place].disk.bad.is_empty() {
            let sector = self.rng.within(0..278);
            self.exact = false;
            self.hosts[place].trouble_at = self.now;
            self.hosts[place].disk.bad.insert(usize::try_from(sector).expect("small"));
        }
    }

    /// What slows down instead of breaking, and an orderly end.
    fn delays(&mut self, weather: Weather) {
        let (place, until) = (self.any_place(), self.now + self.rng.within(50..2_500));
        if self.rng.per_mille(weather.stall)
            && let Some(link) = &mut self.link
        {
            link.stalled_until[place] = until;
        }
        if self.rng.per_mille(weather.stall) {
            self.hosts[1 - place].disk_stalled_until = self.now + self.rng.within(50..600);
        }
        if self.rng.per_mille(weather.freeze) {
            self.tell(|| format!("host {place} is frozen until {until}"));
            self.hosts[place].frozen_until = until;
        }
        if self.rng.per_mille(weather.clean_end) {
            self.begin_clean_end();
        }
    }

    /// Something that needs no fault.
    fn event(&mut self, weather: Weather) {
        match self.rng.within(0..100) {
            0..=29 => {
                let place = self.any_place();
                self.complete(place);
            }
            30..=59 => {
                let place = self.any_place();
                self.deliver(place);
            }
            60..=74 => self.guest_acts(),
            75..=80 => {
                let place = self.any_place();
                let role = self.role_of(HOSTS[place]);
                self.deliver_role(place, role);
            }
            81..=85 if !self.wishes.is_empty() => {
                let count = u64::try_from(self.wishes.len()).expect("few");
                let index = usize::try_from(self.rng.within(0..count)).expect("few");
                if self.rng.per_mille(weather.drop_wish) {
                    self.wishes.swap_remove(index);
                } else {
                    self.commit_wish(index);
                }
            }
            86..=88 => {
                let place = self.any_place();
                self.notice_cut(place);
            }
            89..=91 if self.link.is_none() || self.rng.per_mille(50) => self.connect(),
            92..=93 => self.submit_guest_ops(),
            94..=96 => {
                let milliseconds = self.rng.within(5..250);
                self.tick(milliseconds);
            }
            97 => self.bring_back(),
            98 if self.rng.per_mille(150) => self.compare(),
            98 => self.advance_clean_end(),
            _ => {
                let place = self.any_place();
                self.complete(place);
            }
        }
    }

    /// Power, processes and guests come back.
    fn bring_back(&mut self) {
        let place = self.any_place();
        let host = &mut self.hosts[place];
        if !host.powered {
            host.powered = true;
        } else if host.process.is_none() {
            // A disk that failed is replaced by its own, repaired content: its file system was mounted anew.
            host.disk.failed = false;
            self.start_process(place);
        } else if host.disk.failed && self.rng.per_mille(100) {
            self.kill_process(place);
        }
        if !self.guest_runs && !self.recovering && !self.continuing && self.rng.per_mille(700) {
            self.start_guest();
        }
    }

    /// Everything is repaired, and each message, record and proposal arrives.
    fn peace(&mut self) {
        self.protected = false;
        self.idle_until = 0;
        for place in 0..2 {
            if self.hosts[place].disk.failed {
                self.kill_process(place);
            }
            self.hosts[place].disk.failed = false;
            self.hosts[place].disk.bad.clear();
            self.hosts[place].frozen_until = 0;
            self.hosts[place].disk_stalled_until = 0;
            self.hosts[place].powered = true;
            self.start_process(place);
        }
    }

    fn calm_event(&mut self, step: u64) {
        if step.is_multiple_of(64) {
            self.tick(60);
            for (place, host) in HOSTS.into_iter().enumerate() {
                self.notice_cut(place);
                let role = self.role_of(host);
                self.deliver_role(place, role);
            }
            if self.link.is_none() {
                self.connect();
            }
            self.submit_guest_ops();
            self.advance_clean_end();
            self.protect();
            self.commit_memory();
            while !self.wishes.is_empty() {
                self.commit_wish(0);
            }
            // A guest that can't go on is started again, and one whose only replica lost its power under it.
            if (!self.guest_runs || self.is_stuck(step)) && !self.recovering && !self.continuing {
                self.start_guest();
            }
        }
        match self.rng.within(0..3) {
            0 => self.complete(usize::from(step.is_multiple_of(2))),
            1 => self.deliver(usize::from(step.is_multiple_of(2))),
            _ if step < 500 => self.event(CALM),
            _ => self.complete(usize::from(step.is_multiple_of(2))),
        }
    }

    /// For a guest that waits for a replica which can't come back as it was, somebody presses the button.
    fn is_stuck(&self, step: u64) -> bool {
        step > PEACE_STEPS / 4 && step.is_multiple_of(8192)
    }

    fn is_done(&mut self) -> bool {
        self.good.len() == 2
            && self.is_unprotected()
            && self.guest_runs
            && !self.recovering
            && self.guest.is_empty()
            && self.check_same()
    }
}

/// Runs the schedule of `seed`.
///
/// # Panics
/// When a rule is broken.
#[must_use]
pub fn run(seed: u64) -> Summary {
    let mut world = World::new(seed, seed % 8 == 7);
    let mut weather = world.weather();
    world.protected = seed % 4 == 1 || seed % 4 == 2;
    if world.protected {
        weather = weather.calmer();
        weather.memory_pace = world.rng.within(20..1000);
    }
    let steps = if world.protected { PROTECTED_STEPS } else { STORM_STEPS };
    for _ in 0..steps {
        world.faults(weather);
        world.delays(weather);
        world.event(weather);
        world.level3(weather);
        world.check_same();
    }
    world.must_end_well()
}

/// Who loses the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The host in this place.
    One(usize),
    Both,
}

/// Runs the schedule of `seed` without any other fault, and cuts the power after `step` events. Part of the seeds begins with a copy.
///
/// # Panics
/// When a rule is broken.
#[must_use]
pub fn run_with_cut(seed: u64, step: u64, cut: Cut) -> Summary {
    let mut world = World::new(seed, seed % 2 == 1);
    for _ in 0..step {
        world.event(CALM);
    }
    for place in 0..2 {
        if cut == Cut::Both || cut == Cut::One(place) {
            world.cut_power(place);
        }
    }
    world.must_end_well()
}

/// Like [`run_with_cut`], with a guest that is protected by checkpoints.
///
/// # Panics
/// When a rule is broken.
#[must_use]
pub fn run_protected_with_cut(seed: u64, step: u64, cut: Cut) -> Summary {
    let mut world = World::new(seed, false);
    world.protected = true;
    let weather = Weather { memory_pace: if seed.is_multiple_of(2) { 1000 } else { 80 }, ..CALM };
    for _ in 0..step {
        world.event(weather);
        world.level3(weather);
    }
    for place in 0..2 {
        if cut == Cut::Both || cut == Cut::One(place) {
            world.cut_power(place);
        }
    }
    world.must_end_well()
}

impl World {
    /// With peace everything is answered and both replicas meet; and after that they survive the loss of both hosts' power.
    fn must_end_well(mut self) -> Summary {
        self.peace();
        let mut step = 0;
        while !self.is_done() {
            assert!(step < PEACE_STEPS, "peace does not bring both replicas in step: {}", self.describe());
            self.calm_event(step);
            step += 1;
        }
        // The last look: whichever replica the guest is started on after both lost their power, it is all there.
        self.cut_power(0);
        self.cut_power(1);
        self.peace();
        self.start_guest();
        while self.recovering {
            assert!(step < 2 * PEACE_STEPS, "the guest does not start again: {}", self.describe());
            self.calm_event(step);
            step += 1;
        }
        self.summary
    }
}

impl World {
    fn describe(&self) -> String {
        let of = |place: usize| {
            let host = &self.hosts[place];
            let engine = match host.process.as_ref().map(|process| &process.engine) {
                None => "no process".to_owned(),
                Some(Engine::None) => "no engine".to_owned(),
                Some(Engine::Coordinator(engine)) => format!("{engine:#?}"),
                Some(Engine::Replica(engine)) => format!("{engine:#?}"),
            };
            let pending = host.process.as_ref().map(|process: &Process| process.pending.clone());
            format!("host {place}: superblock {:?}, pending {pending:?}, {engine}", host.disk.superblock())
        };
        format!(
            "generation {}, active {}, good {:?}, guest runs {}, recovering {}, continuing {}, memory {}, guest {:?}, link {:?}, {}, {}",
            self.generation,
            self.active,
            self.good,
            self.guest_runs,
            self.recovering,
            self.continuing,
            self.memory,
            self.guest,
            self.link.as_ref().map(|link| (link.held, link.cut, [link.to[0].len(), link.to[1].len()])),
            of(place(self.active)),
            of(1 - place(self.active)),
        )
    }
}
