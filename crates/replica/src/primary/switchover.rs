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

use super::link::Link;
use super::{Life, Notice, Output, Permit, Primary, PrimaryAction, Reason, Switchover};
use crate::{Fencing, Nanos};

/// What is planned, while the standby has not been told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Planned {
    /// What is on its way is to arrive first, so that the last epoch is all that clients wait for. Of several standbys
    /// only this one may take over from now on, by itself.
    Draining { to: Member, until: Nanos },
    /// The app stands still, or is about to.
    Last { to: Member, id: CheckpointId, until: Nanos },
}

impl Planned {
    pub(super) fn to(&self) -> &Member {
        match self {
            Self::Draining { to, .. } | Self::Last { to, .. } => to,
        }
    }
}

impl Primary {
    pub(super) fn switch_over(&mut self, now: Nanos, to: Option<&str>, actions: &mut Vec<PrimaryAction>) {
        match self.destination(now, to) {
            Ok(to) => {
                let until = now + self.config.timing.farewell();
                self.planned = Some(Planned::Draining { to, until });
            }
            Err(why) => actions.push(PrimaryAction::Switchover(Switchover::CalledOff { why })),
        }
    }

    /// Who is to go on with the app: the one that was named, or of those that could the one that holds most.
    fn destination(&self, now: Nanos, to: Option<&str>) -> Result<Member, String> {
        if self.planned.is_some() || self.life != Life::Serving || self.stopping {
            return Err("the app is being moved or ended already".to_owned());
        }
        if self.config.fencing != Fencing::Register {
            return Err(
                "a move that the standby dies in can be called off by a register only; give --arbiter"
                    .to_owned(),
            );
        }
        if let Some(why) = self.weakness(now) {
            return Err(format!("the standby could not take over: {why}"));
        }
        let able = |link: &&Link| {
            self.is_eligible(link) && self.ailment(now, link).is_none() && !self.is_store(&link.standby)
        };
        let Some(to) = to else {
            let newest = self.links.iter().filter(able).max_by_key(|link| link.held);
            return newest
                .map(|link| link.standby.clone())
                .ok_or_else(|| "nobody could take over".to_owned());
        };
        let Some(link) = self.links.iter().find(|link| link.standby.name == to) else {
            let names: Vec<&str> = self.links.iter().map(|link| link.standby.name.as_str()).collect();
            return Err(format!("{to} is not its standby, {} is", names.join(" or ")));
        };
        if !able(&link) {
            let why = self.ailment(now, link).unwrap_or(Reason::NotEnrolled);
            return Err(format!("{to} could not take over: {why}"));
        }
        Ok(link.standby.clone())
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
        let Some(planned) = self.planned.clone() else { return self.settle_moving(now, actions) };
        let (Planned::Draining { to, until } | Planned::Last { to, until, .. }) = &planned;
        let Some(link) = self.link(to) else {
            return self.call_off(format!("{to} is not there any more"), actions);
        };
        if self.life != Life::Serving || self.stopping {
            return self.call_off("the app is ending".to_owned(), actions);
        }
        if let Some(why) = self.weakness(now) {
            return self.call_off(why.to_string(), actions);
        }
        if now >= *until {
            return self.call_off("the standby did not acknowledge in time".to_owned(), actions);
        }
        match planned {
            Planned::Draining { to, .. } => self.capture_last(now, to, actions),
            Planned::Last { to, id, .. } if link.holds(id) && self.committed == Some(id) => {
                self.hand_to_standby(now, to, actions);
            }
            Planned::Last { .. } => {}
        }
    }

    fn capture_last(&mut self, now: Nanos, to: Member, actions: &mut Vec<PrimaryAction>) {
        if !self.only_rival_is(&to) || self.capturing.is_some() {
            return;
        }
        let ready = self.link(&to).filter(|link| link.in_flight() == 0 && !link.needs_full);
        let Some(parent) = ready.and_then(Link::parent) else { return };
        let id = self.begin_capture(now, image::Sync::Since(parent), Vec::new());
        self.planned = Some(Planned::Last { to, id, until: now + self.config.timing.register_timeout() });
        actions.push(PrimaryAction::CaptureLast { id, parent });
        actions.push(PrimaryAction::Switchover(Switchover::Begun));
    }

    /// The register is known to let this one take over, by itself, and nobody else.
    fn only_rival_is(&self, to: &Member) -> bool {
        self.desk.register().is_some_and(|register| register.lists(to))
            && self.desk.possible().all(|register| register.quorum <= 1)
            && self.desk.rivals().all(|rival| rival == to)
    }

    /// The standby holds everything. What that covers has left by now; nothing more does.
    fn hand_to_standby(&mut self, now: Nanos, to: Member, actions: &mut Vec<PrimaryAction>) {
        if !self.only_rival_is(&to) || self.desk.busy() {
            return;
        }
        self.planned = None;
        let until = now + self.config.timing.register_timeout() * 2;
        self.life = Life::Moving { to: to.clone(), until, exit: None };
        self.set_permit(Permit::Shut, actions);
        self.set_output(Output::Muted, actions);
        let notice = Notice::HandedOver { reign: self.reign() };
        actions.push(PrimaryAction::Tell { standby: to, notice });
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
        let (why, exit, to) = (format!("{to} did not take over in time"), *exit, to.clone());
        self.life = Life::Serving;
        self.moved_with = Some(self.newest);
        self.drop_peer(&to, why.clone(), actions);
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

    /// It has lasted long enough: nobody is to take over any more.
    pub(super) fn moving_is_over(&self, now: Nanos) -> bool {
        matches!(&self.life, Life::Moving { until, .. } if now >= *until)
    }
}
