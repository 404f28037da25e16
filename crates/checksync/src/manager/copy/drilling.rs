//! Drills of this copy: who may have one, when the next is due, and that a takeover ends them.

use std::sync::Arc;
use std::time::Duration;

use engine::Command;
use engine::twin;
use replica::standby::StandbyStatus;

use super::{Actor, Input, Setup};
use crate::manager::control::News;
use crate::manager::drill::{self, Book, DrillStatus, Drilled, Order, Place, Record, Running, Trigger};
use crate::manager::wall_clock_ns;
use crate::mpsc::SendError;

/// After one that something came between.
const SOON_AGAIN: Duration = Duration::from_secs(600);

/// What a standby is told of drills.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    pub every: Option<Duration>,
    /// For those that are not told otherwise; before what the primary says.
    pub health: Option<String>,
    pub patience: Duration,
}

/// The drills of one copy.
#[derive(Debug)]
pub(super) struct Drills {
    book: Book,
    status: DrillStatus,
    running: Option<Running>,
    next_at_ns: Option<u64>,
}

impl Drills {
    pub fn new(setup: &Setup) -> Self {
        let (book, report) = Book::open(setup.state.as_deref(), &setup.app);
        let status = DrillStatus::default();
        let next_at_ns = setup.drills.every.map(|every| {
            // One that was never tried is tried as soon as there is something to try.
            report.last.as_ref().map_or(0, |last| later(last.began_at_ns, every))
        });
        status.tell(|now| *now = report);
        setup.board.set_drills(&setup.app, status.clone());
        let drills = Self { book, status, running: None, next_at_ns };
        drills.tell();
        drills
    }

    fn tell(&self) {
        self.status.tell(|report| {
            (report.running, report.next_at_ns) = (self.running.is_some(), self.next_at_ns);
        });
    }

    /// At once: what comes now is more important.
    pub fn call_off(&mut self) {
        self.running = None;
    }

    fn is_due(&self) -> bool {
        self.running.is_none() && self.next_at_ns.is_some_and(|at| at <= wall_clock_ns())
    }

    fn note(&mut self, record: &Record, every: Option<Duration>) {
        self.running = None;
        self.book.write_down(record);
        self.status.tell(|report| report.note(record.clone()));
        let again = |every: Duration| match record.outcome {
            drill::Outcome::Passed | drill::Outcome::Failed => every,
            drill::Outcome::Aborted | drill::Outcome::Refused => every.min(SOON_AGAIN),
        };
        self.next_at_ns = every.map(|every| later(wall_clock_ns(), again(every)));
        self.tell();
    }
}

fn later(at_ns: u64, span: Duration) -> u64 {
    at_ns.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

impl Actor {
    /// Begins a drill, or says why not.
    pub(super) fn take_drill(&mut self, mut order: Order) {
        if let Some(why) = self.why_no_drill() {
            tracing::info!(app = self.setup.app, "no drill: {why}");
            if let Some(listener) = order.listener.take() {
                listener.say(News::CalledOff { why });
            }
            return;
        }
        order.health = order.health.or_else(|| self.setup.drills.health.clone());
        order.health = order.health.or_else(|| self.succession.health());
        let Some(body) = &self.body else { return };
        let (showing, twin) = twin::twin(body.engine.lender());
        body.engine.send(Command::Show(showing));
        let place = Place {
            app: self.setup.app.clone(),
            host: self.setup.host.clone(),
            address: self.setup.network.as_ref().map(|network| network.address),
            state: self.setup.state.clone(),
            shipped: Arc::clone(&self.setup.shipped),
        };
        let post = self.post.clone();
        let done = move |drilled| {
            if let Err(SendError(Input::Drilled(drilled))) = post.send(Input::Drilled(Box::new(drilled))) {
                // The actor ended first.
                drilled.tell();
            }
        };
        match drill::start(place, order, twin, done) {
            Ok(running) => self.drills.running = Some(running),
            Err(why) => tracing::error!(app = self.setup.app, "cannot start a drill: {why}"),
        }
        self.drills.tell();
    }

    fn why_no_drill(&self) -> Option<String> {
        if self.drills.running.is_some() {
            return Some("a drill of this app is under way; wait for its end".to_owned());
        }
        let why = match &self.status {
            StandbyStatus::Following | StandbyStatus::CutOff { .. } if self.body.is_some() => return None,
            StandbyStatus::Empty | StandbyStatus::Receiving => {
                "no checkpoint is whole here yet; wait for the first full sync".to_owned()
            }
            StandbyStatus::Discarded(why) => format!("there is no copy any more: {why}"),
            StandbyStatus::Suspecting(_)
            | StandbyStatus::Claiming { .. }
            | StandbyStatus::Promoting { .. } => "a takeover is under way".to_owned(),
            StandbyStatus::Serving { .. } | StandbyStatus::Following | StandbyStatus::CutOff { .. } => {
                "the app is served here; a drill belongs on its standby".to_owned()
            }
        };
        Some(why)
    }

    /// As the schedule says.
    pub(super) fn drill_if_due(&mut self) {
        if self.drills.is_due() && self.why_no_drill().is_none() {
            let patience = self.setup.drills.patience;
            self.take_drill(Order { health: None, patience, trigger: Trigger::Schedule, listener: None });
        }
    }

    pub(super) fn drilled(&mut self, drilled: Drilled) {
        let record = &drilled.record;
        let (outcome, why) = (record.outcome, record.why.as_deref().unwrap_or_default());
        match outcome {
            drill::Outcome::Failed => tracing::error!(app = record.app, "DRILL FAILED: {why}"),
            drill::Outcome::Passed | drill::Outcome::Aborted | drill::Outcome::Refused => {
                tracing::info!(app = record.app, ?outcome, restore_us = record.restore_us, "drill: {why}");
            }
        }
        self.drills.note(record, self.setup.drills.every);
        drilled.tell();
    }
}
