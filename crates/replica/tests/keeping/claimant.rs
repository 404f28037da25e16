//! What `run --from-store` does, in its order: the term, a run of its own, the newest checkpoint, the wait, the right.

use image::{CheckpointId, Member, Register};
use replica::{Alone, Answer, Nanos, Question, Right, StoreClaim, Timing};

use super::faults::Flaw;
use super::is_store;
use super::store::{Beginning, Begun, Reply, Request};

#[derive(Debug, Clone)]
enum Step {
    Reading,
    /// A flaw: what there is in the store, before anybody there knows of us.
    LooksFirst(StoreClaim),
    Claiming(StoreClaim),
    Beginning(StoreClaim, Beginning),
    Listing(StoreClaim, Nanos),
    /// It makes the copy, and waits for the old permit's end.
    Waiting(StoreClaim, CheckpointId),
    Settling(Alone, CheckpointId),
}

#[derive(Debug)]
pub enum Act {
    AskRegister(Question),
    AskStore(Request),
    /// To be told when that instant has come.
    WaitUntil(Nanos),
    GoOn(Right, CheckpointId),
    /// Nothing was started.
    GiveUp,
}

#[derive(Debug)]
pub struct Claimant {
    pub me: Member,
    flaw: Flaw,
    step: Step,
    /// Seen too early.
    newest: Option<CheckpointId>,
}

impl Claimant {
    pub fn begin(me: Member, flaw: Flaw) -> (Self, Act) {
        (Self { me, flaw, step: Step::Reading, newest: None }, Act::AskRegister(Question::Read))
    }

    pub fn hears_register(&mut self, now: Nanos, answer: Answer) -> Act {
        match self.step.clone() {
            Step::Reading => match answer {
                Answer::Value(register) => self.claim(register),
                _ => Act::AskRegister(Question::Read),
            },
            Step::Claiming(claim) => match claim.answered(answer) {
                Ok(Some(question)) => Act::AskRegister(question),
                Ok(None) => self.begin_run(claim),
                Err(_) => Act::GiveUp,
            },
            Step::Settling(alone, id) => match alone.answered(answer) {
                Ok(Ok(right)) => Act::GoOn(right, id),
                Ok(Err(question)) => Act::AskRegister(*question),
                Err(_) => Act::GiveUp,
            },
            Step::LooksFirst(_) | Step::Beginning(..) | Step::Listing(..) | Step::Waiting(..) => {
                unreachable!("it asked nothing at {now}")
            }
        }
    }

    fn claim(&mut self, register: Option<Register>) -> Act {
        let claim = match StoreClaim::begin(register, &self.me, is_store) {
            Ok(claim) => claim,
            Err(_) => return Act::GiveUp,
        };
        if self.flaw == Flaw::ListsTooEarly {
            self.step = Step::LooksFirst(claim);
            return Act::AskStore(Request::Newest);
        }
        let question = claim.question();
        self.step = Step::Claiming(claim);
        Act::AskRegister(question)
    }

    fn begin_run(&mut self, claim: StoreClaim) -> Act {
        let (mut beginning, request) = Beginning::new(claim.term().0, self.me.incarnation.0);
        beginning.unchecked = self.flaw == Flaw::BeginsLate;
        self.step = Step::Beginning(claim, beginning);
        Act::AskStore(request)
    }

    pub fn hears_store(&mut self, now: Nanos, reply: Reply) -> Act {
        match self.step.clone() {
            Step::LooksFirst(claim) => {
                if let Reply::Newest(Some((_, id))) = reply {
                    self.newest = Some(id);
                }
                let question = claim.question();
                self.step = Step::Claiming(claim);
                Act::AskRegister(question)
            }
            Step::Beginning(claim, mut beginning) => match beginning.take(reply) {
                Begun::Next(request) => {
                    self.step = Step::Beginning(claim, beginning);
                    Act::AskStore(request)
                }
                Begun::There(_) => {
                    self.step = Step::Listing(claim, now);
                    Act::AskStore(Request::Newest)
                }
                Begun::Failed => Act::GiveUp,
            },
            Step::Listing(claim, closed_at) => match reply {
                Reply::Newest(Some((run, id))) if run.incarnation == claim.store().incarnation.0 => {
                    self.step = Step::Waiting(claim, self.newest.unwrap_or(id));
                    let patience = match self.flaw {
                        Flaw::WaitsForNobody => Nanos::from_millis(50),
                        _ => Timing::default().store_suspicion(),
                    };
                    Act::WaitUntil(closed_at + patience)
                }
                _ => Act::GiveUp,
            },
            Step::Reading | Step::Claiming(_) | Step::Waiting(..) | Step::Settling(..) => {
                unreachable!("it asked nothing at {now}")
            }
        }
    }

    /// The time has come.
    pub fn goes_on(&mut self) -> Act {
        let Step::Waiting(claim, id) = self.step.clone() else { unreachable!("it does not wait") };
        let alone = claim.settle();
        let question = alone.question();
        self.step = Step::Settling(alone, id);
        Act::AskRegister(question)
    }
}
