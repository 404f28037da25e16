//! The register in a directory of one host: `APP.register`, one line of JSON, and `APP.lock`.
//!
//! A swap holds an exclusive `flock` on the lock file, which is never removed or replaced, from reading to
//! the last sync. The new value is written to `APP.register.incomplete`, synced, renamed over the old one,
//! and the directory synced: after a crash the register holds the old value or the new one. What is left of
//! an incomplete file is written over. A register that can't be understood is never written over: with it
//! the only memory of who serves would be gone. The deadline bounds the wait for the lock; a disk that hangs holds
//! the caller longer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use image::Register;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::encoding::{LEN_BYTES_MAX, decode, encode, is_name};
use crate::{Arbiter, ArbiterError, Swap};

/// Between two looks at a lock that somebody else holds.
const LOCK_POLL: Duration = Duration::from_millis(1);

#[derive(Debug, Clone)]
pub struct FileArbiter {
    directory: PathBuf,
}

impl FileArbiter {
    /// Nothing is touched before the first call; the directory is made by the first swap.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    fn path(&self, app: &str) -> Result<PathBuf, ArbiterError> {
        if !is_name(app) {
            return Err(ArbiterError::BadName(app.to_owned()));
        }
        Ok(self.directory.join(format!("{app}.register")))
    }

    /// Waits for whoever swaps now. The lock lasts as long as the returned file is open.
    fn lock(&self, app: &str, deadline: Instant) -> Result<File, ArbiterError> {
        let directory = &self.directory;
        fs::create_dir_all(directory).map_err(unreachable("create", directory))?;
        let path = directory.join(format!("{app}.lock"));
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(unreachable("open", &path))?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_POLL),
                Err(Errno::WOULDBLOCK) => {
                    return Err(unreachable("lock", &path)(io::ErrorKind::TimedOut.into()));
                }
                Err(errno) => return Err(unreachable("lock", &path)(errno.into())),
            }
        }
    }
}

impl Arbiter for FileArbiter {
    fn read(&mut self, app: &str, _deadline: Instant) -> Result<Option<Register>, ArbiterError> {
        // Needs no lock: the rename shows the old value or the new one.
        load(&self.path(app)?)
    }

    fn swap(
        &mut self,
        app: &str,
        expected: Option<&Register>,
        new: Register,
        deadline: Instant,
    ) -> Result<Swap, ArbiterError> {
        assert!(new.follows(expected), "the register of {app} can't go from {expected:?} to {new:?}");
        let path = self.path(app)?;
        let _lock = self.lock(app, deadline)?;
        let current = load(&path)?;
        if current.as_ref() != expected {
            return Ok(Swap::Lost(current));
        }
        store(&path, &new)?;
        Ok(Swap::Won)
    }
}

fn load(path: &Path) -> Result<Option<Register>, ArbiterError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreachable("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(LEN_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreachable("read", path))?;
    decode(&bytes)
        .map(Some)
        .map_err(|why| ArbiterError::Corrupt { register: path.display().to_string(), why })
}

fn store(path: &Path, register: &Register) -> Result<(), ArbiterError> {
    let incomplete = path.with_extension("register.incomplete");
    let mut file = File::create(&incomplete).map_err(unreachable("create", &incomplete))?;
    file.write_all(&encode(register)).map_err(unreachable("write", &incomplete))?;
    file.sync_all().map_err(unreachable("sync", &incomplete))?;
    fs::rename(&incomplete, path).map_err(unreachable("replace", path))?;
    let directory = path.parent().expect("a register lies in a directory");
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(unreachable("sync", directory))
}

