//! Changing the skeleton: mappings by remote calls, pages from outside.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use image::batch::{LINE_BYTES, Pages};
use image::layout::{
    Advice, Backing, FileIdentity, Layout, Mapping, ObjectKey, ObjectKind, Protection, SharedObject,
};
use image::{PAGE_BYTES, PageBatch, PageTarget, Range};
use rustix::fs::FallocateFlags;
use sys::memory::VECTORS_MAX;
use tracee::Call;

use super::plan::{Plan, check_file};
use super::{ApplyError, Lacking, Skeleton};

const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
const MAP_DROPPABLE: u64 = 0x08;

/// A shared object: the skeleton has it open to map it, we to fill it.
#[derive(Debug)]
pub struct HeldObject {
    pub file: File,
    /// Its descriptor in the skeleton.
    pub remote: u64,
    pub object: SharedObject,
}

impl Skeleton<'_> {
    pub(super) fn hold_objects(&mut self, layout: &Layout) -> Result<(), ApplyError> {
        for object in &layout.objects {
            let failed = |source| ApplyError::Kernel { what: "size a shared object", address: 0, source };
            if !self.objects.contains_key(&object.key) {
                let held = self.make_object(object)?;
                self.objects.insert(object.key, held);
            }
            let held = self.objects.get_mut(&object.key).expect("made above");
            held.file.set_len(object.size_bytes).map_err(failed)?;
            held.object = object.clone();
        }
        let gone: Vec<ObjectKey> = self
            .objects
            .keys()
            .filter(|key| !layout.objects.iter().any(|o| o.key == **key))
            .copied()
            .collect();
        for key in gone {
            let held = self.objects.remove(&key).expect("listed above");
            self.frozen.remote(self.pid)?.calls(&[Call::new(libc::SYS_close, [held.remote])])?;
        }
        Ok(())
    }

    /// N.B. made by the skeleton and stolen from it, since a mapping needs a descriptor there.
    fn make_object(&mut self, object: &SharedObject) -> Result<HeldObject, ApplyError> {
        let name = match &object.kind {
            ObjectKind::Memfd { name, .. } => name.clone(),
            ObjectKind::Anonymous => b"shared".to_vec(),
            ObjectKind::File { .. } => b"file".to_vec(),
        };
        let mut remote = self.frozen.remote(self.pid)?;
        let name = remote.put(0, &[&name[..], b"\0"].concat());
        let flags = u64::from(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        let number = remote.call("make a shared object", libc::SYS_memfd_create, [name, flags])?;
        let file = File::from(remote.steal(number as i32)?);
        Ok(HeldObject { file, remote: number, object: object.clone() })
    }

    pub(super) fn carry_out(&mut self, plan: &Plan<'_>) -> Result<(), ApplyError> {
        let unmap =
            plan.unmap.iter().map(|range| Call::new(libc::SYS_munmap, [range.start, range.len_bytes()]));
        self.calls("unmap", unmap.collect())?;
        self.map(&plan.map)?;
        let protect = plan.protect.iter().map(|(range, protection)| {
            Call::new(libc::SYS_mprotect, [range.start, range.len_bytes(), bits(*protection)])
        });
        self.calls("protect", protect.collect())?;
        let advise = plan.advise.iter().flat_map(|(range, old, new)| advise(*range, *old, *new));
        // Advice is advice: a kernel that was built without a kind of it refuses, and nothing is lost.
        self.frozen.remote(self.pid)?.calls(&advise.collect::<Vec<_>>())?;
        self.name(&plan.name)
    }

    fn map(&mut self, pieces: &[(Range, &Mapping)]) -> Result<(), ApplyError> {
        let files = self.open_files(pieces)?;
        let mut calls = Vec::with_capacity(pieces.len());
        for (range, mapping) in pieces {
            let offset = mapping.offset + (range.start - mapping.range.start);
            let shared = if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE } as u64;
            let fixed = libc::MAP_FIXED as u64;
            let anonymous = libc::MAP_ANONYMOUS as u64;
            let (flags, fd, offset) = match &mapping.backing {
                Backing::Anonymous => {
                    (fixed | anonymous | shared | anonymous_flags(mapping.advice), u64::MAX, 0)
                }
                Backing::Droppable => (fixed | anonymous | MAP_DROPPABLE, u64::MAX, 0),
                Backing::File(identity) => (fixed | shared, files[&identity.path], offset),
                Backing::Object(key) => {
                    let held = self.objects.get(key).ok_or(ApplyError::UnknownObject)?;
                    (fixed | shared, held.remote, offset)
                }
                Backing::Vvar | Backing::VvarClock | Backing::Vdso | Backing::Vsyscall => continue,
            };
            let arguments = [range.start, range.len_bytes(), bits(mapping.protection), flags, fd, offset];
            calls.push(Call::new(libc::SYS_mmap, arguments));
        }
        let mapped = self.calls("map", calls);
        let close = files.into_values().map(|fd| Call::new(libc::SYS_close, [fd]));
        self.calls("close a mapped file", close.collect())?;
        mapped
    }

    fn open_files(&mut self, pieces: &[(Range, &Mapping)]) -> Result<BTreeMap<Vec<u8>, u64>, ApplyError> {
        let mut files = BTreeMap::new();
        for identity in pieces.iter().filter_map(|(_, mapping)| mapping.file()) {
            if files.contains_key(&identity.path) {
                continue;
            }
            let located = self.trees.locate(&identity.path);
            if located.is_none() {
                self.supply(identity)?;
            }
            let mut remote = self.frozen.remote(self.pid)?;
            let path = located.as_ref().map_or(&identity.path[..], |path| path.as_os_str().as_bytes());
            let path = remote.put(0, &[path, b"\0"].concat());
            let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
            let at = libc::AT_FDCWD as u64;
            let opened = remote.call("open a mapped file", libc::SYS_openat, [at, path, flags]);
            let fd = opened.map_err(|why| ApplyError::File {
                path: String::from_utf8_lossy(&identity.path).into_owned(),
                why: why.to_string(),
            })?;
            files.insert(identity.path.clone(), fd);
        }
        Ok(files)
    }

    /// Sees to it that the file is at its path in the cell, if it was shipped.
    fn supply(&mut self, identity: &FileIdentity) -> Result<(), ApplyError> {
        let Err(why) = check_file(self.root()?.as_fd(), identity, self.trees.shipped.as_ref()) else {
            return Ok(());
        };
        match self.trees.find(identity) {
            Some(_) => self.put(identity),
            None => Err(ApplyError::Lacking(Lacking(vec![(identity.clone(), why)]))),
        }
    }

    /// Puts what was shipped at its path.
    pub(super) fn put(&mut self, identity: &FileIdentity) -> Result<(), ApplyError> {
        let kept = self.trees.find(identity).ok_or_else(|| ApplyError::File {
            path: String::from_utf8_lossy(&identity.path).into_owned(),
            why: "it was shipped, and is gone from where it was kept".to_owned(),
        })?;
        self.places.put(&kept).map_err(|why| ApplyError::File {
            path: String::from_utf8_lossy(&identity.path).into_owned(),
            why: format!("it was shipped, and cannot be put at its path in the cell: {why}"),
        })
    }

    fn name(&mut self, names: &[(Range, &str)]) -> Result<(), ApplyError> {
        for (range, name) in names {
            let mut remote = self.frozen.remote(self.pid)?;
            let name = remote.put(0, &[name.as_bytes(), b"\0"].concat());
            let arguments = [PR_SET_VMA, PR_SET_VMA_ANON_NAME, range.start, range.len_bytes(), name];
            // Names are for people; a kernel without them loses nothing.
            remote.calls(&[Call::new(libc::SYS_prctl, arguments)])?;
        }
        Ok(())
    }

    pub(super) fn calls(&mut self, what: &'static str, calls: Vec<Call>) -> Result<(), ApplyError> {
        if calls.is_empty() {
            return Ok(());
        }
        let results = self.frozen.remote(self.pid)?.calls(&calls)?;
        match results.iter().position(|&result| result < 0) {
            None => Ok(()),
            Some(n) => Err(ApplyError::Kernel {
                what,
                address: calls[n].arguments[0],
                source: sys::kernel::error(results[n]),
            }),
        }
    }

    /// Whether all pages of a batch have a place.
    pub(super) fn check_batch(
        &self,
        batch: &PageBatch,
        mappings: &[Mapping],
        layout: Option<&Layout>,
    ) -> Result<(), ApplyError> {
        match batch.target {
            PageTarget::Space(0) => {
                let misplaced =
                    batch.pages.iter().map(Pages::range).find(|range| !is_private(mappings, *range));
                misplaced.map_or(Ok(()), |range| Err(ApplyError::NotMapped(range.start)))
            }
            PageTarget::Space(space) => Err(ApplyError::Space(space)),
            // They go into a tree, and come another way.
            PageTarget::File(_) => Err(ApplyError::UnknownObject),
            PageTarget::Object(key) => {
                let size = match layout {
                    Some(layout) => layout.objects.iter().find(|o| o.key == key).map(|o| o.size_bytes),
                    None => self.objects.get(&key).map(|held| held.object.size_bytes),
                };
                let size = size.ok_or(ApplyError::UnknownObject)?.next_multiple_of(PAGE_BYTES);
                let outside = batch.pages.iter().map(Pages::range).find(|range| range.end > size);
                outside.map_or(Ok(()), |range| Err(ApplyError::NotMapped(range.start)))
            }
        }
    }

    pub(super) fn write_batch(&mut self, batch: &PageBatch) -> Result<(), ApplyError> {
        if let PageTarget::Object(key) = batch.target {
            return self.write_object(key, &batch.pages);
        }
        let mut pieces: Vec<(u64, &[u8])> = Vec::with_capacity(batch.pages.len());
        let mut gone = Vec::new();
        for pages in &batch.pages {
            match pages {
                Pages::Whole { range, data } => pieces.push((range.start, data)),
                Pages::Lines { page, lines, data } => pieces.extend(line_runs(*page, *lines, data)),
                Pages::Gone { range } => {
                    // Records apply in their order: what was written before goes first.
                    self.write(&pieces)?;
                    pieces.clear();
                    gone.push(Call::new(
                        libc::SYS_madvise,
                        [range.start, range.len_bytes(), libc::MADV_DONTNEED as u64],
                    ));
                    continue;
                }
            }
            if !gone.is_empty() {
                self.calls("drop pages", std::mem::take(&mut gone))?;
            }
        }
        self.calls("drop pages", gone)?;
        self.write(&pieces)
    }

    /// Writes from outside; what is not writable there goes through `/proc/PID/mem`, which forces it.
    fn write(&self, mut pieces: &[(u64, &[u8])]) -> Result<(), ApplyError> {
        while !pieces.is_empty() {
            let mut went = match sys::memory::scatter_each(self.pid, &pieces[..pieces.len().min(VECTORS_MAX)])
            {
                Ok(went) => went,
                Err(why) if why.raw_os_error() == Some(libc::EFAULT) => 0,
                Err(source) => return Err(failed("write pages", pieces[0].0)(source)),
            };
            let tried = pieces.len().min(VECTORS_MAX);
            let mut whole = 0;
            while whole < tried && went >= pieces[whole].1.len() {
                went -= pieces[whole].1.len();
                whole += 1;
            }
            pieces = &pieces[whole..];
            if whole < tried {
                let (address, bytes) = pieces[0];
                self.memory.write_all_at(bytes, address).map_err(failed("write pages", address))?;
                pieces = &pieces[1..];
            }
        }
        Ok(())
    }

    fn write_object(&mut self, key: ObjectKey, pages: &[Pages]) -> Result<(), ApplyError> {
        let held = self.objects.get(&key).ok_or(ApplyError::UnknownObject)?;
        for pages in pages {
            match pages {
                Pages::Whole { range, data } => write_within(held, range.start, data)?,
                Pages::Lines { page, lines, data } => {
                    for (at, bytes) in line_runs(*page, *lines, data) {
                        write_within(held, at, bytes)?;
                    }
                }
                Pages::Gone { range } => {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(&held.file, flags, range.start, range.len_bytes())
                        .map_err(|why| failed("empty a shared object", range.start)(why.into()))?;
                }
            }
        }
        Ok(())
    }
}

