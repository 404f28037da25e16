//! Where files are that will be at their paths only after the takeover.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Directories, and where the standby keeps what will be in them.
#[derive(Debug, Clone, Default)]
pub struct Trees(pub Vec<(PathBuf, PathBuf)>);

impl Trees {
    /// Where a file is kept that belongs into one of them.
    pub(super) fn locate(&self, path: &[u8]) -> Option<PathBuf> {
        let path = Path::new(OsStr::from_bytes(path));
        self.0.iter().find_map(|(directory, tree)| Some(tree.join(path.strip_prefix(directory).ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_there_is_elsewhere() {
        let trees = Trees(vec![("/var/a".into(), "/var/a/.checksync/tree".into())]);
        assert_eq!(trees.locate(b"/var/a/b/c"), Some("/var/a/.checksync/tree/b/c".into()));
        assert_eq!((trees.locate(b"/var/ab"), trees.locate(b"/usr/lib/x")), (None, None));
    }
}
