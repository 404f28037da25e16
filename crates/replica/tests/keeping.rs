//! `--commit-on store` and `run --from-store` against a store that is slow, gone, late or doubled, a register that is gone
//! at the same time, sleeping primaries, and several who go on from the store at once. One seed is one history; a failure
//! names its seed.
//!
//! At every instant: at most one copy can be heard, and terms only grow. Whoever goes on from the store goes on with
//! everything that was committed, and in strong consistency with everything that was heard. Once the faults are over
//! somebody serves, and the store has it, unless the app has ended or its host died while the register named nobody.

#[path = "simulation/chance.rs"]
mod chance;
#[path = "simulation/common.rs"]
#[allow(dead_code, reason = "there is no page stream here")]
mod common;
#[path = "keeping/mod.rs"]
mod keeping;
#[path = "simulation/seeds.rs"]
mod seeds;

use keeping::{Fault, Flaw, Rest, World};
use replica::Nanos;

const HEAL: Nanos = Nanos::from_millis(30_000);
const END: Nanos = Nanos::from_millis(120_000);
const SEEDS: u64 = 4_000;

/// How many histories; more outside CI.
fn how_many() -> u64 {
    std::env::var("CHECKSYNC_SEEDS").map_or(SEEDS, |text| text.parse().expect("CHECKSYNC_SEEDS is a number"))
}

fn trouble(world: &mut World) {
    for _ in 0..2 + world.chance.below(5) {
        let at = world.chance.micros(300_000, 28_000_000);
        let until = at + world.chance.micros(1_000, 9_000_000);
        let host = world.chance.below(world.hosts()) as usize;
        let (begin, end) = match world.chance.below(14) {
            0 | 1 => (Fault::ManagerDies, None),
            2 | 3 => (Fault::HostDies, None),
            4 => (Fault::AppCrashes, None),
            5 => (Fault::ClaimantDies, None),
            6..9 => (Fault::Sleeps(until.since(at)), None),
            9 => (Fault::StoreGone(true), Some(Fault::StoreGone(false))),
            10 => (Fault::StoreSlow(true), Some(Fault::StoreSlow(false))),
            11 => (Fault::StoreCut(host, true), Some(Fault::StoreCut(host, false))),
            12 => (Fault::RegisterCut(host, true), Some(Fault::RegisterCut(host, false))),
            _ => (Fault::RegisterGone(true), Some(Fault::RegisterGone(false))),
        };
        world.fault_at(at, begin);
        if let Some(end) = end {
            world.fault_at(until, end);
        }
        if world.chance.percent(10) {
            world.fault_at(at, Fault::CaptureFails);
        }
        // Somebody notices, or thinks that he does; and somebody else, too.
        for _ in 0..world.chance.below(3) {
            let host = world.chance.below(world.hosts()) as usize;
            let later = world.chance.micros(1_000, 6_000_000);
            world.fault_at(at + later, Fault::Claim(host));
        }
    }
    world.fault_at(HEAL, Fault::Heal);
}

/// One history. Panics where it breaks an invariant.
fn live_through(seed: u64, flaw: Flaw) -> World {
    let mut world = World::new(seed, flaw);
    trouble(&mut world);
    come_to_rest(world, Nanos::from_millis(12_000))
}

/// From some time after the last fault on.
fn come_to_rest(mut world: World, after: Nanos) -> World {
    world.run(HEAL + after, |_| false);
    world.run(END, |world| world.at_rest().is_ok());
    if let Err(why) = world.at_rest() {
        panic!("{why}, long after the last fault");
    }
    world
}

#[test]
fn whoever_goes_on_from_the_store_goes_on_with_all_that_was_heard_and_alone() {
    let (mut takeovers, mut refused, mut commits, mut protected) = (0, 0, 0, 0);
    for world in seeds::histories(how_many(), |seed| live_through(seed, Flaw::None)) {
        takeovers += u64::from(world.takeovers);
        refused += u64::from(world.refused);
        commits += u64::from(world.commits);
        protected += u64::from(world.at_rest() == Ok(Rest::Protected));
    }
    println!(
        "{takeovers} took over out of the store, {refused} did not; {commits} commits; {protected} end well"
    );
    if seeds::only().is_none() {
        assert!(takeovers > SEEDS / 2, "only {takeovers} takeovers: the faults are too mild");
        assert!(refused > SEEDS / 2, "only {refused} were too late, or failed");
        assert!(protected > SEEDS / 2, "only {protected} histories end with a protected app");
    }
}

/// The first complaint that a flaw brings about.
fn complaint(flaw: Flaw, history: impl Fn(u64, Flaw) -> World) -> String {
    seeds::complaint(SEEDS, |seed| history(seed, flaw))
}

#[test]
fn canary_a_checkpoint_that_counts_without_a_second_look_is_seen() {
    let complaint = complaint(Flaw::TrustsItsOwnWord, live_through);
    assert!(complaint.contains("was committed") || complaint.contains("heard until"), "{complaint}");
}

#[test]
fn canary_a_list_from_before_the_run_is_seen() {
    let complaint = complaint(Flaw::ListsTooEarly, live_through);
    assert!(complaint.contains("was committed") || complaint.contains("heard until"), "{complaint}");
}

#[test]
fn canary_a_winner_that_does_not_wait_for_the_old_permit_is_seen() {
    let complaint = complaint(Flaw::WaitsForNobody, live_through);
    assert!(complaint.contains("two copies can be heard"), "{complaint}");
}

#[test]
fn canary_a_look_that_counts_from_its_answer_is_seen() {
    let complaint = complaint(Flaw::CountsFromTheAnswer, live_through);
    assert!(complaint.contains("two copies can be heard"), "{complaint}");
}

/// Two go on from the store, and the first falls asleep as soon as he has the term.
fn overtaken_in_his_sleep(seed: u64, flaw: Flaw) -> World {
    let mut world = World::new(seed, flaw);
    let dies = Nanos::from_millis(2_000);
    let begins = dies + Nanos::from_millis(10);
    let sleeps = begins + world.chance.micros(2_000, 30_000);
    world.fault_at(dies, Fault::HostDies);
    world.fault_at(begins, Fault::Claim(1));
    world.fault_at(sleeps, Fault::Sleeps(Nanos::from_millis(9_000)));
    world.fault_at(sleeps + Nanos::from_millis(100), Fault::Claim(2));
    world.fault_at(HEAL, Fault::Heal);
    come_to_rest(world, Nanos::from_millis(100))
}

#[test]
fn who_is_overtaken_in_his_sleep_disturbs_nobody() {
    let histories = (0..400).map(|seed| overtaken_in_his_sleep(seed, Flaw::None));
    let (mut served, mut refused) = (0, 0);
    for world in histories {
        served += world.takeovers;
        refused += world.refused;
    }
    assert!(served >= 200 && refused >= 200, "{served} took over, {refused} did not");
}

/// He begins a run behind the winner's, and closes it.
#[test]
fn canary_a_run_that_is_begun_with_an_old_term_is_seen() {
    let complaint = complaint(Flaw::BeginsLate, overtaken_in_his_sleep);
    assert!(complaint.contains("long after the last fault"), "{complaint}");
}
