//! The mappings of one address space.
//!
//! A layout frame replaces the previous layout of its space whole: what is no longer in it is unmapped,
//! what is new is mapped and empty until pages for it come. It is sent only when it changed.

use serde::{Deserialize, Serialize};

use crate::ranges::{Range, RangeSet};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Index into [`crate::state::State::spaces`].
    pub space: u32,
    /// The process, as the cell counts: a copy needs it before the state comes.
    pub pid: i32,
    /// Sorted by address, not overlapping.
    pub mappings: Vec<Mapping>,
    /// Guard regions (`MADV_GUARD_INSTALL`): touching them is a fault.
    pub guards: Vec<Range>,
    /// Every shared object that a mapping here or a descriptor refers to.
    pub objects: Vec<SharedObject>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub range: Range,
    pub protection: Protection,
    /// `MAP_SHARED`; otherwise `MAP_PRIVATE`.
    pub shared: bool,
    pub backing: Backing,
    /// Offset into the file or object, in bytes; zero for anonymous memory.
    pub offset: u64,
    pub advice: Advice,
    /// `PR_SET_VMA_ANON_NAME`, without the `[anon:…]` around it.
    pub name: Option<String>,
}

impl Layout {
    /// How many mappings one frame takes; a layout with more of them goes in parts.
    const PART_MAPPINGS: usize = 8192;

    /// The layout in parts that each fit into a frame.
    pub fn parts(&self) -> Vec<LayoutPart> {
        let mut chunks: Vec<Vec<Mapping>> =
            self.mappings.chunks(Self::PART_MAPPINGS).map(<[_]>::to_vec).collect();
        let last = chunks.pop().unwrap_or_default();
        let part = |mappings| Self { mappings, guards: Vec::new(), objects: Vec::new(), ..*self };
        let mut parts: Vec<LayoutPart> =
            chunks.into_iter().map(|mappings| LayoutPart { layout: part(mappings), more: true }).collect();
        let layout =
            Self { mappings: last, guards: self.guards.clone(), objects: self.objects.clone(), ..*self };
        parts.push(LayoutPart { layout, more: false });
        parts
    }
}

/// A layout, or a part of one that others follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutPart {
    pub layout: Layout,
    pub more: bool,
}

impl Mapping {
    /// The file that it is of.
    pub fn file(&self) -> Option<&FileIdentity> {
        match &self.backing {
            Backing::File(identity) => Some(identity),
            Backing::Anonymous
            | Backing::Object(_)
            | Backing::Droppable
            | Backing::Vvar
            | Backing::VvarClock
            | Backing::Vdso
            | Backing::Vsyscall => None,
        }
    }

    /// Whether an address in both has the same content behind it: protection and advice may differ.
    fn is_same_memory(&self, other: &Self) -> bool {
        let origin = |mapping: &Self| mapping.offset.wrapping_sub(mapping.range.start);
        let anonymous = self.backing == Backing::Anonymous;
        self.backing == other.backing
            && self.shared == other.shared
            && (anonymous || origin(self) == origin(other))
    }
}

/// Where the pages of `old` live on in `new`. Primary and standby both go by this: what is not in it is
/// forgotten by the one and unmapped by the other.
pub fn surviving(old: &[Mapping], new: &[Mapping]) -> RangeSet {
    let mut survivors = RangeSet::default();
    let mut old = old.iter().peekable();
    for mapping in new {
        while old.peek().is_some_and(|old| old.range.end <= mapping.range.start) {
            old.next();
        }
        let mut overlapping = old.clone();
        while let Some(before) = overlapping.next_if(|old| old.range.start < mapping.range.end) {
            if before.is_same_memory(mapping)
                && let Some(both) = before.range.intersect(mapping.range)
            {
                survivors.insert(both);
            }
        }
    }
    survivors
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Protection {
    pub read: bool,
    pub write: bool,
    pub execute: bool,
}

impl Protection {
    pub const NONE: Self = Self { read: false, write: false, execute: false };
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory: heap, stacks, arenas.
    Anonymous,
    /// A file that the standby opens by its path; private, or shared and never writable by the app.
    File(FileIdentity),
    /// A [`SharedObject`], whose content travels in page batches of its own.
    Object(ObjectKey),
    /// `MAP_DROPPABLE`: its content is never shipped; the standby makes it anew and empty.
    Droppable,
    Vvar,
    VvarClock,
    Vdso,
    Vsyscall,
}

/// What must be the same file on both hosts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    pub size: u64,
    /// The ELF build-id, where there is one.
    pub build_id: Option<serde_bytes::ByteBuf>,
}

