//! Whatever peers and register say, in whatever order: no panic, no right out of nothing, and committed
//! epochs only grow. Peers are authenticated, but they may be wrong.

#[path = "simulation/chance.rs"]
mod chance;

use chance::Chance;
use image::{CheckpointId, Member, Register, Sync, Term, Vote};
use replica::primary::{AppExit, CommitOn, SyncCall};
use replica::{
    Answer, Ask, Fencing, Nanos, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent, Progress, Reign,
    Standby, StandbyAction, StandbyConfig, StandbyEvent, Timing,
};

const SEEDS: u64 = 2_000;
const STEPS: u64 = 200;

/// Values from a small set, so that they meet.
struct Any(Chance);

impl Any {
    fn id(&mut self) -> CheckpointId {
        CheckpointId::new(1 + self.0.below(2), self.0.below(6))
    }

    fn maybe_id(&mut self) -> Option<CheckpointId> {
        self.0.percent(70).then(|| self.id())
    }

    fn member(&mut self) -> Member {
        Member::new(if self.0.percent(50) { "a" } else { "b" }, 1 + self.0.below(2))
    }

    fn reign(&mut self) -> Reign {
        Reign { term: Term(1 + self.0.below(2)), incarnation: self.member().incarnation }
    }

    fn exit(&mut self) -> AppExit {
        if self.0.percent(50) { AppExit::Code(0) } else { AppExit::Signal(11) }
    }

    fn maybe_register(&mut self) -> Option<Register> {
        self.0.percent(80).then(|| self.register())
    }

    fn register(&mut self) -> Register {
        let members = (0..self.0.below(3)).map(|_| self.member()).collect();
        let votes = (0..self.0.below(3)).map(|_| Vote { member: self.member(), held: self.id() }).collect();
        let quorum = 1 + self.0.below(2) as u32;
        let (version, term) = (self.0.below(5), Term(self.0.below(4)));
        Register { version, term, owner: self.member(), members, quorum, votes }
    }

    fn answer(&mut self) -> Answer {
        match self.0.below(4) {
            0 => Answer::Won,
            1 => Answer::Value(self.maybe_register()),
            2 => Answer::Lost(self.maybe_register()),
            _ => Answer::Unreachable { why: "down".to_owned() },
        }
    }

    fn fencing(&mut self) -> Fencing {
        [Fencing::Register, Fencing::None, Fencing::Absent][self.0.below(3) as usize]
    }

    fn group(&mut self) -> (u32, CommitOn) {
        let commit_on = [CommitOn::Any, CommitOn::All, CommitOn::Count(2)][self.0.below(3) as usize];
        (1 + self.0.below(3) as u32, commit_on)
    }

    fn why(&mut self) -> String {
        "chance".to_owned()
    }

    fn primary_event(&mut self, now: Nanos, asked: Ask, capturing: CheckpointId) -> PrimaryEvent {
        match self.0.below(26) {
            0..3 => PrimaryEvent::PeerConnected { standby: self.member(), held: self.maybe_id() },
            3 => PrimaryEvent::PeerLost { standby: self.member(), why: self.why() },
            4..7 => {
                PrimaryEvent::HeartbeatAnswered { from: self.member(), sent_at: now, held: self.maybe_id() }
            }
            7..10 => PrimaryEvent::Acked { from: self.member(), id: self.id() },
            10 => PrimaryEvent::EpochRefused { from: self.member(), id: self.id(), why: self.why() },
            11..14 => PrimaryEvent::Captured { id: capturing },
            14 => PrimaryEvent::CaptureFailed { id: capturing, why: self.why() },
            15 => PrimaryEvent::Executed,
            16 if self.0.percent(10) => PrimaryEvent::AppDying { signal: 9 },
            16 if self.0.percent(20) => PrimaryEvent::AppExited(self.exit()),
            17 if self.0.percent(10) => PrimaryEvent::Superseded { term: self.id().term, by: self.why() },
            18 => PrimaryEvent::EndConfirmed { from: self.member() },
            19..22 => PrimaryEvent::RegisterAnswer { ask: asked, answer: self.answer() },
            22 | 23 => {
                let patience = self.0.percent(50).then(|| self.0.micros(0, 300_000));
                PrimaryEvent::SyncAsked { call: SyncCall(now.0), patience }
            }
            _ => PrimaryEvent::Tick,
        }
    }

