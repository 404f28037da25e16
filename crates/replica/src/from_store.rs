//! The right of whoever goes on with an app out of a store.
//!
//! Two swaps. The first makes the term his, and still names the store: should he fail to restore, the next may try. The
//! second names nobody, so that no other can come after him while the app runs; it alone makes the [`Right`].

use image::{Member, Register};

use crate::{Answer, Grounds, Question, Right};

/// Why an app can't be taken out of its store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoClaim {
    #[error("the register knows no such app; has it the same name and the same --arbiter as before?")]
    Unknown,
    #[error(
        "the register does not name the store: {owner} serves in term {term}, and what it has answered since need not be \
         in the store. `checksync restore` restores an older checkpoint, without any right to serve"
    )]
    NotNamed { owner: Member, term: u64 },
    #[error("{by} was faster and has term {term}")]
    Overtaken { by: String, term: u64 },
}

/// A term that is about to become ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreClaim {
    store: Member,
    before: Register,
    wanted: Register,
}

impl StoreClaim {
    /// `is_store` says which members of the register are stores.
    pub fn begin(
        known: Option<Register>,
        me: &Member,
        is_store: impl Fn(&Member) -> bool,
    ) -> Result<Self, NoClaim> {
        let before = known.ok_or(NoClaim::Unknown)?;
        let Some(store) = before.members.iter().find(|member| is_store(member)).cloned() else {
            return Err(NoClaim::NotNamed { owner: before.owner, term: before.term.0 });
        };
        let wanted = Register { members: vec![store.clone()], ..before.taken_by(me.clone()) };
        Ok(Self { store, before, wanted })
    }

    /// Who holds what is to be restored.
    pub fn store(&self) -> &Member {
        &self.store
    }

    pub fn question(&self) -> Question {
        Question::Swap { expected: Some(self.before.clone()), new: self.wanted.clone() }
    }

    /// Takes the answer to a question of ours. None: the register holds what we asked for. Else what is to be asked next:
    /// a swap that nobody answered may still land.
    pub fn answered(&self, answer: Answer) -> Result<Option<Question>, NoClaim> {
        let seen = match answer {
            Answer::Won => return Ok(None),
            Answer::Unreachable { .. } => return Ok(Some(Question::Read)),
            Answer::Value(seen) | Answer::Lost(seen) => seen.ok_or(NoClaim::Unknown)?,
        };
        if seen == self.wanted {
            Ok(None)
        } else if seen == self.before {
            Ok(Some(self.question()))
        } else {
            Err(NoClaim::Overtaken { by: seen.owner.to_string(), term: seen.term.0 })
        }
    }

    /// The term is ours, and everything that can fail is done: the claim to be the only one.
    pub fn settle(self) -> Alone {
        let wanted = self.wanted.with_members(Vec::new());
        Alone(Self { store: self.store, before: self.wanted, wanted })
    }

    pub fn term(&self) -> image::Term {
        self.wanted.term
    }
}

/// The second swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alone(StoreClaim);

impl Alone {
    pub fn question(&self) -> Question {
        self.0.question()
    }

    /// The right, or what to ask next.
    pub fn answered(&self, answer: Answer) -> Result<Result<Right, Box<Question>>, NoClaim> {
        let right = || Right::new(self.0.wanted.term, Grounds::Won(self.0.wanted.clone()));
        Ok(self.0.answered(answer)?.map_or_else(|| Ok(right()), |question| Err(Box::new(question))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> (Register, Member) {
        let store = Member::new("store s3://x", 7);
        (Register::first(Member::new("a", 7)).with_members(vec![store.clone()]), store)
    }

    fn begin(known: Register) -> Result<StoreClaim, NoClaim> {
        StoreClaim::begin(Some(known), &Member::new("c", 1), |member| member.name.starts_with("store "))
    }

    #[test]
    fn only_the_second_swap_makes_the_right_and_the_first_leaves_the_store_to_others() {
        let (register, store) = named();
        let claim = begin(register.clone()).unwrap();
        let Question::Swap { expected, new } = claim.question() else { panic!("a swap is asked for") };
        assert!(expected == Some(register.clone()) && new.follows(Some(&register)));
        assert_eq!((new.members.as_slice(), new.owner.name.as_str()), (&[store][..], "c"));
        assert_eq!(claim.answered(Answer::Won), Ok(None));
        let alone = claim.settle();
        let Question::Swap { new: last, .. } = alone.question() else { panic!("a swap is asked for") };
        assert!(last.follows(Some(&new)) && last.members.is_empty());
        let right = alone.answered(Answer::Won).unwrap().unwrap();
        assert_eq!((right.term(), right.grounds()), (last.term, &Grounds::Won(last)));
    }

    #[test]
    fn a_store_that_is_not_named_gives_no_right_and_who_comes_second_gets_none() {
        let (register, _) = named();
        let alone = register.with_members(vec![Member::new("b", 1)]);
        assert!(matches!(begin(alone), Err(NoClaim::NotNamed { term: 1, .. })));
        let claim = begin(register.clone()).unwrap();
        let other = register.taken_by(Member::new("d", 1));
        let overtaken = Err(NoClaim::Overtaken { by: "d#1".to_owned(), term: 2 });
        assert_eq!(claim.answered(Answer::Lost(Some(other.clone()))), overtaken);
        // The first was ours; then somebody else took it, before we ran.
        assert_eq!(claim.settle().answered(Answer::Value(Some(other))).map(drop), overtaken.map(drop));
    }

    #[test]
    fn a_swap_that_nobody_answered_counts_when_it_is_seen_and_is_made_again_when_not() {
        let (register, _) = named();
        let claim = begin(register.clone()).unwrap();
        let lost = Answer::Unreachable { why: "cut".to_owned() };
        assert_eq!(claim.answered(lost), Ok(Some(Question::Read)));
        assert_eq!(claim.answered(Answer::Value(Some(register))), Ok(Some(claim.question())));
        let Question::Swap { new, .. } = claim.question() else { panic!("a swap is asked for") };
        assert_eq!(claim.answered(Answer::Value(Some(new))), Ok(None));
    }
}