fn unreachable(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArbiterError {
    let path = path.to_owned();
    move |source| ArbiterError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use image::Member;

    use super::*;

    fn arbiter() -> (tempfile::TempDir, FileArbiter) {
        let directory = tempfile::tempdir().unwrap();
        let arbiter = FileArbiter::new(directory.path().join("registers"));
        (directory, arbiter)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_lock_that_somebody_holds_on_to_is_not_waited_for_beyond_the_deadline() {
        let (_directory, mut arbiter) = arbiter();
        let held = arbiter.lock("app", soon()).unwrap();
        let first = Register::first(Member::new("a", 1));
        let late = arbiter.swap("app", None, first.clone(), Instant::now() + Duration::from_millis(20));
        assert!(matches!(&late, Err(ArbiterError::File { what: "lock", .. })), "{late:?}");
        drop(held);
        assert_eq!(arbiter.swap("app", None, first, soon()).unwrap(), Swap::Won);
    }

    #[test]
    fn a_swap_wins_only_against_the_expected_value() {
        let (_directory, mut arbiter) = arbiter();
        assert_eq!(arbiter.read("app", soon()).unwrap(), None);
        let first = Register::first(Member::new("a", 1));
        assert_eq!(arbiter.swap("app", None, first.clone(), soon()).unwrap(), Swap::Won);
        assert_eq!(
            arbiter.swap("app", None, first.clone(), soon()).unwrap(),
            Swap::Lost(Some(first.clone()))
        );
        let taken = first.taken_by(Member::new("b", 1));
        assert_eq!(arbiter.swap("app", Some(&first), taken.clone(), soon()).unwrap(), Swap::Won);
        let rival = first.taken_by(Member::new("c", 1));
        assert_eq!(arbiter.swap("app", Some(&first), rival, soon()).unwrap(), Swap::Lost(Some(taken)));
        assert_eq!(arbiter.read("other", soon()).unwrap(), None, "apps share nothing");
    }

    #[test]
    fn a_corrupt_register_is_refused_by_name_and_kept() {
        let (_directory, mut arbiter) = arbiter();
        let first = Register::first(Member::new("a", 1));
        arbiter.swap("app", None, first.clone(), soon()).unwrap();
        let path = arbiter.path("app").unwrap();
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let digit = flipped.windows(4).position(|window| window == b"term").unwrap() + 7;
        flipped[digit] ^= 1;
        for corrupt in [&b""[..], b"garbage", &whole[..whole.len() / 2], &flipped, &[b' '; 70_000]] {
            fs::write(&path, corrupt).unwrap();
            let next = first.taken_by(Member::new("b", 1));
            for error in [
                arbiter.read("app", soon()).unwrap_err(),
                arbiter.swap("app", None, first.clone(), soon()).unwrap_err(),
                arbiter.swap("app", Some(&first), next, soon()).unwrap_err(),
            ] {
                assert!(
                    matches!(&error, ArbiterError::Corrupt { register, .. } if *register == path.display().to_string()),
                    "{error}"
                );
            }
            assert_eq!(fs::read(&path).unwrap(), corrupt);
        }
    }

    #[test]
    fn the_rest_of_a_crashed_swap_changes_nothing() {
        let (_directory, mut arbiter) = arbiter();
        let first = Register::first(Member::new("a", 1));
        arbiter.swap("app", None, first.clone(), soon()).unwrap();
        fs::write(arbiter.directory.join("app.register.incomplete"), b"{\"sch").unwrap();
        assert_eq!(arbiter.read("app", soon()).unwrap(), Some(first.clone()));
        let taken = first.taken_by(Member::new("b", 1));
        assert_eq!(arbiter.swap("app", Some(&first), taken.clone(), soon()).unwrap(), Swap::Won);
        assert_eq!(arbiter.read("app", soon()).unwrap(), Some(taken));
    }

    #[test]
    fn a_name_that_leaves_the_directory_is_refused() {
        let (_directory, mut arbiter) = arbiter();
        for name in ["", "..", ".hidden", "a/b", "a\0b", &"x".repeat(101)] {
            assert!(matches!(arbiter.read(name, soon()), Err(ArbiterError::BadName(_))), "{name:?}");
        }
    }

    #[test]
    #[should_panic(expected = "can't go from")]
    fn a_term_never_falls_whoever_asks() {
        let (_directory, mut arbiter) = arbiter();
        let second = Register::first(Member::new("a", 1)).taken_by(Member::new("b", 1));
        let mut fallen = second.with_members(Vec::new());
        fallen.term = image::Term(1);
        let _ = arbiter.swap("app", Some(&second), fallen, soon());
    }
}
