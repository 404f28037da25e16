use image::{Incarnation, Term};

use super::*;
use crate::{Answer, Timing};

fn at(millis: u64) -> Nanos {
    Nanos::from_millis(millis)
}

fn id(epoch: u64) -> CheckpointId {
    CheckpointId::new(1, epoch)
}

fn reign(term: u64) -> Reign {
    Reign { term: Term(term), incarnation: Incarnation(1) }
}

fn primary() -> Member {
    Member::new("a", 1)
}

fn me() -> Member {
    Member::new("b", 1)
}

fn paired() -> Register {
    Register::first(primary()).with_members(vec![me()])
}

struct Bench {
    standby: Standby,
    actions: Vec<StandbyAction>,
}

impl Bench {
    fn new(fencing: Fencing) -> Self {
        let config = StandbyConfig { me: me(), timing: Timing::default(), fencing };
        let mut bench = Self { standby: Standby::new(config), actions: Vec::new() };
        bench.step(at(0), StandbyEvent::PrimaryConnected { primary: primary(), reign: reign(1) });
        bench
    }

    /// Holds 1/1, applied, and heard the primary at 100 ms last.
    fn following(fencing: Fencing) -> Self {
        let mut bench = Self::new(fencing);
        bench.epoch(at(50), id(1), Sync::Full);
        bench.step(at(60), StandbyEvent::Applied { id: id(1) });
        bench.heartbeat(at(100));
        assert_eq!(bench.standby.status(at(100)), StandbyStatus::Following);
        bench
    }

    fn step(&mut self, now: Nanos, event: StandbyEvent) -> Vec<StandbyAction> {
        let from = self.actions.len();
        self.standby.step(now, event, &mut self.actions);
        self.actions[from..].to_vec()
    }

    fn begin(&mut self, now: Nanos, id: CheckpointId, sync: Sync) -> Vec<StandbyAction> {
        self.step(now, StandbyEvent::EpochBegins { id, sync, eligible: true })
    }

    fn epoch(&mut self, now: Nanos, id: CheckpointId, sync: Sync) -> Vec<StandbyAction> {
        self.begin(now, id, sync);
        self.step(now, StandbyEvent::Prepared { id })
    }

    fn heartbeat(&mut self, now: Nanos) -> Vec<StandbyAction> {
        self.step(
            now,
            StandbyEvent::Heartbeat { reign: reign(1), sent_at: now, progress: Progress::default() },
        )
    }

    fn answer(&mut self, now: Nanos, asked: &[StandbyAction], answer: Answer) -> Vec<StandbyAction> {
        let (ask, _) = asked_of(asked).expect("nothing was asked");
        self.step(now, StandbyEvent::RegisterAnswer { ask, answer })
    }
}

fn asked_of(actions: &[StandbyAction]) -> Option<(crate::Ask, Question)> {
    actions.iter().find_map(|action| match action {
        StandbyAction::AskArbiter { ask, question } => Some((*ask, question.clone())),
        _ => None,
    })
}

fn promotes(actions: &[StandbyAction]) -> Option<(&Right, CheckpointId)> {
    actions.iter().find_map(|action| match action {
        StandbyAction::Promote { right, from } => Some((right, *from)),
        _ => None,
    })
}

fn answers(actions: &[StandbyAction]) -> bool {
    actions.iter().any(|action| matches!(action, StandbyAction::AnswerHeartbeat { .. }))
}

#[test]
fn an_epoch_is_acknowledged_only_when_it_is_prepared() {
    let mut bench = Bench::new(Fencing::Register);
    assert!(!bench.begin(at(1), id(1), Sync::Full).contains(&StandbyAction::Ack { id: id(1) }));
    let actions = bench.step(at(2), StandbyEvent::Prepared { id: id(1) });
    assert_eq!(actions[..2], [StandbyAction::Ack { id: id(1) }, StandbyAction::Apply { id: id(1) }]);
    let actions = bench.heartbeat(at(3));
    assert!(actions.contains(&StandbyAction::AnswerHeartbeat { sent_at: at(3), held: Some(id(1)) }));
}

