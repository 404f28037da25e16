//! A store in the background gets what is captured while nobody protects the app.

use super::*;

const EVERY: u64 = 5_000;

fn archiving(adjust: impl FnOnce(&mut PrimaryConfig)) -> Bench {
    let mut bench = Bench::new(|config| {
        config.archive = Some(at(EVERY));
        adjust(config);
    });
    bench.step(at(0), PrimaryEvent::Tick);
    bench
}

/// When the next capture is asked for, from `now` on.
fn next(bench: &mut Bench, now: u64) -> (u64, PrimaryAction) {
    let asked = |action: &PrimaryAction| {
        matches!(action, PrimaryAction::StartFullSync { .. } | PrimaryAction::CaptureNow { .. })
    };
    (now..now + 20_000)
        .step_by(10)
        .find_map(|now| Some((now, bench.step(at(now), PrimaryEvent::Tick).into_iter().find(asked)?)))
        .expect("a capture within 20 s")
}

fn full(epoch: u64) -> PrimaryAction {
    PrimaryAction::StartFullSync { id: CheckpointId::new(1, epoch), to: Vec::new(), eligible: false }
}

/// At 2100 ms, with its first full checkpoint.
fn archived() -> Bench {
    let mut bench = archiving(|_| {});
    assert_eq!(next(&mut bench, 10), (2_000, full(1)));
    let id = CheckpointId::new(1, 1);
    let done = bench.step(at(2_100), PrimaryEvent::Captured { id });
    assert!(done.contains(&PrimaryAction::Archive(id)) && done.contains(&PrimaryAction::Forget(id)));
    bench
}

#[test]
fn alone_it_is_given_a_full_checkpoint_after_a_while_and_then_what_changed() {
    let mut bench = archived();
    let (id, parent) = (CheckpointId::new(1, 2), CheckpointId::new(1, 1));
    assert_eq!(next(&mut bench, 2_110), (7_100, PrimaryAction::CaptureNow { id, parent }));
    let why = "fd 9 is an io_uring".to_owned();
    bench.step(at(7_110), PrimaryEvent::CaptureFailed { id, why });
    assert_eq!(next(&mut bench, 7_120), (12_110, full(3)), "nothing builds on what was not captured");
    bench.step(at(12_120), PrimaryEvent::Captured { id: CheckpointId::new(1, 3) });
    bench.step(at(12_130), PrimaryEvent::ArchiveLost);
    assert_eq!(next(&mut bench, 12_140), (17_120, full(4)));
    assert_eq!(bench.primary.committed(), None, "nobody has acknowledged anything");
}

#[test]
fn a_standby_that_comes_is_first_and_gets_all_of_it() {
    let mut bench = archived();
    let (_, asked) = next(&mut bench, 2_110);
    let PrimaryAction::CaptureNow { id, .. } = asked else { panic!("{asked:?}") };
    // It held this before, and the store has something newer.
    let came = bench.connect(at(7_105), Some(CheckpointId::new(1, 1)));
    assert!(!came.contains(&PrimaryAction::GiveUpFullSync(id)), "it is no full sync: {came:#?}");
    let done = bench.step(at(7_110), PrimaryEvent::Captured { id });
    assert!(done.contains(&PrimaryAction::Archive(id)), "{done:#?}");
    let id = CheckpointId::new(1, 3);
    let sync = PrimaryAction::StartFullSync { id, to: vec![standby()], eligible: false };
    assert!(done.contains(&sync), "{done:#?}");
    let done = bench.step(at(7_200), PrimaryEvent::Captured { id });
    assert!(!done.contains(&PrimaryAction::Archive(id)), "nobody has it yet: {done:#?}");
}

#[test]
fn a_full_checkpoint_under_way_does_not_keep_a_standby_waiting() {
    let mut bench = archiving(|_| {});
    let (now, _) = next(&mut bench, 10);
    let id = CheckpointId::new(1, 1);
    let came = bench.connect(at(now + 10), None);
    assert!(came.contains(&PrimaryAction::GiveUpFullSync(id)), "{came:#?}");
    let why = "there is a standby".to_owned();
    let given_up = bench.step(at(now + 20), PrimaryEvent::CaptureFailed { id, why });
    let begins = |action: &PrimaryAction| matches!(action, PrimaryAction::StartFullSync { to, .. } if *to == [standby()]);
    assert!(given_up.iter().any(begins), "at once: {given_up:#?}");
}

/// A takeover may go back behind what was captured while the register names somebody.
#[test]
fn nothing_is_archived_while_somebody_may_take_over() {
    let mut bench = Bench::protected(|config| {
        (config.archive, config.interval) = (Some(at(EVERY)), at(60_000));
    });
    bench.reachable = false;
    bench.step(at(200), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    for now in (200..10_000).step_by(10) {
        let done = bench.step(at(now), PrimaryEvent::Tick);
        assert!(!done.iter().any(|action| matches!(action, PrimaryAction::StartFullSync { .. })), "{now}");
    }
    bench.reachable = true;
    assert_eq!(bench.members(), 1);
    let (now, asked) = next(&mut bench, 10_000);
    assert_eq!((bench.members(), asked), (0, full(bench.primary.newest.0)), "at {now}");
}