/// The last page of an object may be longer than the object.
fn write_within(held: &HeldObject, at: u64, bytes: &[u8]) -> Result<(), ApplyError> {
    let room = held.object.size_bytes.saturating_sub(at).min(bytes.len() as u64) as usize;
    held.file.write_all_at(&bytes[..room], at).map_err(failed("fill a shared object", at))
}

fn failed(what: &'static str, address: u64) -> impl FnOnce(io::Error) -> ApplyError {
    move |source| ApplyError::Kernel { what, address, source }
}

/// The changed lines of a page as runs of bytes with their addresses.
fn line_runs(page: u64, lines: u64, data: &[u8]) -> Vec<(u64, &[u8])> {
    let (mut runs, mut rest, mut line) = (Vec::new(), data, 0);
    while line < 64 {
        let run = (!(lines >> line)).trailing_zeros().min(64 - line);
        if run == 0 {
            line += 1;
            continue;
        }
        let (bytes, after) = rest.split_at(run as usize * LINE_BYTES);
        runs.push((page + u64::from(line) * LINE_BYTES as u64, bytes));
        rest = after;
        line += run;
    }
    runs
}

/// Whether a range lies wholly in private memory of the app.
fn is_private(mappings: &[Mapping], range: Range) -> bool {
    let mut at = range.start;
    let first = mappings.partition_point(|mapping| mapping.range.end <= at);
    for mapping in &mappings[first..] {
        let private = !mapping.shared
            && !matches!(
                mapping.backing,
                Backing::Droppable | Backing::Vdso | Backing::Vvar | Backing::VvarClock | Backing::Vsyscall
            );
        if mapping.range.start > at || !private {
            return false;
        }
        at = mapping.range.end;
        if at >= range.end {
            return true;
        }
    }
    false
}

