//! What a manager of structures says of itself: to people, and to the standby when it knocks.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use image::{Member, Term};
use replica::primary::{Reason, Status};
use tokio::sync::mpsc;
use wire::{Consistency, Hello, PROTOCOL_VERSION, RELEASE, Structures};

use super::{Actor, Input};
use crate::config::{PrimarySettings, fencing_name};
use crate::manager::heart::{Heart, Pulse};
use crate::manager::structures::program;
use crate::manager::wall_clock_ns;
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

    pub(super) fn publish(&self) {
        let Some(status) = &self.status else { return };
        let (state, why_not) = match status {
            Status::Protected => ("protected", None),
            Status::CatchingUp => ("catching-up", None),
            Status::Unprotected(Reason::NoStandby { .. }) if self.link_trouble.is_some() => {
                ("unprotected", self.link_trouble.clone())
            }
            Status::Unprotected(reason) => ("unprotected", Some(reason.to_string())),
        };
        self.board.set(AppReport {
            app: self.settings.app.clone(),
            role: Role::Primary,
            state: state.to_owned(),
            protected: why_not.is_none(),
            why_not,
            term: Some(self.machine.reign().term.0),
            epoch: self.machine.committed().map(|id| id.epoch.0),
            lag_ms: self.committed_at_ns.map(|at| wall_clock_ns().saturating_sub(at) / 1_000_000),
            pause_us: None,
            stages_us: BTreeMap::new(),
            app_pid: self.program.as_ref().map(|program| program.pid()),
            peer: self.session.as_ref().map(|session| session.standby.name.clone()),
        });
    }
}

pub(super) fn prepare_heart(
    settings: &PrimarySettings,
    post: mpsc::UnboundedSender<Input>,
) -> io::Result<Heart> {
    let pulse = Pulse {
        standby: settings.standby.clone(),
        tls: settings.shared.tls.clone(),
        app: settings.app.clone(),
        period: Duration::from_nanos(settings.timing.heartbeat().0),
    };
    let on_answer = move |from: &str, answer| drop(post.send(Input::Heart { from: from.to_owned(), answer }));
    Heart::prepare(pulse, Box::new(on_answer))
}

pub(super) fn hello(settings: &PrimarySettings, me: &Member, command: &[OsString]) -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        release: RELEASE.to_owned(),
        app: settings.app.clone(),
        term: Term(0),
        owner: me.name.clone(),
        incarnation: me.incarnation.0,
        primary_name: me.name.clone(),
        host_facts: Bytes::new(),
        consistency: Consistency::Strong,
        heartbeat: Duration::from_nanos(settings.timing.heartbeat().0),
        missed: u32::try_from(settings.timing.suspicion().0 / settings.timing.heartbeat().0)
            .unwrap_or(u32::MAX),
        guard_token_hash: None,
        has_register: settings.shared.arbiter.is_some(),
        fencing: fencing_name(settings.shared.fencing).to_owned(),
        network: None,
        structures: Some(Structures { command: program::to_bytes(command) }),
    }
}
