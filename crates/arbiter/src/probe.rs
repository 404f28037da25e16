//! Whether a bucket's conditional puts are what they should be: many race for the same object, and one must win each
//! time.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{DynObjectStore, Error, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use tokio::task::JoinSet;

const RACERS: usize = 8;
const ROUNDS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(
        "its conditional puts can't be relied on: {0}; two managers could both win the right to serve; take a bucket of \
         S3, Azure or another server that heeds If-Match and If-None-Match, or --arbiter witness:HOST:PORT or etcd"
    )]
    Unfit(String),
    #[error("the probe cannot {what}: {source}")]
    Asking { what: &'static str, source: Error },
}

/// Races in objects of its own below `prefix`, which are removed again.
pub(crate) async fn run(objects: &Arc<DynObjectStore>, prefix: &Path) -> Result<(), ProbeError> {
    let mut token = [0; 8];
    // A token that repeats only has the probe find an object that is there already, and fail.
    let _ = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty());
    let path = prefix.clone().join(format!("checksync-probe-{:016x}", u64::from_ne_bytes(token)));
    let outcome = race_at(objects, &path).await;
    // What stays is small, and named for what it was.
    let _ = objects.delete(&path).await;
    outcome
}

async fn race_at(objects: &Arc<DynObjectStore>, path: &Path) -> Result<(), ProbeError> {
    for round in 0..ROUNDS {
        race(objects, path, round, &PutMode::Create).await?;
        objects.delete(path).await.map_err(asking("remove its object"))?;
    }
    race(objects, path, ROUNDS, &PutMode::Create).await?;
    for round in ROUNDS + 1..=2 * ROUNDS {
        let there = objects.head(path).await.map_err(asking("look at its object"))?;
        let version = UpdateVersion { e_tag: there.e_tag, version: there.version };
        if version.e_tag.is_none() && version.version.is_none() {
            return Err(ProbeError::Unfit("objects have no ETag to compare".to_owned()));
        }
        race(objects, path, round, &PutMode::Update(version)).await?;
    }
    Ok(())
}

/// Exactly one of many wins, and it is his value that is there then.
async fn race(
    objects: &Arc<DynObjectStore>,
    path: &Path,
    round: usize,
    mode: &PutMode,
) -> Result<(), ProbeError> {
    let mut racing = JoinSet::new();
    for racer in 0..RACERS {
        let (objects, path, mode) = (Arc::clone(objects), path.clone(), mode.clone());
        let value = format!("round {round} racer {racer}");
        racing.spawn(async move {
            let put =
                objects.put_opts(&path, PutPayload::from(value.clone().into_bytes()), mode.into()).await;
            (value, put)
        });
    }
    let mut winners = Vec::new();
    while let Some(ended) = racing.join_next().await {
        match ended {
            Ok((value, Ok(_))) => winners.push(value),
            Ok((_, Err(Error::AlreadyExists { .. } | Error::Precondition { .. }))) => {}
            Ok((_, Err(source @ (Error::NotImplemented { .. } | Error::NotSupported { .. })))) => {
                return Err(ProbeError::Unfit(source.to_string()));
            }
            Ok((_, Err(source))) => return Err(ProbeError::Asking { what: "write its object", source }),
            Err(_) => {} // The runtime is going down.
        }
    }
    let there = async { objects.get(path).await?.bytes().await };
    let there = there.await.map_err(asking("read its object"))?;
    let there = String::from_utf8_lossy(&there).into_owned();
    // One whose answer was lost hears from its second attempt that it has lost.
    if !winners.contains(&there) {
        winners.push(there);
    }
    let what =
        if matches!(mode, PutMode::Create) { "created the same object" } else { "replaced the same version" };
    match winners.len() {
        1 => Ok(()),
        count => Err(ProbeError::Unfit(format!("of {RACERS} racing writers {count} {what}"))),
    }
}

fn asking(what: &'static str) -> impl FnOnce(Error) -> ProbeError {
    move |source| ProbeError::Asking { what, source }
}
