//! What goes wrong in the world and what each fault comes to, and what is made wrong to see that it would be noticed.

use image::{Member, Register};
use replica::primary::AppExit;
use replica::{Nanos, PrimaryEvent, Reign};

use super::{Consistency, Event, Message, NAMES, Ruler, Whom, World};

/// What is broken on purpose, to show that the simulation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// A standby that was restarted, and has lost its copy, goes on under its old incarnation with what it held.
    RemembersItsEarlierLife,
    /// A standby is written into the register as soon as it is connected.
    EnrolledTooEarly,
    /// The ledger forgets what is committed, whoever may be behind.
    ForgetsForTheSlow,
    /// One acknowledgement counts as one of each standby.
    OneSpeaksForAll,
    /// A standby that has spoken up holds more than it said.
    SpeaksTooEarly,
    /// A takeover hears nobody else, whatever the register asks for.
    HearsNobody,
    /// The store in the background is given what was captured, committed or not.
    ArchivesTooEarly,
    /// The kernel lets an app speak this long after its permit has run out: T1 > T2.
    PermitTooLong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    ServingManagerDies,
    ServingHostDies,
    /// The daemon of whoever protects the app.
    StandbyDies,
    AppCrashes,
    /// The next epoch that the standby takes can't be applied.
    ApplyFails,
    StreamBreaks,
    /// No message gets to a host or from it.
    Cut(usize, bool),
    /// A host does not reach the register.
    Unreachable(usize, bool),
    Paused(usize, Nanos),
    /// Not a fault, but something that meets them: the operator moves the app.
    SwitchOver,
    /// Everything works again.
    Heal,
}

impl Flaw {
    /// What a standby is shown of the register.
    pub(super) fn shows(self, whom: Whom, mut current: Register) -> Register {
        if self == Self::HearsNobody && matches!(whom, Whom::Standby(..)) {
            current.quorum = 1;
        }
        current
    }

