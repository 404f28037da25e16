//! What the operator asked for when he had the app protected. It travels with the app: a standby that takes over goes on
//! with it as a primary, though nobody told it any of this.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use image::frame::{self, FrameError};
use replica::Timing;
use replica::primary::{CommitOn, Consistency, OnCrash};
use serde::{Deserialize, Serialize};
use store::{Location, LocationError, RetentionError};
use wire::Hello;

use crate::config::{PrimarySettings, Shared};
use crate::manager::store::{NamedBy, StoreSettings};

const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Why the app's store is none for whoever takes over here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location}: {why}")]
pub struct NoStoreHere {
    pub location: String,
    pub why: String,
}

/// Encoded as CBOR in the hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    interval_us: u64,
    on_crash: OnCrash,
    consistency: Consistency,
    /// An earlier release knows of one standby only.
    #[serde(default)]
    commit_on: CommitOn,
    grace_ms: u64,
    shadow_bytes: u64,
    #[serde(default)]
    state_dirs: Vec<PathBuf>,
    #[serde(default)]
    shared_dirs: Vec<PathBuf>,
    /// For drills on the standby.
    #[serde(default)]
    health: Option<String>,
    /// Where its checkpoints go, whoever serves.
    #[serde(default)]
    store: Option<Kept>,
}

/// A store that follows, as its owner named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    location: String,
    interval_ms: u64,
    keep: String,
}

/// What the host of a takeover knows by itself.
#[derive(Debug)]
pub struct Here {
    pub app: String,
    pub standbys: Vec<String>,
    pub timing: Timing,
    pub network: Option<gate::NetworkSpec>,
    /// A program with structures is started afresh anyway, by the command that came along.
    pub structures: bool,
    pub store: Option<StoreSettings>,
    pub shared: Shared,
}

impl Policy {
    pub fn of(settings: &PrimarySettings) -> Self {
        let (interval, grace) = (settings.interval.as_micros(), settings.grace.as_millis());
        Self {
            interval_us: u64::try_from(interval).unwrap_or(u64::MAX),
            on_crash: settings.on_crash,
            consistency: settings.consistency,
            commit_on: settings.commit_on,
            grace_ms: u64::try_from(grace).unwrap_or(u64::MAX),
            shadow_bytes: settings.shadow_bytes,
            state_dirs: settings.state_dirs.clone(),
            shared_dirs: settings.shared_dirs.clone(),
            health: settings.health.clone(),
            store: settings.store.as_ref().map(|store| Kept {
                location: store.location.to_string(),
                interval_ms: u64::try_from(store.interval.as_millis()).unwrap_or(u64::MAX),
                keep: store.keep.to_string(),
            }),
        }
    }

    pub fn encode(&self) -> Bytes {
        frame::encode(self).into()
    }

    /// None if it can't be read; that is logged.
    pub fn of_hello(hello: &Hello) -> Option<Self> {
        let read = Self::decode(&hello.policy);
        if let Err(why) = &read {
            tracing::warn!(app = hello.app, "without its policy the app would stay unprotected: {why}");
        }
        read.ok()
    }

    fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        frame::decode(bytes, "operator's policy")
    }

    pub fn consistency(&self) -> Consistency {
        self.consistency
    }

    pub fn health(&self) -> Option<String> {
        self.health.clone()
    }

    pub fn shadow_bytes(&self) -> u64 {
        self.shadow_bytes
    }

    pub fn names_a_store(&self) -> bool {
        self.store.is_some()
    }

    /// The store that its owner named, if that is one here, too.
    ///
    /// A folder that is not there is none: one of the same name would be another store.
    pub fn store(&self, spool: &Path) -> Option<Result<StoreSettings, NoStoreHere>> {
        let Kept { location: text, interval_ms, keep } = self.store.as_ref()?;
        let no = |why: String| NoStoreHere { location: text.clone(), why };
        let settings = || {
            let location: Location = text.parse().map_err(|why: LocationError| no(why.to_string()))?;
            if matches!(&location, Location::Folder(path) if !path.is_dir()) {
                let why = "this folder is not on this host; give the standby --store, or mount it".to_owned();
                return Err(no(why));
            }
            Ok(StoreSettings {
                location,
                interval: Duration::from_millis(*interval_ms).max(INTERVAL_MIN),
                keep: keep.parse().map_err(|why: RetentionError| no(why.to_string()))?,
                spool: spool.to_owned(),
                named_by: NamedBy::Primary,
            })
        };
        Some(settings())
    }

    pub fn state_dirs(&self) -> Vec<PathBuf> {
        self.state_dirs.clone()
    }

    pub fn shared_dirs(&self) -> Vec<PathBuf> {
        self.shared_dirs.clone()
    }

    /// The settings of the primary that goes on with it.
    pub fn settings(&self, here: Here) -> PrimarySettings {
        let Here { app, standbys, timing, network, structures, store, shared } = here;
        // A peer is believed nothing.
        let interval = Duration::from_micros(self.interval_us).max(INTERVAL_MIN);
        PrimarySettings {
            app,
            standbys,
            interval,
            timing,
            on_crash: match self.on_crash {
                // A copy was started by nobody here, so nobody can start it afresh.
                OnCrash::Restart if !structures => OnCrash::Failover,
                on_crash @ (OnCrash::Restart | OnCrash::Failover | OnCrash::Stop) => on_crash,
            },
            consistency: self.consistency,
            commit_on: self.commit_on,
            structures,
            abandon_standby: false,
            network,
            grace: Duration::from_millis(self.grace_ms),
            shadow_bytes: self.shadow_bytes,
            health: self.health.clone(),
            store,
            state_dirs: self.state_dirs(),
            shared_dirs: self.shared_dirs(),
            shared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(store: Option<Kept>) -> Policy {
        Policy {
            interval_us: 5_000,
            on_crash: OnCrash::Stop,
            consistency: Consistency::default(),
            commit_on: CommitOn::Any,
            grace_ms: 10_000,
            shadow_bytes: 1 << 20,
            state_dirs: vec!["/var/lib/kv".into()],
            shared_dirs: Vec::new(),
            health: Some("true".to_owned()),
            store,
        }
    }

    #[test]
    fn a_policy_is_the_same_after_the_wire_and_garbage_is_refused() {
        let policy = policy(None);
        assert_eq!(Policy::decode(&policy.encode()).unwrap(), policy);
        assert!(Policy::decode(b"").is_err() && Policy::decode(b"\xff garbage").is_err());
    }

    #[test]
    fn a_folder_that_is_not_here_is_no_store_here_and_a_bucket_is_one_anywhere() {
        let told = |location: &str| {
            let kept = Kept { location: location.to_owned(), interval_ms: 1, keep: "last=1".to_owned() };
            policy(Some(kept)).store(Path::new("/tmp")).unwrap()
        };
        let here = tempfile::tempdir().unwrap();
        let folder = format!("file:{}", here.path().display());
        let found = told(&folder).unwrap();
        assert_eq!((found.location.to_string(), found.named_by), (folder, NamedBy::Primary));
        assert_eq!(told("s3://bucket/a").unwrap().location.to_string(), "s3://bucket/a");
        let gone = format!("file:{}", here.path().join("gone").display());
        for wrong in [gone.as_str(), "ftp://x", ""] {
            let why = told(wrong).unwrap_err();
            assert!(why.location == wrong && !here.path().join("gone").exists(), "{why}");
        }
    }
}
