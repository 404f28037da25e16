//! Where a standby keeps a tree until the takeover, and how it comes to its place then.
//!
//! ```text
//! PATH/.checksync/copy-PID-N/tree    the mirror, as of the last epoch that was applied
//!                           /held    files that have no name at the moment
//!                           /lock    held by the manager that it belongs to
//! PATH/.checksync/replaced-by-T-E    what was at PATH before the takeover at epoch E of term T
//! PATH/.checksync/leaving, arriving  which step of a takeover is under way
//! ```
//!
//! It is below PATH and not beside it, since PATH may be a mount point, and a file can only be renamed on its own file
//! system. At the takeover everything at PATH goes to `replaced-by-…`, and then the tree's entries to PATH; a file says
//! which of the two is under way, so that a manager which dies there is no misfortune: the next one finishes.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

use crate::OURS;
use crate::error::FilesError;

const LEAVING: &str = "leaving";
const ARRIVING: &str = "arriving";
const REPLACED: &str = "replaced-by-";
const COPY: &str = "copy-";

#[derive(Debug)]
pub struct Place {
    /// The state directory itself.
    pub path: PathBuf,
    ours: PathBuf,
    copy: PathBuf,
    /// None once the tree is in its place, and of one that is kept apart, which is not ours to remove.
    lock: Option<File>,
}

/// What a takeover did to a state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    pub path: PathBuf,
    /// Where that is now what was there before, if there was anything.
    pub before: Option<PathBuf>,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::Kernel { what, path: path.to_owned(), source }
}

impl Place {
    /// A new one, empty. What managers left that are no more is removed, but for the newest tree that was replaced.
    pub fn make(path: &Path) -> Result<Self, FilesError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(path).map_err(failed("make the state directory", path))?;
        let ours = ours_in(path);
        make_private(&ours)?;
        // Whoever makes a place is not to have it swept away before he has locked it.
        let whole = ours.join("lock");
        let all = File::create(&whole).map_err(failed("make", &whole))?;
        rustix::fs::flock(&all, FlockOperation::LockExclusive)
            .map_err(|why| failed("lock", &whole)(why.into()))?;
        finish(path)?;
        sweep(&ours)?;
        let name = format!("{COPY}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self::make_copy(path, ours.clone(), ours.join(name))
    }

    /// One whose tree is kept in `copy`, wherever that is, and whose path is left alone.
    pub fn make_apart(path: &Path, copy: PathBuf) -> Result<Self, FilesError> {
        make_directories(&copy)?;
        Ok(Self { path: path.to_owned(), ours: copy.clone(), copy, lock: None })
    }

    fn make_copy(path: &Path, ours: PathBuf, copy: PathBuf) -> Result<Self, FilesError> {
        make_directories(&copy)?;
        let lock = File::create(copy.join("lock")).map_err(failed("make the lock of", &copy))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|why| failed("lock", &copy)(why.into()))?;
        Ok(Self { path: path.to_owned(), ours, copy, lock: Some(lock) })
    }

    pub fn tree(&self) -> PathBuf {
        self.copy.join("tree")
    }

    pub fn held(&self) -> PathBuf {
        self.copy.join("held")
    }

    /// Puts the tree in the place of what is at PATH. `by` names the checkpoint.
    pub fn replace(mut self, by: &str) -> Result<Replaced, FilesError> {
        let copy = self.copy.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let step = self.ours.join(LEAVING);
        let written = self.ours.join("next");
        fs::write(&written, format!("{copy}\n{by}\n")).map_err(failed("write", &written))?;
        fs::rename(&written, &step).map_err(failed("write", &step))?;
        let replaced = finish(&self.path)?;
        self.lock = None;
        Ok(replaced.unwrap_or(Replaced { path: self.path.clone(), before: None }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        let copy = std::mem::take(&mut self.copy);
        // A large tree takes its time, and whoever drops it may have to take over.
        std::thread::spawn(move || {
            remove_all(&copy);
            drop(lock);
        });
    }
}

fn make_directories(copy: &Path) -> Result<(), FilesError> {
    [copy, &copy.join("tree"), &copy.join("held")].into_iter().try_for_each(make_private)
}

/// Finishes a takeover that a manager died in. Called before anybody uses a state directory.
pub fn finish_replacing(path: &Path) -> Result<(), FilesError> {
    if let Some(replaced) = finish(path)? {
        tracing::warn!(path = %replaced.path.display(), "finished a takeover's change of the state directory");
    }
    Ok(())
}

fn finish(path: &Path) -> Result<Option<Replaced>, FilesError> {
    let ours = ours_in(path);
    let (leaving, arriving) = (ours.join(LEAVING), ours.join(ARRIVING));
    let text = match fs::read_to_string(&leaving) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => match fs::read_to_string(&arriving) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("read", &arriving))?,
        },
        other => {
            let text = other.map_err(failed("read", &leaving))?;
            leave(path, &ours, &text)?;
            fs::rename(&leaving, &arriving).map_err(failed("rename", &leaving))?;
            text
        }
    };
    arrive(path, &ours, &text)?;
    fs::remove_file(&arriving).map_err(failed("remove", &arriving))?;
    let before = ours.join(replaced_name(&text)?);
    Ok(Some(Replaced { path: path.to_owned(), before: before.exists().then_some(before) }))
}

