//! Two stopped processes, compared: every byte of their memory, every range of their mappings.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use checkpoint::skeleton::Skeleton;
use image::layout::{Backing, Mapping};
use image::{PAGE_BYTES, Range, RangeSet};
use sys::pagemap::{Query, Region, category, scan};

const HIGHEST: u64 = 0x7fff_ffff_f000;
const STEP_BYTES: u64 = 256 << 10;

/// Panics with the first pages that differ; returns how many were compared. The app's guards must be `guards`;
/// the skeleton can't have them yet, so they are not compared as memory.
#[track_caller]
pub fn compare_memory(epoch: u64, app: i32, skeleton: &Skeleton<'_>, guards: &RangeSet) -> u64 {
    let (ours, theirs) = (memory(app), memory(skeleton.pid()));
    let guarded: RangeSet = pages_with(app, category::GUARD).into_iter().collect();
    assert_eq!(*guards, guarded, "epoch {epoch}: guards differ");
    let populated = |pid| pages_with(pid, category::PRESENT | category::SWAPPED);
    let mut there: RangeSet = populated(app).into_iter().chain(populated(skeleton.pid())).collect();
    guarded.iter().for_each(|range| there.remove(range));
    let (mut pages, mut wrong) = (0, BTreeMap::new());
    for mapping in skeleton.mappings().iter().filter(|mapping| has_content(mapping)) {
        for range in there.within(mapping.range) {
            pages += range.pages();
            for start in (range.start..range.end).step_by(STEP_BYTES as usize) {
                let piece = Range::new(start, range.end.min(start + STEP_BYTES));
                differences(&ours, &theirs, piece).into_iter().for_each(|(page, why)| {
                    wrong.insert(page, (why, mapping.clone()));
                });
            }
        }
    }
    assert!(pages > 0, "epoch {epoch}: nothing was compared");
    if let Some((page, (why, mapping))) = wrong.first_key_value() {
        panic!(
            "epoch {epoch}: {} of {pages} pages differ, the first at {page:#x}: {why}, in {mapping:?}",
            wrong.len()
        );
    }
    pages
}

/// What is the kernel's is not compared, nor what is never shipped.
fn has_content(mapping: &Mapping) -> bool {
    !matches!(
        mapping.backing,
        Backing::Vdso | Backing::Vvar | Backing::VvarClock | Backing::Vsyscall | Backing::Droppable
    )
}

fn differences(ours: &File, theirs: &File, range: Range) -> Vec<(u64, String)> {
    if let (Some(a), Some(b)) = (read(ours, range), read(theirs, range))
        && a == b
    {
        return Vec::new();
    }
    // Page by page: a part of it may be out of reach, behind a guard or past the end of an object.
    let pages = (range.start..range.end).step_by(PAGE_BYTES as usize);
    let differs = |page| {
        let one = Range::new(page, page + PAGE_BYTES);
        let why = match (read(ours, one), read(theirs, one)) {
            (a, b) if a == b => return None,
            (Some(a), Some(b)) => {
                let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(0);
                format!("byte {at} is {:#x}, not {:#x}", b[at], a[at])
            }
            (None, _) => "out of reach in the app only".to_owned(),
            (_, None) => "out of reach in the skeleton only".to_owned(),
        };
        Some((page, why))
    };
    pages.filter_map(differs).collect()
}

pub fn memory(pid: i32) -> File {
    File::open(format!("/proc/{pid}/mem")).expect("the memory can be read")
}

pub fn read(memory: &File, range: Range) -> Option<Vec<u8>> {
    let mut bytes = vec![0; range.len_bytes() as usize];
    memory.read_exact_at(&mut bytes, range.start).ok().map(|()| bytes)
}

/// Pages of some of these categories. N.B. what is there in neither process is equal: zero, or the same file's.
fn pages_with(pid: i32, any: u64) -> Vec<Range> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("the page table can be read");
    let query = Query { any, report: category::PRESENT, ..Query::default() };
    let mut room = [Region::default(); 512];
    let mut found = Vec::new();
    scan(pagemap, 0, HIGHEST, query, &mut room, |region| found.push(Range::new(region.start, region.end)))
        .expect("the page table can be scanned");
    found
}

/// One mapping as it must be in both: protection, what is behind it, and from which offset on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    start: u64,
    end: u64,
    flags: String,
    behind: String,
    offset: u64,
}

/// Panics with the first mapping that only one of the two has.
#[track_caller]
pub fn compare_layouts(epoch: u64, app: i32, skeleton: i32) {
    let (ours, theirs) = (layout(app), layout(skeleton));
    let differ = ours.iter().zip(&theirs).find(|(a, b)| a != b);
    assert!(differ.is_none(), "epoch {epoch}: a mapping differs: {differ:#x?}");
    assert_eq!(ours.len(), theirs.len(), "epoch {epoch}: mappings are missing");
}

/// The mappings of a process, neighbours that could be one put together: the kernel need not have merged both.
fn layout(pid: i32) -> Vec<Line> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the mappings can be read");
    let mut lines: Vec<Line> = Vec::new();
    for line in text.lines().filter(|line| !is_ours(line)).map(parse) {
        match lines.last_mut() {
            Some(last) if continues(last, &line) => last.end = line.end,
            _ => lines.push(line),
        }
    }
    lines
}

fn continues(last: &Line, next: &Line) -> bool {
    let anonymous = next.behind.is_empty();
    last.end == next.start
        && last.flags == next.flags
        && last.behind == next.behind
        && (anonymous || last.offset + (last.end - last.start) == next.offset)
}

/// The memory that a tracer shares with its tracee, and what is at the same place in every process.
fn is_ours(line: &str) -> bool {
    line.contains("/memfd:linux-vdso.so.1") || line.ends_with("[vsyscall]")
}

fn parse(line: &str) -> Line {
    let mut fields = line.split_ascii_whitespace();
    let mut field = || fields.next().unwrap_or_default();
    let (range, flags, offset, _device, inode) = (field(), field(), field(), field(), field());
    let number = |digits: &str| u64::from_str_radix(digits, 16).expect("an address is hexadecimal");
    let (start, end) = range.split_once('-').expect("a range of addresses");
    let name = fields.collect::<Vec<_>>().join(" ");
    let named_by_kernel = name.starts_with("[v");
    let is_object = name.starts_with("/memfd:") || name.ends_with("(deleted)") || flags.ends_with('s');
    let behind = match inode {
        "0" if named_by_kernel => name,
        // Heap and stack are known by the app's own break and registers, which the skeleton has not yet.
        "0" => String::new(),
        // Inodes differ, and names of what has none.
        _ if is_object => "an object".to_owned(),
        _ => name,
    };
    let offset = if behind.is_empty() { 0 } else { number(offset) };
    Line { start: number(start), end: number(end), flags: flags.to_owned(), behind, offset }
}
