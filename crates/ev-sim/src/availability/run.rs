//! One run: a minute of faults, half a minute without, and what must be so then.

use ev_core::authority::Power;
use ev_core::availability::keeper::Event;
use ev_core::checkpoint::{Phase, Primary};
use ev_core::report::{AmReport, GuestState};
use ev_core::vm::Level;

use super::host::Life;
use super::world::{InFlight, STEP_MS, VM, World};

/// How long faults happen, and how long the world then has to come right.
const FAULTS_MS: u64 = 40_000;
const CALM_MS: u64 = 40_000;
/// A guest that was not seen for so long does not act.
const UNSEEN_MS: u64 = 2_000;

/// What a run came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    pub takeovers: u64,
    /// Guests that went on from memory, and those of them whose old host came back and still had the guest.
    pub went_on: u64,
    pub went_on_from_frozen: u64,
}

impl Summary {
    pub fn add(&mut self, other: Self) {
        self.takeovers += other.takeovers;
        self.went_on += other.went_on;
        self.went_on_from_frozen += other.went_on_from_frozen;
    }
}

/// Runs one seed.
///
/// # Panics
/// When an invariant does not hold: the message says which, and at which time.
#[must_use]
pub fn run(seed: u64) -> Summary {
    let mut world = World::new(seed);
    let faulty = world.rng.within(0..12);
    while world.now_ms < FAULTS_MS + CALM_MS {
        if world.now_ms < FAULTS_MS {
            faults(&mut world, faulty);
        } else {
            heal(&mut world);
        }
        step(&mut world);
        world.check();
        world.now_ms += STEP_MS;
    }
    check_end(&world);
    world.summary
}

fn step(world: &mut World) {
    elect(world);
    world.deliver();
    world.tend_link();
    if world.now_ms.is_multiple_of(100) {
        world.heartbeats();
    }
    for index in 0..2 {
        if world.hosts[index].life != Life::Up {
            continue;
        }
        if world.now_ms.is_multiple_of(50) {
            tick_master(world, index);
        }
        if world.hosts[index].keeper.is_none() && world.rng.per_mille(20) {
            world.start_am(index);
        }
        world.keep(index, Event::Tick);
        report(world, index);
        world.mirror(index);
        world.run_guest(index);
        world.checkpoints(index);
    }
}

/// Stands in for Raft's election: a leader that does not reach a majority is replaced by a host that does, after a while;
/// the old one learns of it late.
fn elect(world: &mut World) {
    let sound =
        world.leader.is_some_and(|leader| world.hosts[leader].life == Life::Up && world.reaches_majority(leader));
    if sound {
        world.leader_lost_ms = None;
        return;
    }
    let lost = *world.leader_lost_ms.get_or_insert(world.now_ms);
    let wait = world.rng.within(500..1_500);
    if world.now_ms - lost < wait {
        return;
    }
    let preferred = usize::from(world.rng.per_mille(500));
    let candidate = [preferred, 1 - preferred]
        .into_iter()
        .find(|index| world.hosts[*index].life == Life::Up && world.reaches_majority(*index));
    if let Some(next) = candidate {
        world.leader = Some(next);
        world.term += 1;
        world.leader_lost_ms = None;
        let now = world.hosts[next].clock(world.now_ms);
        world.hosts[next].master.elected(now);
    }
}

fn tick_master(world: &mut World, index: usize) {
    let now = world.hosts[index].clock(world.now_ms);
    if world.leader != Some(index) {
        if world.rng.per_mille(100) {
            world.hosts[index].master.deposed();
        }
        let master = &mut world.hosts[index].master;
        if !master.leads() {
            // It is awake, for when it is elected.
            let mut nothing = Vec::new();
            master.tick(now, world.now_ms, &world.state, &mut nothing);
            assert_eq!(nothing, [], "it does not lead");
        }
        return;
    }
    let mut commands = Vec::new();
    let term = world.term;
    world.hosts[index].master.tick(now, world.now_ms, &world.state, &mut commands);
    for command in commands {
        world.send(InFlight::Commit { by: index, term, command });
    }
}

