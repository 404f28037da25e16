//! Re-protection: after a takeover the winner finds a standby by itself, and the next death costs as little as the
//! first. Hosts of the test's own, whose managers are killed in turn and come back.

#[path = "../strong/asker.rs"]
#[allow(dead_code, reason = "only one of its clients is used here")]
mod asker;
#[path = "../strong/clients.rs"]
#[allow(dead_code, reason = "only one of its clients is used here")]
mod clients;
mod street;

use testkit::needs;

use clients::{Load, Store};
use street::Group;

const STRONG: &[&str] = &["--consistency", "strong"];

/// How many deaths in a row; more outside CI.
fn rounds() -> u64 {
    std::env::var("CHECKSYNC_ROUNDS").map_or(4, |text| text.parse().expect("CHECKSYNC_ROUNDS is a number"))
}

/// From host to host: who serves is killed as soon as it is protected, and comes back.
#[test]
fn the_same_sessions_live_through_one_death_after_the_other() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut group = Group::protecting(2, STRONG, &Store::Kv.command_line());
    let load = Load::start(&group.clients, group.dir.path(), Store::Kv, &["--clients", "6", "--keys", "12"]);
    let mut serving = 0;
    for term in 2..2 + rounds() {
        load.wait_for_answers();
        group.kill(serving);
        let (winner, takeover) = group.takeover(term);
        println!("term {term}: on host {winner}, {takeover}");
        assert_ne!(winner, serving);
        load.wait_for_answers();
        group.start_daemon(serving);
        group.wait_until_protected(winner);
        serving = winner;
    }
    if std::env::var_os("CHECKSYNC_LOGS").is_some() {
        println!("{}", group.logs());
    }
    load.finish().assert_nothing_happened();
}
