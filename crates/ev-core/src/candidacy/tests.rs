//! Every reason against a level, one at a time.

use super::*;
use crate::pool::fixtures::{H1, H2, place, protect, protected};

fn cpu(flags: &[&str]) -> CpuFacts {
    CpuFacts {
        model: "some processor".to_owned(),
        vendor: "GenuineIntel".to_owned(),
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        accelerator: "kvm".to_owned(),
    }
}

fn question<'a>(state: &'a PoolState, level: Level, partner: &'a Member) -> Question<'a> {
    Question {
        vm: state.vm(1),
        level,
        partner,
        partner_alive: true,
        partner_free_bytes: None,
        partner_memory_mib: Some(100),
        home_available_mib: Some(128),
        partner_available_mib: Some(64),
    }
}

/// What stands against level 3 after the pool's members and the VM were changed.
fn at_level_3(change: impl FnOnce(&mut PoolState)) -> Vec<Obstacle> {
    let mut state = protected();
    change(&mut state);
    let partner = &state.members[&H2];
    obstacles(&question(&state, Level::System, partner), &state)
}

fn host(state: &mut PoolState, id: HostId) -> &mut Member {
    state.members.get_mut(&id).expect("it is one of the two")
}

#[test]
fn level_3_asks_more_of_both_hosts() {
    assert_eq!(at_level_3(|_| {}), []);
    let other = at_level_3(|state| host(state, H2).qemu_version = "10.0.2".to_owned());
    assert!(
        matches!(&other[..], [Obstacle::OtherQemu { theirs, ours, .. }] if theirs == "10.0.2" && ours == "7.2.0"),
        "{other:?}"
    );
    for id in [H1, H2] {
        let untried = at_level_3(|state| host(state, id).memory_tracking = MemoryTracking::Untried);
        assert!(matches!(untried[..], [Obstacle::MemoryTrackingUntried(_)]), "{untried:?}");
        let why = "Linux 6.7 or newer is needed".to_owned();
        let fails = at_level_3(|state| host(state, id).memory_tracking = MemoryTracking::Fails(why.clone()));
        assert!(matches!(&fails[..], [Obstacle::NoMemoryTracking { why: told, .. }] if *told == why), "{fails:?}");
    }
    let slow = at_level_3(|state| host(state, H2).cpu.accelerator = "tcg".to_owned());
    assert!(matches!(slow[..], [Obstacle::OtherAccelerator { .. }]), "{slow:?}");
    let machine = at_level_3(|state| host(state, H2).machines.clear());
    assert!(matches!(machine[..], [Obstacle::MachineMissing { .. }]), "{machine:?}");
}

#[test]
fn level_3_needs_memory_that_is_not_in_use_on_both_hosts() {
    let state = protected();
    let partner = &state.members[&H2];
    let ask = |state: &PoolState, home, there| {
        let (home_available_mib, partner_available_mib) = (Some(home), Some(there));
        let question = question(state, Level::System, partner);
        obstacles(&Question { home_available_mib, partner_available_mib, ..question }, state)
    };
    assert_eq!(ask(&state, 128, 64), []);
    let there = ask(&state, 128, 63);
    assert!(matches!(&there[..], [Obstacle::NoMemoryFree { host, .. }] if host == "h2"), "{there:?}");
    let here = ask(&state, 127, 64);
    assert!(
        matches!(&here[..], [Obstacle::NoMemoryFree { host, needed_mib: 128, .. }] if host == "h1"),
        "the guest is off and will need its own memory as well: {here:?}"
    );
    let mut runs = state.clone();
    runs.start(1, H1, true);
    assert_eq!(ask(&runs, 64, 64), []);
    assert_eq!(ask(&runs, 63, 64).len(), 1);
    let mut is_there = state.clone();
    is_there.must(place(1, Level::System, &[H1, H2]));
    assert_eq!(ask(&is_there, 1, 1), [], "the VM itself uses it");
}

