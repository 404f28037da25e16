//! The state directories: what an epoch says of the files in them.
//!
//! All of it says what is there afterwards, and nothing how it came about: so an epoch may be said twice, and several may
//! be laid on top of each other. A file is called by a number of its own, and names lead to it; a rename therefore
//! carries two names and no content. The content travels in page batches for [`crate::PageTarget::File`].
//!
//! Records of one epoch apply in this order: names that are no more, files, names that are new, sizes, pages, times.

use serde::{Deserialize, Serialize};

/// Identifies a file for as long as full syncs build on each other: the primary counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub u64);

/// A part of what changed; the parts of an epoch are applied as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChanges {
    /// In the first part of a full sync, all of them; otherwise empty.
    pub directories: Vec<StateDirectory>,
    pub files: Vec<FileRecord>,
    pub names: Vec<NameRecord>,
    /// No name leads to these any more.
    pub gone: Vec<FileId>,
    /// It is a part, and the next one belongs to it. What follows the last part comes later: a file that is cut, and grows
    /// then, has nothing of what was cut off.
    pub more: bool,
}

/// A directory whose content is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDirectory {
    pub id: FileId,
    /// Where it is, on both hosts.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub id: FileId,
    pub kind: FileKind,
    /// Permissions, with set-user-ID and the like.
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    Directory,
    Regular { size_bytes: u64 },
    Link(#[serde(with = "serde_bytes")] Vec<u8>),
    Fifo,
}

/// What a name in a directory leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    pub directory: FileId,
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    pub file: Option<FileId>,
}

impl FileKind {
    /// Of a regular file.
    pub fn size_bytes(&self) -> Option<u64> {
        match self {
            Self::Regular { size_bytes } => Some(*size_bytes),
            Self::Directory | Self::Link(_) | Self::Fifo => None,
        }
    }

    /// Whether a file of one kind can become one of the other.
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl FileChanges {
    /// How many records one frame takes: a name has at most 255 bytes and a link 4096, and few are as long.
    const PART_RECORDS: usize = 900;

    pub fn is_empty(&self) -> bool {
        self.directories.is_empty() && self.files.is_empty() && self.names.is_empty() && self.gone.is_empty()
    }

    /// In parts that each fit into a frame.
    pub fn parts(mut self) -> Vec<Self> {
        let mut parts = Vec::new();
        while !self.is_empty() {
            let mut room = Self::PART_RECORDS;
            let mut part = Self::default();
            take(&mut self.directories, &mut part.directories, &mut room);
            take(&mut self.files, &mut part.files, &mut room);
            take(&mut self.names, &mut part.names, &mut room);
            take(&mut self.gone, &mut part.gone, &mut room);
            part.more = !self.is_empty();
            parts.push(part);
        }
        parts
    }

    /// What `later` says as well, after this.
    pub fn extend(&mut self, later: Self) {
        let Self { directories, files, names, gone, more } = later;
        self.directories.extend(directories);
        self.files.extend(files);
        self.names.extend(names);
        self.gone.extend(gone);
        self.more = more;
    }
}

fn take<T>(from: &mut Vec<T>, into: &mut Vec<T>, room: &mut usize) {
    let count = from.len().min(*room);
    into.extend(from.drain(..count));
    *room -= count;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{PAYLOAD_BYTES_MAX, encode};

    fn link(id: u64) -> FileRecord {
        let kind = FileKind::Link(vec![b'x'; 4096]);
        FileRecord { id: FileId(id), kind, mode: 0o777, owner: 0, group: 0, modified: (0, 0) }
    }

    #[test]
    fn parts_fit_into_frames_and_are_the_whole() {
        let names = |id| NameRecord { directory: FileId(0), name: vec![b'n'; 255], file: Some(FileId(id)) };
        let whole = FileChanges {
            directories: vec![StateDirectory { id: FileId(0), path: b"/var/lib".to_vec() }],
            files: (1..2000).map(link).collect(),
            names: (1..2000).map(names).collect(),
            gone: (2000..4000).map(FileId).collect(),
            more: false,
        };
        let mut joined = FileChanges { more: true, ..FileChanges::default() };
        for part in whole.clone().parts() {
            assert!(encode(&part).len() <= PAYLOAD_BYTES_MAX);
            assert!(joined.more, "there is a part after the last");
            joined.extend(part);
        }
        assert_eq!(joined, whole);
    }
}
