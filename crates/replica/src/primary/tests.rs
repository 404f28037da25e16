mod group;
mod moves;
mod refused;
mod store;
mod strong;

use image::Register;

use super::*;
use crate::{Answer, Ask, Committed, Fencing, Question};

const HEARTBEAT: Nanos = Nanos::from_millis(20);

fn at(millis: u64) -> Nanos {
    Nanos::from_millis(millis)
}

fn me() -> Member {
    Member::new("a", 1)
}

fn standby() -> Member {
    Member::new("b", 1)
}

/// A primary, its register that answers at once when it is up, and everything it asked for.
struct Bench {
    primary: Primary,
    register: Option<Register>,
    reachable: bool,
    actions: Vec<PrimaryAction>,
}

impl Bench {
    fn new(adjust: impl FnOnce(&mut PrimaryConfig)) -> Self {
        let mut config = PrimaryConfig::new(me(), Fencing::Register);
        adjust(&mut config);
        Self { primary: Primary::new(config, at(0)), register: None, reachable: true, actions: Vec::new() }
    }

    /// One that is protected at 100 ms, with epoch 1/1 committed.
    fn protected(adjust: impl FnOnce(&mut PrimaryConfig)) -> Self {
        let mut bench = Self::new(adjust);
        bench.step(at(0), PrimaryEvent::Tick);
        bench.connect(at(0), None);
        bench.answer_heartbeat(at(90));
        bench.step(at(90), PrimaryEvent::Captured { id: CheckpointId::new(1, 1) });
        bench.step(at(100), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 1) });
        assert_eq!(bench.primary.phase(), Phase::Protected);
        bench
    }

    /// What one event led to, answers of the register included.
    fn step(&mut self, now: Nanos, event: PrimaryEvent) -> Vec<PrimaryAction> {
        let from = self.actions.len();
        self.primary.step(now, event, &mut self.actions);
        let mut done = from;
        while done < self.actions.len() {
            if let PrimaryAction::AskArbiter { ask, question } = self.actions[done].clone() {
                let answer = self.swap(question);
                self.primary.step(now, PrimaryEvent::RegisterAnswer { ask, answer }, &mut self.actions);
            }
            done += 1;
        }
        self.actions[from..].to_vec()
    }

    fn swap(&mut self, question: Question) -> Answer {
        match question {
            _ if !self.reachable => Answer::Unreachable { why: "down".to_owned() },
            Question::Read => Answer::Value(self.register.clone()),
            Question::Swap { expected, new } if expected == self.register => {
                self.register = Some(new);
                Answer::Won
            }
            Question::Swap { .. } => Answer::Lost(self.register.clone()),
        }
    }

    fn connect(&mut self, now: Nanos, held: Option<CheckpointId>) -> Vec<PrimaryAction> {
        self.step(now, PrimaryEvent::PeerConnected { standby: standby(), held })
    }

    fn answer_heartbeat(&mut self, sent_at: Nanos) {
        self.step(sent_at, PrimaryEvent::HeartbeatAnswered { from: standby(), sent_at, held: None });
    }

    fn members(&self) -> usize {
        self.register.as_ref().map_or(0, |register| register.members.len())
    }
}

fn position(actions: &[PrimaryAction], wanted: impl Fn(&PrimaryAction) -> bool) -> usize {
    actions.iter().position(wanted).unwrap_or_else(|| panic!("it is not among {actions:#?}"))
}

fn ended(actions: &[PrimaryAction]) -> Option<&Ending> {
    actions
        .iter()
        .find_map(|action| if let PrimaryAction::EndPair(ending) = action { Some(ending) } else { None })
}

#[test]
fn the_app_starts_only_with_the_term() {
    let mut bench = Bench::new(|_| {});
    bench.reachable = false;
    assert!(!bench.step(at(0), PrimaryEvent::Tick).contains(&PrimaryAction::StartApp { term: Term(1) }));
    assert_eq!(bench.primary.permit(), Permit::Shut);
    bench.reachable = true;
    assert!(bench.step(at(500), PrimaryEvent::Tick).contains(&PrimaryAction::StartApp { term: Term(1) }));
    assert_eq!(bench.primary.permit(), Permit::Open);
}

