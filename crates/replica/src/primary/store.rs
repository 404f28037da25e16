//! A store among the members: it holds epochs as a standby does, and is named in the register as one.
//!
//! Nobody takes over there by himself. Whoever restores from it swaps the register first ([`crate::StoreClaim`]) and then
//! begins a run in the store, which closes ours. So a look at the store that finds no later run is what an answered
//! heartbeat is from a standby: until [`Timing::store_permit`](crate::Timing::store_permit) after it was sent nobody is
//! heard who has restored from there. And what is reported as held was looked for again after it was written: had
//! somebody begun before, it would be no part of what he restores.

use image::{Member, Register};

use super::Primary;
use super::link::Link;
use crate::Nanos;

impl Primary {
    pub(super) fn is_store(&self, member: &Member) -> bool {
        self.config.store.as_ref() == Some(member)
    }

    /// Our store, if it holds what an earlier life of a manager stored there.
    pub(super) fn in_store<'a>(&self, earlier: &'a Register) -> Option<&'a Member> {
        let ours = self.config.store.as_ref()?;
        earlier.members.iter().find(|member| member.name == ours.name)
    }

    /// How long after a heartbeat that this member answered the app may be heard.
    pub(super) fn permit_from(&self, member: &Member) -> Nanos {
        match self.is_store(member) {
            true => self.config.timing.store_permit(),
            false => self.config.timing.permit(),
        }
    }

    pub(super) fn answers(&self, now: Nanos, link: &Link) -> bool {
        link.answers(now, self.permit_from(&link.standby))
    }
}
