//! What both simulations are made of: a virtual clock, what hosts say to each other, how it gets there, and a register.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use image::{CheckpointId, Member, Register, Sync, Term};
use replica::primary::Notice;
use replica::standby::{EpochRefusal, Refusal};
use replica::{Answer, Nanos, PrimaryEvent, Progress, Question, Reign, StandbyEvent};

use crate::chance::Chance;

pub const TICK: Nanos = Nanos::from_millis(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Connect { session: u64, reign: Reign },
    Welcome { session: u64, standby: Member, held: Option<CheckpointId> },
    Header { session: u64, id: CheckpointId, sync: Sync, eligible: bool },
    Body { session: u64, id: CheckpointId },
    Ack { session: u64, id: CheckpointId },
    RefuseEpoch { session: u64, id: CheckpointId, why: EpochRefusal },
    Heartbeat { reign: Reign, sent_at: Nanos, progress: Progress },
    Answer { from: Member, sent_at: Nanos, held: Option<CheckpointId> },
    Refusal(Refusal),
    Notice(Notice),
    GuardsWord(Reign),
    ConfirmEnd(Member),
}

impl Message {
    /// To a primary of this term: what belongs to no stream.
    pub fn to_primary(&self, serving: Term) -> Option<PrimaryEvent> {
        match self {
            Self::Answer { from, sent_at, held } => {
                Some(PrimaryEvent::HeartbeatAnswered { from: from.clone(), sent_at: *sent_at, held: *held })
            }
            Self::Refusal(Refusal::Serving { term, by }) if *term > serving => {
                Some(PrimaryEvent::Superseded { term: *term, by: by.to_string() })
            }
            Self::ConfirmEnd(from) => Some(PrimaryEvent::EndConfirmed { from: from.clone() }),
            _ => None,
        }
    }

    /// To a standby: what belongs to no stream.
    pub fn into_standby_event(self) -> Option<StandbyEvent> {
        match self {
            Self::Heartbeat { reign, sent_at, progress } => {
                Some(StandbyEvent::Heartbeat { reign, sent_at, progress })
            }
            Self::GuardsWord(reign) => Some(StandbyEvent::Silenced { reign }),
            Self::Notice(Notice::Enrolled(register)) => Some(StandbyEvent::Enrolled { register }),
            Self::Notice(Notice::AppEnded { reign, exit }) => Some(StandbyEvent::AppEnded { reign, exit }),
            Self::Notice(Notice::HandedOver { reign }) => Some(StandbyEvent::HandedOver { reign }),
            Self::Notice(Notice::AppCrashed { reign, signal }) => {
                Some(StandbyEvent::AppCrashed { reign, signal })
            }
            _ => None,
        }
    }
}

/// What is to happen, in order; of two events at the same instant, the one that was planned first.
#[derive(Debug)]
pub struct Agenda<E> {
    queue: BinaryHeap<Reverse<(Nanos, u64)>>,
    events: BTreeMap<u64, E>,
    sequence: u64,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { queue: BinaryHeap::new(), events: BTreeMap::new(), sequence: 0 }
    }
}

impl<E> Agenda<E> {
    pub fn schedule(&mut self, at: Nanos, event: E) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    /// The next, unless it is not before `end`.
    pub fn next(&mut self, end: Nanos) -> Option<(Nanos, E)> {
        let Reverse((at, sequence)) = self.queue.peek().copied().filter(|Reverse((at, _))| *at < end)?;
        self.queue.pop();
        Some((at, self.events.remove(&sequence).expect("each queued event is kept")))
    }
}

/// How long a datagram takes, for each time that it comes: it may get lost, late and doubled, and be overtaken.
pub fn datagram(chance: &mut Chance, loss_percent: u64) -> Vec<Nanos> {
    if chance.percent(loss_percent) {
        return Vec::new();
    }
    let copies = 1 + u64::from(chance.percent(3));
    let span = |_| {
        let slow = if chance.percent(2) { 150_000 } else { 2_000 };
        chance.micros(50, slow)
    };
    (0..copies).map(span).collect()
}

/// Whether a stream breaks under the next message.
pub fn breaks(chance: &mut Chance, loss_percent: u64) -> bool {
    chance.below(2_000) < loss_percent
}

/// A register that does what it is to.
pub fn decide(register: &mut Option<Register>, question: Question) -> Answer {
    match question {
        Question::Read => Answer::Value(register.clone()),
        Question::Swap { expected, new } if expected == *register => {
            *register = Some(new);
            Answer::Won
        }
        Question::Swap { .. } => Answer::Lost(register.clone()),
    }
}

/// When a question gets to the register, and when somebody says that it did not. One to a register that is cut off may
/// still get there, much later.
pub fn ask(chance: &mut Chance, unreachable: bool) -> (Option<Nanos>, Option<Nanos>) {
    let refused = (unreachable && chance.percent(70)).then(|| chance.micros(100, 50_000));
    let slow = if unreachable || chance.percent(3) { 1_500_000 } else { 5_000 };
    let arrives = (!unreachable || chance.percent(50)).then(|| chance.micros(100, slow));
    (arrives, refused)
}