#[test]
fn the_permit_is_limited_before_the_standby_is_enrolled_and_the_guard_armed_after() {
    let bench = Bench::protected(|_| {});
    let limited = position(&bench.actions, |action| {
        *action == PrimaryAction::SetPermit(Permit::Until(at(90) + HEARTBEAT * 4))
    });
    let enrolled =
        bench.actions.iter().rposition(|action| matches!(action, PrimaryAction::AskArbiter { .. }));
    let armed = position(&bench.actions, |action| *action == PrimaryAction::ArmGuard);
    assert!(Some(limited) < enrolled && enrolled < Some(armed), "{:#?}", bench.actions);
    assert_eq!(bench.primary.told, Some(Status::Protected));
}

#[test]
fn the_permit_counts_from_the_send_time_of_the_heartbeat_and_never_goes_back() {
    let mut bench = Bench::protected(|_| {});
    let sent_at = |sent_at| PrimaryEvent::HeartbeatAnswered { from: standby(), sent_at, held: None };
    bench.step(at(150), sent_at(at(110)));
    assert_eq!(bench.primary.permit(), Permit::Until(at(190)));
    bench.step(at(151), sent_at(at(95)));
    bench.step(at(152), sent_at(at(9_000)));
    assert_eq!(bench.primary.permit(), Permit::Until(at(190)), "a late answer, and one never sent");
    let stranger = Member::new("b", 2);
    bench.step(at(153), PrimaryEvent::HeartbeatAnswered { from: stranger, sent_at: at(150), held: None });
    assert_eq!(bench.primary.permit(), Permit::Until(at(190)), "another life of the standby");
}

#[test]
fn a_lost_standby_is_struck_from_the_register_before_the_permit_opens() {
    let mut bench = Bench::protected(|_| {});
    bench.reachable = false;
    bench.step(at(110), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    assert_eq!(
        bench.primary.permit(),
        Permit::Until(at(170)),
        "the register is unreachable: stay shut in time"
    );
    bench.step(at(300), PrimaryEvent::Tick);
    assert_eq!(bench.primary.permit(), Permit::Until(at(170)));
    bench.reachable = true;
    let actions = bench.step(at(500), PrimaryEvent::Tick);
    assert_eq!((bench.primary.permit(), bench.members()), (Permit::Open, 0));
    assert!(actions.contains(&PrimaryAction::DisarmGuard));
    assert_eq!(bench.primary.phase(), Phase::StandbyLost);
}

#[test]
fn a_silent_standby_is_struck_even_while_its_stream_stands() {
    let mut bench = Bench::protected(|_| {});
    bench.step(at(165), PrimaryEvent::Tick);
    assert_eq!(bench.members(), 1);
    bench.step(at(175), PrimaryEvent::Tick);
    assert_eq!((bench.members(), bench.primary.permit()), (0, Permit::Open));
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::StandbySilent)));
    bench.answer_heartbeat(at(180));
    assert_eq!(
        (bench.members(), bench.primary.phase()),
        (1, Phase::Protected),
        "and enrolled when it answers"
    );
}

#[test]
fn an_enrolment_that_may_still_land_is_outrun_before_the_permit_opens() {
    let mut bench = Bench::new(|_| {});
    bench.step(at(0), PrimaryEvent::Tick);
    bench.connect(at(0), None);
    bench.answer_heartbeat(at(90));
    bench.step(at(90), PrimaryEvent::Captured { id: CheckpointId::new(1, 1) });
    bench.reachable = false;
    bench.step(at(100), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 1) });
    bench.step(at(101), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    assert_eq!(bench.primary.permit(), Permit::Until(at(170)));
    let delayed = bench.register.clone().unwrap();
    bench.reachable = true;
    bench.step(at(400), PrimaryEvent::Tick);
    assert_eq!(bench.primary.permit(), Permit::Open);
    let enrolment = Question::Swap { new: delayed.with_members(vec![standby()]), expected: Some(delayed) };
    assert!(
        matches!(bench.swap(enrolment), Answer::Lost(_)),
        "a delayed enrolment wins against an open permit"
    );
}

