//! Garbage: checkpoints that nobody wants any more, and segments that no checkpoint names.
//!
//! A manifest goes before anything that it needs, and a child before its parent: whatever is listed in between can be
//! restored.

use std::collections::BTreeSet;

use image::CheckpointId;

use crate::StoreError;
use crate::listing::RunContents;
use crate::objects::{Place, Shelf, Store};
use crate::retention::Retention;
use crate::run::Run;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub checkpoints: u64,
    pub segments: u64,
}

impl Run {
    /// Removes what the policy does not keep, of this run and of those before it. On failure everything that is still
    /// listed is whole, and the rest is removed next time.
    pub async fn collect(&mut self, retention: Retention) -> Result<Collected, StoreError> {
        assert!(retention.last > 0, "the next checkpoint of {} builds on the newest", self.app());
        let mut runs = self.store().runs(self.app()).await?;
        runs.retain(|run| *run <= self.name());
        let mut all = Vec::new();
        for run in runs {
            let place = Place { app: self.app(), run };
            // One that began at the same time as this one was closed by neither: its primary could still add to it.
            if run != self.name() {
                self.store().close(place).await?;
            }
            match self.store().contents(place).await {
                // What belongs to it is not known, so all of it stays.
                Err(StoreError::Damaged { .. }) => {}
                contents => all.push((contents?, self.store().segments(place).await?)),
            }
        }
        // After everything that we rest on: whoever begins a run from now on finds it in its place.
        self.look_for_later().await?;
        let times = all.iter().flat_map(|(contents, _)| contents.manifests.values());
        let times: Vec<u64> = times.map(|(manifest, _)| manifest.frozen_at_ns).collect();
        let mut keep = retention.keep(&times).into_iter();
        let mut collected = Collected::default();
        for (contents, segments) in all {
            let wanted = contents.manifests.keys().filter(|_| keep.next() == Some(true)).copied().collect();
            let own = contents.run == self.name();
            let place = Place { app: self.app(), run: contents.run };
            let (kept, dropped) = contents.split(wanted);
            collected.checkpoints += dropped.len() as u64;
            self.store().drop_checkpoints(place, &contents, &dropped).await?;
            let obscure = self.store().drop_damaged(place, &contents, &kept).await?;
            let named = contents.segments(&kept);
            // Nobody knows what a damaged manifest names.
            let garbage = segments.into_iter().filter(|digest| !obscure && !named.contains(digest));
            let garbage: BTreeSet<_> = garbage.collect();
            let paths = garbage.iter().map(|digest| self.store().segment_path(place, *digest)).collect();
            collected.segments += garbage.len() as u64;
            // Before they go: an upload that finds them forgotten sends them again.
            if own {
                self.stored.retain(|digest| !garbage.contains(digest));
            }
            self.store().remove_all(paths).await?;
        }
        Ok(collected)
    }
}

impl RunContents {
    /// What stays, with what it needs, and what goes.
    fn split(&self, wanted: BTreeSet<CheckpointId>) -> (BTreeSet<CheckpointId>, BTreeSet<CheckpointId>) {
        let kept: BTreeSet<_> = wanted.into_iter().flat_map(|id| self.needs(id)).collect();
        let dropped = self.manifests.keys().filter(|id| !kept.contains(id)).copied().collect();
        (kept, dropped)
    }
}

impl Store {
    async fn drop_checkpoints(
        &self,
        place: Place<'_>,
        contents: &RunContents,
        dropped: &BTreeSet<CheckpointId>,
    ) -> Result<(), StoreError> {
        for id in dropped.iter().rev() {
            self.remove(&self.shelf_path(place, Shelf::Manifests, *id)).await?;
        }
        let bases = contents.bases.keys().filter(|id| dropped.contains(id));
        self.remove_all(bases.map(|id| self.shelf_path(place, Shelf::Bases, *id)).collect()).await
    }

    /// Removes damaged manifests that are older than all that is kept of their run. True if others are left.
    async fn drop_damaged(
        &self,
        place: Place<'_>,
        contents: &RunContents,
        kept: &BTreeSet<CheckpointId>,
    ) -> Result<bool, StoreError> {
        let mut left = false;
        for (shelf, damaged) in &contents.unreadable {
            let old = kept.first().map_or(!contents.manifests.is_empty(), |first| damaged.id < *first);
            match old {
                true => self.remove(&self.shelf_path(place, *shelf, damaged.id)).await?,
                false => left = true,
            }
        }
        Ok(left)
    }
}