    /// What its swap would write.
    pub(super) fn writes(self, whom: Whom, mut new: Register) -> Register {
        for vote in new.votes.iter_mut().filter(|_| self == Self::SpeaksTooEarly) {
            if matches!(whom, Whom::Standby(host, life) if vote.member == Member::new(NAMES[host], life)) {
                vote.held.epoch.0 = vote.held.epoch.0.saturating_sub(2);
            }
        }
        new
    }
}

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::ServingManagerDies => {
                if let Some(host) = self.serving() {
                    self.manager_dies(host);
                }
            }
            Fault::ServingHostDies => {
                if let Some(host) = self.serving() {
                    self.host_dies(host);
                }
            }
            Fault::StandbyDies => {
                if let Some(host) = self.protecting() {
                    self.daemon_dies(host);
                }
            }
            Fault::AppCrashes => self.app_crashes(),
            Fault::ApplyFails => {
                let keeper = self.protecting().and_then(|host| self.hosts[host].keeper.as_mut());
                keeper.into_iter().for_each(|keeper| keeper.fail_next_apply = true);
            }
            Fault::StreamBreaks => {
                if let Some(host) = self.serving() {
                    self.end_a_session_of(host);
                }
            }
            Fault::Cut(host, cut) => self.hosts[host].cut = cut,
            Fault::Unreachable(host, unreachable) => self.hosts[host].unreachable = unreachable,
            Fault::Paused(host, span) => self.hosts[host].paused_until = self.now + span,
            Fault::SwitchOver => {
                if let Some(host) = self.serving() {
                    self.step_primary(host, PrimaryEvent::SwitchOver { to: None });
                }
            }
            Fault::Heal => {
                self.loss_percent = 0;
                for host in 0..self.shape.hosts {
                    (self.hosts[host].cut, self.hosts[host].unreachable) = (false, false);
                    self.start_daemon(host);
                }
            }
        }
    }

    /// Who serves in the newest term, of those that think that they do.
    fn serving(&self) -> Option<usize> {
        let term = |host: &usize| self.hosts[*host].ruler.as_ref().map(|ruler| ruler.machine.reign().term);
        (0..self.shape.hosts).filter(|host| term(host).is_some()).max_by_key(term)
    }

    /// One of those who do, by turns.
    fn protecting(&self) -> Option<usize> {
        let ruler = self.hosts[self.serving()?].ruler.as_ref()?;
        let seats: Vec<usize> =
            ruler.seats.iter().filter(|seat| seat.taken_by.is_some()).map(|seat| seat.to).collect();
        let turn = (self.now.0 / 1_000) as usize;
        (!seats.is_empty()).then(|| seats[turn % seats.len()])
    }

    /// Both ends of a page stream notice.
    fn end_a_session_of(&mut self, host: usize) {
        let Some(to) = self.protecting() else { return };
        let seats = self.hosts[host].ruler.iter().flat_map(|ruler| &ruler.seats);
        let Some(session) = seats.filter(|seat| seat.to == to).map(|seat| seat.session).next() else {
            return;
        };
        self.after((50, 100_000), Event::StreamEnd(host, session));
        self.after((50, 100_000), Event::StreamEnd(to, session));
    }

    pub(super) fn end_sessions(&mut self, ruler: &Ruler, micros: (u64, u64)) {
        for seat in &ruler.seats {
            self.after(micros, Event::StreamEnd(seat.to, seat.session));
        }
    }

    fn manager_dies(&mut self, host: usize) {
        let Some(ruler) = self.hosts[host].ruler.take() else { return };
        self.end_sessions(&ruler, (50, 2_000));
        let app = &mut self.apps[ruler.app];
        // Nobody holds the app still any more; whether it is heard is the permit's to say.
        (app.stands, app.moving) = (None, false);
        if app.guard_armed && app.alive {
            let to = ruler.seats.iter().map(|seat| seat.to).collect();
            let word = Event::GuardSpeaks(ruler.app, to, ruler.machine.reign(), 5);
            self.after((200, 2_000), word);
        } else if self.consistency != Consistency::Timeline {
            app.alive = false; // A gated cell.
        }
        if ruler.of_daemon {
            self.daemon_dies(host);
        }
    }

    /// All that it knew is gone. It comes back.
    fn daemon_dies(&mut self, host: usize) {
        if self.hosts[host].ruler.as_ref().is_some_and(|ruler| ruler.of_daemon) {
            return self.manager_dies(host);
        }
        let Some(keeper) = self.hosts[host].keeper.take() else { return };
        self.after((50, 100_000), Event::StreamEnd(keeper.primary_host, keeper.session));
        if keeper.app.is_none() {
            self.hosts[host].earlier = Some((keeper.life, keeper.machine));
        }
        // In the midst of a takeover: what has come to life, nobody manages.
        for app in self.apps.iter_mut().filter(|_| keeper.won.is_some()) {
            app.alive &= keeper.app.is_none_or(|_| app.host != host);
        }
        self.after((50_000, 1_500_000), Event::Comes(host));
    }

    fn host_dies(&mut self, host: usize) {
        self.apps.iter_mut().filter(|app| app.host == host).for_each(|app| app.alive = false);
        if let Some(ruler) = self.hosts[host].ruler.take() {
            self.end_sessions(&ruler, (500, 300_000));
        }
        self.daemon_dies(host);
    }

    fn app_crashes(&mut self) {
        let Some(host) = self.serving() else { return };
        let Some((app, life)) = self.hosts[host].ruler.as_ref().map(|ruler| (ruler.app, ruler.life)) else {
            return;
        };
        // One that stands still notices nothing.
        if self.apps[app].alive && self.apps[app].stands.is_none() {
            self.apps[app].alive = false;
            let exited = PrimaryEvent::AppExited(AppExit::Signal(11));
            self.after((20, 500), Event::Primary(host, life, exited));
        }
    }

    pub(super) fn guard_speaks(&mut self, app: usize, to: &[usize], reign: Reign, tries: u32) {
        self.apps[app].alive = false;
        if tries > 0 {
            for to in to {
                self.datagram(self.apps[app].host, *to, Message::GuardsWord(reign));
            }
            self.after((1_000, 20_000), Event::GuardSpeaks(app, to.to_vec(), reign, tries - 1));
        }
    }
}