#[test]
fn losing_the_term_kills_the_app_and_ends_the_pair() {
    let mut bench = Bench::protected(|_| {});
    bench.register = bench.register.as_ref().map(|register| register.taken_by(standby()));
    let actions = bench.step(at(110), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    assert!(actions.contains(&PrimaryAction::KillApp));
    assert_eq!(ended(&actions), Some(&Ending::Fenced { by: "b#1".to_owned() }));
    assert_eq!((bench.primary.phase(), bench.primary.permit()), (Phase::Fenced, Permit::Shut));
    assert_eq!(bench.step(at(111), PrimaryEvent::Tick), [], "nothing follows the end");
}

#[test]
fn at_most_two_epochs_are_in_flight_and_the_rest_waits_in_the_ledger() {
    let mut bench = Bench::protected(|_| {});
    let captures = |bench: &Bench| -> Vec<u64> {
        let epoch = |action: &PrimaryAction| match action {
            PrimaryAction::CaptureNow { id, .. } => Some(id.epoch.0),
            _ => None,
        };
        bench.actions.iter().filter_map(epoch).collect()
    };
    for now in (110..600).step_by(20) {
        bench.answer_heartbeat(at(now));
        let id = CheckpointId::new(1, *captures(&bench).last().unwrap());
        bench.step(at(now), PrimaryEvent::Captured { id });
    }
    assert_eq!(captures(&bench), [2, 3]);
    assert_eq!(bench.primary.told, Some(Status::CatchingUp));
    bench.step(at(600), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 3) });
    let merged = PrimaryAction::CaptureNow { id: CheckpointId::new(1, 4), parent: CheckpointId::new(1, 3) };
    assert!(bench.actions.contains(&merged), "one capture carries all that waited");
    assert_eq!(bench.primary.told, Some(Status::Protected));
}

#[test]
fn unacknowledged_epochs_go_back_to_the_ledger_and_a_known_copy_is_built_on() {
    let mut bench = Bench::protected(|_| {});
    let second = CheckpointId::new(1, 2);
    bench.step(at(110), PrimaryEvent::Captured { id: second });
    let actions = bench.step(at(111), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    assert!(actions.contains(&PrimaryAction::ReturnToLedger { ids: vec![second] }));
    // Its acknowledgement was lost with the stream: it holds what we believed lost.
    let actions = bench.connect(at(120), Some(second));
    assert!(actions.contains(&PrimaryAction::Committed(Committed::by_acknowledgement(second))));
    assert!(actions.contains(&PrimaryAction::CaptureNow { id: CheckpointId::new(1, 3), parent: second }));
}

#[test]
fn a_copy_of_something_else_is_synced_in_full() {
    let id = CheckpointId::new(1, 2);
    for held in [None, Some(CheckpointId::new(1, 77)), Some(CheckpointId::new(3, 1))] {
        let mut bench = Bench::protected(|_| {});
        bench.step(at(105), PrimaryEvent::CaptureFailed { id, why: "stopped".to_owned() });
        let actions = bench.connect(at(110), held);
        position(&actions, |action| matches!(action, PrimaryAction::StartFullSync { eligible: false, .. }));
    }
    let mut bench = Bench::protected(|_| {});
    bench.step(at(105), PrimaryEvent::CaptureFailed { id, why: "stopped".to_owned() });
    bench.step(at(105), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    bench.step(at(106), PrimaryEvent::Executed);
    let actions = bench.connect(at(110), Some(CheckpointId::new(1, 1)));
    position(&actions, |action| matches!(action, PrimaryAction::StartFullSync { .. }));
}

#[test]
fn what_was_captured_for_one_connection_is_not_sent_on_the_next() {
    let mut bench = Bench::new(|_| {});
    bench.step(at(0), PrimaryEvent::Tick);
    bench.connect(at(0), None);
    bench.connect(at(10), None);
    let id = CheckpointId::new(1, 1);
    let actions = bench.step(at(20), PrimaryEvent::Captured { id });
    assert!(actions.contains(&PrimaryAction::ReturnToLedger { ids: vec![id] }));
    position(&actions, |action| matches!(action, PrimaryAction::StartFullSync { .. }));
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_drops_the_peer() {
    let mut bench = Bench::protected(|_| {});
    let actions = bench.step(at(110), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 9) });
    position(&actions, |action| matches!(action, PrimaryAction::DropPeer { .. }));
    assert_eq!(bench.primary.committed(), Some(CheckpointId::new(1, 1)));
    let mut bench = Bench::protected(|_| {});
    let actions = bench.step(at(110), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 1) });
    assert_eq!(actions, [], "a late duplicate");
}

