//! `--commit-on store`: the store is the replication path. With host a dead, what its clients were answered is in the
//! store, and any host goes on from there.

#[path = "../strong/asker.rs"]
#[allow(dead_code, reason = "only one of its clients is used here")]
mod asker;
#[path = "../strong/clients.rs"]
#[allow(dead_code, reason = "only one of its clients is used here")]
mod clients;
mod street;

use std::fs;

use rustix::process::Signal;
use testkit::needs;

use asker::Asker;
use clients::{Load, Store};
use street::{Keeping, SILENCE, SOON, wires};

const STRONG: &[&str] = &["--consistency", "strong"];
const STOP: &[&str] = &["--consistency", "strong", "--on-standby-loss", "stop"];
const WORDS: &[&str] = &["--clients", "4", "--keys", "8"];

macro_rules! needs_all {
    () => {
        needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    };
}

mod heirs;

/// Twice in a row, the second time out of what the first winner has stored.
#[test]
fn with_host_and_app_dead_every_answer_is_in_the_store_and_the_connections_go_on() {
    needs_all!();
    let mut hosts = Keeping::with(STRONG, &Store::Kv.command_line());
    let load = Load::start(&hosts.clients, hosts.dir.path(), Store::Kv, WORDS);
    for (dead, next, term) in [(0, 1, 2), (1, 0, 3)] {
        load.wait_for_answers();
        hosts.kill_all(dead);
        hosts.go_on(next, STRONG);
        let app = hosts.wait_until_protected(next);
        assert_eq!((&app["term"], &app["commit_on"]), (&term.into(), &"store".into()), "{app}");
    }
    load.wait_for_answers();
    load.finish().assert_nothing_happened();
}

/// It stands still while another goes on out of the store, and then wakes up: nothing that it does counts any more.
#[test]
fn a_primary_that_sleeps_through_its_end_is_not_heard_and_stores_nothing() {
    needs_all!();
    let mut hosts = Keeping::with(STRONG, &Store::Kv.command_line());
    let mut asker = Asker::connect(&hosts.clients).unwrap();
    asker.ask("PUT k 1").unwrap();
    hosts.manager(0).signal(Signal::STOP);
    // It is in the app, and in no epoch.
    asker.send("PUT k 2").unwrap();
    assert!(asker.is_silent_for(SILENCE).unwrap(), "nobody has stored it");
    hosts.go_on(1, STRONG);
    asker.answer().unwrap();
    asker.ask("PUT k 3").unwrap();
    let before = hosts.checkpoints();
    hosts.manager(0).signal(Signal::CONT);
    let end = hosts.manager(0).wait(SOON);
    assert_eq!(end.code(), Some(street::FENCED), "{}", hosts.logs());
    assert_eq!(asker.ask("GET k").unwrap(), "VALUE 3");
    hosts.wait_until_protected(1);
    let after = hosts.checkpoints();
    let of_term = |list: &[(u64, u64)], term| list.iter().filter(|one| one.0 == term).count();
    assert_eq!(of_term(&after, 1), of_term(&before, 1), "the old run has grown: {after:?}");
    assert!(of_term(&after, 2) > 0, "{after:?}");
}

#[test]
fn without_the_store_answers_wait_or_leave_as_was_asked_for_and_its_name_is_said() {
    needs_all!();
    for (options, goes_on) in [(STRONG, true), (STOP, false)] {
        let hosts = Keeping::with(options, &Store::Kv.command_line());
        let mut asker = Asker::connect(&hosts.clients).unwrap();
        asker.ask("PUT k 1").unwrap();
        // A file where the folder was: nobody can write below it, not even root.
        let (folder, away) = (hosts.folder(), hosts.dir.path().join("away"));
        fs::rename(&folder, &away).unwrap();
        fs::write(&folder, "").unwrap();
        asker.send("PUT k 2").unwrap();
        let why = hosts.wait("the store's name", || {
            let app = hosts.served_app(0)?;
            app["why_not"].as_str().map(str::to_owned).filter(|why| why.contains("store file:"))
        });
        if goes_on {
            asker.answer().unwrap();
        } else {
            assert!(asker.is_silent_for(SILENCE).unwrap(), "it was answered uncovered: {why}");
        }
        // Nobody may take it over from what is there.
        fs::remove_file(&folder).unwrap();
        fs::rename(&away, &folder).unwrap();
        if !goes_on {
            asker.answer().unwrap();
        }
        hosts.wait_until_protected(0);
        assert_eq!(asker.ask("GET k").unwrap(), "VALUE 2");
    }
}

