//! Re-protection: after a takeover the winner finds a standby by itself, and the next death costs as little as the
//! first. Hosts of the test's own, whose managers are killed in turn and come back.

#[path = "../strong/asker.rs"]
#[allow(dead_code, reason = "only one of its clients is used here")]
mod asker;
#[path = "../strong/clients.rs"]
#[allow(dead_code, reason = "only one of its clients is used here")]
mod clients;
mod gaps;
mod group;
mod prefix;
mod street;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;
use testkit::needs;

use asker::Asker;
use clients::{Load, Store};
use gaps::{Gaps, wall_clock_ns};
use prefix::Writer;
use street::{Group, SOON};

const STRONG: &[&str] = &["--consistency", "strong"];
const WORDS: &[&str] = &["--clients", "6", "--keys", "12"];
/// How long nothing may be heard.
const SILENCE: Duration = Duration::from_millis(700);

/// How many deaths in a row; more outside CI.
fn rounds() -> u64 {
    std::env::var("CHECKSYNC_ROUNDS").map_or(4, |text| text.parse().expect("CHECKSYNC_ROUNDS is a number"))
}

/// From host to host: who serves is killed as soon as it is protected, and comes back.
#[test]
fn the_same_sessions_live_through_one_death_after_the_other() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut group = Group::protecting(2, STRONG, &Store::Kv.command_line());
    let load = Load::start(&group.clients, group.dir.path(), Store::Kv, WORDS);
    let (mut serving, mut deaths) = (0, Vec::new());
    for term in 2..2 + rounds() {
        load.wait_for_answers();
        deaths.push(wall_clock_ns());
        group.kill(serving);
        let (winner, _) = group.takeover(term);
        assert_ne!(winner, serving);
        load.wait_for_answers();
        group.start_daemon(serving);
        group.wait_until_protected(winner);
        serving = winner;
    }
    let seen = load.finish();
    println!("{}", Gaps::around(&deaths, &seen.history));
    seen.assert_nothing_happened();
}

/// In timeline the last epochs may be lost with each death, and what is left is as if they had never been.
#[test]
fn a_valid_prefix_is_left_after_one_death_after_the_other() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut group = Group::protecting(2, &[], &Store::Kv.command_line());
    let mut writer = Writer::default();
    let mut serving = 0;
    for term in 2..2 + rounds() {
        writer.write_for_a_while(&group.clients);
        group.kill(serving);
        let (winner, takeover) = group.takeover(term);
        assert_ne!(winner, serving);
        writer.check_and_go_back(&group.clients, takeover["frozen_at_ns"].as_u64().unwrap());
        group.start_daemon(serving);
        group.wait_until_protected(winner);
        serving = winner;
    }
    assert!(writer.written() > rounds(), "next to nothing was written");
}

/// The operator moves the app there and back, in both modes: nothing is lost, and no connection ends.
#[test]
fn the_same_sessions_live_through_moves_there_and_back() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    for options in [STRONG, &[]] {
        let group = Group::protecting(2, options, &Store::Kv.command_line());
        let load = Load::start(&group.clients, group.dir.path(), Store::Kv, WORDS);
        for serving in [0, 1, 0] {
            load.wait_for_answers();
            let pause = group.switch_over(serving);
            println!("{options:?}: a pause of {pause:?}");
            group.wait_until_movable(1 - serving);
        }
        load.wait_for_answers();
        load.finish().assert_nothing_happened();
    }
}

/// Redis, whose memory is written to by background jobs of its own.
#[test]
fn sessions_of_redis_live_through_one_death_after_the_other() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF, "debian:redis-server");
    let mut group = Group::protecting(2, STRONG, &Store::Redis.command_line());
    let load = Load::start(&group.clients, group.dir.path(), Store::Redis, WORDS);
    let mut serving = 0;
    for term in 2..6 {
        load.wait_for_answers();
        group.kill(serving);
        let (winner, _) = group.takeover(term);
        group.start_daemon(serving);
        group.wait_until_protected(winner);
        serving = winner;
    }
    load.wait_for_answers();
    load.finish().assert_nothing_happened();
}

/// A manager stands still while its app goes to another host and comes back, to a daemon beside it. When it goes on it has
/// the service's address still, and nobody hears it.
#[test]
fn a_manager_that_slept_through_two_terms_is_not_heard() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut group = Group::protecting(2, STRONG, &Store::Kv.command_line());
    let load = Load::start(&group.clients, group.dir.path(), Store::Kv, WORDS);
    group.first_primary().signal(Signal::STOP);
    assert_eq!(group.takeover(2).0, 1);
    assert_eq!(group.wait_until_protected(1)["peer"], "a");
    load.wait_for_answers();
    group.kill_daemon(1);
    assert_eq!(group.takeover(3).0, 0);
    load.wait_for_answers();
    group.first_primary().signal(Signal::CONT);
    assert!(!group.first_primary().wait(SOON).success(), "a manager that lost its term says so");
    load.wait_for_answers();
    group.start_daemon(1);
    assert_eq!(group.wait_until_protected(0)["peer"], "b");
    load.finish().assert_nothing_happened();
}

/// A program that asks for protection gets it from whoever comes back.
#[test]
fn a_call_of_sync_waits_for_the_next_standby() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut group = Group::protecting(2, &[], &Store::Kv.command_line());
    group.kill(0);
    group.takeover(2);
    let app = group
        .wait("the winner as a primary", || group.served_app(1).filter(|app| app["state"] == "unprotected"));
    let socket = format!("/proc/{}/root/run/checksync-app/socket", app["app_pid"]);
    let mut call = UnixStream::connect(socket).unwrap();
    call.write_all(b"POST /v1/sync?patience=25s HTTP/1.1\r\nhost: checksync\r\n\r\n").unwrap();
    call.set_read_timeout(Some(SILENCE)).unwrap();
    let mut answer = [0; 4096];
    assert!(call.read(&mut answer).is_err(), "nobody protects it yet");
    group.start_daemon(0);
    call.set_read_timeout(Some(SOON)).unwrap();
    let len = call.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"term\":2"), "{answer}");
}

/// Answers that only a standby may cover wait for one after a takeover, too.
#[test]
fn the_winner_is_silent_until_it_has_a_standby_if_that_was_asked_for() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let options = [STRONG, &["--on-standby-loss", "stop"]].concat();
    let mut group = Group::protecting(2, &options, &Store::Kv.command_line());
    let mut client = Asker::connect(&group.clients).unwrap();
    assert_eq!(client.ask("PUT k one").unwrap(), "OK");
    group.kill(0);
    group.takeover(2);
    group.wait("the winner as a primary", || group.served_app(1).filter(|app| app["state"] == "unprotected"));
    client.send("PUT k two").unwrap();
    assert!(client.is_silent_for(SILENCE).unwrap(), "an answer that nothing covers: {}", group.logs());
    group.start_daemon(0);
    assert_eq!(client.answer().unwrap(), "OK");
    group.wait_until_protected(1);
    group.kill(1);
    group.takeover(3);
    group.start_daemon(1);
    assert_eq!(client.ask("GET k").unwrap(), "VALUE two");
}
