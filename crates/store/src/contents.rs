//! Content of the app's files, in segments beside its memory: a restore needs nothing of the app installed.
//!
//! A full checkpoint, and each that has other files than the one before, names the content of all of them, as far as it
//! could be read. What is the same is stored once in a run, as every segment is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use image::descriptor::OpenFile;
use image::frame::encode;
use image::layout::{FileIdentity, Mapping};
use image::{Shipped, Sync};

use crate::StoreError;
use crate::gathered::{Gathered, Layouts};
use crate::manifest::SegmentRef;
use crate::run::Run;
use crate::segment;

/// What a run has stored of them.
#[derive(Debug, Default)]
pub(crate) struct Stocked {
    files: BTreeMap<FileIdentity, Vec<SegmentRef>>,
    /// Could not be read.
    left_out: BTreeSet<FileIdentity>,
    /// The files that the newest manifest with content is for.
    listed: BTreeSet<FileIdentity>,
}

/// The files that the app has mapped, or open for reading, and that are not in the checkpoint's state directories.
fn used(gathered: &Gathered) -> BTreeSet<FileIdentity> {
    let files = gathered.state().map_or(&[][..], |state| &state.files);
    let opened = files.iter().filter_map(OpenFile::identity).collect::<Vec<_>>();
    let used = mapped(gathered.layouts()).into_iter().cloned().chain(opened);
    used.filter(|identity| gathered.tree().find(&identity.path).is_none()).collect()
}

fn mapped(layouts: &Layouts) -> BTreeSet<&FileIdentity> {
    layouts.values().flat_map(|layout| layout.mappings.iter().filter_map(Mapping::file)).collect()
}

impl Run {
    /// Files of a checkpoint whose content is not in the run yet.
    pub fn lacks(&self, gathered: &Gathered) -> Vec<FileIdentity> {
        let lacks = |identity: &FileIdentity| {
            self.content_of(identity).is_none() && !self.stocked.left_out.contains(identity)
        };
        used(gathered).into_iter().filter(lacks).collect()
    }

    fn content_of(&self, identity: &FileIdentity) -> Option<&[SegmentRef]> {
        let segments = self.stocked.files.get(identity)?;
        // It may have been collected.
        segments.iter().all(|about| self.stored.contains(&about.digest)).then_some(segments)
    }

    /// Stores the content of a file, so that checkpoints from here on have it. What is broken off is left out.
    pub async fn stock(
        &mut self,
        identity: &FileIdentity,
        pieces: impl Iterator<Item = Shipped>,
    ) -> Result<(), StoreError> {
        let mut joiner = segment::shipping();
        let mut stored = Vec::new();
        let mut whole = false;
        for piece in pieces {
            whole = matches!(piece, Shipped::Whole(_));
            if matches!(piece, Shipped::Cannot { .. }) {
                break;
            }
            joiner.add(&encode(&piece));
            for raw in joiner.take() {
                stored.push(self.put_now(&raw).await?);
            }
        }
        for raw in joiner.finish() {
            stored.push(self.put_now(&raw).await?);
        }
        match whole {
            true => drop(self.stocked.files.insert(identity.clone(), stored)),
            false => drop(self.stocked.left_out.insert(identity.clone())),
        }
        Ok(())
    }

    async fn put_now(&mut self, raw: &segment::Raw) -> Result<SegmentRef, StoreError> {
        let packed = raw.pack();
        self.put(&packed).await?;
        self.stored.insert(packed.about.digest);
        Ok(packed.about)
    }

    /// Of a full checkpoint, and of one that has other files than the one before.
    pub(crate) fn contents(&mut self, gathered: &Gathered) -> Vec<SegmentRef> {
        let used = used(gathered);
        let has = |identity: &&FileIdentity| self.content_of(identity).is_some();
        let listed: BTreeSet<FileIdentity> = used.iter().filter(has).cloned().collect();
        if gathered.sync() != Sync::Full && listed.is_subset(&self.stocked.listed) {
            return Vec::new();
        }
        let contents = listed.iter().filter_map(|identity| self.content_of(identity));
        let contents = contents.flatten().cloned().collect();
        self.stocked.listed = listed;
        contents
    }
}

/// Content on its way to a restore, in a file without a name.
#[derive(Debug)]
pub(crate) struct Waiting {
    file: File,
    frames: Vec<(u64, u32)>,
    end: u64,
}

impl Waiting {
    pub(crate) fn new(dir: &Path) -> Result<Self, StoreError> {
        let file = tempfile::tempfile_in(dir)
            .map_err(|source| StoreError::Spool { what: "make a file for the files of", source })?;
        Ok(Self { file, frames: Vec::new(), end: 0 })
    }

    pub(crate) fn put(&mut self, payload: &[u8]) -> Result<(), StoreError> {
        let failed = |source| StoreError::Spool { what: "write the files of", source };
        self.file.write_all_at(payload, self.end).map_err(failed)?;
        self.frames.push((self.end, payload.len() as u32));
        self.end += payload.len() as u64;
        Ok(())
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = Result<Bytes, StoreError>> + '_ {
        self.frames.iter().map(|&(at, len)| {
            let mut payload = vec![0; len as usize];
            let failed = |source| StoreError::Spool { what: "read the files of", source };
            self.file.read_exact_at(&mut payload, at).map_err(failed)?;
            Ok(payload.into())
        })
    }
}