#[test]
fn an_epoch_is_acknowledged_only_while_one_at_most_waits_behind_the_one_being_applied() {
    let mut bench = Bench::new(Fencing::Register);
    bench.epoch(at(1), id(1), Sync::Full);
    assert!(bench.epoch(at(2), id(2), Sync::Since(id(1))).contains(&StandbyAction::Ack { id: id(2) }));
    assert!(!bench.epoch(at(3), id(3), Sync::Since(id(2))).contains(&StandbyAction::Ack { id: id(3) }));
    let actions = bench.step(at(4), StandbyEvent::Applied { id: id(1) });
    assert_eq!(actions, [StandbyAction::Ack { id: id(3) }, StandbyAction::Apply { id: id(2) }]);
}

#[test]
fn an_epoch_that_does_not_fit_is_refused_by_name() {
    let mut bench = Bench::following(Fencing::Register);
    for (epoch, sync, why) in [
        (id(4), Sync::Since(id(3)), "1/4 builds on 1/3, but 1/1 is held"),
        (id(1), Sync::Full, "1/1 is not newer than 1/1, which is held"),
        (CheckpointId::new(2, 2), Sync::Since(id(1)), "2/2 is not of term 1, in which the stream was opened"),
    ] {
        match &bench.begin(at(110), epoch, sync)[..] {
            [StandbyAction::RefuseEpoch { why: named, .. }] => assert_eq!(named.to_string(), why),
            actions => panic!("{actions:?}"),
        }
    }
    bench.step(at(120), StandbyEvent::StreamEnded);
    assert!(matches!(
        &bench.begin(at(121), id(2), Sync::Since(id(1)))[..],
        [StandbyAction::RefuseEpoch { .. }]
    ));
    assert_eq!(bench.standby.held(), Some(id(1)), "the last good epoch stands");
}

#[test]
fn half_an_epoch_is_thrown_away_with_its_stream() {
    let mut bench = Bench::following(Fencing::Register);
    bench.begin(at(110), id(2), Sync::Since(id(1)));
    assert_eq!(bench.step(at(111), StandbyEvent::StreamEnded)[0], StandbyAction::DropHalf { id: id(2) });
    bench.step(at(112), StandbyEvent::Prepared { id: id(2) });
    assert_eq!(bench.standby.held(), Some(id(1)));
}

#[test]
fn it_asks_for_the_term_after_the_whole_silence_and_promotes_when_the_swap_won() {
    let mut bench = Bench::following(Fencing::Register);
    bench.step(at(100), StandbyEvent::Enrolled { register: paired() });
    assert_eq!(asked_of(&bench.step(at(199), StandbyEvent::Tick)), None);
    let asked = bench.step(at(200), StandbyEvent::Tick);
    let swap = Question::Swap { expected: Some(paired()), new: paired().taken_by(me()) };
    assert_eq!(asked_of(&asked).map(|(_, question)| question), Some(swap));
    assert!(!answers(&bench.heartbeat(at(201))), "an answer would lengthen the permit");
    let actions = bench.answer(at(202), &asked, Answer::Won);
    let (right, from) = promotes(&actions).expect("it won");
    assert_eq!((right.term(), from), (Term(2), id(1)));
    bench.step(at(203), StandbyEvent::RestoreFinished);
    assert_eq!(bench.standby.status(at(203)), StandbyStatus::Serving { term: Term(2) });
    let refusal = Refusal::Serving { term: Term(2), by: me() };
    assert_eq!(bench.heartbeat(at(204)), [StandbyAction::Refuse(refusal)]);
}

