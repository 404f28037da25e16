//! What a manager of structures says of itself: to people, and to the standby when it knocks.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use image::Member;
use replica::primary::{Reason, Status};
use tokio::sync::mpsc;
use wire::{Hello, Structures};

use super::{Actor, Input};
use crate::config::PrimarySettings;
use crate::manager::candidates::Candidates;
use crate::manager::heart::Heart;
use crate::manager::structures::program;
use crate::manager::{introduction, wall_clock_ns};
use crate::status::{AppReport, Role};

impl Actor {
    pub(super) fn say_status(&mut self, status: Status) {
        introduction::log_status(&status);
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
            store: None,
            unreplicated_files: Vec::new(),
            drill: None,
            app_pid: self.program.as_ref().map(|program| program.pid()),
            peer: self.session.as_ref().map(|session| session.standby.name.clone()),
            commit_on: None,
            standbys: Vec::new(),
        });
    }
}

pub(super) fn prepare_heart(
    settings: &PrimarySettings,
    candidates: &Arc<Candidates>,
    post: mpsc::UnboundedSender<Input>,
) -> io::Result<Heart> {
    let on_answer = move |from: &str, answer| drop(post.send(Input::Heart { from: from.to_owned(), answer }));
    introduction::prepare_heart(settings, candidates, on_answer)
}

pub(super) fn hello(settings: &PrimarySettings, me: &Member, command: &[OsString]) -> Hello {
    let structures = Some(Structures { command: program::to_bytes(command) });
    Hello { structures, ..introduction::hello(settings, me) }
}
