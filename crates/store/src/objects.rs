//! The store as a place of objects: each is read, written and named here.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use image::{CheckpointId, Frame};
use object_store::path::Path;
use object_store::{DynObjectStore, Error, ObjectStoreExt, PutMode, PutPayload};

use crate::StoreError;
use crate::location::{Location, LocationError};
use crate::manifest::{Digest, Manifest, SegmentRef};
use crate::names::{self, RunName};
use crate::segment::{Packed, unpack};

/// Requests under way at once.
pub(crate) const CONCURRENT: usize = 8;

/// Clones share the connections.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) objects: Arc<DynObjectStore>,
    prefix: Path,
    /// As the operator named it.
    name: String,
}

/// What a full checkpoint of a run is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shelf {
    Manifests,
    Bases,
}

impl Shelf {
    fn text(self) -> &'static str {
        match self {
            Self::Manifests => "manifests",
            Self::Bases => "bases",
        }
    }
}

/// A run's place in the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) app: &'a str,
    pub(crate) run: RunName,
}

impl Store {
    pub fn open(location: &Location) -> Result<Self, LocationError> {
        let (objects, prefix) = location.open()?;
        Ok(Self::over(objects, &prefix, location.to_string()))
    }

    /// Over any objects. `name` is for messages.
    pub fn over(objects: Arc<DynObjectStore>, prefix: &str, name: String) -> Self {
        Self { objects, prefix: Path::from(prefix), name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The apps that have a place here.
    pub async fn apps(&self) -> Result<Vec<String>, StoreError> {
        let mut apps = self.folders(&self.prefix).await?;
        apps.retain(|name| names::is_app(name));
        Ok(apps)
    }

    pub(crate) async fn runs(&self, app: &str) -> Result<Vec<RunName>, StoreError> {
        if !names::is_app(app) {
            return Err(StoreError::BadName { name: app.to_owned() });
        }
        let found = self.folders(&self.prefix.clone().join(app)).await?;
        let mut runs: Vec<RunName> = found.iter().filter_map(|name| name.parse().ok()).collect();
        runs.sort_unstable();
        Ok(runs)
    }

    async fn folders(&self, at: &Path) -> Result<Vec<String>, StoreError> {
        let listed = self.objects.list_with_delimiter(Some(at)).await;
        let listed = listed.map_err(|source| self.failed("list", at, source))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listed.common_prefixes.iter().filter_map(name).collect())
    }

    /// The names of the objects of a folder.
    async fn names(&self, at: &Path) -> Result<Vec<String>, StoreError> {
        let found = self.objects.list(Some(at)).map_ok(|found| found.location);
        let found: Vec<Path> = found.try_collect().await.map_err(|source| self.failed("list", at, source))?;
        Ok(found.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// The checkpoints on a shelf, in order.
    pub(crate) async fn shelf(
        &self,
        place: Place<'_>,
        shelf: Shelf,
    ) -> Result<Vec<CheckpointId>, StoreError> {
        let names = self.names(&self.path(place, shelf.text())).await?;
        let mut ids: Vec<_> = names.iter().filter_map(|name| names::parse_checkpoint(name)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    pub(crate) async fn segments(&self, place: Place<'_>) -> Result<Vec<Digest>, StoreError> {
        let names = self.names(&self.path(place, "segments")).await?;
        Ok(names.iter().filter_map(|name| Digest::parse(name)).collect())
    }

    /// A manifest with the digest that children call it by.
    pub(crate) async fn manifest(
        &self,
        place: Place<'_>,
        shelf: Shelf,
        id: CheckpointId,
    ) -> Result<(Manifest, Digest), StoreError> {
        let path = self.shelf_path(place, shelf, id);
        let bytes = self.get(&path).await?;
        let damaged = |why| StoreError::Damaged { object: self.say(&path), why };
        let manifest = Manifest::decode(&bytes).map_err(damaged)?;
        if manifest.id() != id || manifest.app != place.app {
            let why = format!("it is the manifest of {} {}", manifest.app, manifest.id());
            return Err(damaged(why));
        }
        Ok((manifest, Digest::of(&bytes)))
    }

    /// Writes what must not change any more. The same bytes may be there already.
    pub(crate) async fn create(&self, path: &Path, bytes: Vec<u8>) -> Result<(), StoreError> {
        let put = self.objects.put_opts(path, PutPayload::from(bytes.clone()), PutMode::Create.into()).await;
        match put {
            Ok(_) => Ok(()),
            // An attempt whose answer was lost has written it.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. })
                if *self.get(path).await? == *bytes =>
            {
                Ok(())
            }
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Err(StoreError::Conflict { object: self.say(path) })
            }
            Err(source) => Err(self.failed("write", path, source)),
        }
    }

    pub(crate) async fn put_segment(&self, place: Place<'_>, packed: &Packed) -> Result<(), StoreError> {
        let path = self.segment_path(place, packed.about.digest);
        let put = self.objects.put(&path, PutPayload::from(packed.stored.clone())).await;
        put.map(drop).map_err(|source| self.failed("write", &path, source))
    }

    /// The frames of a segment, each verified.
    pub(crate) async fn segment(
        &self,
        place: Place<'_>,
        about: &SegmentRef,
    ) -> Result<Vec<Frame>, StoreError> {
        let path = self.segment_path(place, about.digest);
        let stored = self.get(&path).await?;
        unpack(about, &stored).map_err(|why| StoreError::Damaged { object: self.say(&path), why })
    }

    pub(crate) async fn get(&self, path: &Path) -> Result<Bytes, StoreError> {
        let read = async { self.objects.get(path).await?.bytes().await };
        read.await.map_err(|source| match source {
            Error::NotFound { .. } => StoreError::Missing { object: self.say(path) },
            source => self.failed("read", path, source),
        })
    }

    /// As [`Store::get`], of what need not be there.
    pub(crate) async fn find(&self, path: &Path) -> Result<Option<Bytes>, StoreError> {
        match self.get(path).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(why) => Err(why),
        }
    }

    pub(crate) async fn remove(&self, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.failed("remove", path, source)),
        }
    }

    pub(crate) async fn remove_all(&self, paths: Vec<Path>) -> Result<(), StoreError> {
        let removing = futures_util::stream::iter(paths).map(|path| async move { self.remove(&path).await });
        removing.buffer_unordered(CONCURRENT).try_collect().await
    }

    pub(crate) fn path(&self, place: Place<'_>, name: &str) -> Path {
        self.prefix.clone().join(place.app).join(place.run.to_string()).join(name)
    }

    pub(crate) fn shelf_path(&self, place: Place<'_>, shelf: Shelf, id: CheckpointId) -> Path {
        self.path(place, shelf.text()).join(names::checkpoint(id))
    }

    pub(crate) fn segment_path(&self, place: Place<'_>, digest: Digest) -> Path {
        self.path(place, "segments").join(digest.to_string())
    }

    /// An object as people find it.
    pub(crate) fn say(&self, path: &Path) -> String {
        format!("{path} in {}", self.name)
    }

    pub(crate) fn failed(&self, what: &'static str, path: &Path, source: Error) -> StoreError {
        StoreError::Object { what, object: self.say(path), source }
    }
}