#[test]
fn what_is_acknowledged_is_applied_before_it_promotes() {
    let mut bench = Bench::following(Fencing::None);
    bench.epoch(at(110), id(2), Sync::Since(id(1)));
    bench.epoch(at(111), id(3), Sync::Since(id(2)));
    assert_eq!(promotes(&bench.step(at(120), StandbyEvent::Silenced { reign: reign(1) })), None);
    assert_eq!(promotes(&bench.step(at(121), StandbyEvent::Applied { id: id(2) })), None);
    let actions = bench.step(at(122), StandbyEvent::Applied { id: id(3) });
    assert_eq!(promotes(&actions).map(|(_, from)| from), Some(id(3)));
}

#[test]
fn the_owners_word_is_acted_on_at_once_and_not_taken_back_by_late_heartbeats() {
    for event in
        [StandbyEvent::Silenced { reign: reign(1) }, StandbyEvent::AppCrashed { reign: reign(1), signal: 11 }]
    {
        let mut bench = Bench::following(Fencing::Register);
        let asked = bench.step(at(110), event);
        assert_eq!(asked_of(&asked).map(|(_, question)| question), Some(Question::Read));
        bench.answer(at(111), &asked, Answer::Unreachable { why: "down".to_owned() });
        assert!(!answers(&bench.heartbeat(at(112))));
        let asked = bench.step(at(300), StandbyEvent::Tick);
        let asked = bench.answer(at(301), &asked, Answer::Value(Some(paired())));
        assert!(promotes(&bench.answer(at(302), &asked, Answer::Won)).is_some());
    }
}

#[test]
fn a_word_of_another_reign_means_nothing() {
    let mut bench = Bench::following(Fencing::None);
    let earlier = Reign { incarnation: Incarnation(0), ..reign(1) };
    for reign in [earlier, reign(0), reign(2)] {
        bench.step(at(110), StandbyEvent::Silenced { reign });
        bench.step(at(110), StandbyEvent::AppEnded { reign, exit: AppExit::Code(0) });
    }
    assert_eq!(bench.standby.status(at(110)), StandbyStatus::Following);
}

#[test]
fn a_claim_on_silence_steps_back_when_the_register_is_down_and_the_primary_speaks() {
    let mut bench = Bench::following(Fencing::Register);
    let asked = bench.step(at(200), StandbyEvent::Tick);
    bench.answer(at(201), &asked, Answer::Unreachable { why: "down".to_owned() });
    assert!(answers(&bench.heartbeat(at(202))));
    assert_eq!(asked_of(&bench.step(at(301), StandbyEvent::Tick)), None, "the silence begins anew");
    assert!(asked_of(&bench.step(at(302), StandbyEvent::Tick)).is_some());
}

#[test]
fn a_swap_whose_answer_was_lost_is_found_won() {
    let mut bench = Bench::following(Fencing::Register);
    bench.step(at(100), StandbyEvent::Enrolled { register: paired() });
    let asked = bench.step(at(200), StandbyEvent::Tick);
    bench.answer(at(201), &asked, Answer::Unreachable { why: "cut".to_owned() });
    let asked = bench.step(at(400), StandbyEvent::Tick);
    let actions = bench.answer(at(401), &asked, Answer::Lost(Some(paired().taken_by(me()))));
    assert!(promotes(&actions).is_some());
}

#[test]
fn a_term_that_it_owned_long_ago_is_no_right() {
    let mut bench = Bench::following(Fencing::Register);
    let long_ago = Register { version: 9, ..Register::first(me()) };
    bench.step(at(100), StandbyEvent::Enrolled { register: long_ago });
    let actions = bench.step(at(200), StandbyEvent::Tick);
    assert_eq!(promotes(&actions), None);
    assert_eq!(asked_of(&actions).map(|(_, question)| question), Some(Question::Read));
}

