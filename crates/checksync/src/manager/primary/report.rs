//! What an app's actor says of itself: to people, and to the standby when it knocks.

use std::collections::BTreeMap;

use image::Member;
use replica::primary::{Reason, Status};
use wire::{Hello, ServiceNetwork};

use super::seats::Seat;
use super::{Actor, HostFacts};
use crate::config::PrimarySettings;
use crate::manager::{introduction, now};
use crate::status::{AppReport, Role, StandbyReport};

impl Actor {
    pub(super) fn say_status(&mut self, status: Status) {
        introduction::log_status(&status);
        self.status = Some(status);
        self.publish();
    }

    pub(super) fn note_uncovered(&mut self, paths: Vec<String>) {
        if !paths.is_empty() {
            tracing::warn!(
                app = self.settings.app,
                "not replicated, though the app has them open for writing: {}; name their directory with --state-dir, \
                 or with --shared if all hosts have it",
                paths.join(", ")
            );
        }
        self.uncovered = paths;
        self.publish();
    }

    /// What the machine says, or what was wrong when a standby was looked for.
    pub(super) fn why_not(&self, reason: &Reason) -> String {
        match (reason, self.seats.trouble()) {
            (Reason::NoStandby { .. }, Some(trouble)) => trouble.clone(),
            (Reason::NoStore { store, why: None }, _) => {
                let why = self.store_seat.as_ref().and_then(|seat| seat.trouble.clone());
                Reason::NoStore { store: store.clone(), why }.to_string()
            }
            (reason, _) => reason.to_string(),
        }
    }

    pub(super) fn publish(&self) {
        let Some(status) = &self.status else { return };
        let (state, why_not) = match status {
            Status::Protected => ("protected", None),
            Status::CatchingUp => ("catching-up", None),
            Status::Unprotected(reason) => ("unprotected", Some(self.why_not(reason))),
        };
        let reign = self.machine.reign();
        if let Some(socket) = &self.socket {
            socket.tell(|role| {
                (role.term, role.protected) = (reign.term.0, why_not.is_none());
                (role.state, role.why_not) = (state.to_owned(), why_not.clone());
            });
        }
        let standbys = self.standbys();
        let names: Vec<&str> = self.seats.sessions().map(|session| session.standby.name.as_str()).collect();
        self.board.set(AppReport {
            app: self.settings.app.clone(),
            role: Role::Primary,
            state: state.to_owned(),
            protected: why_not.is_none(),
            why_not,
            term: Some(reign.term.0),
            epoch: self.machine.committed().map(|id| id.epoch.0),
            lag_ms: self.committed_at_ns.map(|at| now().0.saturating_sub(at) / 1_000_000),
            pause_us: self.pauses.pauses(),
            stages_us: BTreeMap::new(), // The board reads them when it is asked.
            store: None,
            unreplicated_files: self.uncovered.clone(),
            drill: None,
            app_pid: self.app_pid,
            peer: (!names.is_empty()).then(|| names.join(", ")),
            commit_on: (self.settings.seats().len() > 1 || self.store_seat.is_some())
                .then(|| self.settings.commit_on.to_string()),
            standbys,
        });
    }

    /// Everybody who was named, and is there or not.
    fn standbys(&self) -> Vec<StandbyReport> {
        let now = now();
        let group = self.machine.group(now);
        let report = |seat: &Seat| {
            let address = seat.address.clone().unwrap_or_else(|| seat.candidates.current());
            let session = seat.session.as_ref();
            let view = session.and_then(|session| group.iter().find(|view| view.standby == session.standby));
            let held = view.and_then(|view| view.held);
            let frozen = held.and_then(|held| self.frozen.iter().find(|(id, _)| *id == held));
            StandbyReport {
                host: session.map(|session| session.standby.name.clone()),
                address,
                connected: session.is_some(),
                term: held.map(|id| id.term.0),
                epoch: held.map(|id| id.epoch.0),
                lag_ms: frozen.map(|(_, at)| now.0.saturating_sub(*at) / 1_000_000),
                in_flight: view.map_or(0, |view| view.in_flight),
                eligible: view.is_some_and(|view| view.eligible),
                why_not: match view {
                    Some(view) => view.why_not.as_ref().map(ToString::to_string),
                    None => Some(seat.trouble.clone().unwrap_or_else(|| "it is not connected".to_owned())),
                },
            }
        };
        self.seats.iter().map(report).collect()
    }
}

pub(super) fn hello(settings: &PrimarySettings, me: &Member, facts: &HostFacts) -> Hello {
    let network = settings.network.as_ref().map(|spec| ServiceNetwork {
        address: spec.address.to_string(),
        link: spec.link.clone(),
        gateway: spec.gateway.map(|gateway| gateway.to_string()),
    });
    Hello { host_facts: facts.encode(), network, ..introduction::hello(settings, me) }
}
