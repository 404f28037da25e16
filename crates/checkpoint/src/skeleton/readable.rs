//! Files that the app has open for reading: at the takeover they are opened again at their paths.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use image::layout::FileIdentity;
use image::state::State;
use rustix::fs::OFlags;

use super::{ApplyError, Lacking, Skeleton, plan};
use crate::descriptors;
use crate::shipped::Shelf;

impl Skeleton<'_> {
    /// Those of an epoch that are neither here nor were shipped here. One that was seen is not looked at again.
    pub(super) fn check_readable(&self, state: &State) -> Result<(), ApplyError> {
        let new = self.new_readable(state);
        if new.is_empty() {
            return Ok(());
        }
        let root = self.root()?;
        let mut lacking = Vec::new();
        for identity in new {
            match check(root.as_fd(), &identity, self.trees.shipped.as_ref()) {
                Ok(()) => drop(self.readable.borrow_mut().insert(identity)),
                Err(_) if self.trees.find(&identity).is_some() => (),
                Err(why) => lacking.push((identity, why)),
            }
        }
        if lacking.is_empty() { Ok(()) } else { Err(ApplyError::Lacking(Lacking(lacking))) }
    }

    /// Puts those that were shipped at their paths in the cell, and the directory that the app is in.
    pub fn supply_readable(&mut self, state: &State) -> Result<(), ApplyError> {
        for identity in self.new_readable(state) {
            if check(self.root()?.as_fd(), &identity, self.trees.shipped.as_ref()).is_err() {
                self.put(&identity)?;
            }
            self.readable.borrow_mut().insert(identity);
        }
        let directories = state.processes.iter().map(|process| &process.filesystem.working_directory);
        for directory in directories {
            let path = Path::new(OsStr::from_bytes(directory));
            self.places.put_directory(path).map_err(|why| ApplyError::File {
                path: path.display().to_string(),
                why: format!("the app's directory is not here, and cannot be made in the cell: {why}"),
            })?;
        }
        Ok(())
    }

    fn new_readable(&self, state: &State) -> Vec<FileIdentity> {
        let known = self.readable.borrow();
        let files = state.files.iter().filter_map(image::descriptor::OpenFile::identity);
        files.filter(|file| !known.contains(file) && self.trees.locate(&file.path).is_none()).collect()
    }
}

/// A file that changes has only to be there.
fn check(root: BorrowedFd<'_>, identity: &FileIdentity, shelf: Option<&Shelf>) -> Result<(), String> {
    if identity.size != FileIdentity::ANY_SIZE {
        return plan::check_file(root, identity, shelf);
    }
    let opened = descriptors::open_below(root, &identity.path, OFlags::PATH | OFlags::CLOEXEC);
    opened.map(drop).map_err(|why| std::io::Error::from(why).to_string())
}
