//! A store that has to hold each epoch: it commits, it is named in the register, and the permit follows from looks at it.

mod archive;

use super::*;

const PERMIT: Nanos = Nanos::from_millis(4_000);

fn bucket() -> Member {
    Member::new("store s3://x", 1)
}

fn alone_with_a_store(consistency: Consistency) -> Bench {
    let mut bench = Bench::new(|config| {
        (config.store, config.commit_on, config.consistency) = (Some(bucket()), CommitOn::Store, consistency);
        config.interval = at(60_000);
    });
    bench.step(at(0), PrimaryEvent::Tick);
    let begun = bench.step(at(0), PrimaryEvent::PeerConnected { standby: bucket(), held: None });
    let id = CheckpointId::new(1, 1);
    let full = PrimaryAction::StartFullSync { id, to: vec![bucket()], eligible: false };
    assert!(begun.contains(&full), "{begun:#?}");
    looked(&mut bench, 90);
    bench.step(at(90), PrimaryEvent::Captured { id });
    stored(&mut bench, 100, 1);
    bench
}

fn looked(bench: &mut Bench, now: u64) -> Vec<PrimaryAction> {
    let answered = PrimaryEvent::HeartbeatAnswered { from: bucket(), sent_at: at(now), held: None };
    bench.step(at(now), answered)
}

fn stored(bench: &mut Bench, now: u64, epoch: u64) -> Vec<PrimaryAction> {
    bench.step(at(now), PrimaryEvent::Acked { from: bucket(), id: CheckpointId::new(1, epoch) })
}

fn strong(on_standby_loss: OnStandbyLoss) -> Consistency {
    Consistency::Strong { on_standby_loss }
}

/// The first epoch that was captured behind the gate is stored.
fn strong_with_a_store(on_standby_loss: OnStandbyLoss) -> Bench {
    let mut bench = alone_with_a_store(strong(on_standby_loss));
    bench.step(at(110), PrimaryEvent::OutputWaits { all: true });
    let id = CheckpointId::new(1, 2);
    bench.step(at(111), PrimaryEvent::Captured { id });
    stored(&mut bench, 112, 2);
    assert_eq!((bench.primary.phase(), bench.members()), (Phase::Protected, 1));
    bench
}

#[test]
fn the_store_alone_protects_and_the_permit_is_what_a_look_at_it_gives() {
    let mut bench = alone_with_a_store(Consistency::Timeline);
    assert_eq!(bench.primary.told, Some(Status::Protected));
    assert_eq!(bench.register.as_ref().unwrap().members, [bucket()]);
    assert_eq!(bench.primary.permit(), Permit::Until(at(90) + PERMIT));
    looked(&mut bench, 600);
    assert_eq!(bench.primary.permit(), Permit::Until(at(600) + PERMIT));
}

#[test]
fn output_leaves_when_the_store_holds_what_covers_it() {
    let mut bench = strong_with_a_store(OnStandbyLoss::Continue);
    bench.step(at(200), PrimaryEvent::OutputWaits { all: true });
    let id = CheckpointId::new(1, 3);
    let captured = bench.step(at(201), PrimaryEvent::Captured { id });
    assert!(!captured.contains(&PrimaryAction::Release(id)), "{captured:#?}");
    assert!(stored(&mut bench, 240, 3).contains(&PrimaryAction::Release(id)));
}

#[test]
fn a_store_that_is_gone_is_struck_out_before_output_leaves_uncovered_or_waited_for() {
    for (policy, output) in [(OnStandbyLoss::Continue, Output::Passing), (OnStandbyLoss::Stop, Output::Held)]
    {
        let mut bench = strong_with_a_store(policy);
        let lost = PrimaryEvent::PeerLost { standby: bucket(), why: "no route".to_owned() };
        bench.reachable = false;
        bench.step(at(300), lost);
        assert_eq!(bench.primary.output, Output::Held, "the register still names it");
        let why = Reason::NoStore { store: bucket().name, why: Some("no route".to_owned()) };
        assert_eq!(bench.primary.told, Some(Status::Unprotected(why)));
        bench.reachable = true;
        bench.step(at(1_300), PrimaryEvent::Tick);
        assert_eq!((bench.members(), bench.primary.output), (0, output), "{policy:?}");
        assert_eq!(bench.primary.permit(), Permit::Open);
    }
}

#[test]
fn a_store_that_answers_and_takes_nothing_is_let_go_and_one_that_is_silent_is_named() {
    let mut bench = alone_with_a_store(Consistency::Timeline);
    (bench.primary.config.interval, bench.primary.capture_due) = (at(50), at(150));
    for now in [150, 200, 250] {
        bench.step(at(now), PrimaryEvent::Tick);
        let Some(capture) = &bench.primary.capturing else { continue };
        let id = capture.id;
        bench.step(at(now), PrimaryEvent::Captured { id });
    }
    let mut now = 300;
    while bench.primary.links.len() == 1 && now < 6_000 {
        looked(&mut bench, now);
        bench.step(at(now), PrimaryEvent::Tick);
        now += 50;
    }
    assert!((4_000..5_000).contains(&now), "it was let go at {now} ms");
    assert!(bench.actions.iter().any(|action| matches!(action, PrimaryAction::DropPeer { .. })));

    let mut bench = alone_with_a_store(Consistency::Timeline);
    bench.reachable = false;
    bench.step(at(90) + PERMIT, PrimaryEvent::Tick);
    let silent = Reason::StoreSilent(bucket().name);
    assert_eq!(bench.primary.told, Some(Status::Unprotected(silent)));
    assert_eq!(bench.primary.output, Output::Muted);
}

#[test]
fn nobody_moves_an_app_into_a_store() {
    let mut bench = alone_with_a_store(Consistency::Timeline);
    let said = bench.step(at(200), PrimaryEvent::SwitchOver { to: None });
    let refused =
        |action: &PrimaryAction| matches!(action, PrimaryAction::Switchover(Switchover::CalledOff { .. }));
    assert!(said.iter().any(refused), "{said:#?}");
}

#[test]
fn what_an_earlier_run_has_stored_is_not_written_off_by_time() {
    let mut bench = Bench::new(|config| config.store = Some(bucket()));
    let earlier = Member { incarnation: image::Incarnation(0), ..bucket() };
    bench.register = Some(Register::first(Member::new("a", 0)).with_members(vec![earlier]));
    for now in (0..60_000).step_by(100) {
        bench.step(at(now), PrimaryEvent::Tick);
    }
    assert_eq!(bench.primary.phase(), Phase::Registering);
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::InStore(bucket().name))));
}
