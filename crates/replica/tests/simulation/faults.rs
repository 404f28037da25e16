//! What goes wrong in the world and what each fault comes to, and what is made wrong to see that it would be noticed.

use replica::primary::AppExit;
use replica::{Nanos, PrimaryEvent, Reign};

use super::{A, B, Event, Message, World};

/// What is broken on purpose, to show that the simulation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// The kernel lets the app speak this long after its permit has run out: T1 > T2.
    PermitTooLong,
    /// The standby takes an epoch for prepared when its header comes.
    PreparedTooEarly,
    /// Every swap wins, whatever it expects.
    RegisterForgets,
    /// Output leaves whether or not it is covered.
    GateLeaks,
    /// A standby whose copy is lost keeps the stream open.
    LossKeptSilent,
    /// The app runs on after the last epoch of a planned move.
    RunsOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ManagerDies,
    HostDies,
    /// The cell's init dies, and with it the app; nobody says a word.
    GuardDies,
    StandbyDies,
    AppCrashes,
    AppExits,
    AppExecutes,
    CaptureFails,
    /// The standby's next epoch can't be applied.
    ApplyFails,
    Child(bool),
    StreamBreaks,
    /// No message gets from one host to the other.
    Cut(usize, bool),
    /// A host does not reach the register.
    Unreachable(usize, bool),
    Paused(usize, Nanos),
    /// Not a fault, but something that meets them: the operator moves the app, and thinks better of it.
    SwitchOver,
    CancelSwitchover,
    /// Everything works again, dead managers are started anew.
    Heal,
}

impl World {
    pub(super) fn guard_speaks(&mut self, reign: Reign, tries: u32) {
        self.a.app_alive = false;
        if tries > 0 && self.a.alive {
            self.datagram(B, Message::GuardsWord(reign));
            self.after((1_000, 20_000), Event::GuardSpeaks(reign, tries - 1));
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::ManagerDies => self.manager_dies(),
            Fault::HostDies => {
                (self.a.alive, self.a.app_alive, self.a.machine) = (false, false, None);
                self.after((500, 300_000), Event::StreamEnd(B, self.a.session));
            }
            Fault::GuardDies => self.app_dies(AppExit::Signal(9)),
            Fault::AppCrashes => self.app_dies(AppExit::Signal(11)),
            Fault::AppExits => self.app_dies(AppExit::Code(3)),
            Fault::StandbyDies => {
                (self.b.machine, self.b.serving, self.b.applied, self.b.session) = (None, None, None, 0);
                self.after((50, 100_000), Event::StreamEnd(A, self.a.session));
            }
            Fault::AppExecutes if self.a.stands.is_some() => {}
            Fault::AppExecutes => self.step_primary(PrimaryEvent::Executed),
            Fault::ApplyFails => self.b.fail_next_apply = true,
            Fault::CaptureFails => self.a.fail_next_capture = true,
            Fault::Child(true) => self.step_primary(PrimaryEvent::ChildSeen { pid: 7 }),
            Fault::Child(false) => self.step_primary(PrimaryEvent::ChildGone { pid: 7 }),
            Fault::StreamBreaks => {
                self.after((50, 100_000), Event::StreamEnd(A, self.a.session));
                self.after((50, 100_000), Event::StreamEnd(B, self.a.session));
            }
            Fault::Cut(to, cut) => self.cut[to] = cut,
            Fault::Unreachable(host, unreachable) => self.unreachable[host] = unreachable,
            Fault::Paused(host, span) => self.paused_until[host] = self.now + span,
            Fault::SwitchOver => self.step_primary(PrimaryEvent::SwitchOver { to: None }),
            Fault::CancelSwitchover => self.step_primary(PrimaryEvent::CancelSwitchover),
            Fault::Heal => self.heal(),
        }
    }

    fn manager_dies(&mut self) {
        let Some(machine) = self.a.machine.take() else { return };
        // Nobody holds the app still any more; whether it is heard is the permit's to say.
        (self.a.stands, self.a.moving) = (None, false);
        let reign = machine.reign();
        self.after((50, 2_000), Event::StreamEnd(B, self.a.session));
        if self.a.guard_armed && self.a.app_alive {
            self.after((200, 2_000), Event::GuardSpeaks(reign, 5));
        }
    }

    fn app_dies(&mut self, exit: AppExit) {
        if !std::mem::take(&mut self.a.app_alive) {
        } else if self.a.stands.is_some() {
            self.a.ended_standing = Some(exit);
        } else {
            self.after((20, 500), Event::Primary(self.a.life, PrimaryEvent::AppExited(exit)));
        }
    }

    fn heal(&mut self) {
        (self.cut, self.unreachable, self.loss_percent) = ([false; 2], [false; 2], 0);
        self.step_primary(PrimaryEvent::ChildGone { pid: 7 });
        if self.b.machine.is_none() {
            self.start_standby();
        }
        if self.a.machine.is_none() && self.a.alive && self.a.over.is_none() {
            self.start_manager();
        }
    }
}