#[test]
fn a_hung_engine_is_not_taken_for_a_protected_app() {
    let mut bench = Bench::protected(|_| {});
    for millis in (110..2_200).step_by(20) {
        bench.answer_heartbeat(at(millis));
    }
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::EngineStalled)));
    assert!(bench.primary.progress().stalled);
}

#[test]
fn a_clean_exit_ends_the_pair_with_its_code_once_nobody_can_take_over() {
    let mut bench = Bench::protected(|_| {});
    bench.reachable = false;
    let exit = AppExit::Code(3);
    let actions = bench.step(at(110), PrimaryEvent::AppExited(exit));
    let notice = Notice::AppEnded { reign: bench.primary.reign(), exit };
    assert!(actions.contains(&PrimaryAction::Tell { standby: standby(), notice }));
    assert_eq!(ended(&actions), None);
    let actions = bench.step(at(120), PrimaryEvent::EndConfirmed { from: standby() });
    assert_eq!(ended(&actions), Some(&Ending::App(exit)));
    let mut bench = Bench::protected(|_| {});
    assert_eq!(ended(&bench.step(at(110), PrimaryEvent::AppExited(exit))), Some(&Ending::App(exit)));
    assert_eq!(bench.members(), 0);
}

#[test]
fn an_app_that_is_being_killed_is_handed_over_before_all_of_it_is_gone() {
    let dying = || PrimaryEvent::AppDying { signal: 9 };
    let mut bench = Bench::protected(|_| {});
    let actions = bench.step(at(110), dying());
    let shut = position(&actions, |action| *action == PrimaryAction::SetPermit(Permit::Shut));
    let told = position(&actions, |action| matches!(action, PrimaryAction::Tell { .. }));
    assert!(shut < told && actions.contains(&PrimaryAction::StopHeartbeats), "{actions:#?}");
    let late = bench.step(at(111), PrimaryEvent::AppExited(AppExit::Signal(9)));
    assert!(!late.iter().any(|action| matches!(action, PrimaryAction::Tell { .. })), "{late:#?}");

    for policy in [OnCrash::Stop, OnCrash::Restart] {
        let mut bench = Bench::protected(|config| config.on_crash = policy);
        let actions = bench.step(at(110), dying());
        assert!(!actions.iter().any(|action| matches!(action, PrimaryAction::Tell { .. })), "{actions:#?}");
        assert_eq!((ended(&actions), bench.primary.phase()), (None, Phase::Protected));
    }
}

#[test]
fn a_crash_follows_the_policy() {
    let crash = || PrimaryEvent::AppExited(AppExit::Signal(11));
    let mut bench = Bench::protected(|_| {});
    let actions = bench.step(at(110), crash());
    let shut = position(&actions, |action| *action == PrimaryAction::SetPermit(Permit::Shut));
    let told = position(&actions, |action| matches!(action, PrimaryAction::Tell { .. }));
    assert!(shut < told && actions.contains(&PrimaryAction::StopHeartbeats) && bench.members() == 1);
    let actions = bench.step(at(130), PrimaryEvent::Superseded { term: Term(2), by: "b#1".to_owned() });
    assert_eq!(ended(&actions), Some(&Ending::HandedOver { to: "b#1".to_owned() }));

    let mut bench = Bench::protected(|config| config.on_crash = OnCrash::Stop);
    assert_eq!(ended(&bench.step(at(110), crash())), Some(&Ending::App(AppExit::Signal(11))));

    let mut bench = Bench::protected(|config| config.on_crash = OnCrash::Restart);
    bench.step(at(105), PrimaryEvent::CaptureFailed { id: CheckpointId::new(1, 2), why: "gone".to_owned() });
    let actions = bench.step(at(110), crash());
    position(&actions, |action| *action == PrimaryAction::RestartApp);
    position(&actions, |action| matches!(action, PrimaryAction::StartFullSync { eligible: false, .. }));
    assert_eq!(bench.members(), 0, "the copy of the old run must not come back");
}

