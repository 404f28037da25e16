//! What a standby says of the structures that it keeps.

use std::collections::BTreeMap;

use replica::standby::StandbyStatus;

use super::State;
use crate::manager::wall_clock_ns;
use crate::status::{AppReport, Role};

impl State {
    pub(super) fn publish(&self) {
        if self.heir.is_some() {
            return; // The primary speaks for the program.
        }
        let (state, why_not) = words(&self.status);
        let serving = self.serving.as_ref();
        let age_ns = self.held_since_ns.map(|at| wall_clock_ns().saturating_sub(at));
        self.setup.board.set(AppReport {
            app: self.setup.app.clone(),
            role: if serving.is_some() { Role::Primary } else { Role::Standby },
            state: state.to_owned(),
            protected: self.status == StandbyStatus::Following,
            why_not,
            term: self.term().map(|term| term.0),
            epoch: self.machine.held().map(|id| id.epoch.0),
            lag_ms: age_ns.filter(|_| serving.is_none()).map(|ns| ns / 1_000_000),
            pause_us: None,
            stages_us: BTreeMap::new(),
            store: None,
            unreplicated_files: Vec::new(),
            drill: None,
            app_pid: serving.map(|serving| serving.program.pid()),
            peer: self.machine.primary().map(|(member, _)| member.name.clone()),
            commit_on: None,
            standbys: Vec::new(),
        });
    }
}

pub(super) fn words(status: &StandbyStatus) -> (&'static str, Option<String>) {
    match status {
        StandbyStatus::Empty => ("empty", Some("no structure has come yet".to_owned())),
        StandbyStatus::Receiving => ("receiving", Some("the first full sync is under way".to_owned())),
        StandbyStatus::Following => ("following", None),
        StandbyStatus::CutOff { why } => ("cut-off", Some(format!("cannot take over: {why}"))),
        StandbyStatus::Suspecting(why) => ("suspecting", Some(why.to_string())),
        StandbyStatus::Claiming { trouble } => ("claiming", trouble.clone()),
        StandbyStatus::Promoting { .. } => ("promoting", Some("the program is being started".to_owned())),
        StandbyStatus::Serving { .. } => ("serving", Some("unprotected: it has no standby".to_owned())),
        StandbyStatus::Discarded(why) => ("discarded", Some(why.to_string())),
    }
}
