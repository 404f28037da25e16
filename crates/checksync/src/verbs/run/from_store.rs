//! `run --from-store`: the app goes on here, out of the store where `--commit-on store` has kept it.
//!
//! In this order: the register makes the term ours, and still names the store. A run of ours in the store closes the one
//! before: what its writer has not been told of by then, he never will. The copy is made while the old permit runs out.
//! Only then the register names nobody, and the app runs. Whatever fails before leaves it to the next who tries.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use arbiter::Arbiter;
use image::{CheckpointId, Member, Register};
use replica::primary::CommitOn;
use replica::{Answer, Question, Right, StoreClaim};
use store::{Gathered, Listed, Run, Store, Which};

use super::super::attach::{end, lock_state, runtime};
use super::super::signals;
use super::super::stored::{Asked, ask};
use crate::config::{DRILL_PATIENCE, NETWORK_THREADS, PrimarySettings, fencing_name};
use crate::exit::{Coded, Exit};
use crate::manager;
use crate::manager::copy::{Actor, Input, Schedule, Setup};
use crate::manager::heart;
use crate::manager::host::HostFacts;
use crate::manager::lock::Lock;
use crate::manager::policy::Policy;
use crate::manager::primary::life_of;
use crate::manager::register;
use crate::manager::store::is_store;
use crate::mpsc;
use crate::status::{self, Board, Role};

/// How long the register may take to answer, in all.
const REGISTER_PATIENCE: Duration = Duration::from_secs(30);
const REGISTER_PAUSE: Duration = Duration::from_millis(200);
/// How long the store is watched for the work of a primary that is alive; and the interval of its captures, up to this.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(4);

pub fn run(settings: PrimarySettings, from_living: bool) -> anyhow::Result<ExitCode> {
    let Some(kept) = settings.store.clone().filter(|_| settings.commit_on == CommitOn::Store) else {
        let why = anyhow!(
            "--from-store goes on with what --commit-on store has kept; give that, and the other options of before \
             (`checksync restore` restores any checkpoint, without a right to serve)"
        );
        return Err(Coded::new(Exit::Usage, why).into());
    };
    let name = format!("primary-{}", settings.app);
    let _alone = Lock::take(&status::run_dir()?, &format!("from-store-{}", settings.app), "the takeover")?;
    let _state = lock_state(settings.shared.state.as_deref())?;
    let asked = ask(&kept.location)?;
    // Before anything is taken from anybody.
    let newest = asked.runtime.block_on(asked.store.pick(&settings.app, Which::Latest))?;
    let seen = (!from_living).then(|| Seen { newest, at: Instant::now() });
    let network = runtime(NETWORK_THREADS)?;
    let _inside = network.enter();
    let board =
        Board::new(Role::Primary, settings.shared.host(), fencing_name(settings.shared.fencing), None);
    let _socket = board.serve(&name)?;
    if !settings.standbys.is_empty() {
        heart::lock_memory();
    }
    let (actor, post) = Actor::new(setup(&settings, board, network.handle().clone())?)?;
    stop_on_signals(post, settings.grace)?;
    match take(&settings, &asked, &actor, seen) {
        Ok((right, id)) => {
            let outcome = actor.go_on(right, id, Policy::of(&settings));
            end(outcome, settings.shared.format)
        }
        Err(why) => {
            actor.give_up();
            Err(why)
        }
    }
}

/// What the store had before anything was asked for.
struct Seen {
    newest: Listed,
    at: Instant,
}

impl Seen {
    /// A primary that is alive stores one checkpoint after the other. One that does not may be alive all the same: nothing
    /// relies on this but an operator who took it for dead.
    fn refuse_if_it_grows(
        self,
        settings: &PrimarySettings,
        asked: &Asked,
        known: &Register,
    ) -> anyhow::Result<()> {
        let patience = LOOK + settings.interval.min(LOOK_MAX);
        thread::sleep(patience.saturating_sub(self.at.elapsed()));
        let Asked { store, runtime } = asked;
        let (app, before) = (&settings.app, &self.newest);
        let now = runtime.block_on(store.pick(app, Which::Latest))?;
        if (now.run, now.id()) > (before.run, before.id()) {
            bail!(
                "{app} is alive at {}, which has stored checkpoint {} since this one was asked; nothing was changed. If it \
                 is to go on here all the same, kill its manager there, or give --from-living",
                known.owner,
                now.id()
            );
        }
        Ok(())
    }
}

fn setup(settings: &PrimarySettings, board: Board, runtime: tokio::runtime::Handle) -> anyhow::Result<Setup> {
    let shared = &settings.shared;
    Ok(Setup {
        app: settings.app.clone(),
        host: shared.host().to_owned(),
        timing: settings.timing,
        fencing: shared.fencing,
        arbiter: shared.arbiter.clone(),
        tls: shared.tls.clone(),
        state: shared.state.clone(),
        shipped: manager::shipped_files(shared.state.as_deref())?,
        promote_hook: None,
        pki: shared.pki.clone(),
        standbys: settings.standbys.clone(),
        store: settings.store.clone(),
        gated: settings.is_strong() && settings.network.is_some(),
        network: settings.network.clone(),
        host_facts: HostFacts::read().context("cannot look at this host")?.encode(),
        drills: Schedule { every: None, health: settings.health.clone(), patience: DRILL_PATIENCE },
        board,
        runtime,
    })
}