#[test]
fn an_operators_stop_is_a_clean_end_whatever_the_app_makes_of_it() {
    let mut bench = Bench::protected(|_| {});
    assert_eq!(bench.step(at(110), PrimaryEvent::Shutdown), [PrimaryAction::StopApp]);
    let actions = bench.step(at(120), PrimaryEvent::AppExited(AppExit::Signal(15)));
    assert_eq!(ended(&actions), Some(&Ending::App(AppExit::Signal(15))));
}

#[test]
fn a_new_run_leaves_an_earlier_standby_time_to_come_forward() {
    let mut bench = Bench::new(|_| {});
    let earlier = Register::first(Member::new("a", 0));
    bench.register = Some(earlier.with_members(vec![standby()]));
    bench.step(at(0), PrimaryEvent::Tick);
    bench.step(at(1_900), PrimaryEvent::Tick);
    assert_eq!(bench.primary.phase(), Phase::Registering);
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::EarlierRun("b#1".to_owned()))));
    bench.step(at(2_100), PrimaryEvent::Tick);
    assert_eq!((bench.primary.phase(), bench.primary.reign().term), (Phase::Unpaired, Term(2)));
}

#[test]
fn without_a_register_the_permit_stays_open_and_the_status_says_what_is_missing() {
    let bench = Bench::protected(|config| config.fencing = Fencing::Absent);
    assert_eq!(bench.primary.permit(), Permit::Open);
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::NoFencing)));
    assert!(!bench.actions.iter().any(|action| matches!(action, PrimaryAction::AskArbiter { .. })));
    let bench = Bench::protected(|config| config.fencing = Fencing::None);
    assert_eq!(bench.primary.told, Some(Status::Protected));
}

#[test]
fn a_register_that_went_back_is_not_believed() {
    let mut bench = Bench::protected(|_| {});
    bench.register = None;
    bench.step(at(110), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    assert_eq!(bench.primary.permit(), Permit::Until(at(170)));
    assert_eq!(bench.primary.phase(), Phase::StandbyLost);
}

#[test]
fn the_winner_of_a_takeover_goes_on_as_a_primary_with_newer_epochs() {
    let register = Register::first(me()).with_members(vec![standby()]).taken_by(standby());
    let right = Right::new(Term(2), Grounds::Won(register.clone()));
    let config = PrimaryConfig::new(standby(), Fencing::Register);
    let primary = Primary::after_takeover(config, &right, CheckpointId::new(1, 41), at(0));
    let mut bench = Bench { primary, register: Some(register), reachable: true, actions: Vec::new() };
    bench.step(at(0), PrimaryEvent::Tick);
    assert_eq!(bench.primary.permit(), Permit::Open);
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::NoStandby { why: None })));
    let joined =
        PrimaryEvent::PeerConnected { standby: Member::new("c", 1), held: Some(CheckpointId::new(1, 41)) };
    let actions = bench.step(at(1), joined);
    let full = PrimaryAction::StartFullSync {
        id: CheckpointId::new(2, 42),
        to: vec![Member::new("c", 1)],
        eligible: false,
    };
    assert!(actions.contains(&full), "{actions:#?}");
}

#[test]
fn the_answer_to_an_earlier_question_is_not_the_answer_to_this_one() {
    let mut bench = Bench::protected(|_| {});
    let mut actions = Vec::new();
    bench.primary.step(
        at(110),
        PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() },
        &mut actions,
    );
    let late = PrimaryEvent::RegisterAnswer { ask: Ask(1), answer: Answer::Won };
    bench.primary.step(at(111), late, &mut actions);
    assert_eq!(bench.primary.permit(), Permit::Until(at(170)));
}

#[test]
fn answers_of_one_standby_say_nothing_of_the_silence_of_another() {
    let mut bench = Bench::protected(|_| {});
    bench.reachable = false;
    let reborn = Member::new("b", 2);
    bench.step(at(110), PrimaryEvent::PeerConnected { standby: reborn.clone(), held: None });
    bench.step(at(160), PrimaryEvent::HeartbeatAnswered { from: reborn, sent_at: at(150), held: None });
    assert_eq!(bench.primary.permit(), Permit::Until(at(170)), "the register still names its earlier life");
}

