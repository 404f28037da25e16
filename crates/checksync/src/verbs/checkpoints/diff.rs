//! `checksync checkpoints diff`: what changed from one checkpoint to another, of a store or of directories.
//!
//! All of both is read and verified; their pages wait in the temporary directory and are compared byte for byte.

mod changes;
mod drawing;
mod files;
mod regions;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use image::frame::Frame;
use image::state::State;
use image::{CheckpointId, PageTarget};
use store::{GatherError, Gathered, Layouts, StoreError};

use crate::arguments::{DiffArgs, Format, FromStoreArgs};
use crate::exit::{Coded, Exit};
use crate::moment;
use crate::verbs::one_shot::{self, OneShotError, Reader};
use crate::verbs::stored;

pub fn run(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let from = Side::read(&args.from, args)?;
    let to = Side::read(&args.to, args)?;
    let report = changes::between(&from, &to)?;
    match args.output.format {
        Format::Text => print!("{}", drawing::draw(&report)),
        Format::Json => println!("{}", serde_json::to_string(&report).context("cannot write the report")?),
    }
    Ok(Exit::Ok.into())
}

/// One of the two, whole.
struct Side {
    /// Where it is.
    place: String,
    app: String,
    id: CheckpointId,
    state: State,
    gathered: Gathered,
}

type Page = (PageTarget, u64, Vec<u8>);

impl Side {
    fn read(named: &Path, args: &DiffArgs) -> anyhow::Result<Self> {
        match of_store(named, args)? {
            Some(from) => {
                let stored = stored::fetch(&from)?.context("no store is named")?;
                Self::new(stored.name, stored.gathered)
            }
            None => {
                let path = one_shot::find(named)?;
                Self::new(path.display().to_string(), gather(&path)?)
            }
        }
    }

    fn new(place: String, gathered: Gathered) -> anyhow::Result<Self> {
        let id = gathered.id().context("a checkpoint without a header")?;
        let state = gathered.state().cloned().context("a checkpoint without a state")?;
        let app = gathered.app().to_owned();
        Ok(Self { place, app, id, state, gathered })
    }

    fn layouts(&self) -> &Layouts {
        self.gathered.layouts()
    }

    /// In order.
    fn pages(&self) -> impl Iterator<Item = Result<Page, StoreError>> + '_ {
        self.gathered.each_page()
    }
}

/// What a name means: with a store, a checkpoint of it, unless it looks like none; else a directory.
fn of_store(named: &Path, args: &DiffArgs) -> Result<Option<FromStoreArgs>, Coded> {
    let text = named.to_str().unwrap_or_default();
    let (epoch, at) = (moment::parse_checkpoint(text).ok(), moment::parse(text).ok());
    let latest = text == "latest";
    if !latest && epoch.is_none() && at.is_none() {
        return Ok(None);
    }
    if args.store.is_none() {
        let why = anyhow!(
            "{text} is a checkpoint of a store; name that with --store, or write ./{text} for a directory"
        );
        return if named.exists() { Ok(None) } else { Err(Coded::new(Exit::Usage, why)) };
    }
    Ok(Some(FromStoreArgs { store: args.store.clone(), app: args.app.clone(), latest, epoch, at }))
}

fn gather(path: &Path) -> Result<Gathered, Unread> {
    let mut reader = Reader::open(path)?;
    let (_, first) = reader.header()?;
    let mut gathered = Gathered::full(&std::env::temp_dir())?;
    take(&mut gathered, &first, &reader)?;
    while let Some(frame) = reader.next_frame()? {
        take(&mut gathered, &frame, &reader)?;
    }
    Ok(gathered)
}

fn take<R: std::io::Read>(gathered: &mut Gathered, frame: &Frame, reader: &Reader<R>) -> Result<(), Unread> {
    match gathered.take(frame) {
        Ok(_) => Ok(()),
        Err(GatherError::Frame(why)) => Err(reader.damaged(why).into()),
        Err(why) => Err(why.into()),
    }
}

#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    File(#[from] OneShotError),
    #[error(transparent)]
    Gathered(#[from] GatherError),
    #[error(transparent)]
    Room(#[from] StoreError),
}