pub(super) fn bits(protection: Protection) -> u64 {
    let mut bits = 0;
    for (set, bit) in [
        (protection.read, libc::PROT_READ),
        (protection.write, libc::PROT_WRITE),
        (protection.execute, libc::PROT_EXEC),
    ] {
        if set {
            bits |= bit as u64;
        }
    }
    bits
}

fn anonymous_flags(advice: Advice) -> u64 {
    // N.B. always without a reservation: the primary has its own for the same memory, a reservation of many
    // gigabytes that is never touched would be refused here, and no content hangs on it.
    let mut flags = libc::MAP_NORESERVE as u64;
    if advice.grows_down {
        flags |= libc::MAP_GROWSDOWN as u64;
    }
    flags
}

fn advise(range: Range, old: Advice, new: Advice) -> Vec<Call> {
    let switches = [
        (old.dont_fork, new.dont_fork, libc::MADV_DONTFORK, libc::MADV_DOFORK),
        (old.dont_dump, new.dont_dump, libc::MADV_DONTDUMP, libc::MADV_DODUMP),
        (old.wipe_on_fork, new.wipe_on_fork, libc::MADV_WIPEONFORK, libc::MADV_KEEPONFORK),
        (old.mergeable, new.mergeable, libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE),
        (old.sequential, new.sequential, libc::MADV_SEQUENTIAL, libc::MADV_NORMAL),
        (old.random, new.random, libc::MADV_RANDOM, libc::MADV_NORMAL),
        // One replaces the other; there is no way back to neither.
        (old.huge_page, new.huge_page, libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE),
        (old.no_huge_page, new.no_huge_page, libc::MADV_NOHUGEPAGE, libc::MADV_HUGEPAGE),
    ];
    let changed = switches.into_iter().filter(|(old, new, ..)| old != new);
    changed
        .map(|(_, new, on, off)| {
            Call::new(libc::SYS_madvise, [range.start, range.len_bytes(), if new { on } else { off } as u64])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_runs_in_their_places() {
        let data: Vec<u8> = (0..5 * 64).map(|n| (n / 64) as u8).collect();
        let runs = line_runs(0x1000, 1 | 0b110 << 2 | 1 << 62 | 1 << 63, &data);
        let shape: Vec<_> = runs.iter().map(|(at, bytes)| (*at, bytes.len(), bytes[0])).collect();
        assert_eq!(shape, [(0x1000, 64, 0), (0x10c0, 128, 1), (0x1f80, 128, 3)]);
        assert_eq!(line_runs(0, u64::MAX, &[7; 4096]), [(0, &[7; 4096][..])]);
    }
}
