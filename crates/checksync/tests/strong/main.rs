//! What strong consistency promises, on the whole program: two managers and their clients on hosts of the test's
//! own, deaths at random instants, and a judge that knows nothing of us.

mod clients;
mod rounds;
mod street;

use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::json;
use testkit::needs;

use clients::Store;
use rounds::{Death, Mode, Seed, play};

#[test]
fn clients_of_a_go_server_notice_no_death() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut seed = Seed::announce();
    for death in Death::ALL {
        play(Store::Kv, Mode::Strong, death, &mut seed).assert_nothing_happened();
    }
}

#[test]
fn clients_of_redis_notice_no_death() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF, "debian:redis-server");
    let mut seed = Seed::announce();
    for death in [Death::Manager, Death::Host] {
        play(Store::Redis, Mode::Strong, death, &mut seed).assert_nothing_happened();
    }
}

#[test]
fn without_strong_consistency_only_the_announced_window_is_lost() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut seed = Seed::announce();
    for death in [Death::Manager, Death::Host] {
        play(Store::Kv, Mode::Timeline, death, &mut seed).assert_only_the_window_is_lost();
    }
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
    let mut lines = File::create(asked("CHECKSYNC_ROUNDS_TO")).unwrap();
    let mut seed = Seed::announce();
    let stores = [Store::Kv, Store::Redis].into_iter().cycle();
    let deaths = Death::ALL.into_iter().flat_map(|death| [death; 2]).cycle();
    for (store, death) in stores.zip(deaths).take(rounds) {
        let played = catch_unwind(AssertUnwindSafe(|| play(store, mode, death, &mut seed)));
        let line = match &played {
            Ok(outcome) => outcome.summary(),
            Err(_) => json!({ "death": death.name(), "failed": true }),
        };
        writeln!(lines, "{line}").unwrap();
    }
}
