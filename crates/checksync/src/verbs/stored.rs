//! A checkpoint of a store, fetched: all of it is read and verified before anything is done with it.

use anyhow::{Context, bail};
use image::{Frame, Header};
use store::{Gathered, Location, Store, Which};
use tokio::runtime::Runtime;

use crate::arguments::FromStoreArgs;
use crate::moment;

/// What was fetched, and where from.
#[derive(Debug)]
pub struct Stored {
    pub gathered: Gathered,
    pub header: Header,
    pub name: String,
    pub stored_bytes: u64,
}

/// A store, and what asks it.
#[derive(Debug)]
pub struct Asked {
    pub store: Store,
    pub runtime: Runtime,
}

pub fn ask(location: &Location) -> anyhow::Result<Asked> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(Asked { store: Store::open(location)?, runtime: runtime.context("cannot start the store's network")? })
}

/// None, if the arguments name no store.
pub fn fetch(from: &FromStoreArgs) -> anyhow::Result<Option<Stored>> {
    let Some(location) = &from.store else {
        if from.latest || from.epoch.is_some() || from.at.is_some() {
            bail!("--latest, --epoch and --at say which checkpoint of a store; name it with --store");
        }
        return Ok(None);
    };
    let app = from.app.as_deref().context("no app is named; give --app NAME")?;
    let Asked { store, runtime } = ask(location)?;
    let listed = runtime.block_on(store.pick(app, which(from)))?;
    let fetched = runtime.block_on(store.fetch(app, &listed, &std::env::temp_dir()));
    let gathered = fetched.with_context(|| format!("checkpoint {} of {app} cannot be had", listed.id()))?;
    let first = gathered.frames().next().context("a checkpoint without a header")??;
    let header = Frame::parse(first)?.decode("header")?;
    let name = format!("{}, run {}", store.name(), listed.run);
    Ok(Some(Stored { gathered, header, name, stored_bytes: listed.manifest.stored_bytes() }))
}

fn which(from: &FromStoreArgs) -> Which {
    match (from.epoch, from.at) {
        (Some(id), _) => Which::Named(id),
        (None, Some(at)) => Which::At(at.nanoseconds(moment::now_ns())),
        (None, None) => Which::Latest,
    }
}
