//! What the standby says, and what it is told besides epochs and heartbeats.

use engine::Command;
use image::Member;
use replica::primary::Notice;
use replica::{Nanos, PrimaryEvent};
use wire::{Exit, FromPrimary, FromStandby, GuardArmed, HeartbeatAnswer, RefusalCode, StandbyState};

use super::Actor;
use super::seats::Session;
use crate::manager::introduction::wire_exit;
use crate::manager::link::LinkEvent;

impl Actor {
    pub(super) fn take_link(&mut self, number: usize, session: u64, event: LinkEvent) {
        let seat = self.seats.at(number);
        let current = seat.session.as_ref().filter(|known| known.number == session);
        let current = current.map(|known| known.standby.clone());
        match (event, current) {
            (LinkEvent::Connected { standby, address, held, sender }, _) => {
                tracing::info!(%standby, held = held.map(|id| id.to_string()), "a standby is connected");
                seat.trouble = None;
                seat.address = Some(address);
                seat.session = Some(Session { number: session, standby: standby.clone(), sender });
                seat.heart.welcomed();
                self.step(PrimaryEvent::PeerConnected { standby, held });
            }
            (LinkEvent::Said(message), Some(from)) => self.take_said(number, from, message),
            (LinkEvent::Ended { why }, Some(standby)) => {
                tracing::warn!(%standby, "a standby is lost: {why}");
                self.let_go_of(standby, why);
            }
            (LinkEvent::Failed { why }, _) => self.note_trouble(number, why),
            (LinkEvent::Said(_) | LinkEvent::Ended { .. }, None) => {} // Of a session that we let go.
        }
    }

    fn note_trouble(&mut self, number: usize, why: String) {
        let seat = self.seats.at(number);
        if seat.trouble.as_ref() != Some(&why) {
            tracing::warn!("no standby: {why}");
            seat.trouble = Some(why);
        }
    }

    /// Its session is over.
    fn let_go_of(&mut self, standby: Member, why: String) {
        self.seats.dismiss(&standby);
        self.step(PrimaryEvent::PeerLost { standby, why });
    }

    pub(super) fn let_go(&mut self, standby: &Member, why: &str) {
        if self.seats.of(standby).is_some() {
            tracing::warn!(%standby, "let a standby go: {why}");
            self.let_go_of(standby.clone(), why.to_owned());
        }
    }

    fn take_said(&mut self, number: usize, from: Member, message: FromStandby) {
        match message {
            FromStandby::Ack(id) => self.step(PrimaryEvent::Acked { from, id }),
            FromStandby::EpochRefused(refused) => {
                tracing::warn!(id = %refused.id, %from, "a standby refused an epoch: {}", refused.why);
                if !refused.lacks.is_empty() {
                    let files = refused.lacks.len();
                    tracing::info!(files, "content of files is asked for, and goes with the next full sync");
                    self.command(Command::Ship(refused.lacks));
                }
                self.step(PrimaryEvent::EpochRefused { from, id: refused.id, why: refused.why });
            }
            FromStandby::Progress(_) => {}
            FromStandby::Serving(term) => self.moved(from.name, term),
            // A standby that stops, or has forgotten the app as it was told, can take over no more.
            FromStandby::Refusal(refusal) if refusal.code == RefusalCode::Stopping && self.exited => {
                self.seats.at(number).end_confirmed = true;
                self.step(PrimaryEvent::EndConfirmed { from });
            }
            FromStandby::Refusal(refusal) => {
                tracing::warn!(%from, "a standby ends the replication: {refusal}");
                self.let_go_of(from, refusal.to_string());
            }
        }
    }

    pub(super) fn take_answer(&mut self, number: usize, from: String, answer: HeartbeatAnswer) {
        match answer.state {
            StandbyState::Serving | StandbyState::TakingOver => {
                self.step(PrimaryEvent::Superseded { term: answer.term, by: from });
            }
            StandbyState::Empty | StandbyState::Syncing | StandbyState::Ready | StandbyState::Stopping => {
                let session = self.seats.at(number).session.as_ref();
                let Some(session) = session.filter(|session| session.standby.name == from) else { return };
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
        if let Some(session) = self.seats.of(standby) {
            session.sender.send(message);
        }
        // A guard that was armed before knows nothing of this one.
        if matches!(notice, Notice::Enrolled(_)) {
            self.arm_guard();
        }
    }
}
