//! What is asked of a witness, and its answers.

use image::{Member, Register, Term, Vote};

use crate::convert::Malformed;
use crate::message::Refusal;
use crate::proto;

/// A question about the register of one app.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one is made for each question, and none is kept")]
pub enum RegisterQuestion {
    Read,
    Swap { expected: Option<Register>, new: Register },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterAnswer {
    /// To a `Read`, and to a `Swap` that lost: what the register holds.
    Holds(Option<Register>),
    Won,
}

const INCOMPLETE: Malformed = Malformed("has a register without an owner or a value");

impl From<Register> for proto::Register {
    fn from(Register { version, term, owner, members, quorum, votes }: Register) -> Self {
        let members = members.into_iter().map(Into::into).collect();
        // One is what an earlier release writes, which knows of no other.
        let quorum = if quorum == 1 { 0 } else { quorum };
        let votes = votes.into_iter().map(Into::into).collect();
        Self { version, term: term.0, owner: Some(owner.into()), members, quorum, votes }
    }
}

impl TryFrom<proto::Register> for Register {
    type Error = Malformed;

    fn try_from(register: proto::Register) -> Result<Self, Malformed> {
        let proto::Register { version, term, owner, members, quorum, votes } = register;
        let owner = owner.ok_or(INCOMPLETE)?.into();
        let members = members.into_iter().map(Into::into).collect();
        let votes = votes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { version, term: Term(term), owner, members, quorum: quorum.max(1), votes })
    }
}

impl From<Vote> for proto::Vote {
    fn from(Vote { member, held }: Vote) -> Self {
        Self { member: Some(member.into()), held: Some(held.into()) }
    }
}

impl TryFrom<proto::Vote> for Vote {
    type Error = Malformed;

    fn try_from(proto::Vote { member, held }: proto::Vote) -> Result<Self, Malformed> {
        Ok(Self { member: member.ok_or(INCOMPLETE)?.into(), held: held.ok_or(INCOMPLETE)?.into() })
    }
}

impl From<Member> for proto::Member {
    fn from(Member { name, incarnation }: Member) -> Self {
        Self { name, incarnation: incarnation.0 }
    }
}

impl From<proto::Member> for Member {
    fn from(proto::Member { name, incarnation }: proto::Member) -> Self {
        Self::new(name, incarnation)
    }
}

impl RegisterQuestion {
    pub(crate) fn into_wire(self, app: String) -> proto::RegisterQuestion {
        let swap = match self {
            Self::Read => None,
            Self::Swap { expected, new } => {
                Some(proto::RegisterSwap { expected: expected.map(Into::into), new: Some(new.into()) })
            }
        };
        proto::RegisterQuestion { app, swap }
    }

    /// The app, and what is asked.
    pub(crate) fn from_wire(question: proto::RegisterQuestion) -> Result<(String, Self), Malformed> {
        let proto::RegisterQuestion { app, swap } = question;
        let Some(proto::RegisterSwap { expected, new }) = swap else { return Ok((app, Self::Read)) };
        let expected = expected.map(TryInto::try_into).transpose()?;
        Ok((app, Self::Swap { expected, new: new.ok_or(INCOMPLETE)?.try_into()? }))
    }
}

impl From<Result<RegisterAnswer, Refusal>> for proto::RegisterAnswer {
    fn from(answer: Result<RegisterAnswer, Refusal>) -> Self {
        match answer {
            Err(refusal) => Self { refusal: Some(refusal.into()), won: false, current: None },
            Ok(RegisterAnswer::Won) => Self { refusal: None, won: true, current: None },
            Ok(RegisterAnswer::Holds(current)) => {
                Self { refusal: None, won: false, current: current.map(Into::into) }
            }
        }
    }
}

impl TryFrom<proto::RegisterAnswer> for RegisterAnswer {
    type Error = Malformed;

    /// Of an answer that is no refusal.
    fn try_from(answer: proto::RegisterAnswer) -> Result<Self, Malformed> {
        match answer.won {
            true => Ok(Self::Won),
            false => answer.current.map(TryInto::try_into).transpose().map(Self::Holds),
        }
    }
}
