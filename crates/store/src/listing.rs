//! Which checkpoints there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures_util::{StreamExt, TryStreamExt};
use image::CheckpointId;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::manifest::{self, Digest, Manifest};
use crate::names::RunName;
use crate::objects::{CONCURRENT, Place, Shelf, Store};

/// A checkpoint that can be restored.
#[derive(Debug, Clone)]
pub struct Listed {
    pub run: RunName,
    pub manifest: Manifest,
    pub(crate) digest: Digest,
}

/// Which one is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Latest,
    Named(CheckpointId),
    /// The newest one that was frozen no later than this, nanoseconds since 1970.
    At(u64),
}

/// What a run is made of, whatever is added to it later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closed {
    pub(crate) schema: u32,
    pub(crate) manifests: BTreeSet<CheckpointId>,
    pub(crate) bases: BTreeSet<CheckpointId>,
}

/// What is there of a run.
#[derive(Debug)]
pub(crate) struct RunContents {
    pub(crate) run: RunName,
    pub(crate) manifests: BTreeMap<CheckpointId, (Manifest, Digest)>,
    pub(crate) bases: BTreeMap<CheckpointId, Manifest>,
}

impl Listed {
    pub fn id(&self) -> CheckpointId {
        self.manifest.id()
    }
}

impl Store {
    /// The checkpoints of an app, the newest last.
    pub async fn list(&self, app: &str) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        for run in self.runs(app).await? {
            let contents = self.contents(Place { app, run }).await?;
            let of_run = contents.manifests.into_values();
            listed.extend(of_run.map(|(manifest, digest)| Listed { run, manifest, digest }));
        }
        Ok(listed)
    }

    /// Should two runs have a checkpoint of the same name, the later one's.
    pub async fn pick(&self, app: &str, which: Which) -> Result<Listed, StoreError> {
        let mut listed = self.list(app).await?;
        let (Some(first), Some(last)) = (listed.first().map(Listed::id), listed.last().map(Listed::id))
        else {
            return Err(self.nothing(app).await?);
        };
        let at = listed.iter().rposition(|one| match which {
            Which::Latest => true,
            Which::Named(id) => one.id() == id,
            Which::At(ns) => one.manifest.frozen_at_ns <= ns,
        });
        match at {
            Some(at) => Ok(listed.swap_remove(at)),
            None => Err(StoreError::NoSuch {
                store: self.name().to_owned(),
                app: app.to_owned(),
                wanted: which.to_string(),
                first,
                last,
            }),
        }
    }

    async fn nothing(&self, app: &str) -> Result<StoreError, StoreError> {
        let apps = self.apps().await?;
        let others = match &apps[..] {
            [] => "it is empty".to_owned(),
            apps => format!("it has {}", apps.join(", ")),
        };
        Ok(StoreError::Nothing { store: self.name().to_owned(), app: app.to_owned(), others })
    }

    /// The manifests and bases of a run. What was removed while we looked is not in it.
    pub(crate) async fn contents(&self, place: Place<'_>) -> Result<RunContents, StoreError> {
        let mut manifests = self.shelf(place, Shelf::Manifests).await?;
        if manifests.is_empty() {
            return Ok(RunContents { run: place.run, manifests: BTreeMap::new(), bases: BTreeMap::new() });
        }
        let mut bases = self.shelf(place, Shelf::Bases).await?;
        if let Some(closed) = self.closed(place).await? {
            manifests.retain(|id| closed.manifests.contains(id));
            bases.retain(|id| closed.bases.contains(id));
        }
        let manifests = self.read_shelf(place, Shelf::Manifests, manifests).await?;
        let bases = self.read_shelf(place, Shelf::Bases, bases).await?;
        let stands = |id: &CheckpointId, base: &Manifest| {
            manifests.get(id).is_some_and(|(_, digest)| base.stands_for == Some(*digest))
        };
        let bases = bases.into_iter().map(|(id, (base, _))| (id, base));
        let bases = bases.filter(|(id, base)| stands(id, base)).collect();
        Ok(RunContents { run: place.run, manifests, bases })
    }

    async fn read_shelf(
        &self,
        place: Place<'_>,
        shelf: Shelf,
        ids: Vec<CheckpointId>,
    ) -> Result<BTreeMap<CheckpointId, (Manifest, Digest)>, StoreError> {
        let read = |id| async move {
            match self.manifest(place, shelf, id).await {
                Ok(found) => Ok(Some((id, found))),
                Err(StoreError::Missing { .. }) => Ok(None),
                Err(why) => Err(why),
            }
        };
        let found = futures_util::stream::iter(ids).map(read).buffered(CONCURRENT);
        found.try_filter_map(|found| async move { Ok(found) }).try_collect().await
    }

    pub(crate) async fn closed(&self, place: Place<'_>) -> Result<Option<Closed>, StoreError> {
        let path = self.path(place, "closed");
        let Some(bytes) = self.find(&path).await? else { return Ok(None) };
        let damaged = |why| StoreError::Damaged { object: self.say(&path), why };
        let text = manifest::open(&bytes).map_err(damaged)?;
        serde_json::from_slice(text).map(Some).map_err(|why| damaged(why.to_string()))
    }

    /// Writes down what a run is made of. Whoever comes first is right.
    pub(crate) async fn close(&self, place: Place<'_>) -> Result<(), StoreError> {
        if self.closed(place).await?.is_some() {
            return Ok(());
        }
        // The bases first: one that comes between is missed, and the checkpoint has its parents still.
        let bases = self.shelf(place, Shelf::Bases).await?.into_iter().collect();
        let manifests = self.shelf(place, Shelf::Manifests).await?.into_iter().collect();
        let closed = Closed { schema: manifest::SCHEMA, manifests, bases };
        let text = serde_json::to_vec(&closed).expect("a list is plain data");
        match self.create(&self.path(place, "closed"), manifest::seal(&text)).await {
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(why) => Err(why),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("at all"),
            Self::Named(id) => id.fmt(f),
            Self::At(ns) => write!(f, "from before {} s since 1970", ns / 1_000_000_000),
        }
    }
}
