//! Two standbys and more: what is committed, who may be written into the register, and for how long the app is heard.

use super::*;

fn other() -> Member {
    Member::new("c", 1)
}

fn id(epoch: u64) -> CheckpointId {
    CheckpointId::new(1, epoch)
}

/// Both hold epoch 1/1 and are in the register at 100 ms.
fn pair_of_standbys(adjust: impl FnOnce(&mut PrimaryConfig)) -> Bench {
    let bench = synced(adjust);
    assert_eq!((bench.members(), bench.primary.phase()), (2, Phase::Protected));
    bench
}

/// Both hold epoch 1/1 at 100 ms.
fn synced(adjust: impl FnOnce(&mut PrimaryConfig)) -> Bench {
    let mut bench = Bench::new(|config| {
        config.standbys = 2;
        adjust(config);
    });
    bench.step(at(0), PrimaryEvent::Tick);
    bench.connect(at(0), None);
    let begun = bench.step(at(1), PrimaryEvent::PeerConnected { standby: other(), held: None });
    let both = PrimaryAction::StartFullSync { id: id(1), to: vec![standby(), other()], eligible: false };
    assert!(begun.contains(&both), "one full sync for both: {begun:#?}");
    hear(&mut bench, 90, &[standby(), other()]);
    bench.step(at(90), PrimaryEvent::Captured { id: id(1) });
    for from in [standby(), other()] {
        bench.step(at(100), PrimaryEvent::Acked { from, id: id(1) });
    }
    bench
}

fn hear(bench: &mut Bench, now: u64, from: &[Member]) {
    for from in from {
        let answered = PrimaryEvent::HeartbeatAnswered { from: from.clone(), sent_at: at(now), held: None };
        bench.step(at(now), answered);
    }
}

fn acked(bench: &mut Bench, now: u64, from: Member, epoch: u64) -> Vec<PrimaryAction> {
    bench.step(at(now), PrimaryEvent::Acked { from, id: id(epoch) })
}

fn commits(actions: &[PrimaryAction]) -> bool {
    actions.iter().any(|action| matches!(action, PrimaryAction::Committed(_)))
}

fn quorum(bench: &Bench) -> u32 {
    bench.register.as_ref().unwrap().quorum
}

fn rule(commit_on: CommitOn) -> impl FnOnce(&mut PrimaryConfig) {
    move |config| (config.commit_on, config.interval) = (commit_on, at(60_000))
}

/// Epoch 1/2 is on its way to both.
fn sending(commit_on: CommitOn) -> Bench {
    let mut bench = pair_of_standbys(|config| {
        config.commit_on = commit_on;
    });
    let asked = bench.step(at(110), PrimaryEvent::Captured { id: id(2) });
    let sent = asked.iter().filter(|action| matches!(action, PrimaryAction::SendEpoch { .. })).count();
    assert_eq!(sent, 2);
    bench
}

#[test]
fn with_all_an_epoch_is_committed_when_the_last_holds_it_and_anybody_may_take_over() {
    let mut bench = sending(CommitOn::All);
    assert_eq!(quorum(&bench), 1);
    assert!(!commits(&acked(&mut bench, 111, standby(), 2)));
    assert!(commits(&acked(&mut bench, 112, other(), 2)));
}

#[test]
fn with_any_an_epoch_is_committed_when_the_first_holds_it_and_a_takeover_hears_both() {
    let mut bench = sending(CommitOn::Any);
    assert_eq!(quorum(&bench), 2);
    assert!(commits(&acked(&mut bench, 111, other(), 2)));
    assert!(!commits(&acked(&mut bench, 112, standby(), 2)));
}

#[test]
fn who_holds_less_than_what_is_committed_is_not_left_alone_in_the_register() {
    let mut bench = sending(CommitOn::Any);
    acked(&mut bench, 111, other(), 2);
    let lost = bench.step(at(112), PrimaryEvent::PeerLost { standby: other(), why: "reset".to_owned() });
    assert!(!lost.iter().any(|action| matches!(action, PrimaryAction::ReturnToLedger { .. })));
    assert_eq!(bench.members(), 2, "b alone holds 1/1, and 1/2 is committed");
    hear(&mut bench, 120, &[standby()]);
    acked(&mut bench, 121, standby(), 2);
    assert_eq!((bench.members(), quorum(&bench)), (1, 1));
}