#[test]
fn level_3_needs_processors_of_one_maker_and_with_all_of_the_model() {
    let of = |model: &str, change: fn(&mut CpuFacts)| {
        at_level_3(|state| {
            for vm in state.vms.values_mut() {
                vm.config.cpu_model = model.to_owned();
            }
            for member in state.members.values_mut() {
                member.cpu.flags = FLAGS_V2.iter().map(|flag| (*flag).to_owned()).collect();
            }
            change(&mut host(state, H2).cpu);
        })
    };
    assert_eq!(of("Nehalem", |_| {}), []);
    let other = of("Nehalem", |cpu| cpu.vendor = "AuthenticAMD".to_owned());
    assert!(matches!(&other[..], [Obstacle::OtherMaker { theirs, .. }] if theirs == "AuthenticAMD"), "{other:?}");
    assert_eq!(of("Nehalem", |cpu| cpu.vendor.clear()), [], "a host that does not tell is tried");
    let less = |cpu: &mut CpuFacts| cpu.flags.retain(|flag| flag != "sse4_2");
    let lacking = of("Nehalem", less);
    assert!(matches!(&lacking[..], [Obstacle::ModelMissing { missing, .. }] if missing == "sse4_2"), "{lacking:?}");
    assert_eq!(of("qemu64", less), []);
    assert!(matches!(&of("Cascadelake-Server", less)[..], [Obstacle::ModelMissing { .. }]));
}

#[test]
fn level_3_needs_a_processor_that_is_the_same_everywhere_and_at_any_time() {
    let of_model = |model: &str| {
        at_level_3(|state| {
            for vm in state.vms.values_mut() {
                vm.config.cpu_model = model.to_owned();
            }
            for member in state.members.values_mut() {
                member.cpu.accelerator = "tcg".to_owned();
            }
        })
    };
    for model in ["max", "host", "max,-sse4a", "Nehalem,+invtsc", "Nehalem,invtsc=on"] {
        assert_eq!(of_model(model), [Obstacle::ImmovableProcessorModel(model.to_owned())]);
    }
    for model in ["qemu64", "Nehalem", "Nehalem,-invtsc"] {
        assert_eq!(of_model(model), []);
    }
}

#[test]
fn the_memory_of_all_that_is_or_may_be_there_must_fit() {
    let taken = |level, host| {
        at_level_3(|state| {
            protect(state, 2);
            state.must(place(2, level, &[H1, H2]));
            state.start(2, host, true);
        })
    };
    let none = Obstacle::NoMemory { host: "h2".to_owned(), memory_mib: 100, needed_mib: 128 };
    assert_eq!(taken(Level::Component, H1), []);
    assert_eq!(taken(Level::Component, H2), std::slice::from_ref(&none));
    assert_eq!(taken(Level::System, H1), [none]);
}

#[test]
fn level_2_asks_for_none_of_it() {
    let mut state = protected();
    let partner = host(&mut state, H2);
    partner.qemu_version = "10.0.2".to_owned();
    partner.memory_tracking = MemoryTracking::Untried;
    let partner = &state.members[&H2];
    assert_eq!(obstacles(&question(&state, Level::Component, partner), &state), []);
}

#[test]
fn older_qemus_leave_the_screen_behind() {
    let mut state = protected();
    assert!(limitations(host(&mut state, H1)).is_some_and(|note| note.starts_with("QEMU 7.2.0 on h1")));
    host(&mut state, H1).qemu_version = "10.0.2".to_owned();
    assert_eq!(limitations(host(&mut state, H1)), None);
}

#[test]
fn missing_flags_are_named_and_many_are_counted() {
    assert_eq!(flags_missing(&cpu(&["nx", "sse2"]), &cpu(&["nx", "sse2", "avx"])), None);
    assert_eq!(flags_missing(&cpu(&["nx", "sse2"]), &cpu(&["sse2"])), Some("nx".to_owned()));
    let many: Vec<String> = (0..12).map(|n| format!("f{n:02}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let text = flags_missing(&cpu(&many), &cpu(&[])).unwrap();
    assert!(text.ends_with("and 4 more flags"), "{text}");
}

#[test]
fn a_slow_link_is_said_and_one_that_is_too_slow_refused_with_what_it_carried() {
    let state = protected();
    let verdict = |mbit_per_s| {
        let speed = LinkSpeed { network: "private1".to_owned(), mbit_per_s };
        link_verdict(&state.members[&H1], &state.members[&H2], speed)
    };
    assert_eq!((verdict(800), verdict(9_000)), (LinkVerdict::Fast, LinkVerdict::Fast));
    for (mbit_per_s, part) in [(799, "(private1) carried 799 Mbit/s"), (100, "from h1 to h2")] {
        let LinkVerdict::Slow(note) = verdict(mbit_per_s) else { panic!("{mbit_per_s} is slow") };
        assert!(note.contains(part), "{note}");
    }
    let LinkVerdict::TooSlow(obstacle) = verdict(99) else { panic!("it is too slow") };
    assert!(obstacle.to_string().contains("carried 99 Mbit/s when it was tried, and level 3 needs 100"), "{obstacle}");
}
