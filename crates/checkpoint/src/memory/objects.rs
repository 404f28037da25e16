//! Shared objects: memfds, shared anonymous memory, files that are mapped shared and writable.
//!
//! A write through a mapping is seen by the mapping's scan. A `write(2)`, a hole punched or a change of size
//! is not; those move the object's times, size or blocks. Where one of them moved, the whole object is
//! compared with the last copy; small objects are compared always.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use image::layout::{ObjectKey, ObjectKind, SharedObject};
use image::{PAGE_BYTES, PageTarget, Range, RangeSet};

use super::staging::Chunk;

/// Up to this size an object is compared as a whole in every epoch.
const ALWAYS_COMPARED_BYTES: u64 = 1 << 20;

#[derive(Debug)]
struct Object {
    file: File,
    kind: ObjectKind,
    /// What the standby has.
    copy: Vec<u8>,
    sign: Option<Sign>,
    /// An epoch that carried pages of it failed: nobody knows what the standby has.
    unknown: bool,
    /// The largest size that it ever had. What it loses and gets again is zero, but the standby need not have
    /// heard of the loss.
    size_max: u64,
}

/// Moves whenever the object changes other than through a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sign {
    size: u64,
    blocks: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug, Default)]
pub struct Objects {
    known: BTreeMap<ObjectKey, Object>,
    /// Not used any more, but the standby may not have heard of that.
    forgotten: BTreeSet<ObjectKey>,
}

impl Objects {
    /// Makes the object known through `file`, any descriptor of it.
    pub fn add(
        &mut self,
        key: ObjectKey,
        kind: &ObjectKind,
        open: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<()> {
        if let Entry::Vacant(place) = self.known.entry(key) {
            let (file, kind, unknown) = (open()?, kind.clone(), self.forgotten.contains(&key));
            place.insert(Object { file, kind, copy: Vec::new(), sign: None, unknown, size_max: 0 });
        }
        Ok(())
    }

    pub fn keys(&self) -> impl Iterator<Item = ObjectKey> + '_ {
        self.known.keys().copied()
    }

    pub fn files(&self) -> impl Iterator<Item = (ObjectKey, Vec<u8>)> + '_ {
        self.known.iter().filter_map(|(&key, object)| match &object.kind {
            ObjectKind::File { path, .. } => Some((key, path.clone())),
            ObjectKind::Memfd { .. } | ObjectKind::Anonymous => None,
        })
    }

    pub fn retain(&mut self, mut used: impl FnMut(ObjectKey) -> bool) {
        let forgotten = &mut self.forgotten;
        self.known.retain(|&key, _| {
            let used = used(key);
            if !used {
                forgotten.insert(key);
            }
            used
        });
    }

    /// The standby starts anew, with objects that are all zero.
    pub fn start_over(&mut self) {
        self.forgotten.clear();
        for object in self.known.values_mut() {
            object.copy.clear();
            object.size_max = 0;
            object.sign = None;
            object.unknown = false;
        }
    }

    /// It is not known what the standby has of `key`: all of it is sent.
    pub fn send_all(&mut self, key: ObjectKey) {
        if let Some(object) = self.known.get_mut(&key) {
            object.unknown = true;
        }
    }

    pub fn list(&self) -> Vec<SharedObject> {
        let describe = |(&key, object): (&ObjectKey, &Object)| {
            let size_bytes = object.file.metadata().map_or(0, |metadata| metadata.len());
            SharedObject { key, kind: with_seals(&object.kind, &object.file), size_bytes }
        };
        self.known.iter().map(describe).collect()
    }

    /// What of the objects changed, as chunks; `written` are the offsets that mappings reported. Pages that the
    /// standby may have lost meanwhile are added to `gone`.
    pub fn capture(
        &mut self,
        written: &BTreeMap<ObjectKey, RangeSet>,
        chunks: &mut Vec<Chunk>,
        gone: &mut Vec<(PageTarget, Range)>,
    ) -> io::Result<()> {
        let nothing = RangeSet::default();
        for (&key, object) in &mut self.known {
            let lost = object.capture(key, written.get(&key).unwrap_or(&nothing), chunks)?;
            gone.extend((!lost.is_empty()).then_some((PageTarget::Object(key), lost)));
        }
        Ok(())
    }
}

