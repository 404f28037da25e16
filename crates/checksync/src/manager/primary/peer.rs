//! What the standby says, and what it is told besides epochs and heartbeats.

use image::Member;
use replica::primary::Notice;
use replica::{Nanos, PrimaryEvent};
use wire::{Exit, FromPrimary, FromStandby, GuardArmed, HeartbeatAnswer, RefusalCode, StandbyState};

use super::{Actor, Session};
use crate::manager::introduction::wire_exit;
use crate::manager::link::LinkEvent;

impl Actor {
    pub(super) fn take_link(&mut self, number: u64, event: LinkEvent) {
        let current = self.session.as_ref().is_some_and(|session| session.number == number);
        match event {
            LinkEvent::Connected { standby, address, held, sender } => {
                tracing::info!(%standby, held = held.map(|id| id.to_string()), "a standby is connected");
                self.link_trouble = None;
                self.standby_address = Some(address);
                self.session = Some(Session { number, standby: standby.clone(), sender });
                self.heart.welcomed();
                self.step(PrimaryEvent::PeerConnected { standby, held });
            }
            LinkEvent::Said(message) if current => self.take_said(message),
            LinkEvent::Ended { why } if current => {
                tracing::warn!("the standby is lost: {why}");
                self.session = None;
                self.step(PrimaryEvent::PeerLost { why });
            }
            LinkEvent::Failed { why } => self.note_trouble(why),
            LinkEvent::Said(_) | LinkEvent::Ended { .. } => {} // Of a session that we let go.
        }
    }

    fn note_trouble(&mut self, why: String) {
        if self.link_trouble.as_ref() != Some(&why) {
            tracing::warn!("no standby: {why}");
            self.link_trouble = Some(why);
        }
    }

    pub(super) fn take_said(&mut self, message: FromStandby) {
        match message {
            FromStandby::Ack(id) => self.step(PrimaryEvent::Acked { id }),
            FromStandby::EpochRefused(refused) => {
                tracing::warn!(id = %refused.id, "the standby refused an epoch: {}", refused.why);
                self.step(PrimaryEvent::EpochRefused { id: refused.id, why: refused.why });
            }
            FromStandby::Progress(_) => {}
            FromStandby::Serving(term) => self.moved(term),
            // A standby that stops, or has forgotten the app as it was told, can take over no more.
            FromStandby::Refusal(refusal) if refusal.code == RefusalCode::Stopping && self.exited => {
                self.end_confirmed = true;
                if let Some(from) = self.session.as_ref().map(|session| session.standby.clone()) {
                    self.step(PrimaryEvent::EndConfirmed { from });
                }
            }
            FromStandby::Refusal(refusal) => {
                tracing::warn!("the standby ends the replication: {refusal}");
                self.session = None;
                self.step(PrimaryEvent::PeerLost { why: refusal.to_string() });
            }
        }
    }

    pub(super) fn take_answer(&mut self, from: String, answer: HeartbeatAnswer) {
        match answer.state {
            StandbyState::Serving | StandbyState::TakingOver => {
                self.step(PrimaryEvent::Superseded { term: answer.term, by: from });
            }
            StandbyState::Empty | StandbyState::Syncing | StandbyState::Ready | StandbyState::Stopping => {
                let Some(session) = self.session.as_ref().filter(|session| session.standby.name == from)
                else {
                    return;
                };
                let from = session.standby.clone();
                let (sent_at, held) = (Nanos(answer.sent_at_ns), answer.held);
                self.step(PrimaryEvent::HeartbeatAnswered { from, sent_at, held });
            }
        }
    }

    pub(super) fn tell(&mut self, standby: &Member, notice: &Notice) {
        let message = match notice {
            // The standby reads the register itself when it needs it.
            Notice::Enrolled(register) => {
                let (term, token_hash) = (register.term, self.token.hash());
                FromPrimary::GuardArmed(GuardArmed { term, token_hash })
            }
            Notice::HandedOver { .. } => FromPrimary::HandedOver,
            Notice::AppEnded { exit, .. } => {
                FromPrimary::AppExited { how: wire_exit(*exit), silenced: false }
            }
            Notice::AppCrashed { signal, .. } => {
                self.handed_over = true;
                FromPrimary::AppExited { how: Exit::Signal(*signal), silenced: true }
            }
        };
        let session = self.session.as_ref().filter(|session| session.standby == *standby);
        if let Some(session) = session {
            session.sender.send(message);
        }
    }
}
