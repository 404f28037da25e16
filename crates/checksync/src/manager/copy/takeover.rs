//! The takeover, and what follows it: the app is left to a primary, which looks for a standby.
//!
//! Without anybody to look for, the copy's actor keeps the app, unprotected, to its end. Else it stays only as the one who
//! answers at the door: whoever comes as a primary of an older term is told who has the app.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use engine::{Barrier, Captures, Command, Connections, Event, EventSink, Promotion, RestoreReport};
use image::{CheckpointId, Member, Term};
use replica::primary::{Consistency, Permit, SyncCall};
use replica::{Right, StandbyEvent};
use wire::{FromStandby, Hello};

use super::{Actor, Body, Input};
use crate::arguments::Format;
use crate::config::Shared;
use crate::guard::Order;
use crate::manager::app_socket::{AppSocket, Restored};
use crate::manager::host::HostFacts;
use crate::manager::lock::Lock;
use crate::manager::policy::{Here, NoStoreHere, Policy};
use crate::manager::primary::{self, ENGINE, Estate, Outcome, Succession};
use crate::manager::store::StoreSettings;
use crate::manager::survivor::Note;
use crate::manager::{control, hook, wall_clock_ns};
use crate::mpsc;
use crate::status::{self, TakeoverReport};

/// What a host lacks that has just taken over.
pub(super) const UNPROTECTED: &str = "unprotected: it has no standby";

/// Where the engine speaks to. It speaks to a primary at once, with no actor in between: clients wait for its epochs.
type Ear = Arc<Mutex<EventSink>>;

/// Who follows the copy's actor.
pub(super) struct Plan {
    /// What the primary said last of what was asked for.
    policy: Option<Policy>,
    pub won: Option<(Right, CheckpointId)>,
    ear: Ear,
    /// Of a gate that is made only when the app runs.
    barrier: Arc<OnceLock<Barrier>>,
    /// The primary.
    heir: Option<mpsc::Sender<primary::Input>>,
}

impl Plan {
    pub fn new(ear: EventSink) -> Self {
        let ear = Arc::new(Mutex::new(ear));
        Self { policy: None, won: None, ear, barrier: Arc::default(), heir: None }
    }

    pub fn events(&self) -> EventSink {
        let ear = Arc::clone(&self.ear);
        Box::new(move |event| (ear.lock().unwrap_or_else(PoisonError::into_inner))(event))
    }

    pub fn learn(&mut self, hello: &Hello) {
        self.policy = Policy::of_hello(hello);
    }

    /// Of whoever takes the app out of a store: there is no primary that could say it.
    pub fn be_told(&mut self, policy: Policy) {
        self.policy = Some(policy);
    }

    /// Where the app's checkpoints go once it is ours: `here`, or where its primary has them go.
    pub fn store(
        &self,
        here: Option<&StoreSettings>,
        spool: &Path,
    ) -> Option<Result<StoreSettings, NoStoreHere>> {
        let policy = self.policy.as_ref()?;
        here.cloned().map(Ok).or_else(|| policy.store(spool))
    }

    /// What the app's primary said of how to see that it is well.
    pub fn health(&self) -> Option<String> {
        self.policy.as_ref()?.health()
    }

    /// How the app is captured once it is ours.
    fn captures(&self) -> Captures {
        let Some(policy) = &self.policy else { return Captures::default() };
        let shadow_bytes = policy.shadow_bytes();
        let (state_dirs, shared_dirs) = (policy.state_dirs(), policy.shared_dirs());
        let usual = Captures { shadow_bytes, state_dirs, shared_dirs, ..Captures::default() };
        match policy.consistency() {
            Consistency::Timeline => usual,
            Consistency::Strong { .. } => {
                let made = Arc::clone(&self.barrier);
                let barrier = Barrier(Arc::new(move |id| match made.get() {
                    Some(barrier) => (barrier.0)(id),
                    None => Err("nothing holds the app's output back".to_owned()),
                }));
                Captures { connections: Connections::Keep, barrier: Some(barrier), ..usual }
            }
        }
    }

    /// Gives it back if it is the copy's.
    pub fn pass_on(&self, event: Event) -> Option<Event> {
        let Some(heir) = &self.heir else { return Some(event) };
        // It may have ended.
        let _ = heir.send(primary::Input::Engine(ENGINE, event));
        None
    }

    /// False if the app is still the copy's.
    pub fn stop(&self) -> bool {
        let Some(heir) = &self.heir else { return false };
        // If it has ended, so has the app.
        let _ = heir.send(primary::Input::Stop);
        true
    }
}