#[test]
fn a_lost_swap_ends_the_claim_and_says_who_won() {
    let mut bench = Bench::following(Fencing::Register);
    bench.step(at(100), StandbyEvent::Enrolled { register: paired() });
    let asked = bench.step(at(200), StandbyEvent::Tick);
    let winner = Member::new("c", 4);
    bench.answer(at(201), &asked, Answer::Lost(Some(paired().taken_by(winner.clone()))));
    let lost = Discarded::Lost { winner, term: Term(2) };
    assert_eq!(bench.standby.status(at(201)), StandbyStatus::Discarded(lost));

    let mut bench = Bench::following(Fencing::Register);
    bench.step(at(100), StandbyEvent::Enrolled { register: paired() });
    let asked = bench.step(at(200), StandbyEvent::Tick);
    bench.answer(at(201), &asked, Answer::Lost(Some(paired().with_members(Vec::new()))));
    let suspicion = Suspicion::NotNamed(primary(), Term(1));
    assert_eq!(bench.standby.status(at(201)), StandbyStatus::Suspecting(suspicion));
    assert_eq!(bench.standby.held(), Some(id(1)), "the primary can go on from the copy");
    assert_eq!(asked_of(&bench.step(at(210), StandbyEvent::Tick)), None, "the register is not hammered");
}

#[test]
fn silence_without_register_is_acted_on_only_with_fencing_none() {
    let mut bench = Bench::following(Fencing::Absent);
    assert_eq!(promotes(&bench.step(at(9_000), StandbyEvent::Tick)), None);
    assert_eq!(bench.standby.status(at(9_000)), StandbyStatus::Suspecting(Suspicion::NoFencing));
    let actions = bench.step(at(9_001), StandbyEvent::Silenced { reign: reign(1) });
    assert_eq!(promotes(&actions).map(|(right, _)| right.grounds()), Some(&Grounds::Word));
    let mut bench = Bench::following(Fencing::None);
    let actions = bench.step(at(200), StandbyEvent::Tick);
    assert_eq!(promotes(&actions).map(|(right, _)| right.grounds()), Some(&Grounds::Unfenced));
}

#[test]
fn without_a_committed_copy_it_never_asks() {
    let mut bench = Bench::new(Fencing::Register);
    bench.begin(at(1), id(1), Sync::Full);
    assert_eq!(asked_of(&bench.step(at(9_000), StandbyEvent::Tick)), None);
    assert_eq!(asked_of(&bench.step(at(9_001), StandbyEvent::Silenced { reign: reign(1) })), None);
}

#[test]
fn the_end_of_the_app_is_the_end_of_the_copy_and_is_confirmed_twice_if_asked_twice() {
    let mut bench = Bench::following(Fencing::Register);
    let end = || StandbyEvent::AppEnded { reign: reign(1), exit: AppExit::Code(3) };
    let confirmed = StandbyAction::ConfirmEnd { exit: AppExit::Code(3) };
    let actions = bench.step(at(110), end());
    let ended = Discarded::AppEnded(AppExit::Code(3));
    assert_eq!(actions[..2], [StandbyAction::Discard(ended), confirmed.clone()]);
    assert_eq!(bench.step(at(111), end()), [confirmed]);
    assert_eq!(asked_of(&bench.step(at(9_000), StandbyEvent::Tick)), None);
}

#[test]
fn a_full_sync_keeps_the_copy_that_may_still_be_needed() {
    let mut bench = Bench::following(Fencing::Register);
    bench.begin(at(110), id(2), Sync::Full);
    assert_eq!(bench.standby.held(), Some(id(1)));
    bench.step(at(111), StandbyEvent::StreamEnded);
    bench.step(at(112), StandbyEvent::PrimaryConnected { primary: primary(), reign: reign(1) });
    let actions =
        bench.step(at(113), StandbyEvent::EpochBegins { id: id(3), sync: Sync::Full, eligible: false });
    assert_eq!(actions[0], StandbyAction::Discard(Discarded::Replaced));
    assert_eq!(bench.standby.held(), None);
}

