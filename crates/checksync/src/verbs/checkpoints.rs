//! `checksync checkpoints`: what a store has, whether it is whole, and what changed from one to the next.

pub mod diff;

use std::process::ExitCode;

use serde::Serialize;
use store::{Listed, Unreadable, Verdict, Which};

use super::describe::bytes;
use super::stored::{Asked, ask};
use crate::arguments::{Format, StoreArgs};
use crate::exit::Exit;
use crate::moment;

const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct List {
    schema: u32,
    store: String,
    app: String,
    /// The newest last.
    checkpoints: Vec<Checkpoint>,
    /// Whose manifests are damaged.
    unreadable: Vec<Hidden>,
}

#[derive(Serialize)]
struct Hidden {
    run: String,
    term: u64,
    epoch: u64,
    why: String,
}

#[derive(Serialize)]
struct Checkpoint {
    run: String,
    term: u64,
    epoch: u64,
    frozen_at_ns: u64,
    /// None: a full one.
    parent_epoch: Option<u64>,
    stored_bytes: u64,
}

#[derive(Serialize)]
struct Verified {
    schema: u32,
    store: String,
    app: String,
    whole: bool,
    checkpoints: Vec<Verdict>,
}

pub fn list(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let Asked { store, runtime } = ask(&args.store)?;
    let (listed, unreadable) = runtime.block_on(store.survey(&args.app))?;
    if listed.is_empty() && unreadable.is_empty() {
        // For what it says.
        runtime.block_on(store.pick(&args.app, Which::Latest))?;
    }
    let checkpoints: Vec<_> = listed.iter().map(checkpoint).collect();
    match args.output.format {
        Format::Json => {
            let (store, app) = (store.name().to_owned(), args.app.clone());
            let unreadable = unreadable.iter().map(hidden).collect();
            let list = List { schema: SCHEMA, store, app, checkpoints, unreadable };
            println!("{}", serde_json::to_string(&list)?);
        }
        Format::Text => {
            checkpoints.iter().for_each(|one| println!("{}", line(one)));
            unreadable.iter().map(hidden).for_each(|one| {
                let name = format!("{}.{}", one.term, one.epoch);
                println!("{name:<12} cannot be read: {}", one.why);
            });
        }
    }
    Ok(Exit::Ok.into())
}

fn hidden(one: &Unreadable) -> Hidden {
    let (run, why) = (one.run.to_string(), one.error().to_string());
    Hidden { run, term: one.id.term.0, epoch: one.id.epoch.0, why }
}

fn checkpoint(listed: &Listed) -> Checkpoint {
    let manifest = &listed.manifest;
    Checkpoint {
        run: listed.run.to_string(),
        term: manifest.term,
        epoch: manifest.epoch,
        frozen_at_ns: manifest.frozen_at_ns,
        parent_epoch: manifest.parent.as_ref().map(|parent| parent.epoch),
        stored_bytes: manifest.stored_bytes(),
    }
}

fn line(one: &Checkpoint) -> String {
    let Checkpoint { run, term, epoch, frozen_at_ns, parent_epoch, stored_bytes } = one;
    let kind = parent_epoch.map_or("full".to_owned(), |parent| format!("since {parent}"));
    let name = format!("{term}.{epoch}");
    format!("{name:<12} {}  {:>10}  {kind:<14} run {run}", moment::text(*frozen_at_ns), bytes(*stored_bytes))
}

pub fn verify(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let Asked { store, runtime } = ask(&args.store)?;
    let checkpoints = runtime.block_on(store.verify(&args.app))?;
    if checkpoints.is_empty() {
        runtime.block_on(store.pick(&args.app, Which::Latest))?;
    }
    let whole = checkpoints.iter().all(|verdict| verdict.why_not.is_none());
    match args.output.format {
        Format::Json => {
            let (store, app) = (store.name().to_owned(), args.app.clone());
            println!(
                "{}",
                serde_json::to_string(&Verified { schema: SCHEMA, store, app, whole, checkpoints })?
            );
        }
        Format::Text => checkpoints.iter().for_each(|verdict| println!("{}", verdict_line(verdict))),
    }
    Ok(if whole { Exit::Ok } else { Exit::Failure }.into())
}

fn verdict_line(verdict: &Verdict) -> String {
    let name = format!("{}.{}", verdict.term, verdict.epoch);
    match &verdict.why_not {
        None => format!("{name:<12} whole, {} to read", bytes(verdict.stored_bytes)),
        Some(why) => format!("{name:<12} cannot be restored: {why}"),
    }
}
