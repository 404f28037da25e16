//! Hosts that all may serve and all may protect, where whoever dies comes back with nothing: the machines of the pair,
//! through one term after the other. One seed is one history; a failure names its seed.
//!
//! At every instant: at most one copy can be heard, and terms only grow. At every takeover: what is restored is whole, no
//! committed epoch is missing, and in strong consistency nothing that was heard. Once the faults are over the app is
//! protected again, unless it has ended, or whoever could have gone on with it died first.

#[path = "simulation/chance.rs"]
mod chance;
#[path = "simulation/common.rs"]
mod common;
#[path = "simulation/seeds.rs"]
mod seeds;
#[path = "reprotection/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use replica::Nanos;
use replica::primary::CommitOn;
use world::{Fault, Flaw, Rest, Shape, World};

const HEAL: Nanos = Nanos::from_millis(8_000);
const END: Nanos = Nanos::from_millis(20_000);
const SEEDS: u64 = 2_000;

/// Faults in a row, most of them of whoever serves at the time, before everything heals.
fn trouble(world: &mut World) {
    for _ in 0..3 + world.chance.below(6) {
        let at = world.chance.micros(300_000, 7_500_000);
        let until = at + world.chance.micros(1_000, 700_000);
        let host = world.chance.below(world.hosts() as u64) as usize;
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
fn live_through(seed: u64, shape: Shape, flaw: Flaw) -> World {
    let mut world = World::new(seed, shape, flaw);
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
    let (mut takeovers, mut third_terms, mut protected, mut moves, mut archives) = (0, 0, 0, 0, 0);
    for world in seeds::histories(SEEDS, |seed| live_through(seed, Shape::PAIR, Flaw::None)) {
        takeovers += world.takeovers;
        moves += world.moves;
        archives += world.archives;
        third_terms += u64::from(world.takeovers >= 2);
        protected += u64::from(world.at_rest() == Ok(Rest::Protected));
    }
    println!(
        "{takeovers} takeovers, {moves} planned, {archives} checkpoints for a store; {third_terms} histories with a third term; \
         {protected} end well"
    );
    if seeds::only().is_none() {
        assert!(third_terms > SEEDS / 2, "only {third_terms} histories come to a third term");
        assert!(archives > 500, "only {archives} checkpoints for a store");
        assert!(protected > SEEDS / 2, "only {protected} histories end with a protected app");
    }
}

/// One death after the other, each as soon as the app is protected: nothing may be lost that way.
#[test]
fn deaths_that_await_protection_never_end_the_app() {
    for seed in 0..200 {
        let mut world = World::new(seed, Shape::PAIR, Flaw::None);
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
fn complaint(shape: Shape, flaw: Flaw) -> String {
    seeds::complaint(SEEDS, |seed| live_through(seed, shape, flaw))
}

#[test]
fn canary_a_restarted_standby_that_is_taken_for_its_earlier_life_is_seen() {
    let complaint = complaint(Shape::PAIR, Flaw::RemembersItsEarlierLife);
    assert!(complaint.contains("never came whole") || complaint.contains("was committed"), "{complaint}");
}

#[test]
fn canary_a_standby_that_is_enrolled_before_its_first_full_sync_is_seen() {
    let complaint = complaint(Shape::PAIR, Flaw::EnrolledTooEarly);
    assert!(
        complaint.contains("two copies can be heard") || complaint.contains("heard until"),
        "{complaint}"
    );
}

#[test]
fn canary_a_loser_that_goes_on_is_seen() {
    let complaint = complaint(Shape::PAIR, Flaw::PermitTooLong);
    assert!(complaint.contains("two copies can be heard"), "{complaint}");
}

#[test]
fn canary_a_store_that_is_given_what_a_takeover_undoes_is_seen() {
    let complaint = complaint(Shape::PAIR, Flaw::ArchivesTooEarly);
    assert!(complaint.contains("is in the store"), "{complaint}");
}

/// The groups that histories are lived through in.
const GROUPS: [Shape; 5] = [
    Shape::group(3, CommitOn::All),
    Shape::group(3, CommitOn::Any),
    Shape::group(4, CommitOn::Count(2)),
    Shape::group(4, CommitOn::All),
    Shape::group(4, CommitOn::Any),
];
const GROUP_SEEDS: u64 = 600;

/// All hosts but one protect the app at the same time, under each rule of what is committed.
#[test]
fn in_a_group_nothing_is_lost_whoever_wins_and_the_others_follow() {
    let only = std::env::var("CHECKSYNC_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    for (number, shape) in GROUPS.into_iter().enumerate() {
        let (mut takeovers, mut quorums, mut moves, mut protected) = (0, 0, 0, 0);
        for seed in only.map_or(0..GROUP_SEEDS, |seed| seed..seed + 1) {
            let world = catch_unwind(AssertUnwindSafe(|| live_through(seed, shape, Flaw::None)))
                .unwrap_or_else(|_| {
                    panic!("{shape:?}, seed {seed}: run it alone with CHECKSYNC_SEED={seed}")
                });
            takeovers += world.takeovers;
            quorums += world.quorums;
            moves += world.moves;
            protected += u64::from(world.at_rest() == Ok(Rest::Protected));
        }
        println!(
            "group {number}: {takeovers} takeovers, {quorums} by a quorum, {moves} planned; {protected} end well"
        );
        if seeds::only().is_none() {
            assert!(takeovers > GROUP_SEEDS as u32 / 2, "only {takeovers} takeovers in {shape:?}");
            assert!(protected > GROUP_SEEDS / 10, "only {protected} histories of {shape:?} end well");
            let by_quorum = shape.commit_on != CommitOn::All;
            assert_eq!(quorums > GROUP_SEEDS as u32 / 20, by_quorum, "{quorums} quorums in {shape:?}");
        }
    }
}

/// Who is left takes over alone and at once, if each holds everything: one death after the other, and nobody comes back
/// before the next.
#[test]
fn where_all_hold_everything_the_last_one_left_still_takes_over() {
    const SOON: Nanos = Nanos::from_millis(4_000);
    for seed in 0..100 {
        let mut world = World::new(seed, Shape::group(4, CommitOn::All), Flaw::None);
        let limit = Nanos::from_millis(20_000);
        world.run(limit, |world| world.everybody_is_eligible());
        assert!(world.everybody_is_eligible(), "seed {seed}");
        let first = world.now() + Nanos::from_millis(1);
        world.fault_at(first, Fault::ServingHostDies);
        world.run(first + SOON, |world| world.takeovers == 1);
        assert_eq!(world.takeovers, 1, "seed {seed}");
        let limit = world.now() + Nanos::from_millis(20_000);
        world.run(limit, |world| world.everybody_is_eligible());
        assert!(world.everybody_is_eligible(), "seed {seed}: the others and who came back follow the winner");
    }
}

#[test]
fn canary_an_acknowledgement_that_speaks_for_others_is_seen() {
    let complaint = complaint(Shape::group(3, CommitOn::All), Flaw::OneSpeaksForAll);
    assert!(complaint.contains("was committed") || complaint.contains("heard until"), "{complaint}");
}

#[test]
fn canary_a_takeover_that_hears_too_few_is_seen() {
    let complaint = complaint(Shape::group(3, CommitOn::Any), Flaw::HearsNobody);
    assert!(
        complaint.contains("was committed")
            || complaint.contains("heard until")
            || complaint.contains("two copies can be heard"),
        "{complaint}"
    );
}

#[test]
fn canary_a_standby_that_takes_more_than_it_has_said_is_seen() {
    let complaint = complaint(Shape::group(3, CommitOn::Any), Flaw::SpeaksTooEarly);
    assert!(complaint.contains("was committed") || complaint.contains("heard until"), "{complaint}");
}

#[test]
fn canary_a_ledger_that_forgets_what_the_slow_one_needs_is_seen() {
    let complaint = complaint(Shape::group(3, CommitOn::Any), Flaw::ForgetsForTheSlow);
    assert!(complaint.contains("the ledger has forgotten"), "{complaint}");
}

#[test]
fn canary_a_permit_in_a_group_that_outlasts_the_suspicion_is_seen() {
    let complaint = complaint(Shape::group(3, CommitOn::All), Flaw::PermitTooLong);
    assert!(complaint.contains("two copies can be heard"), "{complaint}");
}
