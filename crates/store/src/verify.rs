//! Reading everything that a restore would read.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::StoreError;
use crate::listing::Listed;
use crate::manifest::{Digest, SegmentRef};
use crate::objects::{CONCURRENT, Place, Store};

/// What came of a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub run: String,
    pub term: u64,
    pub epoch: u64,
    /// What of it lies in the store, with what it builds on.
    pub stored_bytes: u64,
    /// What is wrong, with the object's name.
    pub why_not: Option<String>,
}

impl Store {
    /// Reads every checkpoint of an app whole: each manifest, each segment, each frame's checksum. What cannot be read
    /// because the store does not answer is an error.
    pub async fn verify(&self, app: &str) -> Result<Vec<Verdict>, StoreError> {
        let mut known: BTreeMap<(String, Digest), Option<String>> = BTreeMap::new();
        let mut verdicts = Vec::new();
        let (listed, unreadable) = self.survey(app).await?;
        for listed in listed {
            let (why_not, stored_bytes) = match self.verify_one(app, &listed, &mut known).await {
                Ok(verdict) => verdict,
                Err(why @ (StoreError::Missing { .. } | StoreError::Damaged { .. })) => {
                    (Some(why.to_string()), 0)
                }
                Err(why) => return Err(why),
            };
            let (term, epoch) = (listed.manifest.term, listed.manifest.epoch);
            verdicts.push(Verdict { run: listed.run.to_string(), term, epoch, stored_bytes, why_not });
        }
        verdicts.extend(unreadable.iter().map(|one| Verdict {
            run: one.run.to_string(),
            term: one.id.term.0,
            epoch: one.id.epoch.0,
            stored_bytes: 0,
            why_not: Some(one.error().to_string()),
        }));
        verdicts.sort_by(|a, b| (&a.run, a.term, a.epoch).cmp(&(&b.run, b.term, b.epoch)));
        Ok(verdicts)
    }

    async fn verify_one(
        &self,
        app: &str,
        listed: &Listed,
        known: &mut BTreeMap<(String, Digest), Option<String>>,
    ) -> Result<(Option<String>, u64), StoreError> {
        let chain = self.chain(app, listed).await?;
        let place = Place { app, run: listed.run };
        let run = listed.run.to_string();
        let segments = chain.links.iter().flat_map(|link| &link.manifest.segments);
        let new: Vec<&SegmentRef> =
            segments.clone().filter(|about| !known.contains_key(&(run.clone(), about.digest))).collect();
        let read = |about: &SegmentRef| {
            let about = about.clone();
            async move { (about.digest, self.segment(place, &about).await) }
        };
        let mut reading = std::pin::pin!(stream::iter(new).map(read).buffer_unordered(CONCURRENT));
        while let Some((digest, read)) = reading.next().await {
            let verdict = match read {
                Ok(_) => None,
                Err(why @ (StoreError::Missing { .. } | StoreError::Damaged { .. })) => Some(why.to_string()),
                Err(why) => return Err(why),
            };
            known.insert((run.clone(), digest), verdict);
        }
        let verdict = |about: &SegmentRef| known.get(&(run.clone(), about.digest)).cloned().flatten();
        Ok((segments.into_iter().find_map(verdict), chain.stored_bytes()))
    }
}
