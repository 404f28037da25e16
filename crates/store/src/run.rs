//! The one writer of a run: it uploads, folds and collects, one thing after the other.

use std::collections::HashSet;

use futures_util::{StreamExt, stream};
use image::{CheckpointId, Sync, Term};
use serde::{Deserialize, Serialize};

use crate::contents::Stocked;
use crate::gathered::Gathered;
use crate::manifest::{Digest, Manifest, Parent, SegmentRef};
use crate::names::RunName;
use crate::objects::{CONCURRENT, Place, Shelf, Store};
use crate::segment::Packed;
use crate::{StoreError, fold, manifest};

/// So many checkpoints on top of a full one, and it is time for a base.
const LINKS_MAX: usize = 16;
/// Before so many it is never.
const LINKS_MIN: usize = 4;

/// Who begins a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Life {
    /// What made its term, if something outside did: of two lives with the same one, the later term's is the later.
    pub register: Option<String>,
    pub host: String,
    /// No other life of a manager has it.
    pub incarnation: u64,
    /// By the wall clock, nanoseconds since 1970; for people.
    pub begun_at_ns: u64,
}

#[derive(Debug)]
pub struct Run {
    store: Store,
    app: String,
    name: RunName,
    /// What this run has stored and not collected.
    pub(crate) stored: HashSet<Digest>,
    pub(crate) stocked: Stocked,
    tip: Option<Tip>,
}

/// The checkpoint that the next one builds on.
#[derive(Debug, Clone)]
struct Tip {
    manifest: Manifest,
    digest: Digest,
    /// On top of the last full one.
    links: usize,
    links_bytes: u64,
    full_bytes: u64,
}

/// What an upload or a fold cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uploaded {
    pub segments: u64,
    /// Of them, what was there already.
    pub segments_shared: u64,
    /// Unpacked.
    pub bytes: u64,
    /// That went to the store.
    pub bytes_sent: u64,
}

impl Run {
    /// Begins a run, and closes those before it.
    pub async fn begin(store: Store, app: &str, term: Term, life: &Life) -> Result<Self, StoreError> {
        let runs = store.runs(app).await?;
        if let Some(last) = runs.last().filter(|last| last.term > term.0 && life.register.is_some()) {
            let place = Place { app, run: *last };
            if store.life(place).await?.is_some_and(|of_last| of_last.register == life.register) {
                return Err(StoreError::OldTerm {
                    run: store.say(&store.path(place, "begun")),
                    term: term.0,
                });
            }
        }
        let number = runs.last().map_or(1, |last| last.number.saturating_add(1));
        let name = RunName { number, term: term.0, incarnation: life.incarnation };
        let text = serde_json::to_vec(life).expect("a life is plain data");
        store.create(&store.path(Place { app, run: name }, "begun"), manifest::seal(&text)).await?;
        // In this order: whoever does not see the new run has finished what he wrote before he is listed.
        for run in runs {
            store.close(Place { app, run }).await?;
        }
        Ok(Self {
            store,
            app: app.to_owned(),
            name,
            stored: HashSet::new(),
            stocked: Stocked::default(),
            tip: None,
        })
    }

    pub fn name(&self) -> RunName {
        self.name
    }

