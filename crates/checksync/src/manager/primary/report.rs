//! What an app's actor says of itself: to people, and to the standby when it knocks.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use image::{Member, Term};
use replica::primary::{AppExit, Reason, Status};
use wire::{Consistency, Exit, Hello, PROTOCOL_VERSION, RELEASE, ServiceNetwork};

use super::{Actor, Heart, HostFacts, Input, Pulse};
use crate::config::{PrimarySettings, fencing_name};
use crate::manager::now;
use crate::status::{AppReport, Role};

impl Actor {
    pub(super) fn say_status(&mut self, status: Status) {
        match &status {
            Status::Protected => tracing::info!("PROTECTED"),
            Status::CatchingUp => tracing::info!("CATCHING-UP"),
            Status::Unprotected(reason) => tracing::warn!("UNPROTECTED: {reason}"),
        }
        self.status = Some(status);
        self.publish();
    }

    /// What the machine says, or what was wrong when a standby was looked for.
    pub(super) fn why_not(&self, reason: &Reason) -> String {
        match (reason, &self.link_trouble) {
            (Reason::NoStandby { .. }, Some(trouble)) => trouble.clone(),
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
            app_pid: self.app_pid,
            peer: self.session.as_ref().map(|session| session.standby.name.clone()),
        });
    }
}

pub(super) fn prepare_heart(settings: &PrimarySettings, post: mpsc::Sender<Input>) -> std::io::Result<Heart> {
    let pulse = Pulse {
        standby: settings.standby.clone(),
        tls: settings.shared.tls.clone(),
        app: settings.app.clone(),
        period: Duration::from_nanos(settings.timing.heartbeat().0),
    };
    let on_answer = move |from: &str, answer| drop(post.send(Input::Heart { from: from.to_owned(), answer }));
    Heart::prepare(pulse, Box::new(on_answer))
}

pub(super) fn hello(settings: &PrimarySettings, me: &Member, facts: &HostFacts) -> Hello {
    let fencing = settings.shared.fencing;
    Hello {
        protocol_version: PROTOCOL_VERSION,
        release: RELEASE.to_owned(),
        app: settings.app.clone(),
        term: Term(0),
        owner: me.name.clone(),
        incarnation: me.incarnation.0,
        primary_name: me.name.clone(),
        host_facts: facts.encode(),
        consistency: if settings.is_strong() { Consistency::Strong } else { Consistency::Timeline },
        heartbeat: Duration::from_nanos(settings.timing.heartbeat().0),
        missed: u32::try_from(settings.timing.suspicion().0 / settings.timing.heartbeat().0)
            .unwrap_or(u32::MAX),
        guard_token_hash: None,
        has_register: settings.shared.arbiter.is_some(),
        fencing: fencing_name(fencing).to_owned(),
        network: settings.network.as_ref().map(|spec| ServiceNetwork {
            address: spec.address.to_string(),
            link: spec.link.clone(),
            gateway: spec.gateway.map(|gateway| gateway.to_string()),
        }),
        structures: None,
    }
}

pub(super) fn wire_exit(exit: AppExit) -> Exit {
    match exit {
        AppExit::Code(code) => Exit::Code(code),
        AppExit::Signal(signal) => Exit::Signal(signal),
    }
}
