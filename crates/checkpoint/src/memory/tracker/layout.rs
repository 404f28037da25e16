//! The mappings: what they are, which of them are new, what went with those that are gone.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use image::layout::{Advice, Backing, Layout, Mapping, ObjectKey, ObjectKind, surviving};
use image::{Range, RangeSet};
use sys::pagemap::{Query, Region, category, scan};
use tracee::Frozen;

use super::{CaptureError, HIGHEST, Tracked, Tracker, can_be_tracked, page_at};
use crate::memory::classify::{Class, classify};
use crate::memory::maps::{self, MapLine};
use crate::unsupported::Unsupported;

impl Tracker {
    /// Reads the mappings; true if they are not what they were. Pages of memory that is no more are
    /// forgotten: the standby drops them by the layout.
    pub(super) fn refresh_layout(
        &mut self,
        frozen: &Frozen<'_>,
        gone: &mut RangeSet,
    ) -> Result<bool, CaptureError> {
        let text = read_all(&self.maps).map_err(self.failed("read the mappings"))?;
        if text == self.text {
            return Ok(false);
        }
        let lines = maps::parse(&text)?;
        let mut tracked = Vec::with_capacity(lines.len());
        let mut classes = HashMap::with_capacity(lines.len());
        for line in &lines {
            let (key, class) = self.class_of(line, frozen.scratch_inode(self.pid))?;
            if let Some(mapping) = self.mapping_of(line, &class)? {
                let registered = false;
                tracked.push(Tracked { mapping, registered });
            }
            classes.insert(key, class);
        }
        let old: Vec<Mapping> = self.tracked.iter().map(|tracked| tracked.mapping.clone()).collect();
        let new: Vec<Mapping> = tracked.iter().map(|tracked| tracked.mapping.clone()).collect();
        self.forget_all_but(&surviving(&old, &new), gone);
        self.settle_data(&new);
        // A mapping that stayed registered is not in the scan for unregistered ranges.
        for tracked in &mut tracked {
            tracked.registered = true;
        }
        (self.tracked, self.classes, self.text) = (tracked, classes, text);
        Ok(true)
    }

    pub(super) fn class_of(
        &self,
        line: &MapLine<'_>,
        ours: Option<u64>,
    ) -> Result<(Vec<u8>, Class), CaptureError> {
        let mut key = line.name.to_vec();
        for number in
            [line.range.start, line.range.end, line.offset, line.inode, line.device, line.shared.into()]
        {
            key.extend_from_slice(&number.to_ne_bytes());
        }
        let class = match self.classes.get(&key) {
            Some(class) => class.clone(),
            None => classify(self.pid, line, ours)?,
        };
        Ok((key, class))
    }

    pub(super) fn mapping_of(
        &mut self,
        line: &MapLine<'_>,
        class: &Class,
    ) -> Result<Option<Mapping>, CaptureError> {
        let backing = match class {
            Class::Ignored => return Ok(None),
            Class::Carried(Backing::Anonymous) if self.was_droppable(line.range) => Backing::Droppable,
            Class::Carried(backing) => backing.clone(),
            Class::Object(key, kind) => {
                let path =
                    format!("/proc/{}/map_files/{:x}-{:x}", self.pid, line.range.start, line.range.end);
                let failed = self.failed("open a shared object");
                self.objects.add(*key, kind, || File::open(path)).map_err(failed)?;
                Backing::Object(*key)
            }
        };
        let anonymous = backing == Backing::Anonymous;
        let known = self.advice.get(&line.range.start).filter(|(range, ..)| *range == line.range);
        let mut advice = known.map_or_else(Advice::default, |(_, advice, _)| *advice);
        advice.grows_down |= line.name == b"[stack]";
        Ok(Some(Mapping {
            range: line.range,
            protection: line.protection,
            shared: line.shared,
            backing,
            offset: if anonymous { 0 } else { line.offset },
            advice,
            name: anonymous_name(line.name),
        }))
    }

    /// Whether this very mapping was found to be droppable: that takes a look at all page tables.
    fn was_droppable(&self, range: Range) -> bool {
        let at = self.tracked.partition_point(|tracked| tracked.mapping.range.start < range.start);
        self.tracked.get(at).is_some_and(|tracked| {
            tracked.mapping.range == range && tracked.mapping.backing == Backing::Droppable
        })
    }

    pub(super) fn forget_all_but(&mut self, survivors: &RangeSet, gone: &mut RangeSet) {
        let mut at = 0;
        for survivor in survivors.iter().chain([Range::new(HIGHEST, HIGHEST)]) {
            let hole = Range::new(at, survivor.start);
            if !hole.is_empty() {
                self.unmapped.extend(self.present.take(hole));
                self.unmapped.extend(self.data.range(hole.start..hole.end).map(|(&page, _)| page_at(page)));
                self.forget_data(hole);
                gone.remove(hole);
            }
            at = survivor.end;
        }
    }

    /// Pages of file mappings that are not writable any more are followed like all others.
    pub(super) fn settle_data(&mut self, mappings: &[Mapping]) {
        for mapping in mappings.iter().filter(|mapping| !mapping.protection.write) {
            let range = mapping.range;
            for page in self.data.range(range.start..range.end).map(|(&page, _)| page) {
                self.present.insert(page_at(page));
            }
            self.forget_data(range);
        }
    }

    pub(super) fn hand_out_layout(&mut self) -> Layout {
        self.layout_pending = false;
        self.objects_sent = self.objects.list();
        Layout {
            space: self.space,
            pid: self.cell_pid,
            mappings: self.tracked.iter().map(|tracked| self.with_advice(&tracked.mapping)).collect(),
            guards: self.guards.iter().collect(),
            objects: self.objects_sent.clone(),
        }
    }