impl Object {
    fn capture(&mut self, key: ObjectKey, written: &RangeSet, chunks: &mut Vec<Chunk>) -> io::Result<Range> {
        let sign = Sign::of(&self.file)?;
        let whole = self.unknown || self.sign != Some(sign) || sign.size <= ALWAYS_COMPARED_BYTES;
        if !whole && written.is_empty() {
            return Ok(Range::new(0, 0));
        }
        let padded = sign.size.next_multiple_of(PAGE_BYTES);
        let regrown = Range::new(self.copy.len() as u64, padded.min(self.size_max));
        // N.B. a page that this copy has and the standby does not can't be: both start out as zeros.
        self.copy.resize(padded as usize, 0);
        self.size_max = self.size_max.max(padded);
        let everything = [Range::new(0, padded)];
        let within: Vec<Range> = if whole { everything.to_vec() } else { written.within(everything[0]) };
        for range in within {
            self.compare(key, range, regrown, chunks)?;
        }
        self.sign = Some(sign);
        let unknown = std::mem::take(&mut self.unknown);
        Ok(if unknown { everything[0] } else { regrown })
    }

    /// Sends what is not as it was, and all of `regrown`.
    fn compare(
        &mut self,
        key: ObjectKey,
        range: Range,
        regrown: Range,
        chunks: &mut Vec<Chunk>,
    ) -> io::Result<()> {
        const STEP_BYTES: u64 = 1 << 20;
        let mut now = Vec::new();
        for start in (range.start..range.end).step_by(STEP_BYTES as usize) {
            let end = range.end.min(start + STEP_BYTES);
            now.clear();
            now.resize((end - start) as usize, 0);
            read_up_to(&self.file, &mut now, start)?;
            let old = &mut self.copy[start as usize..end as usize];
            let mut ranges = RangeSet::default();
            let mut bytes = Vec::new();
            let pages = old.chunks_mut(PAGE_BYTES as usize).zip(now.chunks(PAGE_BYTES as usize));
            for (n, (old, now)) in pages.enumerate() {
                let at = start + n as u64 * PAGE_BYTES;
                if !self.unknown && !regrown.contains(at) && old == now {
                    continue;
                }
                ranges.insert(Range::new(at, at + PAGE_BYTES));
                bytes.extend_from_slice(now);
                old.copy_from_slice(now);
            }
            if !bytes.is_empty() {
                chunks.push(Chunk {
                    target: PageTarget::Object(key),
                    ranges: ranges.iter().collect(),
                    bytes: bytes.into(),
                });
            }
        }
        Ok(())
    }
}

impl Sign {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            size: metadata.len(),
            blocks: metadata.blocks(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

fn with_seals(kind: &ObjectKind, file: &File) -> ObjectKind {
    match kind {
        ObjectKind::Memfd { name, .. } => {
            let seals = rustix::fs::fcntl_get_seals(file).map_or(0, |seals| seals.bits());
            ObjectKind::Memfd { name: name.clone(), seals }
        }
        ObjectKind::File { path, deleted, .. } => {
            let mode = file.metadata().map_or(0o600, |metadata| metadata.mode());
            ObjectKind::File { path: path.clone(), deleted: *deleted, mode }
        }
        ObjectKind::Anonymous => ObjectKind::Anonymous,
    }
}

fn read_up_to(file: &File, into: &mut [u8], mut at: u64) -> io::Result<()> {
    let mut rest = into;
    while !rest.is_empty() {
        let n = file.read_at(rest, at)?;
        if n == 0 {
            break; // The end of the file: the rest of the last page is zero.
        }
        at += n as u64;
        rest = &mut rest[n..];
    }
    Ok(())
}
