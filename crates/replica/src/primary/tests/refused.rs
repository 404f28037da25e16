//! What cannot be captured, or is not taken.

use super::*;

#[test]
fn a_refused_epoch_a_failed_capture_and_a_child_leave_the_copy_standing_and_say_so() {
    let mut bench = Bench::protected(|_| {});
    let why = "fd 9 is an io_uring".to_owned();
    bench.step(at(110), PrimaryEvent::CaptureFailed { id: CheckpointId::new(1, 2), why: why.clone() });
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::CaptureFailed(why.clone()))));
    assert_eq!((bench.members(), bench.primary.phase()), (1, Phase::Protected));
    let mut bench = Bench::protected(|_| {});
    bench.step(at(110), PrimaryEvent::Captured { id: CheckpointId::new(1, 2) });
    bench.step(
        at(111),
        PrimaryEvent::EpochRefused { from: standby(), id: CheckpointId::new(1, 2), why: why.clone() },
    );
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::EpochRefused(why))));
    let mut bench = Bench::protected(|_| {});
    bench.step(at(110), PrimaryEvent::ChildSeen { pid: 7 });
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::Child(7))));
    bench.step(at(111), PrimaryEvent::ChildGone { pid: 7 });
    assert_eq!(bench.primary.told, Some(Status::Protected));
}

fn starts(actions: &[PrimaryAction]) -> Option<CheckpointId> {
    let id = |action: &PrimaryAction| match action {
        PrimaryAction::StartFullSync { id, .. } => Some(*id),
        _ => None,
    };
    actions.iter().find_map(id)
}

/// Somebody who holds nothing has come.
fn syncing() -> (Bench, CheckpointId) {
    let mut bench = Bench::protected(|_| {});
    bench.step(at(105), PrimaryEvent::Captured { id: CheckpointId::new(1, 2) });
    bench.step(at(106), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    let full = starts(&bench.connect(at(110), None)).expect("a full sync");
    (bench, full)
}

/// It may be hours long.
#[test]
fn a_full_sync_that_is_refused_is_not_sent_to_its_end() {
    let (mut bench, full) = syncing();
    let why = "it lacks a file".to_owned();
    let refusal = PrimaryEvent::EpochRefused { from: standby(), id: full, why: why.clone() };
    let actions = bench.step(at(120), refusal);
    assert!(actions.contains(&PrimaryAction::GiveUpFullSync(full)), "{actions:#?}");
    let failed = PrimaryEvent::CaptureFailed { id: full, why: "nobody takes it".to_owned() };
    assert_eq!(starts(&bench.step(at(130), failed)), None, "a refusal is not answered at once");
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::EpochRefused(why))));
    let before = bench.actions.len();
    for (now, again) in [(600, None), (1_110, None), (1_120, Some(full.next()))] {
        bench.answer_heartbeat(at(now));
        assert_eq!(starts(&bench.actions[before..]), again, "at {now} ms");
    }
}

/// Its last frame is on its way already, and is nobody's.
#[test]
fn a_full_sync_that_is_refused_at_its_very_end_is_sent_to_nobody() {
    let (mut bench, full) = syncing();
    bench.step(at(120), PrimaryEvent::EpochRefused { from: standby(), id: full, why: "no".to_owned() });
    let actions = bench.step(at(121), PrimaryEvent::Captured { id: full });
    assert!(!actions.iter().any(|action| matches!(action, PrimaryAction::SendEpoch { .. })), "{actions:#?}");
    assert!(actions.contains(&PrimaryAction::ReturnToLedger { ids: vec![full] }), "{actions:#?}");
}