impl Actor {
    pub(super) fn promote(&mut self, right: &Right, from: CheckpointId) {
        self.won_at_ns = wall_clock_ns();
        tracing::warn!(app = self.setup.app, term = %right.term(), %from, "taking over");
        let (Some(body), Some(stdio)) = (&self.body, self.stdio.take()) else {
            let why = "a copy of this engine was restored before".to_owned();
            return self.step_alone(StandbyEvent::RestoreFailed { why });
        };
        if body.fence.allow(Permit::Open).is_err() {
            tracing::error!("the copy's permit was revoked; it cannot be heard");
        }
        tell_app(&body.socket, right.term(), from);
        let cgroup = body.fence.directory();
        let network = body.network.as_ref().map(|network| network.to_be_raised(self.arrived.take()));
        body.engine.send(Command::CaptureAs(self.succession.captures()));
        body.engine.send(Command::Promote(Promotion { stdio, cgroup, network, alone: false }));
        self.succession.won = Some((right.clone(), from));
    }

    pub(super) fn restored(&mut self, report: RestoreReport) {
        let term = self.term().unwrap_or_default();
        let id = CheckpointId { term, epoch: report.id.epoch };
        if let Some(command) = &self.setup.promote_hook {
            hook::promoted(command, &self.setup.app, id);
        }
        self.setup.board.add_takeover(self.takeover(id, &report));
        if let Some(body) = &mut self.body {
            body.guard.send(&Order::Live);
        }
        self.note = Note::leave(&self.setup.app, report.pid);
        self.serving = Some(report);
        self.say(FromStandby::Serving(term));
        self.step_alone(StandbyEvent::RestoreFinished);
        let restore_us = report.total.as_micros();
        tracing::debug!(?report, "restored");
        tracing::warn!(app = self.setup.app, %term, from = %report.id, restore_us, pid = report.pid, "SERVING");
        let engine::ConnectionCounts { kept, unanswered, reset, unaccepted, drained, closed, asking: _ } =
            report.connections;
        if kept + unanswered + reset + unaccepted + drained + closed > 0 {
            tracing::info!(
                app = self.setup.app,
                kept,
                unanswered,
                reset,
                unaccepted,
                drained,
                closed,
                "its connections"
            );
        }
        self.publish();
        self.look_for_a_standby(report.pid);
        if let Some(grace) = self.stopping.take() {
            self.stop(grace);
        }
    }

    fn takeover(&self, id: CheckpointId, report: &RestoreReport) -> TakeoverReport {
        TakeoverReport {
            app: self.setup.app.clone(),
            term: id.term.0,
            epoch: id.epoch.0,
            frozen_at_ns: report.frozen_at_ns,
            suspected_at_ns: self.suspected_at_ns.unwrap_or(self.won_at_ns),
            won_at_ns: self.won_at_ns,
            serving_at_ns: wall_clock_ns(),
            restore_us: report.total.as_micros() as u64,
        }
    }

    pub(super) fn take_sync(&self, call: SyncCall, patience: Option<Duration>) {
        match (&self.succession.heir, &self.body) {
            // It may have ended.
            (Some(heir), _) => drop(heir.send(primary::Input::Sync(call, patience))),
            // Protected again by nobody, however long it waits.
            (None, Some(body)) => body.socket.refuse(call, UNPROTECTED.to_owned()),
            (None, None) => {}
        }
    }

    /// Leaves the app to a primary, if there is somebody who could be its standby, or a store. On failure the app goes on
    /// as it is.
    fn look_for_a_standby(&mut self, pid: i32) {
        self.say_store(); // Its folder may have come or gone since.
        let keeps = matches!(self.store(), Some(Ok(_))) && (self.setup.gated || !self.would_hold_back());
        // Output that has nobody who lets it out would never leave.
        if self.setup.standbys.is_empty() && !keeps && !self.setup.gated {
            return;
        }
        if let Err(why) = self.succeed(pid) {
            tracing::error!(app = self.setup.app, "the app stays unprotected: {why:#}");
        }
    }

