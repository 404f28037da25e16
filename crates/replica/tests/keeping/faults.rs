//! What goes wrong, and what is made wrong to see that it would be noticed.

use replica::primary::{AppExit, Permit};
use replica::{Nanos, PrimaryEvent};

use super::{Event, World};

/// What is broken on purpose, to show that the simulation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// What is written counts as stored, whoever has begun to restore.
    TrustsItsOwnWord,
    /// Whoever restores lists what there is before he has begun a run.
    ListsTooEarly,
    /// Whoever restores does not wait for the old permit's end.
    WaitsForNobody,
    /// Whoever has lost the term begins a run all the same.
    BeginsLate,
    /// A look counts from when it was answered, not from when it was sent.
    CountsFromTheAnswer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Whoever serves at the time.
    ManagerDies,
    HostDies,
    AppCrashes,
    CaptureFails,
    /// One of those who restore.
    ClaimantDies,
    /// Whoever serves, or restores, stands still; what the kernel was told holds.
    Sleeps(Nanos),
    /// The store answers nobody, or only after a long time.
    StoreGone(bool),
    StoreSlow(bool),
    /// A host does not reach the store, or the register.
    StoreCut(usize, bool),
    RegisterCut(usize, bool),
    RegisterGone(bool),
    /// Not a fault: somebody says `run --from-store` here.
    Claim(usize),
    /// Everything works again, and an operator sees to it that somebody serves.
    Heal,
}

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::ManagerDies => {
                if let Some(host) = self.serving() {
                    self.manager_dies(host);
                }
            }
            Fault::HostDies => {
                if let Some(host) = self.serving() {
                    self.apps.iter_mut().filter(|app| app.host == host).for_each(|app| app.alive = false);
                    self.manager_dies(host);
                    self.hosts[host].claimant = None;
                }
            }
            Fault::AppCrashes => {
                if let Some(host) = self.serving()
                    && let Some(server) = &self.hosts[host].server
                {
                    let (app, life) = (server.app, server.life);
                    if std::mem::take(&mut self.apps[app].alive) {
                        let exited = PrimaryEvent::AppExited(AppExit::Signal(11));
                        self.after((20, 500), Event::Primary(host, life, exited));
                    }
                }
            }
            Fault::CaptureFails => self.fail_next_capture = true,
            Fault::ClaimantDies => {
                if let Some(host) = self.claiming() {
                    self.hosts[host].claimant = None;
                }
            }
            Fault::Sleeps(span) => {
                if let Some(host) = self.claiming().or(self.serving()) {
                    self.hosts[host].paused_until = self.now + span;
                }
            }
            Fault::StoreGone(gone) => self.store_gone = gone,
            Fault::StoreSlow(slow) => self.store_slow = slow,
            Fault::StoreCut(host, cut) => self.hosts[host].store_cut = cut,
            Fault::RegisterCut(host, cut) => self.hosts[host].register_cut = cut,
            Fault::RegisterGone(gone) => {
                self.hosts.iter_mut().for_each(|host| host.register_cut = gone);
            }
            Fault::Claim(host) => self.claim(host),
            Fault::Heal => self.heal(),
        }
    }

    /// Who serves in the newest term, of those that think that they do.
    pub(super) fn serving(&self) -> Option<usize> {
        let term = |host: &usize| self.hosts[*host].server.as_ref().map(|server| server.machine.reign().term);
        (0..self.hosts.len()).filter(|host| term(host).is_some()).max_by_key(term)
    }

    fn claiming(&self) -> Option<usize> {
        (0..self.hosts.len()).find(|host| self.hosts[*host].claimant.is_some())
    }

    fn manager_dies(&mut self, host: usize) {
        let Some(server) = self.hosts[host].server.take() else { return };
        let strong = self.strong();
        let app = &mut self.apps[server.app];
        // An armed guard kills it, and so does a gate that goes; else it lives on as the kernel was told.
        app.alive &= !app.guard_armed && !strong;
        if app.alive && app.kernel != Permit::Open {
            self.orphans += 1;
        }
    }

    fn heal(&mut self) {
        (self.loss_percent, self.store_gone, self.store_slow) = (0, false, false);
        for host in &mut self.hosts {
            (host.store_cut, host.register_cut) = (false, false);
        }
        self.healed = true;
        self.after((10_000, 2_000_000), Event::Operator);
    }

    /// Once everything works: nobody serves, so somebody is to.
    pub(super) fn operate(&mut self) {
        self.after((1_000_000, 3_000_000), Event::Operator);
        if self.serving().is_none() && self.claiming().is_none() && self.may_be_claimed() {
            let host = self.chance.below(self.hosts.len() as u64) as usize;
            self.claim(host);
        }
    }
}