/// Everything at PATH goes aside.
fn leave(path: &Path, ours: &Path, text: &str) -> Result<(), FilesError> {
    let aside = ours.join(replaced_name(text)?);
    for entry in list(path)? {
        if entry.as_os_str().as_bytes() == OURS {
            continue;
        }
        make_private(&aside)?;
        let from = path.join(&entry);
        fs::rename(&from, aside.join(&entry)).map_err(failed("move aside", &from))?;
    }
    Ok(())
}

/// The tree's entries go to PATH.
fn arrive(path: &Path, ours: &Path, text: &str) -> Result<(), FilesError> {
    let name = text.lines().next().filter(|name| name.starts_with(COPY) && !name.contains('/'));
    let copy = ours.join(name.ok_or_else(|| damaged(text))?);
    let tree = copy.join("tree");
    if !tree.exists() {
        return Ok(()); // It was the last step of all.
    }
    for entry in list(&tree)? {
        let to = path.join(&entry);
        fs::rename(tree.join(&entry), &to).map_err(failed("put in its place", &to))?;
    }
    crate::mirror::set_like(&tree, path)?;
    // The app may have been told that its files are on the disk. They are, soon.
    if let Ok(directory) = File::open(path) {
        std::thread::spawn(move || rustix::fs::syncfs(&directory));
    }
    fs::remove_dir_all(&copy).map_err(failed("remove", &copy))
}

fn replaced_name(text: &str) -> Result<String, FilesError> {
    let by = text.lines().nth(1).filter(|by| !by.is_empty() && !by.contains('/'));
    Ok(format!("{REPLACED}{}", by.ok_or_else(|| damaged(text))?))
}

fn damaged(text: &str) -> FilesError {
    FilesError::Senseless(format!("a step of a takeover reads {text:?}"))
}

/// What nobody has locked is nobody's. Of the trees that were replaced, the newest stays.
fn sweep(ours: &Path) -> Result<(), FilesError> {
    let mut replaced = Vec::new();
    for entry in list(ours)? {
        let path = ours.join(&entry);
        let name = entry.to_string_lossy();
        if name.starts_with(REPLACED) {
            let at = fs::metadata(&path).and_then(|found| found.modified());
            replaced.push((at.map_err(failed("look at", &path))?, path));
        } else if name.starts_with(COPY) && !is_locked(&path.join("lock")) {
            remove_all(&path);
        }
    }
    replaced.sort();
    replaced.pop();
    for (_, path) in replaced {
        tracing::warn!(path = %path.display(), "removing what an earlier takeover replaced; the newest is kept");
        remove_all(&path);
    }
    Ok(())
}

fn is_locked(lock: &Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}

fn remove_all(path: &Path) {
    if let Err(why) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), "cannot remove what is left of a copy: {why}");
    }
}

fn ours_in(path: &Path) -> PathBuf {
    path.join(std::ffi::OsStr::from_bytes(OURS))
}

fn make_private(dir: &Path) -> Result<(), FilesError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", dir)(why)),
        _ => Ok(()),
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    let names: io::Result<Vec<PathBuf>> =
        entries.map(|entry| Ok(PathBuf::from(entry?.file_name()))).collect();
    names.map_err(failed("list", dir))
}
