//! The one program: managers, one-shot verbs, and what people see of them.
//!
//! `arguments` says what can be asked for, `verbs` has one module per verb. A verb that fails returns an
//! error, which is printed here once, with all that is behind it, and becomes the exit code that goes with it.

mod arguments;
mod config;
mod demo;
mod duration;
mod exit;
mod guard;
mod logging;
mod manager;
mod moment;
mod mpsc;
mod progress;
#[cfg(any(debug_assertions, feature = "stands"))]
mod stand;
mod status;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use arguments::{CheckpointsVerb, Cli, PkiVerb, Verb};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log);
    // Before there is a second thread. Without it the pauses are only longer. A cell's first process traces nobody,
    // reaps, and is the parent of an app that inherits what it hears.
    if !matches!(cli.verb, Verb::CellInit(_))
        && let Err(why) = sys::bell::mute()
    {
        tracing::debug!("stops of the app are announced to every thread: {why}");
    }
    dispatch(cli.verb).unwrap_or_else(|error| {
        eprintln!("checksync: {error:#}");
        exit::of(&error).into()
    })
}

fn dispatch(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Pki(PkiVerb::Init(args)) => verbs::pki::run(args),
        Verb::Standby(args) => verbs::standby::run(args),
        Verb::Witness(args) => verbs::witness::run(args),
        Verb::Run(args) => verbs::run::run(args),
        Verb::Attach(args) => verbs::attach::run(args),
        Verb::Checkpoint(args) => verbs::checkpoint::run(args),
        Verb::Restore(args) => verbs::restore::run(args),
        Verb::Inspect(args) => verbs::inspect::run(args),
        Verb::Checkpoints(CheckpointsVerb::List(args)) => verbs::checkpoints::list(&args),
        Verb::Checkpoints(CheckpointsVerb::Verify(args)) => verbs::checkpoints::verify(&args),
        Verb::Checkpoints(CheckpointsVerb::Diff(args)) => verbs::checkpoints::diff::run(&args),
        Verb::Status(args) => verbs::status::run(args),
        Verb::Pause(args) => verbs::pause::run(args),
        Verb::Switchover(args) => verbs::switchover::run(args),
        Verb::Drill(args) => verbs::drill::run(args),
        Verb::Check(args) => verbs::check::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::DemoApp(args) => demo::serve_app(&args),
        Verb::CellInit(args) => verbs::cell_init::run(args),
        Verb::Guard(args) => verbs::cell_init::guard(&args),
        Verb::CellEnter(args) => verbs::cell_enter::run(&args),
    }
}
