//! What changed from one checkpoint to another. Only what differs is listed.

use std::collections::{BTreeMap, BTreeSet};

use image::process::Process;
use image::state::State;
use image::{PAGE_BYTES, PageTarget};
use serde::Serialize;
use store::StoreError;

use super::files::{self, FileChange};
use super::regions::{self, Pair, Region};
use super::{Page, Side};
use crate::verbs::describe;

const SCHEMA: u32 = 1;

#[derive(Debug, Serialize)]
pub struct Report {
    pub schema: u32,
    pub from: About,
    pub to: About,
    /// Nothing below tells of a change.
    pub same: bool,
    pub memory: MemoryChanges,
    /// In state directories.
    pub files: Vec<FileChange>,
    pub processes: Vec<ProcessChanges>,
}

#[derive(Debug, Serialize)]
pub struct About {
    pub place: String,
    pub app: String,
    pub term: u64,
    pub epoch: u64,
    /// Nanoseconds since 1970.
    pub frozen_at_ns: u64,
    pub mappings: usize,
    pub mapped_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct MemoryChanges {
    /// Whose content is another, wherever they are mapped.
    pub pages_changed: u64,
    pub bytes_changed: u64,
    pub mappings: Vec<MappingChange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    New,
    Gone,
    Resized,
    /// It is where it was, and something in it or about it is another.
    Changed,
}

impl Change {
    pub fn text(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Gone => "gone",
            Self::Resized => "resized",
            Self::Changed => "changed",
        }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct MappingChange {
    pub change: Change,
    /// A file, `[heap]`, `[stack]`, `[anon]`, or the name of a shared object.
    pub what: String,
    /// Of a shared object's content: none.
    pub start: Option<u64>,
    pub before: Option<Extent>,
    pub after: Option<Extent>,
    pub pages_changed: u64,
    pub bytes_changed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Extent {
    pub bytes: u64,
    pub protection: String,
}

#[derive(Debug, Serialize)]
pub struct ProcessChanges {
    pub pid: i32,
    /// None: it is there in both.
    pub change: Option<Change>,
    pub executable: String,
    pub threads: Vec<ThreadChange>,
    pub descriptors: Vec<DescriptorChange>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ThreadChange {
    pub change: Change,
    pub tid: i32,
    pub name: String,
    /// Of one that is called otherwise now.
    pub name_before: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DescriptorChange {
    pub change: Change,
    pub number: i32,
    pub before: Option<Opened>,
    pub after: Option<Opened>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Opened {
    pub kind: &'static str,
    pub what: String,
    /// Where the next read or write goes.
    pub position: i64,
}

pub fn between(from: &Side, to: &Side) -> Result<Report, StoreError> {
    let (before, after) = (regions::of(from.layouts(), &from.state), regions::of(to.layouts(), &to.state));
    let over: Vec<Region> = after.iter().filter(|region| region.over_file).cloned().collect();
    let over_file = |target: PageTarget, at: u64| {
        let next = over.partition_point(|region| (region.target, region.range.start) <= (target, at));
        let region = next.checked_sub(1).map(|last| &over[last]);
        region.is_some_and(|region| region.target == target && region.range.contains(at))
    };
    let changed = changed_pages(from.pages(), to.pages(), over_file)?;
    let (about_from, about_to) = (about(from, &before), about(to, &after));
    let pairs = regions::pair(before, after);
    let mappings: Vec<_> = pairs.iter().filter_map(|pair| mapping_change(pair, &changed)).collect();
    let pages_changed: u64 = mappings.iter().map(|mapping| mapping.pages_changed).sum();
    let memory = MemoryChanges { pages_changed, bytes_changed: pages_changed * PAGE_BYTES, mappings };
    let processes = process_changes(&from.state, &to.state);
    let files = files::between(from, to)?;
    let same = memory.mappings.is_empty() && files.is_empty() && processes.is_empty();
    Ok(Report { schema: SCHEMA, from: about_from, to: about_to, same, memory, files, processes })
}

fn about(side: &Side, regions: &[Region]) -> About {
    let mapped = || regions.iter().filter(|region| matches!(region.target, PageTarget::Space(_)));
    About {
        place: side.place.clone(),
        app: side.app.clone(),
        term: side.id.term.0,
        epoch: side.id.epoch.0,
        frozen_at_ns: side.state.clocks.realtime_ns,
        mappings: mapped().count(),
        mapped_bytes: mapped().map(|region| region.range.len_bytes()).sum(),
    }
}

/// The pages whose content is another. One that is not there is empty, but over a file it is the file's.
pub fn changed_pages(
    before: impl Iterator<Item = Result<Page, StoreError>>,
    after: impl Iterator<Item = Result<Page, StoreError>>,
    over_file: impl Fn(PageTarget, u64) -> bool,
) -> Result<BTreeSet<(PageTarget, u64)>, StoreError> {
    let (mut before, mut after) = (before, after);
    let mut changed = BTreeSet::new();
    let (mut old, mut new) = (before.next().transpose()?, after.next().transpose()?);
    loop {
        let place = |page: &Page| (page.0, page.1);
        let at = match (old.as_ref().map(place), new.as_ref().map(place)) {
            (None, None) => return Ok(changed),
            (Some(only), None) | (None, Some(only)) => only,
            (Some(old), Some(new)) => old.min(new),
        };
        let was = old.take_if(|page| place(page) == at);
        let is = new.take_if(|page| place(page) == at);
        let differ = match (&was, &is) {
            (Some(was), Some(is)) => was.2 != is.2,
            (Some(only), None) | (None, Some(only)) => {
                over_file(at.0, at.1) || only.2.iter().any(|&byte| byte != 0)
            }
            (None, None) => false,
        };
        if differ {
            changed.insert(at);
        }
        if was.is_some() {
            old = before.next().transpose()?;
        }
        if is.is_some() {
            new = after.next().transpose()?;
        }
    }
}

fn mapping_change((old, new): &Pair, changed: &BTreeSet<(PageTarget, u64)>) -> Option<MappingChange> {
    let either = new.as_ref().or(old.as_ref())?;
    if [old, new].into_iter().flatten().all(Region::is_reservation) {
        return None;
    }
    let pages_changed = new.as_ref().map_or(0, |region| regions::changed_in(region, changed));
    let change = match (old, new) {
        (None, _) => Change::New,
        (_, None) => Change::Gone,
        (Some(old), Some(new)) if old.range != new.range => Change::Resized,
        (Some(old), Some(new)) if pages_changed > 0 || old.protection != new.protection => Change::Changed,
        (Some(_), Some(_)) => return None,
    };
    let extent =
        |region: &Region| Extent { bytes: region.range.len_bytes(), protection: region.protection.clone() };
    Some(MappingChange {
        change,
        what: either.what.clone(),
        start: matches!(either.target, PageTarget::Space(_)).then_some(either.range.start),
        before: old.as_ref().map(extent),
        after: new.as_ref().map(extent),
        pages_changed,
        bytes_changed: pages_changed * PAGE_BYTES,
    })
}

fn process_changes(before: &State, after: &State) -> Vec<ProcessChanges> {
    let by_pid = |state: &State| -> BTreeMap<i32, Process> {
        state.processes.iter().map(|process| (process.pid, process.clone())).collect()
    };
    let pairs = paired(by_pid(before), by_pid(after));
    let changes = pairs.into_iter().filter_map(|(pid, old, new)| {
        let change = match (&old, &new) {
            (None, _) => Some(Change::New),
            (_, None) => Some(Change::Gone),
            (Some(_), Some(_)) => None,
        };
        let executable = |process: &Process| describe::text(&process.attributes.executable);
        let threads = thread_changes(old.as_ref(), new.as_ref());
        let descriptors = descriptor_changes(opened(old.as_ref(), before), opened(new.as_ref(), after));
        let differs = change.is_some() || !threads.is_empty() || !descriptors.is_empty();
        let executable = new.as_ref().or(old.as_ref()).map(executable).unwrap_or_default();
        differs.then_some(ProcessChanges { pid, change, executable, threads, descriptors })
    });
    changes.collect()
}

/// What two have under each name.
fn paired<K: Ord + Copy, T>(
    mut before: BTreeMap<K, T>,
    mut after: BTreeMap<K, T>,
) -> Vec<(K, Option<T>, Option<T>)> {
    let names: BTreeSet<K> = before.keys().chain(after.keys()).copied().collect();
    names.into_iter().map(|name| (name, before.remove(&name), after.remove(&name))).collect()
}

/// None, if both are alike.
fn change_of<T: PartialEq>(before: Option<&T>, after: Option<&T>) -> Option<Change> {
    match (before, after) {
        (None, _) => Some(Change::New),
        (_, None) => Some(Change::Gone),
        (Some(before), Some(after)) => (before != after).then_some(Change::Changed),
    }
}

fn thread_changes(before: Option<&Process>, after: Option<&Process>) -> Vec<ThreadChange> {
    let names = |process: Option<&Process>| -> BTreeMap<i32, String> {
        let threads = process.into_iter().flat_map(|process| &process.threads);
        let name = |bytes: &[u8]| describe::text(bytes.split(|&byte| byte == 0).next().unwrap_or_default());
        threads.map(|thread| (thread.tid, name(&thread.attributes.name))).collect()
    };
    let of = |(tid, before, after): (i32, Option<String>, Option<String>)| {
        let change = change_of(before.as_ref(), after.as_ref())?;
        Some(match (before, after) {
            (before, Some(name)) => ThreadChange { change, tid, name, name_before: before },
            (before, None) => {
                ThreadChange { change, tid, name: before.unwrap_or_default(), name_before: None }
            }
        })
    };
    paired(names(before), names(after)).into_iter().filter_map(of).collect()
}

fn opened(process: Option<&Process>, state: &State) -> BTreeMap<i32, Opened> {
    let descriptors = process.into_iter().flat_map(|process| &process.descriptors);
    let opened = descriptors.filter_map(|descriptor| {
        let file = state.files.get(descriptor.file as usize)?;
        let (kind, what, _) = describe::open_file(file);
        Some((descriptor.number, Opened { kind, what, position: file.position }))
    });
    opened.collect()
}

fn descriptor_changes(before: BTreeMap<i32, Opened>, after: BTreeMap<i32, Opened>) -> Vec<DescriptorChange> {
    let of = |(number, before, after): (i32, Option<Opened>, Option<Opened>)| {
        let change = change_of(before.as_ref(), after.as_ref())?;
        Some(DescriptorChange { change, number, before, after })
    };
    paired(before, after).into_iter().filter_map(of).collect()
}