#[test]
fn a_second_primary_and_an_old_term_are_refused() {
    let mut bench = Bench::following(Fencing::None);
    let other = Reign { incarnation: Incarnation(9), ..reign(1) };
    let connect = |reign| StandbyEvent::PrimaryConnected { primary: Member::new("c", 9), reign };
    assert_eq!(bench.step(at(110), connect(other)), [StandbyAction::Refuse(Refusal::Followed(primary()))]);
    let old = Refusal::OldTerm { yours: Term(0), mine: Term(1) };
    assert_eq!(bench.step(at(110), connect(reign(0))), [StandbyAction::Refuse(old)]);
    let actions = bench.step(at(111), connect(Reign { term: Term(2), ..other }));
    assert_eq!(actions[0], StandbyAction::Discard(Discarded::NewRun(Member::new("c", 9))));
    assert_eq!(actions[1], StandbyAction::Welcome { held: None });
}

#[test]
fn a_copy_that_broke_or_did_not_come_to_life_is_discarded_by_name() {
    let mut bench = Bench::following(Fencing::None);
    bench.epoch(at(110), id(2), Sync::Since(id(1)));
    let actions = bench.step(at(111), StandbyEvent::ApplyFailed { id: id(2), why: "no memory".to_owned() });
    let why = Discarded::Broken(id(2), "no memory".to_owned());
    assert_eq!(actions[..2], [StandbyAction::Discard(why.clone()), StandbyAction::EndStream { why }]);
    let again = StandbyEvent::PrimaryConnected { primary: primary(), reign: reign(1) };
    assert_eq!(bench.step(at(112), again)[0], StandbyAction::Welcome { held: None });
    let mut bench = Bench::following(Fencing::None);
    bench.step(at(200), StandbyEvent::Tick);
    let actions = bench.step(at(201), StandbyEvent::RestoreFailed { why: "no memory".to_owned() });
    assert_eq!(actions[0], StandbyAction::Discard(Discarded::NotRestored("no memory".to_owned())));
}

#[test]
fn a_copy_whose_register_is_unreachable_says_so_before_it_is_needed() {
    let mut bench = Bench::following(Fencing::Register);
    let asked = bench.heartbeat(at(1_000));
    assert!(matches!(asked_of(&asked), Some((_, Question::Read))), "{asked:?}");
    let why = "no route".to_owned();
    let told = bench.answer(at(1_001), &asked, Answer::Unreachable { why: why.clone() });
    assert!(told.contains(&StandbyAction::Status(StandbyStatus::CutOff { why })), "{told:?}");
    let asked = bench.heartbeat(at(1_200));
    let told = bench.answer(at(1_201), &asked, Answer::Value(Some(paired())));
    assert!(told.contains(&StandbyAction::Status(StandbyStatus::Following)), "{told:?}");
}

#[test]
fn a_claim_swaps_at_once_when_the_register_was_seen_to_name_us() {
    let mut bench = Bench::following(Fencing::Register);
    let asked = bench.heartbeat(at(1_000));
    bench.answer(at(1_001), &asked, Answer::Value(Some(paired())));
    let claim = bench.step(at(1_200), StandbyEvent::Tick);
    assert!(matches!(asked_of(&claim), Some((_, Question::Swap { .. }))), "{claim:?}");
}

/// One of two, of whom both have to speak up.
fn of_two() -> Register {
    Register::first(primary()).with_quorum(vec![me(), Member::new("c", 1)], 2)
}

/// It holds 1/1, is silent with the primary, and has been told that it may speak up.
fn suspecting() -> (Bench, Vec<StandbyAction>) {
    let mut bench = Bench::following(Fencing::Register);
    bench.step(at(110), StandbyEvent::Enrolled { register: of_two() });
    let asked = bench.step(at(200), StandbyEvent::Tick);
    (bench, asked)
}

fn swap_of(actions: &[StandbyAction]) -> Option<Register> {
    match asked_of(actions)?.1 {
        Question::Swap { new, .. } => Some(new),
        Question::Read => None,
    }
}

