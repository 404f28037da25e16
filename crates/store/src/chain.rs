//! A checkpoint with all that it builds on, as frames.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use image::frame::FrameWriter;
use image::{CheckpointId, Frame, FrameKind, Header, Sync};

use crate::StoreError;
use crate::gathered::{GatherError, Gathered};
use crate::listing::{Listed, RunContents};
use crate::manifest::{Digest, Manifest, SegmentKind, SegmentRef};
use crate::names::RunName;
use crate::objects::{CONCURRENT, Place, Shelf, Store};

/// First a full checkpoint, then what is to be applied on top of it, in order.
#[derive(Debug, Clone)]
pub struct Chain {
    pub app: String,
    pub run: RunName,
    pub links: Vec<Link>,
}

#[derive(Debug, Clone)]
pub struct Link {
    pub header: Header,
    pub manifest: Manifest,
}

impl Link {
    fn new(manifest: Manifest) -> Self {
        let sync = manifest.parent.as_ref().map_or(Sync::Full, |parent| Sync::Since(parent.id()));
        let header = Header {
            app: manifest.app.clone(),
            id: manifest.id(),
            sync,
            frozen_at_ns: manifest.frozen_at_ns,
        };
        Self { header, manifest }
    }
}

impl Store {
    /// Reads the manifests of a checkpoint and of what it builds on; each must be the one that its child means.
    pub async fn chain(&self, app: &str, listed: &Listed) -> Result<Chain, StoreError> {
        let place = Place { app, run: listed.run };
        let closed = self.closed(place).await?;
        let mut links = Vec::new();
        let (mut manifest, mut digest) = (listed.manifest.clone(), listed.digest);
        // What a damaged base stands for may be there still.
        let mut damaged = None;
        loop {
            let counts = closed.as_ref().is_none_or(|closed| closed.bases.contains(&manifest.id()));
            if manifest.parent.is_some() && counts {
                match self.base(place, manifest.id(), digest).await {
                    Ok(Some(base)) => {
                        links.push(Link::new(base));
                        break;
                    }
                    Ok(None) => {}
                    Err(why @ StoreError::Damaged { .. }) => damaged = damaged.or(Some(why)),
                    Err(why) => return Err(why),
                }
            }
            let parent = manifest.parent.clone();
            links.push(Link::new(manifest));
            let Some(parent) = parent else { break };
            (manifest, digest) = match self.manifest(place, Shelf::Manifests, parent.id()).await {
                Err(StoreError::Missing { object }) => {
                    return Err(damaged.unwrap_or(StoreError::Missing { object }));
                }
                found => found?,
            };
            if digest != parent.digest {
                let object = self.say(&self.shelf_path(place, Shelf::Manifests, parent.id()));
                let why = "the checkpoint that builds on it means another".to_owned();
                return Err(StoreError::Damaged { object, why });
            }
        }
        links.reverse();
        Ok(Chain { app: app.to_owned(), run: listed.run, links })
    }

    async fn base(
        &self,
        place: Place<'_>,
        id: CheckpointId,
        stands_for: Digest,
    ) -> Result<Option<Manifest>, StoreError> {
        match self.manifest(place, Shelf::Bases, id).await {
            Ok((base, _)) if base.stands_for == Some(stands_for) => Ok(Some(base)),
            Ok(_) | Err(StoreError::Missing { .. }) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// The frames of one link, numbered as those of one epoch. Each segment is verified before its frames come.
    pub fn frames<'a>(
        &'a self,
        chain: &'a Chain,
        link: &'a Link,
    ) -> impl Stream<Item = Result<Vec<Bytes>, StoreError>> + 'a {
        let place = Place { app: &chain.app, run: chain.run };
        // The newest that has content of files has that of all of them.
        let ships = chain.ships().is_some_and(|newest| newest.header.id == link.header.id);
        let comes = move |about: &&SegmentRef| about.kind != SegmentKind::Shipped || ships;
        let segments = stream::iter(link.manifest.segments.iter().filter(comes))
            .map(move |about| async move { self.segment(place, about).await })
            .buffered(CONCURRENT);
        let mut writer = FrameWriter::default();
        let header = writer.cbor(FrameKind::Header, &link.header);
        let mut writer = Some(writer);
        let ends = segments.map(Some).chain(stream::once(async { None }));
        let rest = ends.map(move |segment| match segment {
            Some(Ok(frames)) => {
                let writer = writer.as_mut().expect("the end comes last");
                let number = |frame: &Frame| writer.frame(frame.kind, &frame.payload);
                Ok(frames.iter().map(number).collect())
            }
            Some(Err(why)) => Err(why),
            None => Ok(vec![writer.take().expect("the end comes once").end()]),
        });
        stream::once(async { Ok(vec![header]) }).chain(rest)
    }
}

impl Store {
    /// A checkpoint with all that it builds on, as one full one. Everything is read and verified when this returns;
    /// `dir` is where its pages are kept meanwhile.
    pub async fn fetch(&self, app: &str, listed: &Listed, dir: &Path) -> Result<Gathered, StoreError> {
        let chain = self.chain(app, listed).await?;
        let mut gathered = Gathered::full(dir)?;
        for link in &chain.links {
            let damaged = |why: String| {
                let place = Place { app, run: chain.run };
                let object = self.say(&self.shelf_path(place, Shelf::Manifests, link.header.id));
                StoreError::Damaged {
                    object,
                    why: format!("its frames are none that a checkpoint has: {why}"),
                }
            };
            let mut frames = std::pin::pin!(self.frames(&chain, link));
            while let Some(frames) = frames.next().await {
                for frame in frames? {
                    let taken =
                        Frame::parse(frame).map_err(GatherError::from).and_then(|it| gathered.take(&it));
                    taken.map_err(|why| match why {
                        GatherError::Store(why) => why,
                        other => damaged(other.to_string()),
                    })?;
                }
            }
        }
        Ok(gathered)
    }
}

impl Chain {
    /// The newest that has content of files.
    pub(crate) fn ships(&self) -> Option<&Link> {
        let has =
            |link: &&Link| link.manifest.segments.iter().any(|about| about.kind == SegmentKind::Shipped);
        self.links.iter().rfind(has)
    }

    /// What is read from the store for a restore.
    pub fn stored_bytes(&self) -> u64 {
        self.links.iter().map(|link| link.manifest.stored_bytes()).sum()
    }

    pub fn id(&self) -> CheckpointId {
        self.links.last().map(|link| link.header.id).unwrap_or_default()
    }
}

impl RunContents {
    /// The manifests that a checkpoint needs, its own first; the last of them by its base, if it has one, or one that
    /// is not there.
    pub(crate) fn needs(&self, id: CheckpointId) -> Vec<CheckpointId> {
        let mut needs = vec![id];
        let mut at = id;
        while !self.bases.contains_key(&at) {
            let manifest = self.manifests.get(&at).map(|(manifest, _)| manifest);
            let Some(parent) = manifest.and_then(|manifest| manifest.parent.as_ref()) else { break };
            at = parent.id();
            needs.push(at);
        }
        needs
    }

    /// The segments by which these are kept: those of its base, where a checkpoint has one.
    pub(crate) fn segments<'a>(&self, ids: impl IntoIterator<Item = &'a CheckpointId>) -> BTreeSet<Digest> {
        let manifest =
            |id| self.bases.get(id).or_else(|| self.manifests.get(id).map(|(manifest, _)| manifest));
        let segments = ids.into_iter().filter_map(manifest).flat_map(|manifest| &manifest.segments);
        segments.map(|segment| segment.digest).collect()
    }
}
