//! Which checkpoints there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures_util::StreamExt;
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

/// A checkpoint whose manifest is damaged, or the list of what its run is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub run: RunName,
    pub id: CheckpointId,
    pub object: String,
    pub why: String,
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
    /// Manifests that are damaged, and those of bases.
    pub(crate) unreadable: Vec<(Shelf, Unreadable)>,
}

impl Unreadable {
    pub fn error(&self) -> StoreError {
        StoreError::Damaged { object: self.object.clone(), why: self.why.clone() }
    }
}

impl Listed {
    pub fn id(&self) -> CheckpointId {
        self.manifest.id()
    }
}

impl Store {
    /// The checkpoints of an app, the newest last. What cannot be read is not among them.
    pub async fn list(&self, app: &str) -> Result<Vec<Listed>, StoreError> {
        Ok(self.survey(app).await?.0)
    }

    /// The checkpoints of an app, and those that damage hides; the newest last. The others are what they were.
    pub async fn survey(&self, app: &str) -> Result<(Vec<Listed>, Vec<Unreadable>), StoreError> {
        let (mut listed, mut unreadable) = (Vec::new(), Vec::new());
        for run in self.runs(app).await? {
            let place = Place { app, run };
            let contents = match self.contents(place).await {
                // Nobody knows what belongs to it.
                Err(StoreError::Damaged { object, why }) => {
                    let hidden = self.shelf(place, Shelf::Manifests).await?;
                    let hidden = hidden.into_iter().map(|id| Unreadable {
                        run,
                        id,
                        object: object.clone(),
                        why: why.clone(),
                    });
                    unreadable.extend(hidden);
                    continue;
                }
                contents => contents?,
            };
            let of_run = contents.manifests.into_values();
            listed.extend(of_run.map(|(manifest, digest)| Listed { run, manifest, digest }));
            let damaged = contents.unreadable.into_iter().filter(|(shelf, _)| *shelf == Shelf::Manifests);
            unreadable.extend(damaged.map(|(_, one)| one));
        }
        Ok((listed, unreadable))
    }

    /// Should two runs have a checkpoint of the same name, the later one's. Nobody gets an older one than he asked for
    /// because that one is damaged.
    pub async fn pick(&self, app: &str, which: Which) -> Result<Listed, StoreError> {
        let (mut listed, unreadable) = self.survey(app).await?;
        let wanted = |one: &&Unreadable| match which {
            Which::Latest => listed.last().is_none_or(|last| (last.run, last.id()) < (one.run, one.id)),
            Which::Named(id) => one.id == id && !listed.iter().any(|it| it.id() == id),
            Which::At(_) => listed.is_empty(),
        };
        if let Some(damaged) = unreadable.iter().rfind(wanted) {
            return Err(damaged.error());
        }
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
        let mut contents = RunContents {
            run: place.run,
            manifests: BTreeMap::new(),
            bases: BTreeMap::new(),
            unreadable: Vec::new(),
        };
        let mut manifests = self.shelf(place, Shelf::Manifests).await?;
        if manifests.is_empty() {
            return Ok(contents);
        }
        let mut bases = self.shelf(place, Shelf::Bases).await?;
        if let Some(closed) = self.closed(place).await? {
            manifests.retain(|id| closed.manifests.contains(id));
            bases.retain(|id| closed.bases.contains(id));
        }
        contents.manifests =
            self.read_shelf(place, Shelf::Manifests, manifests, &mut contents.unreadable).await?;
        let bases = self.read_shelf(place, Shelf::Bases, bases, &mut contents.unreadable).await?;
        let stands = |id: &CheckpointId, base: &Manifest| {
            contents.manifests.get(id).is_some_and(|(_, digest)| base.stands_for == Some(*digest))
        };
        let bases = bases.into_iter().map(|(id, (base, _))| (id, base));
        contents.bases = bases.filter(|(id, base)| stands(id, base)).collect();
        Ok(contents)
    }

    async fn read_shelf(
        &self,
        place: Place<'_>,
        shelf: Shelf,
        ids: Vec<CheckpointId>,
        unreadable: &mut Vec<(Shelf, Unreadable)>,
    ) -> Result<BTreeMap<CheckpointId, (Manifest, Digest)>, StoreError> {
        let read = |id| async move { (id, self.manifest(place, shelf, id).await) };
        let mut reading = std::pin::pin!(futures_util::stream::iter(ids).map(read).buffered(CONCURRENT));
        let mut found = BTreeMap::new();
        while let Some((id, read)) = reading.next().await {
            match read {
                Ok(manifest) => drop(found.insert(id, manifest)),
                Err(StoreError::Missing { .. }) => {}
                Err(StoreError::Damaged { object, why }) => {
                    unreadable.push((shelf, Unreadable { run: place.run, id, object, why }));
                }
                Err(why) => return Err(why),
            }
        }
        Ok(found)
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
        // Also when it is damaged: what is in it cannot be found out anew.
        if self.find(&self.path(place, "closed")).await?.is_some() {
            return Ok(());
        }
        // A base that comes while we look may be missed: the checkpoint has its parents still, since nobody collects in
        // a run once a later one has begun but that one.
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
