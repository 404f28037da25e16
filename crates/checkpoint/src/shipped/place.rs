//! Putting a file at its path in a cell, whose mounts are its own: nothing of the host's tree is changed.
//!
//! Where another file is, the shipped one is mounted over it. Where nothing is, the nearest directory that is there gets a
//! *view* over it: a directory in memory, in which every entry of the one below is mounted, and in which new ones can be
//! made. An overlay file system would do with one mount, but takes every write that the app makes below it, into a layer
//! that nobody sees; and it does not go on top of another one twice, which a sealed cell needs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use sys::mounts;

use super::{Kept, is_straight};

/// Where a view is made: a directory of the cell's own.
const STAGE: &str = "/run/checksync-app/.view";
/// Each entry of a directory with a view is a mount.
const ENTRIES_MAX: usize = 10_000;

/// What was put into one cell.
#[derive(Debug)]
pub struct Places {
    pid: i32,
    /// Directories in memory, in which something can be made.
    made: BTreeSet<PathBuf>,
    /// A directory that is there.
    seen: Option<PathBuf>,
}

impl Places {
    /// In the cell that `pid` lives in.
    pub fn of(pid: i32) -> Self {
        Self { pid, made: BTreeSet::new(), seen: None }
    }

    /// Puts a file at its path, and the links that lead to it beside it.
    pub fn put(&mut self, kept: &Kept) -> io::Result<()> {
        let path = Path::new(OsStr::from_bytes(&kept.file.identity.path));
        if !is_straight(path) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let content = mounts::take(&kept.content)?;
        mounts::make_harmless(content.as_fd())?;
        let links: Vec<&OsStr> = kept.file.links.iter().map(|link| OsStr::from_bytes(link)).collect();
        let made = &mut self.made;
        mounts::within(self.pid, move || {
            match fs::metadata(path) {
                Ok(there) if there.is_file() => mounts::put(content.as_fd(), path)?,
                Ok(_) => return Err(io::Error::other("something else than a file is there")),
                Err(why) if why.kind() == io::ErrorKind::NotFound => {
                    let place = directory_for(made, path.parent().unwrap_or(Path::new("/")))?;
                    let place = place.join(path.file_name().unwrap_or_default());
                    // N.B. never through a link, which may lead out of what is ours.
                    File::create_new(&place)?;
                    mounts::put(content.as_fd(), &place)?;
                }
                Err(why) => return Err(why),
            }
            put_links(made, path, &links)
        })
    }

    /// Makes a directory that the app was in, if it is not there.
    pub fn put_directory(&mut self, path: &Path) -> io::Result<()> {
        if self.seen.as_deref() == Some(path) {
            return Ok(());
        }
        let made = &mut self.made;
        mounts::within(self.pid, move || match fs::metadata(path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound && is_straight(path) => {
                directory_for(made, path).map(drop)
            }
            _ => Ok(()),
        })?;
        self.seen = Some(path.to_owned());
        Ok(())
    }
}

fn put_links(made: &mut BTreeSet<PathBuf>, path: &Path, links: &[&OsStr]) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    for link in links {
        match fs::symlink_metadata(directory.join(link)) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                symlink(name, directory_for(made, directory)?.join(link))?;
            }
            // It may lead to another version here, which the app then takes, too.
            _ => (),
        }
    }
    Ok(())
}

/// A directory at `path` in which something can be made.
fn directory_for(made: &mut BTreeSet<PathBuf>, path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(real) if made.contains(&real) => Ok(real),
        Ok(real) if real.is_dir() => {
            view(&real)?;
            made.insert(real.clone());
            Ok(real)
        }
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(why) };
            let new = directory_for(made, parent)?.join(name);
            fs::create_dir(&new)?;
            made.insert(new.clone());
            Ok(new)
        }
        Err(why) => Err(why),
    }
}

/// Puts a directory in memory over `directory` that has all of its entries.
fn view(directory: &Path) -> io::Result<()> {
    let stage = Path::new(STAGE);
    fs::create_dir(stage)?;
    let shown = mounts::put_empty(stage).and_then(|()| {
        let shown = fill(directory, stage).and_then(|()| match directory.parent() {
            Some(_) => mounts::put(mounts::lift(stage)?.as_fd(), directory),
            None => mounts::make_root(stage),
        });
        shown.inspect_err(|_| drop(mounts::remove(stage)))
    });
    // In the cell's own directory it is in nobody's way.
    let _ = fs::remove_dir(stage);
    shown
}

fn fill(directory: &Path, stage: &Path) -> io::Result<()> {
    let like = fs::metadata(directory)?;
    for (number, entry) in fs::read_dir(directory)?.enumerate() {
        let entry = entry?;
        if number >= ENTRIES_MAX {
            let why = format!("{} has more than {ENTRIES_MAX} entries", directory.display());
            return Err(io::Error::other(why));
        }
        let (from, to, kind) = (entry.path(), stage.join(entry.file_name()), entry.file_type()?);
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            continue;
        }
        let taken = match mounts::take(&from) {
            // It was removed meanwhile.
            Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
            taken => taken?,
        };
        match kind.is_dir() {
            true => fs::create_dir(&to)?,
            false => drop(File::create_new(&to)?),
        }
        mounts::put(taken.as_fd(), &to)?;
    }
    // A directory that the stage lies in was taken with the stage.
    if let Ok(below) = stage.strip_prefix(directory)
        && fs::symlink_metadata(stage.join(below)).is_ok()
    {
        // It may have been taken before the stage was there.
        let _ = mounts::remove(&stage.join(below));
    }
    chown(stage, Some(like.uid()), Some(like.gid()))?;
    fs::set_permissions(stage, like.permissions())
}