    fn standby_event(&mut self, now: Nanos, asked: Ask, due: CheckpointId) -> StandbyEvent {
        let id = if self.0.percent(50) { due } else { self.id() };
        let reign = self.reign();
        let sync = self.maybe_id().map_or(Sync::Full, Sync::Since);
        match self.0.below(26) {
            0 => StandbyEvent::PrimaryConnected { primary: self.member(), reign },
            1..4 if self.0.percent(20) => StandbyEvent::StreamEnded,
            4..8 => StandbyEvent::EpochBegins { id, sync, eligible: self.0.percent(50) },
            8..12 => StandbyEvent::Prepared { id },
            12..15 => StandbyEvent::Applied { id },
            15 if self.0.percent(10) => StandbyEvent::ApplyFailed { id, why: self.why() },
            16..18 => StandbyEvent::Heartbeat { reign, sent_at: now, progress: Progress::default() },
            18 => StandbyEvent::Enrolled { register: self.register() },
            19 => StandbyEvent::Silenced { reign },
            20 => StandbyEvent::AppEnded { reign, exit: self.exit() },
            21..23 => StandbyEvent::RegisterAnswer { ask: asked, answer: self.answer() },
            23 => StandbyEvent::RestoreFinished,
            24 => StandbyEvent::RestoreFailed { why: self.why() },
            _ => StandbyEvent::Tick,
        }
    }
}

#[test]
fn a_primary_survives_whatever_it_is_told() {
    for seed in 0..SEEDS {
        let mut any = Any(Chance::new(seed));
        let (mut now, mut asked, mut capturing) = (Nanos(0), Ask(0), CheckpointId::default());
        let mut committed = None;
        let fencing = any.fencing();
        let mut config = PrimaryConfig::new(Member::new("a", 1), fencing);
        (config.standbys, config.commit_on) = any.group();
        let mut primary = Primary::new(config, now);
        for _ in 0..STEPS {
            now = now + any.0.micros(0, 60_000);
            let (event, mut actions) = (any.primary_event(now, asked, capturing), Vec::new());
            primary.step(now, event, &mut actions);
            for action in actions {
                match action {
                    PrimaryAction::AskArbiter { ask, .. } => asked = ask,
                    PrimaryAction::StartFullSync { id, .. } | PrimaryAction::CaptureNow { id, .. } => {
                        capturing = id
                    }
                    PrimaryAction::Committed(proof) => {
                        assert!(committed < Some(proof.id()), "seed {seed}: committed went back");
                        committed = Some(proof.id());
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn a_standby_survives_whatever_it_is_told_and_promotes_only_what_it_holds() {
    let mut promoted = 0;
    for seed in 0..SEEDS {
        let mut any = Any(Chance::new(seed));
        let (mut now, mut asked, mut due) = (Nanos(0), Ask(0), CheckpointId::default());
        let fencing = any.fencing();
        let config = StandbyConfig { me: Member::new("b", 1), timing: Timing::default(), fencing };
        let mut standby = Standby::new(config);
        for _ in 0..STEPS {
            now = now + any.0.micros(0, 60_000);
            let (event, mut actions) = (any.standby_event(now, asked, due), Vec::new());
            standby.step(now, event, &mut actions);
            for action in actions {
                match action {
                    StandbyAction::AskArbiter { ask, .. } => asked = ask,
                    StandbyAction::Receive { id } | StandbyAction::Apply { id } => due = id,
                    StandbyAction::Promote { right, from } => {
                        assert_eq!(standby.held(), Some(from), "seed {seed}");
                        assert!(right.term() > from.term, "seed {seed}: an old term");
                        promoted += 1;
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(promoted > 100, "only {promoted} promotions: chance is too tame");
}
