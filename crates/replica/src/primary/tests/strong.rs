//! Strong consistency beside a standby that does its part, or only seems to.

use super::*;

struct Beside {
    bench: Bench,
    /// How many actions were carried out.
    done: usize,
}

impl Beside {
    /// A protected app whose output is held.
    fn new(on_standby_loss: OnStandbyLoss) -> Self {
        let bench = Bench::new(|config| config.consistency = Consistency::Strong { on_standby_loss });
        let mut beside = Self { bench, done: 0 };
        beside.bench.step(at(0), PrimaryEvent::Tick);
        beside.bench.connect(at(0), None);
        beside.live(0, 300, true);
        assert_eq!(beside.primary().phase(), Phase::Protected);
        assert_eq!(beside.primary().output, Output::Held);
        beside
    }

    fn primary(&self) -> &Primary {
        &self.bench.primary
    }

    /// The standby answers heartbeats all the time. The outputs that there were.
    fn live(&mut self, from: u64, to: u64, acknowledges: bool) -> Vec<Output> {
        let first = self.bench.actions.len();
        for now in (from..to).step_by(10) {
            self.bench.answer_heartbeat(at(now));
            self.bench.step(at(now), PrimaryEvent::OutputWaits { all: false });
            while let Some(action) = self.bench.actions.get(self.done).cloned() {
                self.done += 1;
                match action {
                    PrimaryAction::StartFullSync { id, .. } | PrimaryAction::CaptureNow { id, .. } => {
                        self.bench.step(at(now), PrimaryEvent::Captured { id });
                    }
                    PrimaryAction::SendEpoch { id, .. } if acknowledges => {
                        self.bench.step(at(now), PrimaryEvent::Acked { from: standby(), id });
                    }
                    _ => {}
                }
            }
        }
        let output = |action: &PrimaryAction| match action {
            PrimaryAction::SetOutput(output) => Some(*output),
            _ => None,
        };
        self.bench.actions[first..].iter().filter_map(output).collect()
    }

    fn was_dropped(&self) -> bool {
        self.bench.actions.iter().any(|action| matches!(action, PrimaryAction::DropPeer { .. }))
    }
}

#[test]
fn clients_are_not_held_for_ever_by_a_standby_that_acknowledges_nothing() {
    let mut beside = Beside::new(OnStandbyLoss::Continue);
    let held = beside.primary().committed();
    assert_eq!(beside.live(300, 2_900, false), [Output::Passing]);
    assert!(beside.was_dropped());
    assert_eq!(beside.bench.members(), 0, "it is struck out before anything passes");
    // It comes back as if nothing were, and nothing is better.
    for round in 1..4 {
        let now = round * 3_000;
        beside.bench.connect(at(now), held);
        assert_eq!(beside.live(now, now + 2_900, false), [], "clients wait again, round {round}");
        assert_eq!(beside.bench.members(), 0);
    }
    beside.bench.connect(at(15_000), held);
    assert_eq!(beside.live(15_000, 15_300, true), [Output::Held]);
    assert_eq!((beside.bench.members(), beside.primary().phase()), (1, Phase::Protected));
}

#[test]
fn answers_wait_if_they_were_asked_to_whatever_the_standby_does() {
    let mut beside = Beside::new(OnStandbyLoss::Stop);
    let held = beside.primary().committed();
    assert_eq!(beside.live(300, 2_900, false), []);
    assert!(beside.was_dropped());
    beside.bench.connect(at(3_000), held);
    assert_eq!(beside.live(3_000, 6_000, false), []);
    assert_eq!(beside.primary().output, Output::Held);
    beside.bench.connect(at(6_100), held);
    beside.live(6_100, 6_400, true);
    assert_eq!(beside.primary().phase(), Phase::Protected);
}
