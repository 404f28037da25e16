//! Which state of a file was read, and what was found in it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use image::ContentDigest;
use ring::digest::Digest;

/// What is another one as soon as a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    pub size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A finished SHA-256.
pub(super) fn content(digest: &Digest) -> ContentDigest {
    ContentDigest(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}
