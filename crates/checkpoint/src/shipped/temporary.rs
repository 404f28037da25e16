//! A directory that goes with the process that made it, or with the next one if that was killed.

use std::fs::{self, DirBuilder, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

const PREFIX: &str = "checksync-shipped-";
/// Who has just made one may not have locked it yet.
const FRESH: Duration = Duration::from_secs(60);

/// Locked as long as its owner lives.
#[derive(Debug)]
pub(super) struct Temporary(#[expect(dead_code, reason = "its lock is held")] File);

impl Temporary {
    /// Somebody else's is not taken for ours, whatever it is called.
    pub(super) fn make(below: &Path) -> io::Result<(PathBuf, Self)> {
        loop {
            let name = format!("{PREFIX}{:016x}", RandomState::new().hash_one(std::process::id()));
            let directory = below.join(name);
            match DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                made => {
                    made?;
                    let lock = File::open(&directory)?;
                    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
                    return Ok((directory, Self(lock)));
                }
            }
        }
    }

    /// Removes what the killed have left. A cell goes on with what it has mounted.
    pub(super) fn remove_left(below: &Path) {
        for entry in fs::read_dir(below).into_iter().flatten().flatten() {
            let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            let is_left = || {
                let metadata = entry.metadata()?;
                let fresh = metadata.modified()?.elapsed().is_ok_and(|age| age < FRESH);
                let lock = File::open(entry.path())?;
                let free = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
                Ok::<_, io::Error>(metadata.is_dir() && !fresh && free)
            };
            if is_ours && is_left().unwrap_or(false) {
                // Another one may be at it.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_is_left_and_old_is_removed_and_nothing_else() {
        let below = tempfile::tempdir().unwrap();
        let old = |directory: &Path| {
            let long_ago = SystemTime::now() - 2 * FRESH;
            File::open(directory).unwrap().set_modified(long_ago).unwrap();
        };
        let (in_use, held) = Temporary::make(below.path()).unwrap();
        let (fresh, dead) = Temporary::make(below.path()).unwrap();
        drop(dead);
        let (left, dead) = Temporary::make(below.path()).unwrap();
        drop(dead);
        let foreign = below.path().join("another");
        fs::create_dir(&foreign).unwrap();
        [&in_use, &left, &foreign].into_iter().for_each(|directory| old(directory));
        Temporary::remove_left(below.path());
        assert!(in_use.exists() && fresh.exists() && foreign.exists());
        assert!(!left.exists());
        drop(held);
        Temporary::remove_left(below.path());
        assert!(!in_use.exists());
    }
}
