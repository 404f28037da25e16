//! Hosts that all may serve and all may protect, where whoever dies comes back with nothing: the machines of the pair,
//! through one term after the other. One seed is one history; a failure names its seed.
//!
//! At every instant: at most one copy can be heard, and terms only grow. At every takeover: what is restored is whole, no
//! committed epoch is missing, and in strong consistency nothing that was heard. Once the faults are over the app is
//! protected again, unless it has ended, or whoever could have gone on with it died first.

#[path = "simulation/chance.rs"]
mod chance;
#[path = "reprotection/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use replica::Nanos;
use world::{Fault, Flaw, HOSTS, Rest, World};

const HEAL: Nanos = Nanos::from_millis(8_000);
const END: Nanos = Nanos::from_millis(20_000);
const SEEDS: u64 = 2_000;

/// Faults in a row, most of them of whoever serves at the time, before everything heals.
fn trouble(world: &mut World) {
    for _ in 0..3 + world.chance.below(6) {
        let at = world.chance.micros(300_000, 7_500_000);
        let until = at + world.chance.micros(1_000, 700_000);
        let host = world.chance.below(HOSTS as u64) as usize;
        let (begin, end) = match world.chance.below(15) {
            0..5 => (Fault::ServingManagerDies, None),
            5 | 6 => (Fault::ServingHostDies, None),
            7 => (Fault::StandbyDies, None),
            8 => (Fault::AppCrashes, None),
            9 => (Fault::StreamBreaks, None),
            10 => (Fault::SwitchOver, None),
            11 => (Fault::Cut(host, true), Some(Fault::Cut(host, false))),
            12 => (Fault::Unreachable(host, true), Some(Fault::Unreachable(host, false))),
            13 => (Fault::ApplyFails, None),
            _ => (Fault::Paused(host, until.since(at)), None),
        };
        world.fault_at(at, begin);
        if let Some(end) = end {
            world.fault_at(until, end);
        }
    }
    world.fault_at(HEAL, Fault::Heal);
}

/// One history. Panics where it breaks an invariant.
fn live_through(seed: u64, flaw: Flaw) -> World {
    let mut world = World::new(seed, flaw);
    trouble(&mut world);
    world.run(HEAL + Nanos::from_millis(200), |_| false);
    world.run(END, |world| world.at_rest().is_ok());
    if let Err(why) = world.at_rest() {
        panic!("{why}, long after the last fault");
    }
    world
}

#[test]
fn through_one_term_after_the_other_nothing_is_lost_and_the_app_is_protected_again() {
    let (mut takeovers, mut third_terms, mut protected, mut moves) = (0, 0, 0, 0);
    let only = std::env::var("CHECKSYNC_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let world = catch_unwind(AssertUnwindSafe(|| live_through(seed, Flaw::None)))
            .unwrap_or_else(|_| panic!("seed {seed}: run it alone with CHECKSYNC_SEED={seed}"));
        takeovers += world.takeovers;
        moves += world.moves;
        third_terms += u64::from(world.takeovers >= 2);
        protected += u64::from(world.at_rest() == Ok(Rest::Protected));
    }
    println!(
        "{takeovers} takeovers, {moves} planned; {third_terms} histories with a third term; {protected} end well"
    );
    if only.is_none() {
        assert!(third_terms > SEEDS / 2, "only {third_terms} histories come to a third term");
        assert!(protected > SEEDS / 2, "only {protected} histories end with a protected app");
    }
}

/// One death after the other, each as soon as the app is protected: nothing may be lost that way.
#[test]
fn deaths_that_await_protection_never_end_the_app() {
    for seed in 0..200 {
        let mut world = World::new(seed, Flaw::None);
        for death in 1..=6 {
            let limit = world.now() + Nanos::from_millis(20_000);
            world.run(limit, |world| world.at_rest() == Ok(Rest::Protected));
            assert_eq!(world.at_rest(), Ok(Rest::Protected), "seed {seed}, before death {death}");
            let fault =
                if (seed + death) % 2 == 0 { Fault::ServingManagerDies } else { Fault::ServingHostDies };
            let at = world.now() + Nanos::from_millis(1);
            world.fault_at(at, fault);
            world.run(at + Nanos::from_millis(1), |_| false);
        }
        let limit = world.now() + Nanos::from_millis(20_000);
        world.run(limit, |world| world.at_rest() == Ok(Rest::Protected));
        assert_eq!((world.at_rest(), world.takeovers), (Ok(Rest::Protected), 6), "seed {seed}");
    }
}

/// The first complaint that a flaw brings about.
fn complaint(flaw: Flaw) -> Option<String> {
    (0..SEEDS).find_map(|seed| {
        let panic = catch_unwind(AssertUnwindSafe(|| live_through(seed, flaw))).err()?;
        panic.downcast::<String>().ok().map(|text| *text)
    })
}

#[test]
fn canary_a_restarted_standby_that_is_taken_for_its_earlier_life_is_seen() {
    let complaint = complaint(Flaw::RemembersItsEarlierLife).expect("the simulation is blind");
    assert!(complaint.contains("never came whole") || complaint.contains("was committed"), "{complaint}");
}

#[test]
fn canary_a_standby_that_is_enrolled_before_its_first_full_sync_is_seen() {
    let complaint = complaint(Flaw::EnrolledTooEarly).expect("the simulation is blind");
    assert!(
        complaint.contains("two copies can be heard") || complaint.contains("heard until"),
        "{complaint}"
    );
}

#[test]
fn canary_a_loser_that_goes_on_is_seen() {
    let complaint = complaint(Flaw::PermitTooLong).expect("the simulation is blind");
    assert!(complaint.contains("two copies can be heard"), "{complaint}");
}
