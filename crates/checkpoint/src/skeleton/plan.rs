//! From one layout to the next: what to unmap, map, protect and advise.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::BorrowedFd;

use image::layout::{Advice, Backing, FileIdentity, Layout, Mapping, Protection, surviving};
use image::{Range, RangeSet};
use rustix::fs::OFlags;

use super::{ApplyError, Lacking, Trees};
use crate::descriptors;
use crate::memory::build_id;
use crate::shipped::Shelf;

/// The steps, in the order in which they must be taken.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    pub unmap: Vec<Range>,
    /// A piece of a new mapping that is to be made.
    pub map: Vec<(Range, &'a Mapping)>,
    pub protect: Vec<(Range, Protection)>,
    pub advise: Vec<(Range, Advice, Advice)>,
    pub name: Vec<(Range, &'a str)>,
}

impl<'a> Plan<'a> {
    pub fn new(old: &[Mapping], new: &'a [Mapping]) -> Self {
        let survivors = surviving(old, new);
        let mut plan = Self::default();
        for mapping in old.iter().filter(|mapping| is_ours_to_map(mapping)) {
            plan.unmap.extend(without(mapping.range, &survivors));
        }
        for mapping in new.iter().filter(|mapping| is_ours_to_map(mapping)) {
            for range in without(mapping.range, &survivors) {
                plan.map.push((range, mapping));
                plan.advise.push((range, Advice::default(), mapping.advice));
                plan.name.extend(mapping.name.as_deref().map(|name| (range, name)));
            }
        }
        plan.change_survivors(old, new, &survivors);
        plan
    }

    fn change_survivors(&mut self, old: &[Mapping], new: &'a [Mapping], survivors: &RangeSet) {
        let mut before = old.iter().peekable();
        for mapping in new.iter().filter(|mapping| is_ours_to_map(mapping)) {
            while before.next_if(|old| old.range.end <= mapping.range.start).is_some() {}
            let mut overlapping = before.clone();
            while let Some(old) = overlapping.next_if(|old| old.range.start < mapping.range.end) {
                for range in
                    old.range.intersect(mapping.range).into_iter().flat_map(|both| survivors.within(both))
                {
                    if old.protection != mapping.protection {
                        self.protect.push((range, mapping.protection));
                    }
                    if old.advice != mapping.advice {
                        self.advise.push((range, old.advice, mapping.advice));
                    }
                    if old.name != mapping.name {
                        self.name.extend(mapping.name.as_deref().map(|name| (range, name)));
                    }
                }
            }
        }
    }
}

/// The kernel's own mappings are put in their place at birth, and never change.
fn is_ours_to_map(mapping: &Mapping) -> bool {
    match mapping.backing {
        Backing::Anonymous | Backing::File(_) | Backing::Object(_) | Backing::Droppable => true,
        Backing::Vvar | Backing::VvarClock | Backing::Vdso | Backing::Vsyscall => false,
    }
}

fn without(range: Range, survivors: &RangeSet) -> Vec<Range> {
    let mut rest = RangeSet::from_iter([range]);
    survivors.within(range).into_iter().for_each(|survivor| rest.remove(survivor));
    rest.iter().collect()
}

/// Whether every file that the layout newly maps is here, or was shipped here, and the same. `root` is what the app will
/// take for the root.
pub fn check_files(
    old: &[Mapping],
    layout: &Layout,
    root: BorrowedFd<'_>,
    trees: &Trees,
) -> Result<(), ApplyError> {
    let mut checked: Vec<&FileIdentity> = old.iter().filter_map(Mapping::file).collect();
    let mut paths: BTreeMap<&[u8], &FileIdentity> = BTreeMap::new();
    let mut lacking = Vec::new();
    for identity in layout.mappings.iter().filter_map(Mapping::file) {
        let elsewhere = trees.locate(&identity.path).is_some();
        let other = paths.insert(&identity.path, identity).filter(|other| !elsewhere && *other != identity);
        if other.is_some() {
            return Err(refusal(identity, "two different files of this name are mapped".to_owned()));
        }
        if !checked.contains(&identity) {
            if !elsewhere
                && let Err(why) = check_file(root, identity, trees.shipped.as_ref())
                && trees.find(identity).is_none()
            {
                lacking.push((identity.clone(), why));
            }
            checked.push(identity);
        }
    }
    if lacking.is_empty() { Ok(()) } else { Err(ApplyError::Lacking(Lacking(lacking))) }
}

fn refusal(identity: &FileIdentity, why: String) -> ApplyError {
    ApplyError::File { path: String::from_utf8_lossy(&identity.path).into_owned(), why }
}

/// Opens the file and compares it with the primary's. An error says how they differ.
pub fn check_file(
    root: BorrowedFd<'_>,
    identity: &FileIdentity,
    shelf: Option<&Shelf>,
) -> Result<(), String> {
    // Opening a FIFO that nobody writes to would wait for ever.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let text = |why: std::io::Error| why.to_string();
    let file = descriptors::open_below(root, &identity.path, flags).map_err(|why| text(why.into()))?;
    let mut file = File::from(file);
    let metadata = file.metadata().map_err(text)?;
    if !metadata.is_file() {
        return Err("no regular file here".to_owned());
    }
    let size = metadata.len();
    let found = build_id(&file);
    match (&identity.build_id, found) {
        (Some(wanted), Some(found)) if **wanted != found => {
            Err(format!("build-id {} here, {} on the primary", hexadecimal(&found), hexadecimal(wanted)))
        }
        (Some(_), Some(_)) => Ok(()),
        _ if size != identity.size => Err(format!("{size} bytes here, {} on the primary", identity.size)),
        _ if shelf.is_some_and(|shelf| !shelf.fits(identity, &mut file)) => {
            Err("the same size, but another content".to_owned())
        }
        _ => Ok(()),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