#[test]
fn a_dead_standby_is_struck_out_and_what_it_kept_back_is_committed() {
    let mut bench = sending(CommitOn::All);
    acked(&mut bench, 111, standby(), 2);
    let lost = bench.step(at(112), PrimaryEvent::PeerLost { standby: other(), why: "reset".to_owned() });
    assert!(commits(&lost), "{lost:#?}");
    assert_eq!(bench.members(), 1);
}

#[test]
fn a_permit_lasts_until_so_many_are_silent_as_could_take_over() {
    for (commit_on, least_heard) in [(CommitOn::All, true), (CommitOn::Any, false)] {
        let mut bench = pair_of_standbys(rule(commit_on));
        hear(&mut bench, 110, &[standby(), other()]);
        hear(&mut bench, 130, &[other()]);
        let heard = if least_heard { 110 } else { 130 };
        assert_eq!(bench.primary.permit(), Permit::Until(at(heard) + HEARTBEAT * 4), "{commit_on}");
    }
}

/// Its permit can't be shortened: a member that was heard before it was given could take over before it ends.
#[test]
fn nobody_is_enrolled_whose_silence_could_end_before_the_permit() {
    let mut bench = pair_of_standbys(rule(CommitOn::All));
    bench.step(at(105), PrimaryEvent::PeerLost { standby: other(), why: "reset".to_owned() });
    assert_eq!(bench.members(), 1);
    hear(&mut bench, 110, &[standby()]);
    bench.step(at(110), PrimaryEvent::PeerConnected { standby: other(), held: Some(id(1)) });
    hear(&mut bench, 120, &[other()]);
    let late = PrimaryEvent::HeartbeatAnswered { from: standby(), sent_at: at(130), held: None };
    bench.step(at(130), late);
    assert_eq!(bench.members(), 2, "it was heard after what the permit of that time counted from");
    bench.step(at(131), PrimaryEvent::PeerLost { standby: other(), why: "reset".to_owned() });
    bench.step(at(132), PrimaryEvent::PeerConnected { standby: other(), held: Some(id(1)) });
    let early = PrimaryEvent::HeartbeatAnswered { from: other(), sent_at: at(125), held: None };
    bench.step(at(133), early);
    assert_eq!((bench.members(), bench.primary.permit()), (1, Permit::Until(at(210))));
    hear(&mut bench, 140, &[other()]);
    assert_eq!(bench.members(), 2);
}

#[test]
fn one_without_room_is_passed_over_and_gets_all_that_it_missed_in_one_epoch() {
    let mut bench = sending(CommitOn::Any);
    bench.actions.clear();
    // b keeps up, and c acknowledges nothing more.
    let mut now = 120;
    for epoch in 2..6 {
        acked(&mut bench, now, standby(), epoch);
        hear(&mut bench, now + 55, &[standby(), other()]);
        bench.step(at(now + 58), PrimaryEvent::Captured { id: id(epoch + 1) });
        now += 60;
    }
    let to_c = |actions: &[PrimaryAction]| -> Vec<(u64, Sync)> {
        let sent = |action: &PrimaryAction| match action {
            PrimaryAction::SendEpoch { id, to, sync } if *to == other() => Some((id.epoch.0, *sync)),
            _ => None,
        };
        actions.iter().filter_map(sent).collect()
    };
    assert_eq!(to_c(&bench.actions), [(3, Sync::Since(id(2)))], "two are on their way");
    let forgets =
        |action: &&PrimaryAction| matches!(action, PrimaryAction::Forget(forgotten) if *forgotten > id(1));
    assert_eq!(bench.actions.iter().find(forgets), None, "the ledger remembers what c lacks");
    acked(&mut bench, now, other(), 3);
    hear(&mut bench, now + 55, &[standby(), other()]);
    let merged = PrimaryAction::CaptureNow { id: id(7), parent: id(3) };
    assert!(bench.actions.contains(&merged), "{:#?}", bench.actions);
    let sent = bench.step(at(now + 58), PrimaryEvent::Captured { id: id(7) });
    assert_eq!(to_c(&sent), [(7, Sync::Since(id(3)))]);
    let to_b = PrimaryAction::SendEpoch { id: id(7), to: standby(), sync: Sync::Since(id(6)) };
    assert!(sent.contains(&to_b), "{sent:#?}");
}