    pub fn app(&self) -> &str {
        &self.app
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The newest checkpoint of the run.
    pub fn tip(&self) -> Option<CheckpointId> {
        self.tip.as_ref().map(|tip| tip.manifest.id())
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place { app: &self.app, run: self.name }
    }

    /// Stores a checkpoint: it is listed then, whenever another run begins. On failure it is listed or not, and whole if
    /// it is; the same may be tried again.
    pub async fn upload(&mut self, gathered: &Gathered) -> Result<Uploaded, StoreError> {
        let id = gathered.id().expect("what is uploaded is whole");
        let parent = self.parent_for(gathered.sync(), id)?;
        // For nothing would all of it be sent.
        self.look_for_later().await?;
        let mut uploaded = Uploaded::default();
        let mut segments = self.contents(gathered);
        segments.iter().for_each(|about| uploaded.count(about, false));
        {
            let putting = stream::iter(gathered.segments()).map(|packed| async {
                let packed = packed?;
                let sent = self.put(&packed).await?;
                Ok::<_, StoreError>((packed.about, sent))
            });
            let mut putting = std::pin::pin!(putting.buffered(CONCURRENT));
            while let Some(put) = putting.next().await {
                let (about, sent) = put?;
                uploaded.count(&about, sent);
                segments.push(about);
            }
        }
        self.stored.extend(segments.iter().map(|about| about.digest));
        let manifest = Manifest {
            schema: Manifest::schema_for(&segments),
            app: self.app.clone(),
            term: id.term.0,
            epoch: id.epoch.0,
            parent,
            stands_for: None,
            frozen_at_ns: gathered.frozen_at_ns(),
            segments,
        };
        uploaded.bytes_sent += self.write(Shelf::Manifests, &manifest).await?;
        // Behind the manifest: whoever begins from now on finds that in its place, and lists it when he closes this run.
        self.look_for_later().await?;
        self.grow(manifest);
        Ok(uploaded)
    }

    fn parent_for(&self, sync: Sync, id: CheckpointId) -> Result<Option<Parent>, StoreError> {
        match (sync, &self.tip) {
            (Sync::Full, _) => Ok(None),
            (Sync::Since(parent), None) => Err(StoreError::NotFull { parent }),
            (Sync::Since(parent), Some(tip)) if tip.manifest.id() == parent => {
                Ok(Some(Parent { term: parent.term.0, epoch: parent.epoch.0, digest: tip.digest }))
            }
            (Sync::Since(_), Some(tip)) => Err(StoreError::Gap { tip: tip.manifest.id(), found: id }),
        }
    }

    fn grow(&mut self, manifest: Manifest) {
        let (digest, bytes) = (Digest::of(&manifest.encode()), manifest.stored_bytes());
        let before = self.tip.take().filter(|_| manifest.parent.is_some());
        self.tip = Some(match before {
            None => Tip { manifest, digest, links: 0, links_bytes: 0, full_bytes: bytes },
            Some(tip) => Tip {
                manifest,
                digest,
                links: tip.links + 1,
                links_bytes: tip.links_bytes + bytes,
                full_bytes: tip.full_bytes,
            },
        });
    }

    /// True if it had to be sent.
    pub(crate) async fn put(&self, packed: &Packed) -> Result<bool, StoreError> {
        if self.stored.contains(&packed.about.digest) {
            return Ok(false);
        }
        self.store.put_segment(self.place(), packed).await?;
        Ok(true)
    }

    async fn write(&self, shelf: Shelf, manifest: &Manifest) -> Result<u64, StoreError> {
        let bytes = manifest.encode();
        let len = bytes.len() as u64;
        self.store.create(&self.store.shelf_path(self.place(), shelf, manifest.id()), bytes).await?;
        Ok(len)
    }

    /// What is there may be damaged: from now on everything is sent again, over what has its name.
    pub fn distrust(&mut self) {
        self.stored.clear();
        self.stocked = Stocked::default();
    }

    /// A later run means that what we write counts no more.
    pub async fn look_for_later(&self) -> Result<(), StoreError> {
        self.store.look_for_later(&self.app, self.name).await
    }

    /// Whether a restore of the newest checkpoint reads so much more than a full one that a base is worth it.
    pub fn fold_is_due(&self) -> bool {
        self.tip.as_ref().is_some_and(|tip| {
            tip.links >= LINKS_MAX || tip.links >= LINKS_MIN && tip.links_bytes >= tip.full_bytes
        })
    }

    /// Gives the newest checkpoint a base. On failure nothing has changed.
    pub async fn fold(&mut self) -> Result<Uploaded, StoreError> {
        let Some(tip) = self.tip.clone() else { return Ok(Uploaded::default()) };
        let listed = crate::Listed { run: self.name, manifest: tip.manifest.clone(), digest: tip.digest };
        let chain = self.store.chain(&self.app, &listed).await?;
        let (segments, mut uploaded) = fold::fold(self, &chain).await?;
        self.stored.extend(segments.iter().map(|about| about.digest));
        let schema = Manifest::schema_for(&segments);
        let base =
            Manifest { schema, parent: None, stands_for: Some(tip.digest), segments, ..tip.manifest.clone() };
        uploaded.bytes_sent += self.write(Shelf::Bases, &base).await?;
        self.tip = Some(Tip { links: 0, links_bytes: 0, full_bytes: base.stored_bytes(), ..tip });
        Ok(uploaded)
    }
}

impl Store {
    /// An error if a run has begun after this one.
    pub async fn look_for_later(&self, app: &str, run: RunName) -> Result<(), StoreError> {
        match self.runs(app).await?.last() {
            Some(last) if *last > run => {
                let path = self.path(Place { app, run: *last }, "");
                Err(StoreError::Superseded { run: self.say(&path) })
            }
            _ => Ok(()),
        }
    }

    async fn life(&self, place: Place<'_>) -> Result<Option<Life>, StoreError> {
        let path = self.path(place, "begun");
        let Some(bytes) = self.find(&path).await? else { return Ok(None) };
        let damaged = |why| StoreError::Damaged { object: self.say(&path), why };
        let text = manifest::open(&bytes).map_err(damaged)?;
        serde_json::from_slice(text).map(Some).map_err(|why| damaged(why.to_string()))
    }
}

impl Uploaded {
    pub(crate) fn count(&mut self, about: &SegmentRef, sent: bool) {
        self.segments += 1;
        self.bytes += about.bytes;
        match sent {
            true => self.bytes_sent += about.stored_bytes,
            false => self.segments_shared += 1,
        }
    }
}