    pub(super) fn with_advice(&self, mapping: &Mapping) -> Mapping {
        let mut mapping = mapping.clone();
        if let Some((range, advice, _)) = self.advice.get(&mapping.range.start)
            && *range == mapping.range
        {
            let grows_down = mapping.advice.grows_down;
            mapping.advice = Advice { grows_down: advice.grows_down || grows_down, ..*advice };
        }
        mapping
    }

    /// Registers what is not registered yet; what the standby has there is something else's.
    pub(super) fn register_new(&mut self, gone: &mut RangeSet) -> Result<(), CaptureError> {
        let query = Query { inverted: category::TRACKABLE, all: category::TRACKABLE, ..Query::default() };
        let mut new = RangeSet::default();
        let mut room = [Region::default(); 64];
        scan(
            &*self.pagemap,
            0,
            HIGHEST,
            Query { report: category::TRACKABLE, ..query },
            &mut room,
            |region| {
                new.insert(Range::new(region.start, region.end));
            },
        )
        .map_err(self.failed("look for new mappings"))?;
        for n in 0..self.tracked.len() {
            let Range { start, end } = self.tracked[n].mapping.range;
            let pieces = new.within(Range::new(start, end));
            let droppable = self.tracked[n].mapping.backing == Backing::Droppable;
            if pieces.is_empty() || !(droppable || can_be_tracked(&self.tracked[n].mapping)) {
                continue;
            }
            pieces.iter().for_each(|&piece| gone.extend(self.present.take(piece)));
            match self.fault.register(start, end) {
                Ok(()) => {
                    self.fault.unprotect(start, end).map_err(self.failed("take off stale protection"))?;
                    self.tracked[n].registered = true;
                    self.unsearched.insert(Range::new(start, end));
                    if droppable {
                        // Other memory took its place; the text of the mappings does not show that.
                        self.tracked[n].mapping.backing = Backing::Anonymous;
                        self.layout_pending = true;
                    }
                }
                Err(why) => self.not_registrable(n, why)?,
            }
        }
        Ok(())
    }

    /// A mapping that the kernel won't track: carried in another way, or refused by name.
    pub(super) fn not_registrable(&mut self, n: usize, why: io::Error) -> Result<(), CaptureError> {
        let range = self.tracked[n].mapping.range;
        self.tracked[n].registered = false;
        if self.tracked[n].mapping.backing == Backing::Droppable {
            return Ok(());
        }
        if matches!(self.tracked[n].mapping.backing, Backing::File(_)) && self.tracked[n].mapping.shared {
            return Ok(()); // Shared and never writable by the app: the file is what it is.
        }
        let flags = self.flags_of(range)?;
        if flags.iter().any(|flag| flag == "dp") {
            self.tracked[n].mapping.backing = Backing::Droppable;
            self.layout_pending = true;
            return Ok(());
        }
        Err(Unsupported {
            pid: self.pid,
            what: format!(
                "writes to the mapping at {:#x} ({}) can't be followed: {why}",
                range.start,
                flags.join(" ")
            ),
            way_out: "start the app without it; if it uses userfaultfd itself, switch that off".to_owned(),
        }
        .into())
    }

    pub(super) fn flags_of(&self, range: Range) -> Result<Vec<String>, CaptureError> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid))
            .map_err(self.failed("read the flags of a mapping"))?;
        let flags = maps::parse_smaps_flags(&text).into_iter().find(|(r, _)| *r == range);
        Ok(flags.map(|(_, flags)| flags.into_iter().map(str::to_owned).collect()).unwrap_or_default())
    }
}

/// What an open shared object is, by the name that the kernel gives it.
pub(super) fn kind_of_open(file: &File) -> io::Result<ObjectKind> {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let name = link.as_os_str().as_bytes();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Ok(match name.strip_prefix(b"/memfd:") {
        Some(name) => ObjectKind::Memfd { name: name.to_vec(), seals: 0 },
        None => ObjectKind::File { path: name.to_vec(), deleted: true, mode: 0o600 },
    })
}

pub(super) fn object_of(mapping: &Mapping) -> Option<ObjectKey> {
    match mapping.backing {
        Backing::Object(key) => Some(key),
        Backing::Anonymous
        | Backing::File(_)
        | Backing::Droppable
        | Backing::Vvar
        | Backing::VvarClock
        | Backing::Vdso
        | Backing::Vsyscall => None,
    }
}

fn anonymous_name(name: &[u8]) -> Option<String> {
    let name = name.strip_prefix(b"[anon:")?.strip_suffix(b"]")?;
    Some(String::from_utf8_lossy(name).into_owned())
}

pub(super) fn advice(flags: &[&str]) -> Advice {
    let has = |flag| flags.contains(&flag);
    Advice {
        dont_fork: has("dc"),
        dont_dump: has("dd"),
        wipe_on_fork: has("wf"),
        huge_page: has("hg"),
        no_huge_page: has("nh"),
        mergeable: has("mg"),
        sequential: has("sr"),
        random: has("rr"),
        locked: has("lo"),
        locked_on_fault: has("lf"),
        no_reserve: has("nr"),
        grows_down: has("gd"),
    }
}

/// Reads a file of `/proc` from its start in big steps.
fn read_all(file: &File) -> io::Result<Vec<u8>> {
    const STEP_BYTES: usize = 64 << 10;
    let mut text = Vec::new();
    loop {
        let have = text.len();
        text.resize(have + STEP_BYTES, 0);
        let got = file.read_at(&mut text[have..], have as u64)?;
        text.truncate(have + got);
        if got == 0 {
            return Ok(text);
        }
    }
}
