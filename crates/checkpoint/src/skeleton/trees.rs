//! Where files are that are not at their paths.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use image::layout::FileIdentity;

use crate::shipped::{Kept, Shelf};

#[derive(Debug, Clone, Default)]
pub struct Trees {
    /// Directories, and where the standby keeps what will be in them after the takeover.
    pub state: Vec<(PathBuf, PathBuf)>,
    /// What this host has not got by itself, and is put at its path in the cell.
    pub shipped: Option<Shelf>,
}

impl Trees {
    /// Where a file is kept that belongs into one of them.
    pub(super) fn locate(&self, path: &[u8]) -> Option<PathBuf> {
        let path = Path::new(OsStr::from_bytes(path));
        self.state.iter().find_map(|(directory, tree)| Some(tree.join(path.strip_prefix(directory).ok()?)))
    }

    pub(super) fn find(&self, identity: &FileIdentity) -> Option<Kept> {
        self.shipped.as_ref()?.find(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_there_is_elsewhere() {
        let state = vec![("/var/a".into(), "/var/a/.checksync/tree".into())];
        let trees = Trees { state, shipped: None };
        assert_eq!(trees.locate(b"/var/a/b/c"), Some("/var/a/.checksync/tree/b/c".into()));
        assert_eq!((trees.locate(b"/var/ab"), trees.locate(b"/usr/lib/x")), (None, None));
    }
}