fn stop_on_signals(post: mpsc::Sender<Input>, grace: Duration) -> anyhow::Result<()> {
    // The app may have ended first.
    signals::listen(move || drop(post.send(Input::Stop { grace })))
}

/// The right to serve, and what the copy holds by then.
fn take(
    settings: &PrimarySettings,
    asked: &Asked,
    actor: &Actor,
    seen: Option<Seen>,
) -> anyhow::Result<(Right, CheckpointId)> {
    let (app, shared, me) = (&settings.app, &settings.shared, actor.me());
    let spec = shared.arbiter.as_ref().context("the register is not named; give --arbiter")?;
    let mut desk = Desk { arbiter: spec.open(&shared.tls).context("no register")?, app };
    let known = desk.read()?;
    let claim = StoreClaim::begin(known.clone(), &me, is_store)?;
    if let (Some(seen), Some(known)) = (seen, &known) {
        seen.refuse_if_it_grows(settings, asked, known)?;
    }
    let mut question = Some(claim.question());
    while let Some(next) = question {
        question = claim.answered(desk.ask(next)?)?;
    }
    let term = claim.term();
    tracing::info!(app, %term, "the term is ours; the copy is made out of {}", asked.store.name());
    let Asked { store, runtime } = asked;
    let life = life_of(shared, &me);
    runtime.block_on(Run::begin(store.clone(), app, term, &life)).context(AGAIN)?;
    let closed_at = Instant::now();
    let listed = runtime.block_on(newest(store, app, claim.store())).context(AGAIN)?;
    let spool = settings.store.as_ref().map_or_else(std::env::temp_dir, |kept| kept.spool.clone());
    let gathered = runtime.block_on(store.fetch(app, &listed, &spool)).context(AGAIN)?;
    same_directories(&gathered, &settings.state_dirs).context(AGAIN)?;
    fill(actor, &listed, &gathered).context(AGAIN)?;
    drop(gathered);
    // Whoever has seen nothing of us is silent by then.
    let silent_after = Duration::from_nanos(settings.timing.store_suspicion().0);
    thread::sleep(silent_after.saturating_sub(closed_at.elapsed()));
    let alone = claim.settle();
    let mut question = alone.question();
    loop {
        match alone.answered(desk.ask(question)?)? {
            Ok(right) => return Ok((right, listed.id())),
            Err(next) => question = *next,
        }
    }
}

const AGAIN: &str = "nothing was started; the register still names the store, so the same can be tried again, here or elsewhere";

/// What the register means: the newest of the run of the life that it names, and no older one.
async fn newest(store: &Store, app: &str, named: &Member) -> anyhow::Result<Listed> {
    let listed = store.pick(app, Which::Latest).await?;
    if listed.run.incarnation != named.incarnation.0 {
        bail!(
            "the newest checkpoint in {} is {} of run {}, and the register means one of {named}; is it another store?",
            store.name(),
            listed.id(),
            listed.run
        );
    }
    Ok(listed)
}

/// What is kept has to be kept on.
fn same_directories(gathered: &Gathered, given: &[PathBuf]) -> anyhow::Result<()> {
    let kept: BTreeSet<&Path> = gathered.tree().directories().collect();
    let given: BTreeSet<&Path> = given.iter().map(PathBuf::as_path).collect();
    let text = |paths: BTreeSet<&Path>| match paths.is_empty() {
        true => "none".to_owned(),
        false => {
            paths.iter().map(|path| format!("--state-dir {}", path.display())).collect::<Vec<_>>().join(" ")
        }
    };
    if kept == given {
        return Ok(());
    }
    bail!(
        "the store keeps other state directories of the app than are given ({}); give {}",
        text(given),
        text(kept)
    )
}

fn fill(actor: &Actor, listed: &Listed, gathered: &Gathered) -> anyhow::Result<()> {
    let frames = gathered.frames().map(|frame| Ok(frame?));
    let cannot = || format!("checkpoint {} cannot be restored here", listed.id());
    actor.fill(listed.id(), frames).with_context(cannot)
}

struct Desk<'a> {
    arbiter: Box<dyn Arbiter>,
    app: &'a str,
}

impl Desk<'_> {
    fn read(&mut self) -> anyhow::Result<Option<Register>> {
        match self.ask(Question::Read)? {
            Answer::Value(register) => Ok(register),
            Answer::Won | Answer::Lost(_) | Answer::Unreachable { .. } => {
                bail!("the register did not say what it holds")
            }
        }
    }

    /// A swap that is not answered may have been made: then that is the answer. Anything else is asked until it is.
    fn ask(&mut self, question: Question) -> anyhow::Result<Answer> {
        let until = Instant::now() + REGISTER_PATIENCE;
        let swap = matches!(question, Question::Swap { .. });
        loop {
            match register::put(&mut *self.arbiter, self.app, question.clone(), until) {
                Ok(answer) => return Ok(answer),
                Err(why) if swap => return Ok(Answer::Unreachable { why: register::chain(&why) }),
                Err(why) if Instant::now() >= until => {
                    return Err(why).context("the register does not answer");
                }
                Err(_) => thread::sleep(REGISTER_PAUSE),
            }
        }
    }
}
