//! From one layout to the next: what to unmap, map, protect and advise.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use image::layout::{Advice, Backing, FileIdentity, Layout, Mapping, Protection, surviving};
use image::{Range, RangeSet};

use super::{ApplyError, Trees};
use crate::memory::build_id;

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

/// Whether every file that the layout newly maps is here, and the same.
pub fn check_files(old: &[Mapping], layout: &Layout, trees: &Trees) -> Result<(), ApplyError> {
    let mut checked: Vec<&FileIdentity> = old.iter().filter_map(file_of).collect();
    for identity in layout.mappings.iter().filter_map(file_of) {
        if !checked.contains(&identity) {
            if trees.locate(&identity.path).is_none() {
                check_file(identity)?;
            }
            checked.push(identity);
        }
    }
    Ok(())
}

pub fn file_of(mapping: &Mapping) -> Option<&FileIdentity> {
    match &mapping.backing {
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

/// Opens the file and compares it with the primary's.
pub fn check_file(identity: &FileIdentity) -> Result<(), ApplyError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&identity.path));
    let refuse = |why: String| ApplyError::File { path: path.display().to_string(), why };
    // Opening a FIFO that nobody writes to would wait for ever.
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|why| refuse(why.to_string()))?;
    let metadata = file.metadata().map_err(|why| refuse(why.to_string()))?;
    if !metadata.is_file() {
        return Err(refuse("no regular file here".to_owned()));
    }
    let size = metadata.len();
    let found = build_id(&file);
    match (&identity.build_id, found) {
        (Some(wanted), Some(found)) if **wanted != found => Err(refuse(format!(
            "build-id {} here, {} on the primary",
            hexadecimal(&found),
            hexadecimal(wanted)
        ))),
        (Some(_), Some(_)) => Ok(()),
        _ if size != identity.size => {
            Err(refuse(format!("{size} bytes here, {} on the primary", identity.size)))
        }
        _ => Ok(()),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
