//! What strong consistency promises, on the whole program: two managers and their clients on hosts of the test's
//! own, deaths at random instants, and a judge that knows nothing of us.

mod asker;
mod clients;
mod datagrams;
mod figures;
mod moments;
mod rounds;
mod street;
mod version6;

use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use testkit::needs;
use testkit::wait::Deadline;

use asker::{Asker, Pesterer};
use clients::{Load, Store, Streams};
use figures::Figures;
use moments::Moment;
use rounds::{Death, Mode, Seed, play, strike};
use street::{Pair, SERVICE, SOON, Side, add_address};

const STRONG: &[&str] = &["--consistency", "strong"];
/// How long nothing may be heard: longer than a client's first two retransmissions.
const SILENCE: Duration = Duration::from_millis(700);

#[test]
fn clients_of_a_go_server_notice_no_death() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut seed = Seed::announce();
    for death in Death::ALL {
        play(Store::Kv, Mode::Strong, death, None, &mut seed).seen.assert_nothing_happened();
    }
}

#[test]
fn clients_of_redis_notice_no_death() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF, "debian:redis-server");
    let mut seed = Seed::announce();
    for death in [Death::Manager, Death::Host, Death::Cut] {
        play(Store::Redis, Mode::Strong, death, None, &mut seed).seen.assert_nothing_happened();
    }
}

/// In all of them, and not by luck. (`cargo xtask eval takeover` has each die in each.)
#[test]
fn clients_notice_no_death_in_any_phase_of_an_epoch() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut seed = Seed::announce();
    for (moment, death) in Moment::ALL.into_iter().zip(Death::ALL.into_iter().cycle()) {
        let outcome = play(Store::Kv, Mode::Strong, death, Some(moment), &mut seed);
        assert!(outcome.phases.contains(&moment.phase()), "{moment:?}: {:?}", outcome.phases);
        outcome.seen.assert_nothing_happened();
    }
}

/// Nothing is rewound, so in both modes nothing is lost and no connection ends.
#[test]
fn clients_notice_no_planned_move() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    for options in [STRONG, &[]] {
        let mut pair = Pair::protecting(options, &Store::Kv.command_line());
        let words = ["--clients", "6", "--keys", "12"];
        let load = Load::start(&pair.clients, pair.dir.path(), Store::Kv, &words);
        load.wait_for_answers();
        let pause = pair.switch_over();
        println!("{options:?}: a pause of {pause:?}");
        assert!(!pair.manager(Side::A).wait(SOON).success(), "a manager that has let go says so");
        load.wait_for_answers();
        load.finish().assert_nothing_happened();
    }
}

#[test]
fn without_strong_consistency_only_the_announced_window_is_lost() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut seed = Seed::announce();
    for death in [Death::Manager, Death::Host] {
        play(Store::Kv, Mode::Timeline, death, None, &mut seed).assert_only_the_window_is_lost();
    }
}

#[test]
fn every_byte_of_a_stream_arrives_in_its_place_across_a_takeover() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    // N.B. half-down: there the server closes while the kernel still has much to send.
    const MODES: &str = "down,up,half-down,half-up,idle,zero-window";
    let mut seed = Seed::announce();
    for (death, rate) in [(Death::Manager, "1500000"), (Death::Host, "1500000"), (Death::Host, "0")] {
        let mut pair = Pair::protecting(STRONG, &Streams::serve());
        let bytes = if rate == "0" { "20000000" } else { "3000000" };
        let mut words = vec!["--connections", "12", "--modes", MODES, "--pause", "1500ms"];
        words.extend(["--bytes", bytes, "--rate", rate]);
        let mut streams = Streams::start(&pair.clients, pair.dir.path(), &words);
        pair.wait_until_accepted();
        let instant = seed.up_to(Duration::from_millis(1000));
        println!("death of {} after {instant:?}", death.name());
        let over = Deadline::after(instant).poll(|| (!streams.is_running()).then_some(()));
        assert_eq!(over, None, "the death came too late");
        strike(&mut pair, death, None, &mut seed);
        pair.takeover();
        let report = streams.finish(SOON * 2);
        let logs = || pair.logs();
        assert_eq!(
            (&report["verified"], &report["failed"]),
            (&12.into(), &0.into()),
            "{report:#}\n{}",
            logs()
        );
    }
}

/// Each side of a cut has clients of its own, and only one of them may be answered.
#[test]
fn halves_of_a_partition_are_never_both_audible() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let pair = Pair::protecting(STRONG, &Store::Kv.command_line());
    let clients = [Side::A, Side::B].map(|side| Pesterer::start(pair.namespace(side)));
    pair.wait("answers on both sides", || clients.iter().all(|client| client.answers() > 0).then_some(()));
    pair.cut(Side::A);
    clients.iter().for_each(Pesterer::begin_period);
    pair.wait("a side that goes on", || clients.iter().any(|client| client.answers() > 50).then_some(()));
    let both = || clients.iter().all(|client| client.answers() > 0).then_some(());
    let audible = Deadline::after(SILENCE).poll(both);
    assert_eq!(audible, None, "both were audible: {}", pair.logs());
    pair.heal(Side::A);
    clients.iter().for_each(Pesterer::begin_period);
    pair.wait("answers on both sides", || clients.iter().all(|client| client.answers() > 0).then_some(()));
}

