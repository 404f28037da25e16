//! What any primary says of itself: to people, and to the standby when it knocks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use image::{Member, Term};
use replica::primary::{AppExit, Status};
use wire::{Consistency, Exit, HeartbeatAnswer, Hello, PROTOCOL_VERSION, RELEASE};

use super::candidates::Candidates;
use super::heart::{Heart, Pulse};
use super::policy::Policy;
use crate::config::{PrimarySettings, fencing_name};

pub fn log_status(status: &Status) {
    match status {
        Status::Protected => tracing::info!("PROTECTED"),
        Status::CatchingUp => tracing::info!("CATCHING-UP"),
        Status::Unprotected(reason) => tracing::warn!("UNPROTECTED: {reason}"),
    }
}

pub fn prepare_heart(
    settings: &PrimarySettings,
    candidates: &Arc<Candidates>,
    on_answer: impl Fn(&str, HeartbeatAnswer) + Send + Sync + 'static,
) -> io::Result<Heart> {
    let pulse = Pulse {
        candidates: Arc::clone(candidates),
        tls: settings.shared.tls.clone(),
        app: settings.app.clone(),
        period: Duration::from_nanos(settings.timing.heartbeat().0),
    };
    Heart::prepare(pulse, Box::new(on_answer))
}

/// Of no kind of app yet.
pub fn hello(settings: &PrimarySettings, me: &Member) -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        release: RELEASE.to_owned(),
        app: settings.app.clone(),
        term: Term(0),
        owner: me.name.clone(),
        incarnation: me.incarnation.0,
        primary_name: me.name.clone(),
        host_facts: Bytes::new(),
        consistency: if settings.is_strong() { Consistency::Strong } else { Consistency::Timeline },
        heartbeat: Duration::from_nanos(settings.timing.heartbeat().0),
        missed: u32::try_from(settings.timing.suspicion().0 / settings.timing.heartbeat().0)
            .unwrap_or(u32::MAX),
        guard_token_hash: None,
        has_register: settings.shared.arbiter.is_some(),
        fencing: fencing_name(settings.shared.fencing).to_owned(),
        network: None,
        structures: None,
        policy: Policy::of(settings).encode(),
    }
}

pub fn wire_exit(exit: AppExit) -> Exit {
    match exit {
        AppExit::Code(code) => Exit::Code(code),
        AppExit::Signal(signal) => Exit::Signal(signal),
    }
}