#[test]
fn a_standby_that_may_have_been_enrolled_is_told_to_keep_its_copy_during_a_full_sync() {
    let mut bench = Bench::new(|_| {});
    bench.step(at(0), PrimaryEvent::Tick);
    bench.connect(at(0), None);
    bench.answer_heartbeat(at(90));
    bench.step(at(90), PrimaryEvent::Captured { id: CheckpointId::new(1, 1) });
    bench.reachable = false;
    bench.step(at(100), PrimaryEvent::Executed);
    let actions = bench.step(at(101), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 1) });
    assert!(actions.iter().any(|action| matches!(action, PrimaryAction::AskArbiter { .. })));
    let failed = PrimaryEvent::CaptureFailed { id: CheckpointId::new(1, 2), why: "exec".to_owned() };
    let actions = bench.step(at(102), failed);
    position(&actions, |action| matches!(action, PrimaryAction::StartFullSync { eligible: true, .. }));
}

#[test]
fn output_is_covered_by_what_is_captured_after_it_was_first_held() {
    let mut primary = Primary::new(PrimaryConfig::new(me(), Fencing::Register), at(0));
    let mut held_from = |output| {
        primary.set_output(output, &mut Vec::new());
        primary.held_back_from
    };
    assert_eq!(held_from(Output::Passing), None);
    assert_eq!(held_from(Output::Muted), None, "what left before is covered by nothing");
    let from = held_from(Output::Held);
    assert!(from.is_some(), "held after a silence, and never to be covered");
    assert_eq!(held_from(Output::Muted), from, "still held, and its address taken down");
    assert_eq!(held_from(Output::Passing), None);
}

fn sync(call: u64) -> PrimaryEvent {
    PrimaryEvent::SyncAsked { call: SyncCall(call), patience: None }
}

fn synced(actions: &[PrimaryAction]) -> Vec<(u64, CheckpointId)> {
    let told = actions.iter().filter_map(|action| match action {
        PrimaryAction::Synced { call, id } => Some((call.0, *id)),
        _ => None,
    });
    told.collect()
}

fn refused(actions: &[PrimaryAction]) -> Vec<u64> {
    let told = actions.iter().filter_map(|action| match action {
        PrimaryAction::SyncRefused { call, .. } => Some(call.0),
        _ => None,
    });
    told.collect()
}

#[test]
fn sync_makes_an_epoch_due_at_once_and_is_answered_by_its_commit() {
    let mut bench = Bench::protected(|config| config.interval = at(10_000));
    bench.step(at(101), PrimaryEvent::Tick);
    let (first, id) = (CheckpointId::new(1, 1), CheckpointId::new(1, 2));
    let asked = bench.step(at(102), sync(1));
    assert!(asked.contains(&PrimaryAction::CaptureNow { id, parent: first }), "{asked:#?}");
    assert_eq!(synced(&bench.step(at(103), PrimaryEvent::Captured { id })), []);
    assert_eq!(synced(&bench.step(at(104), PrimaryEvent::Acked { from: standby(), id })), [(1, id)]);
}

#[test]
fn a_call_that_comes_during_a_capture_is_answered_by_the_next_and_shares_it() {
    let mut bench = Bench::protected(|config| config.interval = at(10_000));
    let (second, third) = (CheckpointId::new(1, 2), CheckpointId::new(1, 3));
    bench.step(at(102), sync(1));
    bench.step(at(103), sync(2));
    bench.step(at(104), sync(3));
    // The freeze may have been before the later two.
    let captured = bench.step(at(105), PrimaryEvent::Captured { id: second });
    assert!(captured.contains(&PrimaryAction::CaptureNow { id: third, parent: second }), "{captured:#?}");
    assert_eq!(
        synced(&bench.step(at(106), PrimaryEvent::Acked { from: standby(), id: second })),
        [(1, second)]
    );
    bench.step(at(107), PrimaryEvent::Captured { id: third });
    assert_eq!(
        synced(&bench.step(at(108), PrimaryEvent::Acked { from: standby(), id: third })),
        [(2, third), (3, third)]
    );
}

