//! A planned move, as the operator sees it.

use std::time::{Duration, Instant};

use engine::Command;
use image::{CheckpointId, Term};
use replica::primary::{Ending, Switchover};
use replica::{Fencing, Nanos, PrimaryEvent};

use super::{Actor, Input};
use crate::manager::control::{Listener, News, Order};
use crate::manager::network::AppNetwork;
use crate::manager::now;

#[derive(Debug, Default)]
pub(super) struct Moving {
    listener: Option<Listener>,
    /// Since when clients wait.
    stands_since: Option<Instant>,
    /// The standby was told to take over.
    told: bool,
    /// The last capture, as long as it is under way, and whether its move was called off meanwhile.
    last: Option<(CheckpointId, bool)>,
}

impl Actor {
    pub(super) fn take_order(&mut self, order: Order, listener: Listener) {
        match order {
            Order::SwitchOver { to } => {
                if self.moving.listener.is_some() {
                    return listener.say(News::CalledOff { why: "another move is under way".to_owned() });
                }
                listener.say(News::Expect { checkpoint_us: self.pauses.pauses().map(|pauses| pauses.p50) });
                self.moving.listener = Some(listener);
                self.step(PrimaryEvent::SwitchOver { to });
            }
            Order::Pause { .. } if self.settings.shared.fencing != Fencing::Register => {
                let why = "only a register keeps a standby from taking over; give --arbiter".to_owned();
                listener.say(News::CalledOff { why });
            }
            Order::Pause { millis } => {
                self.step(PrimaryEvent::Pause { until: now() + Nanos::from_millis(millis) });
                listener.say(News::Done);
            }
            Order::Drill { .. } => {
                let why = "the app is served here; a drill belongs on its standby".to_owned();
                listener.say(News::CalledOff { why });
            }
        }
    }

    /// Whoever asked for the move has gone.
    pub(super) fn withdraw(&mut self) {
        if self.moving.listener.as_ref().is_some_and(Listener::is_gone) {
            self.step(PrimaryEvent::CancelSwitchover);
        }
    }

    pub(super) fn capture_last(&mut self, id: CheckpointId, parent: CheckpointId) {
        self.parent = Some(parent);
        self.moving.stands_since = Some(Instant::now());
        self.moving.last = Some((id, false));
        let barrier = self.network.as_ref().and_then(AppNetwork::last_barrier);
        self.command(Command::CaptureLast { id, parent, barrier });
    }

    pub(super) fn thaw(&mut self) {
        self.open_doors();
        if let Some((_, called_off)) = &mut self.moving.last {
            *called_off = true;
        }
        self.command(Command::Thaw);
    }

    /// The capture is over. Its barrier may have shut the doors after the move was called off.
    pub(super) fn last_is_over(&mut self, id: CheckpointId) {
        if let Some((_, called_off)) = self.moving.last.take_if(|(last, _)| *last == id)
            && called_off
        {
            self.open_doors();
        }
    }

    fn open_doors(&self) {
        if let Some(network) = &self.network {
            network.open_again();
        }
    }

    pub(super) fn tell_operator(&mut self, news: Switchover) {
        match news {
            Switchover::Begun => tracing::warn!("the app stands still, to go on at the standby"),
            Switchover::Told => self.moving.told = true,
            Switchover::CalledOff { why } => {
                tracing::warn!("the move is called off: {why}");
                let last = self.moving.last;
                if let Some(listener) =
                    std::mem::replace(&mut self.moving, Moving { last, ..Moving::default() }).listener
                {
                    listener.say(News::CalledOff { why });
                }
            }
        }
    }

    /// The app runs at the standby.
    pub(super) fn moved(&mut self, to: String, term: Term) {
        if let Some(since) = self.moving.stands_since.take() {
            let pause = since.elapsed();
            tracing::warn!(to, pause_us = pause.as_micros(), "moved");
            if let Some(listener) = self.moving.listener.take() {
                listener.say(News::Moved { to: to.clone(), pause_us: pause.as_micros() as u64 });
                listener.flush();
            }
        }
        self.step(PrimaryEvent::Superseded { term, by: to });
    }

    /// The register may tell us of the end before the standby does, who knows how long it took.
    pub(super) fn await_move(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let deadline = Instant::now() + PATIENCE;
        let planned = self.moving.told && matches!(self.ending, Some(Ending::HandedOver { .. }));
        while planned && self.moving.stands_since.is_some() && self.seats.sessions().next().is_some() {
            match self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Input::Link(seat, number, event)) => self.take_link(seat, number, event),
                Ok(_) => {}
                Err(_) => return tracing::warn!("the standby has not said that the app runs there"),
            }
        }
    }
}
