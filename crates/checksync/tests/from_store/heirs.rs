//! A store that only follows: after a takeover by a standby the winner goes on there, and the loser adds nothing.

use serde_json::Value;

use super::street::Keeping;
use super::*;

/// The old primary stands still with something on its way to the store, and wakes up when the winner has been there.
#[test]
fn a_winner_without_a_standby_is_kept_and_the_loser_that_sleeps_adds_nothing() {
    needs_all!();
    let mut hosts = Keeping::following(STRONG, &Store::Kv.command_line());
    let mut asker = Asker::connect(&hosts.clients).unwrap();
    asker.ask("PUT k 1").unwrap();
    let is_kept = |app: &Value| app["store"]["epoch"].is_u64();
    hosts.wait("a checkpoint of the first", || hosts.served_app(0).filter(is_kept));
    hosts.manager(0).signal(Signal::STOP);
    let (winner, _) = hosts.wait("a takeover", || hosts.takeover_in(2));
    assert_eq!(winner, 1);
    // It has no standby, so nothing holds its answers back.
    asker.ask("PUT k 2").unwrap();
    let of_term = |list: &[(u64, u64)], term| list.iter().filter(|one| one.0 == term).count();
    hosts.wait("three checkpoints of the winner", || (of_term(&hosts.checkpoints(), 2) > 2).then_some(()));
    let app = hosts.served_app(1).unwrap();
    assert_eq!(
        (&app["state"], &app["store"]["state"]),
        (&"unprotected".into(), &"following".into()),
        "{app}"
    );
    let before = of_term(&hosts.checkpoints(), 1);
    hosts.manager(0).signal(Signal::CONT);
    let end = hosts.manager(0).wait(SOON);
    assert_eq!(end.code(), Some(street::FENCED), "{}", hosts.logs());
    let list = hosts.checkpoints();
    assert!(of_term(&list, 1) <= before, "the old run has grown: {list:?}");
    assert_eq!(list.last().unwrap().0, 2, "{list:?}");
    assert_eq!(asker.ask("GET k").unwrap(), "VALUE 2");
    // The loser's host is back as a standby: the store goes on following what is committed.
    hosts.start_daemon(0, &[1]);
    hosts.wait_until_protected(1);
    let newest = *hosts.checkpoints().last().unwrap();
    asker.ask("PUT k 3").unwrap();
    hosts.wait("a later one", || (*hosts.checkpoints().last().unwrap() > newest).then_some(()));
    assert_eq!(hosts.served_app(1).unwrap()["store"]["state"], "following");
}