#[test]
fn sync_waits_until_the_standby_that_holds_it_is_the_one_that_may_take_over() {
    let mut bench = Bench::new(|_| {});
    bench.step(at(0), PrimaryEvent::Tick);
    bench.step(at(0), sync(1));
    bench.connect(at(0), None);
    bench.answer_heartbeat(at(90));
    bench.reachable = false;
    let id = CheckpointId::new(1, 1);
    bench.step(at(90), PrimaryEvent::Captured { id });
    let acked = bench.step(at(100), PrimaryEvent::Acked { from: standby(), id });
    assert_eq!(synced(&acked), [], "committed, but the register does not name it yet");
    bench.reachable = true;
    bench.answer_heartbeat(at(600));
    bench.step(at(600), PrimaryEvent::Tick);
    assert_eq!(synced(&bench.actions), [(1, id)]);
}

#[test]
fn an_unprotected_app_is_told_so_after_the_usual_patience_and_at_once_when_that_is_long_over() {
    let mut bench = Bench::protected(|config| config.sync_patience = at(1_000));
    bench.step(at(200), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    assert_eq!(refused(&bench.step(at(300), sync(1))), [], "it may come back");
    assert_eq!(refused(&bench.step(at(1_199), PrimaryEvent::Tick)), []);
    let why = Reason::NoStandby { why: Some("reset".to_owned()) };
    let told = bench.step(at(1_200), PrimaryEvent::Tick);
    assert!(told.contains(&PrimaryAction::SyncRefused { call: SyncCall(1), why }), "{told:#?}");
    assert_eq!(refused(&bench.step(at(1_300), sync(2))), [2]);
}

#[test]
fn a_call_with_a_patience_of_its_own_waits_for_it_and_is_answered_when_a_standby_comes() {
    let mut bench = Bench::new(|_| {});
    bench.step(at(0), PrimaryEvent::Tick);
    let patience =
        |call, millis| PrimaryEvent::SyncAsked { call: SyncCall(call), patience: Some(at(millis)) };
    assert_eq!(refused(&bench.step(at(5_000), patience(1, 0))), [1]);
    bench.step(at(5_000), patience(2, 500));
    assert_eq!(refused(&bench.step(at(5_100), patience(3, 4_000))), []);
    assert_eq!(refused(&bench.step(at(5_500), PrimaryEvent::Tick)), [2]);
    bench.connect(at(6_000), None);
    bench.answer_heartbeat(at(6_010));
    let id = CheckpointId::new(1, 1);
    bench.step(at(6_010), PrimaryEvent::Captured { id });
    bench.step(at(6_020), PrimaryEvent::Acked { from: standby(), id });
    assert_eq!(synced(&bench.actions), [(3, id)]);
}

#[test]
fn calls_of_an_app_that_is_started_afresh_are_forgotten() {
    let mut bench = Bench::protected(|config| config.on_crash = OnCrash::Restart);
    bench.step(at(110), sync(1));
    let died = bench.step(at(111), PrimaryEvent::AppExited(AppExit::Signal(11)));
    assert!(died.contains(&PrimaryAction::RestartApp), "{died:#?}");
    bench.step(at(5_000), PrimaryEvent::PeerLost { standby: standby(), why: "reset".to_owned() });
    bench.step(at(9_000), PrimaryEvent::Tick);
    assert_eq!((synced(&bench.actions), refused(&bench.actions)), (vec![], vec![]));
}

#[test]
fn a_standby_that_acknowledges_nothing_is_let_go_when_a_call_waits_for_it() {
    let mut bench = Bench::protected(|_| {});
    bench.step(at(110), sync(1));
    let mut now = at(110);
    while now < at(6_000) && bench.primary.phase() == Phase::Protected {
        bench.answer_heartbeat(now);
        for epoch in 2..4 {
            bench.step(now, PrimaryEvent::Captured { id: CheckpointId::new(1, epoch) });
        }
        bench.step(now, PrimaryEvent::Tick);
        now = now + HEARTBEAT;
    }
    assert!(matches!(
        position(&bench.actions, |action| matches!(action, PrimaryAction::DropPeer { .. })),
        1..
    ));
    assert!(now >= at(2_000), "it was let go at {now}");
}

/// One in strong consistency, whose second epoch took two milliseconds to capture and is committed at 110 ms.
fn holding() -> Bench {
    let strong = Consistency::Strong { on_standby_loss: OnStandbyLoss::default() };
    let mut bench = Bench::new(|config| (config.consistency, config.interval) = (strong, at(10_000)));
    bench.step(at(0), PrimaryEvent::Tick);
    bench.connect(at(0), None);
    bench.answer_heartbeat(at(90));
    bench.step(at(90), PrimaryEvent::Captured { id: CheckpointId::new(1, 1) });
    bench.step(at(100), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 1) });
    // The first that is captured behind a shut gate is the second.
    assert!(captures(&bench.step(at(105), PrimaryEvent::OutputWaits { all: true })));
    bench.step(at(107), PrimaryEvent::Captured { id: CheckpointId::new(1, 2) });
    bench.step(at(110), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 2) });
    assert_eq!(bench.primary.phase(), Phase::Protected);
    bench
}

