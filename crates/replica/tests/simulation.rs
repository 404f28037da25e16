//! Both machines against a lossy, delaying, doubling, partitioning network, dying managers and a register
//! that is slow or gone. One seed is one history; a failure names its seed.
//!
//! At every instant: at most one copy can be heard, and terms only grow. At every takeover: what is restored
//! is whole, and no committed epoch is missing. And once the faults are over, the pair comes to rest with one
//! copy that serves.

#[path = "simulation/chance.rs"]
mod chance;
#[path = "simulation/common.rs"]
mod common;
#[path = "simulation/said.rs"]
mod said;
#[path = "simulation/seeds.rs"]
mod seeds;
#[path = "simulation/world.rs"]
mod world;

use replica::Nanos;
use world::{A, B, Fault, Flaw, World};

const HEAL: Nanos = Nanos::from_millis(3_000);
const END: Nanos = Nanos::from_millis(12_000);
const SEEDS: u64 = 3_000;

/// Some faults, each with its end, before everything heals.
fn trouble(world: &mut World) {
    for _ in 0..1 + world.chance.below(4) {
        let at = world.chance.micros(300_000, 2_500_000);
        let until = at + world.chance.micros(1_000, 700_000);
        let host = if world.chance.percent(50) { A } else { B };
        let (begin, end) = match world.chance.below(17) {
            0 | 1 => (Fault::ManagerDies, None),
            2 => (Fault::HostDies, None),
            3 => (Fault::GuardDies, None),
            4 => (Fault::StandbyDies, None),
            5 => (Fault::AppCrashes, None),
            6 => (Fault::AppExits, None),
            7 => (Fault::AppExecutes, None),
            8 => (Fault::CaptureFails, None),
            9 => (Fault::Child(true), Some(Fault::Child(false))),
            10 => (Fault::StreamBreaks, None),
            11 | 12 => (Fault::Cut(host, true), Some(Fault::Cut(host, false))),
            13 => {
                world.fault_at(at, Fault::Cut(A, true));
                (Fault::Cut(B, true), Some(Fault::Cut(B, false)))
            }
            14 => (Fault::ApplyFails, None),
            15 => (Fault::Unreachable(host, true), Some(Fault::Unreachable(host, false))),
            _ => (Fault::Paused(host, until.since(at)), None),
        };
        world.fault_at(at, begin);
        if let Some(end) = end {
            world.fault_at(until, end);
        }
    }
    // In a third of the histories the operator moves the app in the midst of it, and may think better of it.
    if world.chance.percent(33) {
        let at = world.chance.micros(300_000, 2_500_000);
        let regretted = world.chance.micros(100, 60_000);
        world.fault_at(at, Fault::SwitchOver);
        if world.chance.percent(30) {
            world.fault_at(at + regretted, Fault::CancelSwitchover);
        }
    }
    world.fault_at(HEAL, Fault::Heal);
}

/// One history. Panics where it breaks an invariant.
fn live_through(seed: u64, flaw: Flaw) -> World {
    let mut world = World::new(seed, flaw);
    trouble(&mut world);
    world.run(HEAL + Nanos::from_millis(200), |_| false);
    world.run(END, |world| world.settled().is_ok());
    if let Err(why) = world.settled() {
        panic!("{why}, long after the last fault");
    }
    world
}

#[test]
fn never_two_audible_nothing_committed_lost_and_rest_in_the_end() {
    let (mut takeovers, mut moves, mut called_off, mut commits) = (0, 0, 0, 0);
    for world in seeds::histories(SEEDS, |seed| live_through(seed, Flaw::None)) {
        takeovers += world.takeovers;
        moves += world.moves;
        called_off += world.called_off;
        commits += world.commits;
    }
    println!("{takeovers} takeovers, {moves} of them planned, {called_off} called off, {commits} commits");
    assert!(
        seeds::only().is_some() || moves > SEEDS as u32 / 20,
        "only {moves} planned moves came to their end"
    );
    assert!(
        seeds::only().is_some() || takeovers > SEEDS as u32 / 10,
        "only {takeovers} takeovers: the faults are too mild"
    );
}

/// The first complaint that a flaw brings about.
fn complaint(flaw: Flaw) -> String {
    seeds::complaint(SEEDS, |seed| live_through(seed, flaw))
}

#[test]
fn canary_a_permit_that_outlasts_the_suspicion_is_seen() {
    let complaint = complaint(Flaw::PermitTooLong);
    assert!(complaint.contains("two copies can be heard"), "{complaint}");
}

#[test]
fn canary_an_acknowledgement_before_the_epoch_is_whole_is_seen() {
    let complaint = complaint(Flaw::PreparedTooEarly);
    assert!(complaint.contains("never came whole"), "{complaint}");
}

#[test]
fn canary_output_that_no_epoch_covers_is_seen() {
    let complaint = complaint(Flaw::GateLeaks);
    assert!(complaint.contains("heard until"), "{complaint}");
}

#[test]
fn canary_a_lost_copy_that_nobody_speaks_of_is_seen() {
    let complaint = complaint(Flaw::LossKeptSilent);
    assert!(complaint.contains("long after the last fault"), "{complaint}");
}

/// A copy that broke is made anew: the pair is protected again, and the new copy can take over.
#[test]
fn a_copy_that_broke_is_replaced_and_takes_over() {
    const BREAKS: Nanos = Nanos::from_millis(1_000);
    const DIES: Nanos = Nanos::from_millis(6_000);
    for seed in 0..200 {
        let mut world = World::new(seed, Flaw::None);
        world.fault_at(BREAKS, Fault::ApplyFails);
        world.fault_at(HEAL, Fault::Heal);
        world.run(DIES, |_| false);
        assert_eq!(world.copies_broken, 1, "seed {seed}");
        assert_eq!(world.settled(), Ok(()), "seed {seed}");
        world.fault_at(DIES, Fault::HostDies);
        world.run(END, |_| false);
        assert_eq!(world.takeovers, 1, "seed {seed}");
    }
}

#[test]
fn canary_an_app_that_runs_on_after_its_last_epoch_is_seen() {
    let complaint = complaint(Flaw::RunsOn);
    assert!(complaint.contains("a planned move lost"), "{complaint}");
}

#[test]
fn canary_a_register_that_does_not_compare_is_seen() {
    let complaint = complaint(Flaw::RegisterForgets);
    assert!(
        complaint.contains("two copies can be heard") || complaint.contains("the term fell"),
        "{complaint}"
    );
}