    fn succeed(&mut self, pid: i32) -> anyhow::Result<()> {
        let policy = self.succession.policy.as_ref().context("its primary did not say what was asked for")?;
        let won = self.succession.won.take().context("nobody has won the term")?;
        let settings = policy.settings(self.here());
        let me = Member::new(&self.setup.host, self.incarnation);
        let facts = HostFacts::decode(&self.setup.host_facts)?;
        // The thread comes first: without it nobody would have what it is to be given.
        let (give, given) = mpsc::channel::<primary::Actor>();
        let (post, app) = (self.post.clone(), self.setup.app.clone());
        let runtime = self.setup.runtime.clone();
        thread::Builder::new().name("primary".to_owned()).spawn(move || {
            if let Ok(actor) = given.recv() {
                let _inside = runtime.enter();
                let outcome = serve(actor, &app);
                // The daemon may have ended first.
                let _ = post.send(Input::Over(outcome));
            }
        })?;
        let network = self.body.as_ref().and_then(|body| body.network.as_ref());
        let barrier = &self.succession.barrier;
        let prepared = Succession::prepare(settings, me, won, &facts, network, barrier)?;
        let Some(body) = self.body.take() else { return Ok(()) };
        let heir = prepared.post();
        let to = heir.clone();
        let ear: EventSink = Box::new(move |event| drop(to.send(primary::Input::Engine(ENGINE, event))));
        *self.succession.ear.lock().unwrap_or_else(PoisonError::into_inner) = ear;
        self.succession.heir = Some(heir);
        let Body { engine, guard, forwarding, fence, network: _, socket } = body;
        let estate = Estate { pid, engine, guard, forwarding, fence, socket, note: self.note.take() };
        // It waits for it.
        let _ = give.send(prepared.begin(estate, self.setup.board.clone(), self.setup.runtime.clone()));
        Ok(())
    }

    pub(super) fn end_with(&mut self, outcome: Outcome) {
        (self.outcome, self.ended) = (Some(outcome), true);
    }

    pub(super) fn store(&self) -> Option<Result<StoreSettings, NoStoreHere>> {
        let spool = self.setup.state.clone().unwrap_or_else(std::env::temp_dir);
        self.succession.store(self.setup.store.as_ref(), &spool)
    }

    fn would_hold_back(&self) -> bool {
        let policy = self.succession.policy.as_ref();
        self.setup.network.is_some() && policy.is_some_and(|it| it.consistency() != Consistency::Timeline)
    }

    fn here(&self) -> Here {
        let setup = &self.setup;
        Here {
            app: setup.app.clone(),
            standbys: setup.standbys.clone(),
            timing: setup.timing,
            network: setup.network.clone(),
            structures: false,
            store: self.store().and_then(Result::ok),
            shared: Shared {
                tls: setup.tls.clone(),
                pki: setup.pki.clone(),
                fencing: setup.fencing,
                arbiter: setup.arbiter.clone(),
                state: setup.state.clone(),
                format: Format::Text,
            },
        }
    }
}

/// Before it runs: calls that wait in it are answered with this.
fn tell_app(socket: &AppSocket, term: Term, from: CheckpointId) {
    socket.tell(|role| {
        role.term = term.0;
        role.restored = Some(Restored { term: from.term.0, epoch: from.epoch.0 });
        (role.state, role.why_not) = ("serving".to_owned(), Some(UNPROTECTED.to_owned()));
    });
}

/// Runs the primary to its end.
fn serve(actor: primary::Actor, app: &str) -> Outcome {
    let orders = tokio::spawn(take_orders(actor.post(), app.to_owned()));
    let outcome = actor.run();
    match &outcome {
        Outcome::Ended(ending) => tracing::warn!(app, ?ending, "no longer served here"),
        Outcome::Failed(why) => tracing::error!(app, "no longer served here: {why}"),
    }
    orders.abort();
    outcome
}

/// As a primary that was started here does. One that was, and has just lost the term, may still be ending.
async fn take_orders(post: mpsc::Sender<primary::Input>, app: String) {
    const AGAIN: Duration = Duration::from_millis(50);
    let mut said = false;
    let _taken = loop {
        match open_orders(&post, &app) {
            Ok(taken) => break taken,
            Err(why) if !said => {
                tracing::warn!(app, "no operator can move the app or pause its takeover yet: {why:#}");
                said = true;
            }
            Err(_) => (),
        }
        tokio::time::sleep(AGAIN).await;
    };
    std::future::pending().await
}

fn open_orders(post: &mpsc::Sender<primary::Input>, app: &str) -> anyhow::Result<(Lock, status::Socket)> {
    let name = format!("primary-{app}");
    let lock = Lock::take(&status::run_dir()?, &name, &format!("app {app}"))?;
    let (orders, gone) = (post.clone(), post.clone());
    let socket = control::serve(
        &name,
        move |order, listener| drop(orders.send(primary::Input::Order(order, listener))),
        move || drop(gone.send(primary::Input::Withdrawn)),
    )?;
    Ok((lock, socket))
}
