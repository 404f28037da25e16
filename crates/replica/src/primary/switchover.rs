//! A planned move: an epoch after which the app does not go on here.
//!
//! ```text
//! Draining ── nothing is on its way ──▶ Last ── acknowledged ──▶ Life::Moving ── the standby won the swap ──▶ Ended
//!     └────────── called off ◀───────────┘                            └── our swap won: the app goes on here
//! ```
//!
//! Until the standby is told, calling it off is a matter of letting the app go on. From then on it may own the term at
//! any moment, so the app stays still and silent until the register says whose it is: if the standby does not take it
//! in time, a swap to "alone" takes its chance away, and exactly one of the two swaps wins.

use image::{CheckpointId, Member};

use super::{Life, Notice, Output, Permit, Primary, PrimaryAction, Switchover};
use crate::{Fencing, Nanos};

/// What is planned, while the standby has not been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planned {
    /// What is on its way is to arrive first, so that the last epoch is all that clients wait for.
    Draining { until: Nanos },
    /// The app stands still, or is about to.
    Last { id: CheckpointId, until: Nanos },
}

impl Primary {
    pub(super) fn switch_over(&mut self, now: Nanos, to: Option<&str>, actions: &mut Vec<PrimaryAction>) {
        match self.obstacle(now, to) {
            None => self.planned = Some(Planned::Draining { until: now + self.config.timing.farewell() }),
            Some(why) => actions.push(PrimaryAction::Switchover(Switchover::CalledOff { why })),
        }
    }

    fn obstacle(&self, now: Nanos, to: Option<&str>) -> Option<String> {
        if self.planned.is_some() || self.life != Life::Serving || self.stopping {
            return Some("the app is being moved or ended already".to_owned());
        }
        if self.config.fencing != Fencing::Register {
            return Some(
                "a move that the standby dies in can be called off by a register only; give --arbiter"
                    .to_owned(),
            );
        }
        if let Some(why) = self.weakness(now) {
            return Some(format!("the standby could not take over: {why}"));
        }
        let standby = self.link.as_ref().map(|link| link.standby.name.as_str());
        to.filter(|to| Some(*to) != standby)
            .map(|to| format!("{to} is not its standby, {} is", standby.unwrap_or("nobody")))
    }

    pub(super) fn cancel_switchover(&mut self, actions: &mut Vec<PrimaryAction>) {
        self.call_off("the operator called it off".to_owned(), actions);
    }

    /// The app goes on here, whatever was on its way.
    fn call_off(&mut self, why: String, actions: &mut Vec<PrimaryAction>) {
        let Some(planned) = self.planned.take() else { return };
        if matches!(planned, Planned::Last { .. }) {
            self.moved_with = Some(self.newest);
            actions.push(PrimaryAction::Thaw);
        }
        actions.push(PrimaryAction::Switchover(Switchover::CalledOff { why }));
    }

    /// The next step of what is planned, as far as the state allows one.
    pub(super) fn settle_switchover(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let Some(planned) = self.planned else { return self.settle_moving(now, actions) };
        let (Planned::Draining { until } | Planned::Last { until, .. }) = planned;
        if self.life != Life::Serving || self.stopping {
            return self.call_off("the app is ending".to_owned(), actions);
        }
        if let Some(why) = self.weakness(now) {
            return self.call_off(why.to_string(), actions);
        }
        if now >= until {
            return self.call_off("the standby did not acknowledge in time".to_owned(), actions);
        }
        match planned {
            Planned::Draining { .. } => self.capture_last(now, actions),
            Planned::Last { id, .. } if self.committed == Some(id) => self.hand_to_standby(now, actions),
            Planned::Last { .. } => {}
        }
    }

    fn capture_last(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let Some(link) = self.link.as_ref().filter(|link| link.in_flight() == 0 && !link.needs_full) else {
            return;
        };
        let Some(parent) = link.parent().filter(|_| self.capturing.is_none()) else { return };
        let id = self.begin_capture(now, image::Sync::Since(parent), link.session);
        self.planned = Some(Planned::Last { id, until: now + self.config.timing.register_timeout() });
        actions.push(PrimaryAction::CaptureLast { id, parent });
        actions.push(PrimaryAction::Switchover(Switchover::Begun));
    }

    /// The standby holds everything. What that covers has left by now; nothing more does.
    fn hand_to_standby(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let Some(to) = self.link.as_ref().map(|link| link.standby.clone()) else { return };
        if self.desk.rivals().any(|rival| *rival != to) || self.release_due.is_some() || self.desk.busy() {
            return;
        }
        self.planned = None;
        let until = now + self.config.timing.register_timeout() * 2;
        self.life = Life::Moving { to, until, exit: None };
        self.set_permit(Permit::Shut, actions);
        self.set_output(Output::Muted, actions);
        self.tell(Notice::HandedOver { reign: self.reign() }, actions);
        actions.push(PrimaryAction::Switchover(Switchover::Told));
    }

    /// Whose the term is, the register has said: nobody can take over any more, so it is ours.
    ///
    /// The word to the standby may still be on its way, and must not be heard once the standby is enrolled again: its
    /// session ends with it.
    fn settle_moving(&mut self, now: Nanos, actions: &mut Vec<PrimaryAction>) {
        let Life::Moving { to, exit, .. } = &self.life else { return };
        if self.desk.rivals().next().is_some() {
            return;
        }
        let (why, exit) = (format!("{to} did not take over in time"), *exit);
        self.life = Life::Serving;
        self.moved_with = Some(self.newest);
        self.drop_peer(why.clone(), actions);
        let permit = self.safe_permit();
        self.set_permit(permit, actions);
        // The app has its address back before it can ask for it.
        self.settle_output(now, actions);
        match exit {
            Some(exit) => self.app_exited(now, exit, actions),
            None => actions.push(PrimaryAction::Thaw),
        }
        if self.stopping {
            actions.push(PrimaryAction::StopApp);
        }
        actions.push(PrimaryAction::Switchover(Switchover::CalledOff { why }));
    }

    /// Who may take over in a move that has lasted long enough: nobody.
    pub(super) fn moving_members(&self, now: Nanos) -> Option<Vec<Member>> {
        match &self.life {
            Life::Moving { until, .. } if now >= *until => Some(Vec::new()),
            _ => None,
        }
    }
}