#[test]
fn answers_that_wait_for_all_are_not_released_by_those_that_are_left() {
    for (on_standby_loss, released) in [(OnStandbyLoss::Continue, true), (OnStandbyLoss::Stop, false)] {
        let mut bench = synced(|config| config.consistency = Consistency::Strong { on_standby_loss });
        // The second was under way when output began to be held.
        for (epoch, now) in [(2, 110), (3, 160)] {
            hear(&mut bench, now, &[standby(), other()]);
            bench.step(at(now), PrimaryEvent::Captured { id: id(epoch) });
            for from in [standby(), other()] {
                acked(&mut bench, now + 2, from, epoch);
            }
        }
        assert_eq!(bench.members(), 2);
        hear(&mut bench, 215, &[standby(), other()]);
        bench.step(at(220), PrimaryEvent::Captured { id: id(4) });
        bench.step(at(221), PrimaryEvent::PeerLost { standby: other(), why: "reset".to_owned() });
        let acked = acked(&mut bench, 222, standby(), 4);
        assert_eq!(acked.contains(&PrimaryAction::Release(id(4))), released, "{on_standby_loss:?}");
        let too_few = Status::Unprotected(Reason::TooFewStandbys { there: 1, wanted: 2 });
        assert_eq!(bench.primary.told == Some(too_few), !released);
    }
}

#[test]
fn a_move_goes_to_the_one_that_was_named_and_nobody_else_may_take_over_meanwhile() {
    let mut bench = pair_of_standbys(|config| config.commit_on = CommitOn::Any);
    let refused = bench.step(at(104), PrimaryEvent::SwitchOver { to: Some("d".to_owned()) });
    position(&refused, |it| matches!(it, PrimaryAction::Switchover(Switchover::CalledOff { .. })));
    let waiting = bench.step(at(105), PrimaryEvent::SwitchOver { to: Some("c".to_owned()) });
    assert!(!waiting.iter().any(|it| matches!(it, PrimaryAction::CaptureLast { .. })), "1/2 is under way");
    assert_eq!(bench.register.as_ref().unwrap().members, [other()]);
    bench.step(at(106), PrimaryEvent::Captured { id: id(2) });
    acked(&mut bench, 107, standby(), 2);
    let last = acked(&mut bench, 108, other(), 2);
    position(&last, |it| matches!(it, PrimaryAction::CaptureLast { .. }));
    bench.step(at(109), PrimaryEvent::Captured { id: id(3) });
    assert!(!commits(&acked(&mut bench, 110, standby(), 3)), "it counts for nothing now");
    let told = acked(&mut bench, 111, other(), 3);
    let notice = Notice::HandedOver { reign: bench.primary.reign() };
    assert!(told.contains(&PrimaryAction::Tell { standby: other(), notice }), "{told:#?}");
    assert!(!told.iter().any(|it| matches!(it, PrimaryAction::Tell { standby: to, .. } if *to == standby())));
}

#[test]
fn the_group_says_who_is_eligible_and_why_another_is_not() {
    let mut bench = pair_of_standbys(rule(CommitOn::All));
    hear(&mut bench, 160, &[standby()]);
    bench.step(at(190), PrimaryEvent::Tick);
    let group = bench.primary.group(at(190));
    let seen: Vec<_> =
        group.iter().map(|view| (view.standby.name.as_str(), view.eligible, &view.why_not)).collect();
    assert_eq!(seen, [("b", true, &None), ("c", false, &Some(Reason::StandbySilent))]);
    assert_eq!(bench.primary.told, Some(Status::Protected));
}
