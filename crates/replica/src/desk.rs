//! One manager's dealings with the register: at most one question under way, what was last seen, and which
//! swap may still land although nobody told us.
//!
//! A swap that was not answered is *in doubt*: it may land at any later time. The doubt ends only when the
//! register is seen at a newer version than the swap expected, because then it has landed or can never land.
//! Seeing the expected version again ends nothing; winning another swap from that version does.

use image::{Member, Register, Term};

use crate::{Nanos, Timing};

/// Names one question, so that a late answer to an earlier one is not taken for the answer to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one is made for each question, and none is kept")]
pub enum Question {
    Read,
    Swap { expected: Option<Register>, new: Register },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To a `Read`.
    Value(Option<Register>),
    /// The swap won: the register holds the new value.
    Won,
    /// The swap lost: this is what the register holds.
    Lost(Option<Register>),
    Unreachable {
        why: String,
    },
}

#[derive(Debug, Clone)]
struct Pending {
    ask: Ask,
    question: Question,
    asked_at: Nanos,
}

/// What an answer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// `Desk::known` is what the register held when it answered.
    Seen,
    Unreachable,
    /// The answer to a question that is no longer asked.
    Stale,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Desk {
    known: Option<Option<Register>>,
    pending: Option<Pending>,
    /// Each distinct value that may still land.
    doubts: Vec<Register>,
    asks: u64,
    retry_at: Nanos,
    seen_at: Nanos,
    trouble: Option<String>,
}

impl Desk {
    pub(crate) fn knowing(register: Register) -> Self {
        Self { known: Some(Some(register)), ..Self::default() }
    }

    /// The newest value seen; the outer `None` before the first answer.
    pub(crate) fn known(&self) -> Option<&Option<Register>> {
        self.known.as_ref()
    }

    pub(crate) fn register(&self) -> Option<&Register> {
        self.known.as_ref()?.as_ref()
    }

    /// Told by somebody whom we trust: a better guess of what to expect in a swap, never a right.
    pub(crate) fn learn(&mut self, register: Register) {
        if self.register().is_none_or(|own| own.version < register.version) {
            self.see(Some(register));
        }
    }

    pub(crate) fn busy(&self) -> bool {
        self.pending.is_some()
    }

    pub(crate) fn may_ask(&self, now: Nanos) -> bool {
        !self.busy() && now >= self.retry_at
    }

    pub(crate) fn in_doubt(&self) -> bool {
        !self.doubts.is_empty()
    }

    /// When the register last answered.
    pub(crate) fn seen_at(&self) -> Nanos {
        self.seen_at
    }

    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Everybody who can win a swap, as things stand or as they may come to stand without our being told.
    pub(crate) fn rivals(&self) -> impl Iterator<Item = &Member> {
        self.possible().flat_map(|register| &register.members)
    }

    /// What the register may hold, as things stand or as they may come to stand without our being told.
    pub(crate) fn possible(&self) -> impl Iterator<Item = &Register> {
        let asked = self.pending.as_ref().and_then(|pending| match &pending.question {
            Question::Read => None,
            Question::Swap { new, .. } => Some(new),
        });
        self.register().into_iter().chain(&self.doubts).chain(asked)
    }

    pub(crate) fn ask(&mut self, now: Nanos, question: Question) -> (Ask, Question) {
        assert!(self.pending.is_none(), "a second question to the register: {question:?}");
        self.asks += 1;
        let ask = Ask(self.asks);
        self.pending = Some(Pending { ask, question: question.clone(), asked_at: now });
        (ask, question)
    }

    /// The question that would make the register hold `new`.
    pub(crate) fn swap(&self, new: Register) -> Question {
        let expected = self.known.clone().flatten();
        assert!(new.follows(expected.as_ref()), "{new:?} can't follow {expected:?}");
        Question::Swap { expected, new }
    }

    pub(crate) fn answer(&mut self, now: Nanos, ask: Ask, answer: Answer, timing: Timing) -> Outcome {
        let Some(pending) = self.pending.take_if(|pending| pending.ask == ask) else { return Outcome::Stale };
        let seen = match (answer, pending.question) {
            (Answer::Won, Question::Swap { new, .. }) => Some(new),
            (Answer::Value(current) | Answer::Lost(current), _) => current,
            (Answer::Won, question @ Question::Read) => {
                return self.give_up(now, question, "a read was answered as a swap".to_owned(), timing);
            }
            (Answer::Unreachable { why }, question) => return self.give_up(now, question, why, timing),
        };
        if !self.see(seen) {
            self.trouble = Some("it holds an older value than it did before".to_owned());
            self.retry_at = now + timing.register_retry();
            return Outcome::Unreachable;
        }
        self.seen_at = now;
        self.trouble = None;
        Outcome::Seen
    }

    /// Gives up on a question that was not answered in time. True if it did.
    pub(crate) fn expire(&mut self, now: Nanos, timing: Timing) -> bool {
        let late = |pending: &mut Pending| now >= pending.asked_at + timing.register_timeout();
        let Some(pending) = self.pending.take_if(late) else { return false };
        let why = format!("no answer within {}", timing.register_timeout());
        self.give_up(now, pending.question, why, timing);
        true
    }

    fn give_up(&mut self, now: Nanos, question: Question, why: String, timing: Timing) -> Outcome {
        match question {
            Question::Swap { new, .. } if !self.doubts.contains(&new) => self.doubts.push(new),
            Question::Swap { .. } | Question::Read => {}
        }
        self.trouble = Some(why);
        self.retry_at = now + timing.register_retry();
        Outcome::Unreachable
    }

    /// False if that would take the register back: a read that was overtaken, or a register that somebody
    /// replaced, which nobody may act on.
    fn see(&mut self, current: Option<Register>) -> bool {
        let order =
            |register: Option<&Register>| register.map_or((0, Term(0)), |value| (value.version, value.term));
        let (seen, before) = (order(current.as_ref()), order(self.register()));
        if seen.0 < before.0 || seen.1 < before.1 {
            return false;
        }
        // Version n of a doubt was to replace version n - 1: at n or beyond it has landed, or never will.
        self.doubts.retain(|doubt| seen.0 < doubt.version);
        self.known = Some(current);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> (Desk, Register) {
        let register = Register::first(Member::new("a", 1));
        (Desk::knowing(register.clone()), register)
    }

    #[test]
    fn an_unanswered_swap_counts_until_a_newer_version_is_seen() {
        let (mut desk, alone) = desk();
        let timing = Timing::default();
        let paired = alone.with_members(vec![Member::new("b", 1)]);
        let question = desk.swap(paired);
        let (ask, _) = desk.ask(Nanos(0), question);
        assert_eq!(desk.rivals().count(), 1, "the swap may land while it is under way");
        assert!(desk.expire(timing.register_timeout(), timing));
        assert_eq!(desk.answer(timing.register_timeout(), ask, Answer::Won, timing), Outcome::Stale);
        let (ask, _) = desk.ask(Nanos(0), Question::Read);
        desk.answer(Nanos(1), ask, Answer::Value(Some(alone.clone())), timing);
        assert_eq!(desk.rivals().count(), 1, "seeing the old value again does not call the swap back");
        let question = desk.swap(alone.with_members(Vec::new()));
        let (ask, _) = desk.ask(Nanos(2), question);
        desk.answer(Nanos(3), ask, Answer::Won, timing);
        assert_eq!(desk.rivals().count(), 0);
        assert!(!desk.in_doubt());
    }
}
