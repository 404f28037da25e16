//! Shared objects: memfds, shared anonymous memory, files that are mapped shared and writable.
//!
//! A write through a mapping is seen by the mapping's scan. A `write(2)`, a hole punched or a change of size
//! is not; those move the object's times, size or blocks. Where one of them moved, the whole object is
//! compared with the last copy; small objects are compared always.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
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
            let (file, kind) = (open()?, kind.clone());
            place.insert(Object { file, kind, copy: Vec::new(), sign: None, unknown: false });
        }
        Ok(())
    }

    pub fn keys(&self) -> impl Iterator<Item = ObjectKey> + '_ {
        self.known.keys().copied()
    }

    pub fn retain(&mut self, mut used: impl FnMut(ObjectKey) -> bool) {
        self.known.retain(|&key, _| used(key));
    }

    /// The standby starts anew, with objects that are all zero.
    pub fn start_over(&mut self) {
        for object in self.known.values_mut() {
            object.copy.clear();
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

    /// What of the objects changed, as chunks; `written` are the offsets that mappings reported.
    pub fn capture(
        &mut self,
        written: &BTreeMap<ObjectKey, RangeSet>,
        chunks: &mut Vec<Chunk>,
    ) -> io::Result<()> {
        let nothing = RangeSet::default();
        for (&key, object) in &mut self.known {
            object.capture(key, written.get(&key).unwrap_or(&nothing), chunks)?;
        }
        Ok(())
    }
}

impl Object {
    fn capture(&mut self, key: ObjectKey, written: &RangeSet, chunks: &mut Vec<Chunk>) -> io::Result<()> {
        let sign = Sign::of(&self.file)?;
        let whole = self.unknown || self.sign != Some(sign) || sign.size <= ALWAYS_COMPARED_BYTES;
        if !whole && written.is_empty() {
            return Ok(());
        }
        let padded = sign.size.next_multiple_of(PAGE_BYTES);
        // N.B. a page that this copy has and the standby does not can't be: both start out as zeros.
        self.copy.resize(padded as usize, 0);
        let everything = [Range::new(0, padded)];
        let within: Vec<Range> = if whole { everything.to_vec() } else { written.within(everything[0]) };
        for range in within {
            self.compare(key, range, chunks)?;
        }
        self.sign = Some(sign);
        self.unknown = false;
        Ok(())
    }

    fn compare(&mut self, key: ObjectKey, range: Range, chunks: &mut Vec<Chunk>) -> io::Result<()> {
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
            for (n, (old, now)) in pages.enumerate().filter(|(_, (old, now))| self.unknown || old != now) {
                let at = start + n as u64 * PAGE_BYTES;
                ranges.insert(Range::new(at, at + PAGE_BYTES));
                bytes.extend_from_slice(now);
                old.copy_from_slice(now);
            }
            if !bytes.is_empty() {
                chunks.push(Chunk {
                    target: PageTarget::Object(key),
                    ranges: ranges.iter().collect(),
                    bytes,
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
