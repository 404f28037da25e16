//! What strong consistency promises, on the whole program: two managers and their clients on hosts of the test's
//! own, deaths at random instants, and a judge that knows nothing of us.

mod clients;
mod rounds;
mod street;

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
