//! Who asks a standby's machine something, while a step is under way: where its refusals and answers go.

use image::{CheckpointId, Term};
use replica::Standby;
use replica::standby::{Refusal as Refused, StandbyStatus};
use wire::{Heartbeat, HeartbeatAnswer, Hello, Opening, Outgoing, Refusal, RefusalCode, StandbyState};

#[derive(Debug, Default)]
pub struct Asker {
    pub opening: Option<(Box<Hello>, Opening)>,
    pub beat: Option<(Heartbeat, Outgoing<HeartbeatAnswer>)>,
}

impl Asker {
    /// `term` is the one that is served here, or followed; `serving`: the app runs here.
    pub fn refuse(&mut self, app: &str, refusal: &Refused, term: Option<Term>, serving: bool) {
        if let Some((hello, opening)) = self.opening.take() {
            tracing::warn!(app, primary = hello.primary_name, "refused a primary: {refusal}");
            return opening.refuse(Refusal {
                code: RefusalCode::Busy,
                why: refusal.to_string(),
                way_out: "wait until that is over, or end the other".to_owned(),
            });
        }
        match refusal {
            Refused::Serving { .. } if serving => self.answer(term, None, StandbyState::Serving),
            Refused::Serving { .. } => self.answer(term, None, StandbyState::TakingOver),
            Refused::Claiming | Refused::OldTerm { .. } | Refused::Followed(_) => {}
        }
    }

    pub fn answer(&mut self, term: Option<Term>, held: Option<CheckpointId>, state: StandbyState) {
        let Some((beat, answers)) = self.beat.take() else { return };
        let term = term.unwrap_or(beat.term);
        let answer =
            HeartbeatAnswer { sequence: beat.sequence, sent_at_ns: beat.sent_at_ns, term, held, state };
        // A primary that takes no answers is told nothing by one more; that it is gone, the stream tells.
        let _ = answers.try_send(answer);
    }
}

/// The term that is served here, or followed.
pub fn term_of(status: &StandbyStatus, machine: &Standby) -> Option<Term> {
    match status {
        StandbyStatus::Promoting { term } | StandbyStatus::Serving { term } => Some(*term),
        StandbyStatus::Empty
        | StandbyStatus::Receiving
        | StandbyStatus::Following
        | StandbyStatus::CutOff { .. }
        | StandbyStatus::Suspecting(_)
        | StandbyStatus::Claiming { .. }
        | StandbyStatus::Discarded(_) => machine.primary().map(|(_, reign)| reign.term),
    }
}
