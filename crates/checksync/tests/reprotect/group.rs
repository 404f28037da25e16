//! Several standbys at once: all have a copy, one of them wins, and the others follow it.

use testkit::needs;

use super::asker::Asker;
use super::clients::{Load, Store};
use super::street::{Group, NAMES};
use super::{SILENCE, STRONG, WORDS};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// The standbys that the primary of this host counts on, by name.
fn eligible(group: &Group, host: usize) -> Vec<String> {
    let app = group.served_app(host).unwrap_or_default();
    let standbys = app["standbys"].as_array().into_iter().flatten();
    let mut names: Vec<String> = standbys
        .filter(|it| it["eligible"] == true)
        .map(|it| it["host"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn wait_until_eligible(group: &Group, host: usize, wanted: &[&str]) {
    group.wait(&format!("{wanted:?} as standbys of {}", NAMES[host]), || {
        (eligible(group, host) == wanted).then_some(())
    });
}

/// One death after the other: each time one of those who are left wins, the other follows it, and who comes back does so,
/// too. The sessions of clients live on.
#[test]
fn one_of_two_standbys_wins_and_the_other_follows() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut group = Group::protecting(3, STRONG, &Store::Kv.command_line());
    wait_until_eligible(&group, A, &["b", "c"]);
    assert_eq!(group.served_app(A).unwrap()["commit_on"], "all");
    let load = Load::start(&group.clients, group.dir.path(), Store::Kv, WORDS);
    load.wait_for_answers();
    group.kill(A);
    let (winner, _) = group.takeover(2);
    let other = B + C - winner;
    wait_until_eligible(&group, winner, &[NAMES[other]]);
    load.wait_for_answers();
    group.kill(winner);
    assert_eq!(group.takeover(3).0, other, "it was a full standby");
    load.wait_for_answers();
    group.start_daemon(A);
    group.start_daemon(winner);
    let mut back = ["a", NAMES[winner]];
    back.sort_unstable();
    wait_until_eligible(&group, other, &back);
    load.wait_for_answers();
    load.finish().assert_nothing_happened();
}

/// What is committed on all is committed on those that are left once a dead one is known to be: clients go on, and the
/// status says who is missing.
#[test]
fn a_dead_standby_holds_nobody_up_and_is_named() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    for rule in ["all", "any"] {
        let options = [STRONG, &["--commit-on", rule]].concat();
        let mut group = Group::protecting(3, &options, &Store::Kv.command_line());
        wait_until_eligible(&group, A, &["b", "c"]);
        let load = Load::start(&group.clients, group.dir.path(), Store::Kv, WORDS);
        load.wait_for_answers();
        group.kill_daemon(C);
        wait_until_eligible(&group, A, &["b"]);
        let missing = group.served_app(A).unwrap()["standbys"].as_array().cloned().unwrap();
        let missing =
            missing.iter().find(|it| it["address"].as_str().unwrap().contains("10.78.0.3")).unwrap();
        assert!(missing["connected"] == false && missing["why_not"].is_string(), "{missing}");
        load.wait_for_answers();
        group.wait_until_protected(A);
        group.kill(A);
        assert_eq!(group.takeover(2).0, B);
        load.wait_for_answers();
        load.finish().assert_nothing_happened();
    }
}

/// Whoever asks for answers that wait for all gets them, and is told what they wait for.
#[test]
fn answers_wait_for_a_dead_standby_if_that_was_asked_for() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let options = [STRONG, &["--on-standby-loss", "stop", "--commit-on", "all"]].concat();
    let mut group = Group::protecting(3, &options, &Store::Kv.command_line());
    wait_until_eligible(&group, A, &["b", "c"]);
    let mut client = Asker::connect(&group.clients).unwrap();
    assert_eq!(client.ask("PUT k one").unwrap(), "OK");
    group.kill_daemon(C);
    let why = group.wait("a status that names what is waited for", || {
        let app = group.served_app(A)?;
        app["why_not"].as_str().filter(|why| why.contains("1 of the 2 standbys")).map(str::to_owned)
    });
    assert!(why.contains("answers wait"), "{why}");
    client.send("PUT k two").unwrap();
    assert!(
        client.is_silent_for(SILENCE).unwrap(),
        "an answer that one standby does not hold: {}",
        group.logs()
    );
    group.start_daemon(C);
    assert_eq!(client.answer().unwrap(), "OK");
    group.wait_until_protected(A);
}

/// What one standby holds is committed, so both have to speak up; and one alone must not take over, since the other may
/// hold more.
#[test]
fn where_one_copy_is_enough_a_takeover_hears_both() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let options = [STRONG, &["--commit-on", "any"]].concat();
    let mut group = Group::protecting(3, &options, &Store::Kv.command_line());
    wait_until_eligible(&group, A, &["b", "c"]);
    let load = Load::start(&group.clients, group.dir.path(), Store::Kv, WORDS);
    load.wait_for_answers();
    group.kill(A);
    let (winner, _) = group.takeover(2);
    let other = B + C - winner;
    group.wait_until_protected(winner);
    load.wait_for_answers();
    group.start_daemon(A);
    let mut both = ["a", NAMES[other]];
    both.sort_unstable();
    wait_until_eligible(&group, winner, &both);
    load.wait_for_answers();
    load.finish().assert_nothing_happened();
    // Two at once: what the dead one held, nobody knows.
    group.stop_daemon(winner);
    group.kill_daemon(A);
    group.kill(winner);
    let why = group.wait("a standby that says what it waits for", || {
        group.reported(other, "apps").into_iter().find_map(|app| {
            app["why_not"].as_str().filter(|why| why.contains("have spoken up")).map(str::to_owned)
        })
    });
    assert!(why.contains("1 of 2") && why.contains('a'), "{why}");
    assert!(group.served_app(other).is_none(), "{}", group.logs());
}

/// The operator says who is to go on.
#[test]
fn a_planned_move_goes_where_it_is_told_to() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    for rule in ["all", "any"] {
        let options = [STRONG, &["--commit-on", rule]].concat();
        let group = Group::protecting(3, &options, &Store::Kv.command_line());
        wait_until_eligible(&group, A, &["b", "c"]);
        let load = Load::start(&group.clients, group.dir.path(), Store::Kv, WORDS);
        load.wait_for_answers();
        let refused = group.try_to_switch_over(A, Some("nobody")).unwrap_err();
        assert!(refused.contains("nobody is not its standby"), "{refused}");
        let pause = group.switch_over_to(A, "c");
        println!("commit on {rule}: a pause of {pause:?}");
        assert_eq!(group.takeover(2).0, C);
        group.wait_until_protected(C);
        load.wait_for_answers();
        wait_until_eligible(&group, C, &["a", "b"]);
        load.finish().assert_nothing_happened();
    }
}