impl FileIdentity {
    /// Of a file that changes: any content will do.
    pub const ANY_SIZE: u64 = u64::MAX;
}

/// Identifies a shared object for the life of the pair: the primary's device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    pub device: u64,
    pub inode: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedObject {
    pub key: ObjectKey,
    pub kind: ObjectKind,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// `MAP_SHARED | MAP_ANONYMOUS`.
    Anonymous,
    Memfd {
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        seals: u32,
    },
    /// A regular file that is mapped shared and writable, or deleted. Until the takeover the standby keeps
    /// its bytes apart; then they are written into the file, which is created if it is missing.
    File {
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        deleted: bool,
        mode: u32,
    },
}

/// The `madvise` and `mlock` flags that outlive the call, as in `VmFlags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Advice {
    pub dont_fork: bool,
    pub dont_dump: bool,
    pub wipe_on_fork: bool,
    pub huge_page: bool,
    pub no_huge_page: bool,
    pub mergeable: bool,
    pub sequential: bool,
    pub random: bool,
    pub locked: bool,
    pub locked_on_fault: bool,
    pub no_reserve: bool,
    pub grows_down: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, backing: Backing, offset: u64) -> Mapping {
        let protection = Protection::NONE;
        Mapping {
            range: Range::new(start, end),
            protection,
            shared: false,
            backing,
            offset,
            advice: Advice::default(),
            name: None,
        }
    }

    fn file(path: &[u8]) -> Backing {
        Backing::File(FileIdentity { path: path.to_vec(), size: 0, build_id: None })
    }

    #[test]
    fn memory_survives_growing_splitting_and_a_new_protection() {
        let old = [mapping(0, 10, Backing::Anonymous, 0), mapping(20, 40, file(b"/a"), 5)];
        let mut new = [
            mapping(0, 4, Backing::Anonymous, 0),
            mapping(4, 15, Backing::Anonymous, 0),
            mapping(30, 50, file(b"/a"), 15),
        ];
        new[1].protection.write = true;
        let survivors: Vec<_> = surviving(&old, &new).iter().collect();
        assert_eq!(survivors, [Range::new(0, 10), Range::new(30, 40)]);
    }

    #[test]
    fn a_layout_in_parts_is_the_same_layout() {
        let mappings: Vec<_> = (0..20_000).map(|n| mapping(n, n + 1, Backing::Anonymous, 0)).collect();
        let layout = Layout { space: 0, pid: 2, mappings, guards: vec![Range::new(1, 2)], objects: vec![] };
        let parts = layout.parts();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.iter().filter(|part| part.more).count(), 2);
        let joined: Vec<_> = parts.iter().flat_map(|part| part.layout.mappings.clone()).collect();
        assert_eq!((joined, &parts[2].layout.guards), (layout.mappings.clone(), &layout.guards));
    }

    #[test]
    fn another_file_or_another_place_in_it_is_new_memory() {
        let old = [mapping(0, 10, file(b"/a"), 0), mapping(20, 30, file(b"/a"), 0)];
        let new = [mapping(0, 10, file(b"/b"), 0), mapping(20, 30, file(b"/a"), 4096)];
        assert!(surviving(&old, &new).is_empty());
    }
}