#[test]
fn where_a_quorum_is_asked_for_it_speaks_up_and_promotes_only_when_the_others_have() {
    let (mut bench, asked) = suspecting();
    let spoken = of_two().with_vote(&me(), Some(id(1)));
    assert_eq!(swap_of(&asked), Some(spoken.clone()));
    let after = bench.answer(at(201), &asked, Answer::Won);
    assert_eq!((asked_of(&after), promotes(&after)), (None, None), "c may hold more");
    let StandbyStatus::Claiming { trouble: Some(why) } = bench.standby.status(at(202)) else { panic!() };
    assert!(why.contains("1 of 2") && why.contains('c'), "{why}");
    let asked = bench.step(at(225), StandbyEvent::Tick);
    assert_eq!(asked_of(&asked).map(|asked| asked.1), Some(Question::Read));
    let both = spoken.with_vote(&Member::new("c", 1), Some(id(1)));
    let asked = bench.answer(at(226), &asked, Answer::Value(Some(both.clone())));
    assert_eq!(swap_of(&asked), Some(both.taken_by(me())));
    assert!(promotes(&bench.answer(at(227), &asked, Answer::Won)).is_some());
}

#[test]
fn it_lets_another_go_first_that_holds_more() {
    let (mut bench, asked) = suspecting();
    let newer = of_two().with_vote(&Member::new("c", 1), Some(id(2)));
    let asked = bench.answer(at(201), &asked, Answer::Lost(Some(newer.clone())));
    let spoken = newer.with_vote(&me(), Some(id(1)));
    assert_eq!(swap_of(&asked), Some(spoken.clone()));
    let after = bench.answer(at(202), &asked, Answer::Won);
    assert_eq!((asked_of(&after), promotes(&after)), (None, None));
    let asked = bench.step(at(230), StandbyEvent::Tick);
    let winner = Member::new("c", 1);
    let lost = bench.answer(at(231), &asked, Answer::Value(Some(spoken.taken_by(winner.clone()))));
    let discarded = Discarded::Lost { winner, term: Term(2) };
    assert!(lost.contains(&StandbyAction::Discard(discarded)), "{lost:#?}");
}

/// Who goes on taking epochs after it has said what it holds would make a liar of whoever counted on that.
#[test]
fn it_takes_its_word_back_before_it_answers_a_primary_again() {
    let (mut bench, asked) = suspecting();
    bench.answer(at(201), &asked, Answer::Won);
    let asked = bench.heartbeat(at(210));
    assert!(!answers(&asked));
    assert_eq!(
        bench.begin(at(211), id(2), Sync::Since(id(1)))[0],
        StandbyAction::RefuseEpoch { id: id(2), why: EpochRefusal::NoStream { id: id(2) } }
    );
    let back = of_two().with_vote(&me(), Some(id(1))).with_vote(&me(), None);
    assert_eq!(swap_of(&asked), Some(back));
    assert!(!answers(&bench.heartbeat(at(213))), "it stands there still");
    bench.answer(at(214), &asked, Answer::Won);
    assert!(answers(&bench.heartbeat(at(215))));
    assert_eq!(bench.standby.status(at(215)), StandbyStatus::Following);
}

#[test]
fn half_an_epoch_is_thrown_away_before_it_speaks_up() {
    let mut bench = Bench::following(Fencing::Register);
    bench.step(at(110), StandbyEvent::Enrolled { register: of_two() });
    bench.begin(at(120), id(2), Sync::Since(id(1)));
    let asked = bench.step(at(200), StandbyEvent::Tick);
    assert!(asked.contains(&StandbyAction::DropHalf { id: id(2) }), "{asked:#?}");
    assert!(
        !bench
            .step(at(201), StandbyEvent::Prepared { id: id(2) })
            .contains(&StandbyAction::Ack { id: id(2) })
    );
    assert_eq!(swap_of(&asked).unwrap().vote_of(&me()), Some(id(1)));
}
