//! `attach`: protect a program that runs already; and what it shares with `run`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use replica::primary::{AppExit, Ending};
use serde::Serialize;

use super::subject;
use crate::arguments::{AttachArgs, Format};
use crate::config::{Beginning, NETWORK_THREADS, PrimarySettings, fencing_name};
use crate::exit::Exit;
use crate::manager::lock::Lock;
use crate::manager::primary::{Actor, Input, Outcome, Target, exit_text};
use crate::manager::{control, signals, survivor};
use crate::status::{self, Board, Role, SCHEMA};

pub fn run(args: AttachArgs) -> anyhow::Result<ExitCode> {
    let settings = PrimarySettings::resolve(args.primary, Beginning::Program)?;
    if settings.structures {
        bail!("structures are those of a program that was started for them; use `checksync run`");
    }
    subject::look_at(args.pid)?;
    protect(settings, Target::Process(args.pid))
}

/// Runs a primary manager until the app has ended, here or for good.
pub fn protect(settings: PrimarySettings, target: Target) -> anyhow::Result<ExitCode> {
    let name = format!("primary-{}", settings.app);
    let dir = status::run_dir()?;
    let _app = Lock::take(&dir, &name, &format!("app {}", settings.app))?;
    refuse_a_second(survivor::find(&dir, &settings.app), &settings.app, &target)?;
    let _state = lock_state(settings.shared.state.as_deref())?;
    let runtime = runtime(NETWORK_THREADS)?;
    let _inside = runtime.enter();
    let board =
        Board::new(Role::Primary, settings.shared.host(), fencing_name(settings.shared.fencing), None);
    let _socket = board.serve(&name)?;
    let format = settings.shared.format;
    let actor = Actor::new(settings, target, board, runtime.handle().clone())?;
    let post = actor.post();
    signals::forward(move |number| post.send(number.map_or(Input::Stop, Input::Signal)).is_ok())?;
    let (orders, gone) = (actor.post(), actor.post());
    let _control = control::serve(
        &name,
        move |order, listener| drop(orders.send(Input::Order(order, listener))),
        move || drop(gone.send(Input::Withdrawn)),
    )?;
    end(actor.run(), format)
}

/// What outlived its manager is protected again, and no other is started beside it.
fn refuse_a_second(survivor: Option<i32>, app: &str, target: &Target) -> anyhow::Result<()> {
    match (survivor, target) {
        (None, _) => Ok(()),
        (Some(lives), Target::Process(pid)) if *pid == lives => Ok(()),
        (Some(lives), _) => bail!(
            "app {app} still runs, as process {lives}: its manager died while no standby could take over, so it was \
             left alive; protect it again with `checksync attach {lives} --app {app}` and the other options of \
             before, or end it (`kill {lives}`) to start it anew"
        ),
    }
}

/// The directory is one manager's alone.
pub fn lock_state(state: Option<&std::path::Path>) -> anyhow::Result<Option<Lock>> {
    let Some(state) = state else { return Ok(None) };
    status::make_private(state)?;
    Lock::take(state, "manager", &format!("state directory {}", state.display())).map(Some)
}

/// `workers` threads of the network.
pub fn runtime(workers: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(workers).thread_name("network").enable_all().build().context("cannot start tokio")
}

#[derive(Serialize)]
struct Ended {
    schema: u32,
    ending: Ending,
}

/// The app's own exit code, as a shell shows it, where the app ended by itself.
pub fn end(outcome: Outcome, format: Format) -> anyhow::Result<ExitCode> {
    const SIGNAL_BASE: i32 = 128;
    let ending = match outcome {
        Outcome::Ended(ending) => ending,
        Outcome::Failed(why) => bail!(why),
    };
    let code = match &ending {
        Ending::App(AppExit::Code(code)) => u8::try_from(*code).unwrap_or(Exit::Failure as u8),
        Ending::App(exit @ AppExit::Signal(signal)) => {
            tracing::warn!("the app died: {}", exit_text(*exit));
            u8::try_from(SIGNAL_BASE + signal).unwrap_or(Exit::Failure as u8)
        }
        Ending::HandedOver { to } => {
            // The register names a host with its incarnation, a peer without it.
            let host = to.rsplit_once('#').map_or(to.as_str(), |(host, _)| host);
            tracing::warn!("{host} serves the app now");
            Exit::Fenced as u8
        }
        Ending::Fenced { by } => {
            tracing::error!("fenced: {by} has the term, and the copy of the app here is dead");
            Exit::Fenced as u8
        }
    };
    if format == Format::Json {
        println!("{}", serde_json::to_string(&Ended { schema: SCHEMA, ending })?);
    }
    Ok(code.into())
}