#[test]
fn manager_that_was_given_up_is_not_heard_when_it_goes_on() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut pair = Pair::protecting(STRONG, &Store::Kv.command_line());
    let clients = [Side::A, Side::B].map(|side| Pesterer::start(pair.namespace(side)));
    pair.wait("answers on both sides", || clients.iter().all(|client| client.answers() > 0).then_some(()));
    pair.signal(Side::A, Signal::STOP);
    pair.cut(Side::A);
    clients.iter().for_each(Pesterer::begin_period);
    pair.takeover();
    pair.wait("answers on b", || (clients[1].answers() > 0).then_some(()));
    pair.signal(Side::A, Signal::CONT);
    let ended = pair.manager(Side::A).wait(SOON);
    assert!(!ended.success(), "a manager that lost its term says so");
    let audible = Deadline::after(SILENCE).poll(|| (clients[0].answers() > 0).then_some(()));
    assert_eq!(audible, None, "both were audible: {}", pair.logs());
    pair.heal(Side::A);
    pair.wait("answers on both sides", || clients.iter().all(|client| client.answers() > 0).then_some(()));
}

#[test]
fn service_goes_on_without_its_standby_and_is_protected_by_the_next() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut pair = Pair::protecting(STRONG, &Store::Kv.command_line());
    let words = ["--clients", "6", "--keys", "12"];
    let load = Load::start(&pair.clients, pair.dir.path(), Store::Kv, &words);
    pair.kill_manager(Side::B);
    pair.wait_for_app(Side::A, "an unprotected app", |app| app["state"] == "unprotected");
    load.wait_for_answers();
    pair.start_standby();
    pair.wait_until_protected();
    load.wait_for_answers();
    pair.kill_manager(Side::A);
    pair.takeover();
    load.wait_for_answers();
    load.finish().assert_nothing_happened();
}

#[test]
fn answers_wait_for_a_standby_if_they_were_asked_to() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let options = [STRONG, &["--on-standby-loss", "stop"]].concat();
    let mut pair = Pair::protecting(&options, &Store::Kv.command_line());
    let mut client = Asker::connect(&pair.clients).unwrap();
    assert_eq!(client.ask("PUT k one").unwrap(), "OK");
    pair.kill_manager(Side::B);
    client.send("PUT k two").unwrap();
    assert!(client.is_silent_for(SILENCE).unwrap(), "an answer that nothing covers: {}", pair.logs());
    pair.start_standby();
    assert_eq!(client.answer().unwrap(), "OK");
    pair.wait_until_protected();
    pair.kill_manager(Side::A);
    assert_eq!(client.ask("GET k").unwrap(), "VALUE two");
}

#[test]
fn address_that_somebody_has_is_refused_by_name() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut pair = Pair::build();
    pair.clients.within(|| add_address("eth0", SERVICE)).unwrap();
    pair.start_standby();
    pair.start_primary(STRONG, &Store::Kv.command_line());
    let ended = pair.manager(Side::A).wait(SOON);
    let log = pair.log_of(Side::A);
    assert!(!ended.success() && log.contains("address 10.78.0.9 is in use already on br0"), "{log}");
}

/// `cargo xtask eval strong` asks for this one, and reads a line of JSON for each sample.
#[test]
#[ignore = "it takes minutes"]
fn as_many_figures_as_are_asked_for() {
    Figures::asked_for().take();
}

/// `cargo xtask eval takeover` asks for this one, and reads a line of JSON for each round. A round that fails is
/// a line, too.
#[test]
#[ignore = "it takes minutes"]
fn as_many_rounds_as_are_asked_for() {
    let asked = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let rounds: usize = asked("CHECKSYNC_ROUNDS").parse().expect("CHECKSYNC_ROUNDS is a number");
    let mode = match asked("CHECKSYNC_ROUNDS_MODE").as_str() {
        "strong" => Mode::Strong,
        "timeline" => Mode::Timeline,
        other => panic!("CHECKSYNC_ROUNDS_MODE is {other:?}, not strong or timeline"),
    };
    let mut lines = File::options().create(true).append(true).open(asked("CHECKSYNC_ROUNDS_TO")).unwrap();
    let mut seed = Seed::announce();
    let stores = [Store::Kv, Store::Redis].into_iter().cycle();
    let deaths = Death::ALL.into_iter().flat_map(|death| [death; 2]).cycle();
    // Where an earlier call left off, so that all meet.
    let first: usize = asked("CHECKSYNC_ROUNDS_FIRST").parse().expect("CHECKSYNC_ROUNDS_FIRST is a number");
    for (round, (store, death)) in stores.zip(deaths).enumerate().skip(first).take(rounds) {
        // One further each time round, so that all stores and deaths meet all aims.
        let aim = Moment::AIMS[(round + round / Moment::AIMS.len()) % Moment::AIMS.len()];
        let aim = aim.filter(|_| mode == Mode::Strong);
        let played = catch_unwind(AssertUnwindSafe(|| play(store, mode, death, aim, &mut seed)));
        let line = match &played {
            Ok(outcome) => outcome.summary(),
            Err(_) => json!({ "store": store.name(), "death": death.name(), "failed": true }),
        };
        writeln!(lines, "{line}").unwrap();
    }
}