fn captures(actions: &[PrimaryAction]) -> bool {
    actions.iter().any(|action| matches!(action, PrimaryAction::CaptureNow { .. }))
}

#[test]
fn a_client_alone_waits_for_no_other() {
    let mut bench = holding();
    assert!(captures(&bench.step(at(110), PrimaryEvent::OutputWaits { all: true })));
}

#[test]
fn whoever_was_just_answered_is_waited_for_as_long_as_a_capture_takes() {
    let mut bench = holding();
    assert!(!captures(&bench.step(at(111), PrimaryEvent::OutputWaits { all: false })));
    assert_eq!(bench.primary.wake_at(), Some(at(112)));
    assert!(captures(&bench.step(at(112), PrimaryEvent::Tick)));
    assert_eq!(bench.primary.wake_at(), None, "it is captured already");
}

#[test]
fn who_is_told_to_be_the_last_ends_the_wait() {
    let mut bench = holding();
    assert!(!captures(&bench.step(at(111), PrimaryEvent::OutputWaits { all: false })));
    assert!(captures(&bench.step(at(111), PrimaryEvent::OutputWaits { all: true })));
}

#[test]
fn who_waits_while_an_epoch_travels_shares_the_next_with_those_that_it_answers() {
    let mut bench = holding();
    bench.step(at(120), PrimaryEvent::OutputWaits { all: true });
    bench.step(at(122), PrimaryEvent::Captured { id: CheckpointId::new(1, 3) });
    assert!(!captures(&bench.step(at(123), PrimaryEvent::OutputWaits { all: true })));
    assert_eq!(bench.primary.wake_at(), Some(at(126)), "a standby that is slow is not waited for");
    let acked = bench.step(at(124), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 3) });
    assert!(!captures(&acked), "those who are answered now would miss it");
    let release = position(&acked, |action| matches!(action, PrimaryAction::Release(_)));
    let committed = position(&acked, |action| matches!(action, PrimaryAction::Committed(_)));
    assert!(release < committed, "clients wait, and the ledger does not");
    assert!(captures(&bench.step(at(125), PrimaryEvent::OutputWaits { all: true })));
}

#[test]
fn output_that_the_capture_covers_asks_for_no_other() {
    let mut bench = holding();
    bench.step(at(120), PrimaryEvent::OutputWaits { all: true });
    bench.step(at(120), PrimaryEvent::OutputWaits { all: true });
    bench.step(at(122), PrimaryEvent::NothingWaits);
    bench.step(at(122), PrimaryEvent::Captured { id: CheckpointId::new(1, 3) });
    assert!(!captures(
        &bench.step(at(123), PrimaryEvent::Acked { from: standby(), id: CheckpointId::new(1, 3) })
    ));
    assert_eq!(bench.primary.wake_at(), None);
}

#[test]
fn a_pause_takes_the_standbys_chance_away_and_ends_by_itself() {
    let mut bench = Bench::protected(|_| {});
    bench.step(at(110), PrimaryEvent::Pause { until: at(500) });
    assert_eq!(bench.members(), 0, "nobody may take over");
    assert_eq!(bench.primary.told, Some(Status::Unprotected(Reason::Paused)));
    assert_eq!(bench.primary.permit(), Permit::Open);
    bench.answer_heartbeat(at(490));
    bench.step(at(500), PrimaryEvent::Tick);
    assert_eq!((bench.members(), bench.primary.told.clone()), (1, Some(Status::Protected)));
}