#[test]
fn who_has_no_right_or_no_store_is_refused_by_name() {
    needs_all!();
    let mut hosts = Keeping::with(STRONG, &Store::Kv.command_line());
    hosts.manager(0).signal(Signal::TERM);
    hosts.manager(0).wait(SOON);
    // It ended by its operator's wish, and left nobody a right.
    let complaint = hosts.refused(1, STRONG);
    assert!(complaint.contains("does not name the store") && complaint.contains("a#"), "{complaint}");
    let away = hosts.dir.path().join("away");
    fs::rename(hosts.folder(), &away).unwrap();
    let complaint = hosts.refused(1, STRONG);
    assert!(complaint.contains("holds no checkpoint") && complaint.contains("file:"), "{complaint}");
}

/// Nobody takes it away from a primary that is alive without saying so. Whoever loses it says so by its exit code, whether
/// it had started the app or taken it over.
#[test]
fn a_primary_that_lives_is_left_alone_unless_it_is_to_lose_the_app() {
    needs_all!();
    const TAKE: &[&str] = &["--consistency", "strong", "--from-living"];
    let mut hosts = Keeping::with(STRONG, &Store::Kv.command_line());
    let mut asker = Asker::connect(&hosts.clients).unwrap();
    asker.ask("PUT k 1").unwrap();
    let complaint = hosts.refused(1, STRONG);
    assert!(complaint.contains("is alive at a#") && complaint.contains("--from-living"), "{complaint}");
    assert_eq!(hosts.wait_until_protected(0)["term"], 1, "nothing was changed");
    asker.ask("PUT k 2").unwrap();
    for (loser, winner, term) in [(0, 1, 2), (1, 0, 3)] {
        let mut fenced = hosts.hosts[loser].primary.take().unwrap();
        hosts.go_on(winner, TAKE);
        assert_eq!(fenced.wait(SOON).code(), Some(street::FENCED), "{}", hosts.logs());
        assert_eq!(asker.ask("GET k").unwrap(), "VALUE 2");
        assert_eq!(hosts.wait_until_protected(winner)["term"], term);
    }
    // The app's own end is another.
    hosts.manager(0).signal(Signal::TERM);
    assert_eq!(hosts.manager(0).wait(SOON).code(), Some(128 + 15), "{}", hosts.logs());
}

/// Whoever comes second finds no right any more, and the first is not disturbed.
#[test]
fn of_two_who_go_on_from_the_store_one_does() {
    needs_all!();
    let mut hosts = Keeping::with(STRONG, &Store::Kv.command_line());
    let mut asker = Asker::connect(&hosts.clients).unwrap();
    asker.ask("PUT k 1").unwrap();
    hosts.kill_all(0);
    hosts.go_on(1, STRONG);
    hosts.go_on(0, STRONG);
    let serves = |host: &usize| hosts.served_app(*host).is_some();
    let winner = hosts.wait("somebody who serves", || (0..2).find(serves));
    assert_eq!(asker.ask("GET k").unwrap(), "VALUE 1");
    let loser = 1 - winner;
    assert_eq!(hosts.manager(loser).wait(SOON).code(), Some(1), "{}", hosts.logs());
    let log = hosts.log_of(loser);
    assert!(log.contains("was faster") || log.contains("does not name the store"), "{log}");
    assert!(!log.contains("SERVING"), "it has been served there as well: {log}");
    hosts.wait_until_protected(winner);
    assert_eq!(asker.ask("GET k").unwrap(), "VALUE 1");
}

/// A primary that is cut off, with its manager standing still: its kernel ends what may be heard of it, and only then
/// the app is heard elsewhere.
#[test]
fn an_app_that_is_cut_off_is_silent_before_it_goes_on_elsewhere() {
    needs_all!();
    let mut hosts = Keeping::with(&[], &Store::Kv.command_line());
    let mut near = Asker::connect(&hosts.hosts[0].namespace).unwrap();
    near.ask("PUT k 1").unwrap();
    hosts.manager(0).signal(Signal::STOP);
    wires::pull(&hosts.hosts[0].namespace);
    assert!(
        near.ask("GET k").is_ok(),
        "the permit is for four seconds, and a test that is slower shows nothing"
    );
    hosts.go_on(1, &[]);
    hosts.wait("an answer from the other host", || {
        Asker::connect(&hosts.hosts[1].namespace).and_then(|mut asker| asker.ask("GET k")).ok()
    });
    near.send("GET k").unwrap();
    assert!(near.is_silent_for(SILENCE).unwrap(), "both were audible: {}", hosts.logs());
}
