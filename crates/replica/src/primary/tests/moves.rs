//! Planned moves that come to nothing.

use super::*;

const LAST: CheckpointId = CheckpointId { term: Term(1), epoch: Epoch(2) };
/// After the standby was told, and too late for it to take over.
const OVER: u64 = 3_000;

/// The standby was told to take over with epoch 1/2, at 113 ms.
fn moving() -> Bench {
    let mut bench = Bench::protected(|config| config.interval = at(60_000));
    let begun = bench.step(at(110), PrimaryEvent::SwitchOver { to: None });
    position(&begun, |action| matches!(action, PrimaryAction::CaptureLast { id: LAST, .. }));
    bench.step(at(112), PrimaryEvent::Captured { id: LAST });
    let told = bench.step(at(113), PrimaryEvent::Acked { from: standby(), id: LAST });
    position(&told, |action| matches!(action, PrimaryAction::Tell { notice: Notice::HandedOver { .. }, .. }));
    bench
}

#[test]
fn the_word_of_a_move_is_not_heard_when_it_is_over() {
    let mut bench = moving();
    let back = bench.step(at(OVER), PrimaryEvent::Tick);
    let let_go = position(&back, |action| matches!(action, PrimaryAction::DropPeer { .. }));
    let thawed = position(&back, |action| *action == PrimaryAction::Thaw);
    assert!(let_go < thawed, "{back:#?}");
    assert_eq!(bench.members(), 0);
}

/// What it holds has connections in it that have gone on without it.
#[test]
fn the_last_epoch_of_a_move_that_came_to_nothing_entitles_nobody() {
    let mut bench = moving();
    bench.step(at(OVER), PrimaryEvent::Tick);
    bench.connect(at(OVER + 10), Some(LAST));
    bench.answer_heartbeat(at(OVER + 20));
    bench.step(at(OVER + 30), PrimaryEvent::Tick);
    assert_eq!(bench.members(), 0);
    let next = bench.primary.newest;
    let id = CheckpointId { term: Term(1), epoch: next };
    assert!(next > LAST.epoch, "the next one is under way");
    bench.step(at(OVER + 40), PrimaryEvent::Captured { id });
    bench.step(at(OVER + 45), PrimaryEvent::Acked { from: standby(), id });
    assert_eq!(bench.members(), 1);
}

#[test]
fn an_app_that_dies_in_a_move_that_comes_to_nothing_has_ended() {
    let mut bench = moving();
    let killed = bench.step(at(200), PrimaryEvent::AppExited(AppExit::Signal(9)));
    assert_eq!(ended(&killed), None, "the standby may be taking over");
    let back = bench.step(at(OVER), PrimaryEvent::Tick);
    assert!(!back.contains(&PrimaryAction::Thaw), "{back:#?}");
    bench.step(at(OVER + 5_000), PrimaryEvent::Tick);
    assert_eq!(ended(&bench.actions), Some(&Ending::App(AppExit::Signal(9))));
}