fn report(world: &mut World, index: usize) {
    if world.now_ms < world.hosts[index].next_report_ms {
        return;
    }
    world.hosts[index].next_report_ms = world.now_ms + 400;
    let host = &world.hosts[index];
    let Some(keeper) = &host.keeper else { return };
    let report = AmReport {
        vm: VM,
        host: host.id,
        generation: keeper.vm().authority.generation,
        power: keeper.vm().authority.power,
        guest: keeper.guest_state(),
        disks: Vec::new(),
        accelerator: None,
        level3: None,
        troubles: Vec::new(),
    };
    let asked_at = host.clock(world.now_ms);
    for _ in 0..if world.rng.per_mille(50) { 2 } else { 1 } {
        if world.calm || !world.rng.per_mille(50) {
            world.send(InFlight::Report { from: index, asked_at, report: Box::new(report.clone()) });
        }
    }
}

fn faults(world: &mut World, faulty: u64) {
    if let Some((index, _)) = world.doomed.take_if(|(_, at_ms)| *at_ms <= world.now_ms) {
        world.crash(index);
    }
    if !world.rng.per_mille(faulty) {
        return;
    }
    let index = usize::from(world.rng.per_mille(500));
    match world.rng.within(0..15) {
        0 => world.crash(index),
        1 => {
            if world.hosts[index].life == Life::Up {
                world.hosts[index].life = Life::Frozen;
            }
        }
        2..=4 => revive(world, index),
        5 => {
            let pair = [(0, 1), (0, 2), (1, 2)][usize::try_from(world.rng.within(0..3)).unwrap_or(0)];
            world.cuts.insert(pair);
        }
        6 => world.cuts.clear(),
        7 => world.quorum_up = !world.quorum_up,
        8 => world.private_cut = !world.private_cut,
        9 => world.crash_am(index),
        10 => world.kill_guest(index),
        11 => {
            let host = world.hosts[1 - index].id;
            world.keep(index, Event::SwitchTo { host });
        }
        12 => world.change_level(),
        // A new process has hardly taken the guest up when its host dies.
        13 => {
            world.crash_am(index);
            let at_ms = world.now_ms + world.rng.within(0..1_500);
            world.doomed = Some((index, at_ms));
        }
        _ => {
            world.crash(0);
            world.crash(1);
        }
    }
}

fn revive(world: &mut World, index: usize) {
    match world.hosts[index].life {
        Life::Up => {}
        Life::Frozen => world.hosts[index].life = Life::Up,
        Life::Down => {
            world.hosts[index].life = Life::Up;
            world.start_am(index);
        }
    }
}

fn heal(world: &mut World) {
    world.calm = true;
    world.cuts.clear();
    world.quorum_up = true;
    world.private_cut = false;
    for index in 0..2 {
        revive(world, index);
    }
}

fn check_end(world: &World) {
    let record = &world.vm().authority;
    assert!(matches!(record.power, Power::On { .. }), "the guest is off at the end: {record:?}");
    let seen_lately = |index: &usize| world.hosts[*index].let_out.is_some_and(|(_, at)| world.now_ms - at < UNSEEN_MS);
    let acting: Vec<usize> = (0..2).filter(seen_lately).collect();
    let states: Vec<Option<GuestState>> =
        world.hosts.iter().map(|host| host.keeper.as_ref().map(|keeper| keeper.guest_state())).collect();
    let [index] = acting[..] else { panic!("{} guests act at the end: {record:?} {states:?}", acting.len()) };
    assert_eq!(record.active, Some(world.hosts[index].id), "the guest acts on a host that the record does not name");
    assert!(record.standby.is_some(), "the PVM is not redundant at the end: {record:?}");
    let phase = world.hosts[index].pair.primary.as_ref().map(Primary::phase);
    assert!(
        world.vm().level != Level::System || record.memory.is_some() && phase == Some(Phase::Protected),
        "the guest could not go on at the end: {record:?} {phase:?}"
    );
}
