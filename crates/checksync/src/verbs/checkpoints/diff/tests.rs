//! Two checkpoints made up frame by frame, and all that is said of what is between them.

use image::batch::BatchWriter;
use image::descriptor::{Descriptor, FileKind, OpenFile};
use image::files::{FileRecord, NameRecord, StateDirectory};
use image::frame::FrameWriter;
use image::layout::{
    Advice, Backing, FileIdentity, Layout, Mapping, ObjectKey, ObjectKind, Protection, SharedObject,
};
use image::process::{MemoryMap, Process, Registers, Thread, ThreadAttributes};
use image::state::Clocks;
use image::{FileChanges, FileId, FrameKind, Header, PAGE_BYTES, Range, Sync};

use super::changes::{Change, MappingChange, Report, between};
use super::*;

const SPACE: PageTarget = PageTarget::Space(0);
const KEY: ObjectKey = ObjectKey { device: 1, inode: 7 };
const OBJECT: PageTarget = PageTarget::Object(KEY);
const ROOT: FileId = FileId(0);

/// Memory and state of one, yet to be written as frames.
#[derive(Clone)]
struct Made {
    mappings: Vec<Mapping>,
    pages: Vec<(PageTarget, u64, u8)>,
    /// In `/var/kv`: a name, and a file.
    files: Vec<(&'static str, FileRecord)>,
    state: State,
}

fn made(mappings: Vec<Mapping>, pages: &[(PageTarget, u64, u8)]) -> Made {
    let (start_brk, brk, start_stack) = (0x1_0000, 0x1_4000, 0x5_0800);
    let spaces = vec![MemoryMap { start_brk, brk, start_stack, ..MemoryMap::default() }];
    let clocks = Clocks { realtime_ns: 1_000_000_000, ..Clocks::default() };
    let (files, pipes, strays) = (Vec::new(), Vec::new(), Vec::new());
    let state = State { clocks, processes: vec![process(2)], spaces, files, pipes, strays };
    Made { mappings, pages: pages.to_vec(), files: Vec::new(), state }
}

fn process(pid: i32) -> Process {
    Process {
        pid,
        parent: 1,
        group: pid,
        session: pid,
        space: 0,
        threads: vec![thread(pid, "main")],
        descriptors: Vec::new(),
        actions: Vec::new(),
        pending: Vec::new(),
        limits: Vec::new(),
        filesystem: image::process::Filesystem::default(),
        interval_timers: Default::default(),
        posix_timers: Vec::new(),
        attributes: image::process::ProcessAttributes::default(),
    }
}

fn thread(tid: i32, name: &str) -> Thread {
    let attributes =
        ThreadAttributes { name: format!("{name}\0\0").into_bytes().into(), ..ThreadAttributes::default() };
    Thread {
        tid,
        registers: Registers([0; 27]),
        timeout: None,
        rest: None,
        xstate: Default::default(),
        signal_mask: 0,
        alternate_stack: Default::default(),
        robust_list: Default::default(),
        clear_child_tid: 0,
        rseq: None,
        pending: Vec::new(),
        credentials: Default::default(),
        attributes,
    }
}

fn mapping(start: u64, end: u64, letters: &str, backing: Backing) -> Mapping {
    let has = |letter| letters.contains(letter);
    Mapping {
        range: Range::new(start, end),
        protection: Protection { read: has('r'), write: has('w'), execute: has('x') },
        shared: has('s'),
        backing,
        offset: 0,
        advice: Advice::default(),
        name: None,
    }
}

fn anonymous(start: u64, end: u64, letters: &str) -> Mapping {
    mapping(start, end, letters, Backing::Anonymous)
}

impl Made {
    fn with_file(mut self, number: i32, path: &str, position: i64) -> Self {
        let (path, file_type) = (path.as_bytes().to_vec().into(), 0o100_000);
        let kind = FileKind::Path { path, file_type, reads: None };
        self.state.files.push(OpenFile { flags: 0, position, kind, locks: Vec::new(), owner: None });
        let file = self.state.files.len() as u32 - 1;
        self.state.processes[0].descriptors.push(Descriptor { number, close_on_exec: false, file });
        self
    }

    fn file_changes(&self) -> FileChanges {
        let mut changes = FileChanges::default();
        if !self.files.is_empty() {
            changes.directories.push(StateDirectory { id: ROOT, path: b"/var/kv".to_vec() });
            changes.files.push(file(ROOT, image::files::FileKind::Directory));
        }
        for (name, record) in &self.files {
            changes.files.push(record.clone());
            let (name, file) = (name.as_bytes().to_vec(), Some(record.id));
            changes.names.push(NameRecord { directory: ROOT, name, file });
        }
        changes
    }

    fn side(&self) -> Side {
        let objects = vec![SharedObject { key: KEY, kind: ObjectKind::Anonymous, size_bytes: 0x2000 }];
        let mappings = self.mappings.clone();
        let layout = Layout { space: 0, pid: 2, mappings, guards: Vec::new(), objects };
        let (app, id) = ("kv".to_owned(), CheckpointId::new(1, 1));
        let mut writer = FrameWriter::default();
        let header = Header { app, id, sync: Sync::Full, frozen_at_ns: 0 };
        let mut frames = vec![writer.cbor(FrameKind::Header, &header)];
        frames.extend(writer.files(self.file_changes()));
        frames.extend(writer.layout(&layout));
        for &(target, at, byte) in &self.pages {
            let mut batch = BatchWriter::new(target);
            batch.whole(at, &[byte; PAGE_BYTES as usize]);
            frames.push(writer.frame(FrameKind::Pages, &batch.finish()));
        }
        frames.extend(writer.state(&self.state));
        frames.push(writer.end());
        let mut gathered = Gathered::full(&std::env::temp_dir()).unwrap();
        for frame in frames {
            gathered.take(&Frame::parse(frame).unwrap()).unwrap();
        }
        Side::new("somewhere".to_owned(), gathered).unwrap()
    }
}

fn file(id: FileId, kind: image::files::FileKind) -> FileRecord {
    FileRecord { id, kind, mode: 0o640, owner: 0, group: 0, modified: (0, 0) }
}

fn regular(id: u64, size_bytes: u64) -> FileRecord {
    file(FileId(id), image::files::FileKind::Regular { size_bytes })
}

fn diff(before: &Made, after: &Made) -> Report {
    between(&before.side(), &after.side()).unwrap()
}

fn program() -> Mapping {
    let identity = FileIdentity { path: b"/bin/kv".to_vec(), size: 0x2000, build_id: None };
    mapping(0x2_0000, 0x2_2000, "r-x", Backing::File(identity))
}

/// Of each mapping that is listed: what became of it, its name and place, and the pages.
fn listed(report: &Report) -> Vec<(Change, &str, Option<u64>, u64)> {
    fn line(one: &MappingChange) -> (Change, &str, Option<u64>, u64) {
        (one.change, &one.what, one.start, one.pages_changed)
    }
    report.memory.mappings.iter().map(line).collect()
}

#[test]
fn of_memory_what_differs_is_listed_and_nothing_else() {
    let shown = || mapping(0x7_0000, 0x7_2000, "rws", Backing::Object(KEY));
    let before = made(
        vec![
            anonymous(0x1_0000, 0x1_4000, "rw"),
            program(),
            anonymous(0x3_0000, 0x4_0000, ""),
            anonymous(0x5_0000, 0x5_2000, "rw"),
            anonymous(0x6_0000, 0x6_1000, "rw"),
            shown(),
        ],
        &[
            (SPACE, 0x1_0000, 1),
            (SPACE, 0x1_1000, 2),
            (SPACE, 0x1_2000, 3),
            (OBJECT, 0, 5),
            (OBJECT, 0x1000, 5),
        ],
    );
    let after = made(
        vec![
            anonymous(0x1_0000, 0x1_4000, "rw"),
            program(),
            // A reservation may grow: nothing can be in it.
            anonymous(0x3_0000, 0x4_8000, ""),
            anonymous(0x5_0000, 0x5_2000, "r"),
            shown(),
            anonymous(0x8_0000, 0x8_1000, "rw"),
        ],
        // One page is empty now, and one was it already; over a file an empty page is another than none.
        &[
            (SPACE, 0x1_0000, 1),
            (SPACE, 0x1_2000, 4),
            (SPACE, 0x1_3000, 0),
            (SPACE, 0x2_1000, 0),
            (OBJECT, 0, 5),
            (OBJECT, 0x1000, 6),
        ],
    );
    let report = diff(&before, &after);
    let expected = [
        (Change::Changed, "[heap]", Some(0x1_0000), 2),
        (Change::Changed, "/bin/kv", Some(0x2_0000), 1),
        (Change::Changed, "[stack]", Some(0x5_0000), 0),
        (Change::Gone, "[anon]", Some(0x6_0000), 0),
        (Change::New, "[anon]", Some(0x8_0000), 0),
        (Change::Changed, "shared anonymous", None, 1),
    ];
    assert_eq!(listed(&report), expected);
    let stack = &report.memory.mappings[2];
    let protection = |extent: &Option<super::changes::Extent>| extent.as_ref().unwrap().protection.clone();
    assert_eq!((protection(&stack.before), protection(&stack.after)), ("rw-p".to_owned(), "r--p".to_owned()));
    assert_eq!((report.memory.pages_changed, report.memory.bytes_changed), (4, 4 * PAGE_BYTES));
    assert_eq!((report.from.mappings, report.from.mapped_bytes), (6, 0x1_b000));
    assert!(!report.same && report.processes.is_empty());
    // The other way round.
    let back = diff(&after, &before);
    assert_eq!(back.memory.pages_changed, 4);
    assert!(listed(&back).contains(&(Change::New, "[anon]", Some(0x6_0000), 0)));
}

#[test]
fn files_are_compared_by_their_paths_whatever_number_they_have() {
    let of = |id, at, byte| (PageTarget::File(FileId(id)), at, byte);
    let mut before =
        made(Vec::new(), &[of(1, 0, 1), of(2, 0, 2), of(2, 0x1000, 2), of(3, 0, 3), of(4, 0, 4)]);
    before.files = vec![
        ("same", regular(1, 10)),
        ("grown", regular(2, 0x2000)),
        ("written", regular(3, 10)),
        ("gone", regular(4, 1)),
    ];
    let mut after = made(Vec::new(), &[of(9, 0, 1), of(1, 0, 2), of(1, 0x1000, 3), of(2, 0, 4), of(8, 0, 0)]);
    let touched = FileRecord { modified: (9, 9), ..regular(9, 10) };
    after.files = vec![
        ("same", touched),
        ("grown", regular(1, 0x2001)),
        ("written", regular(2, 10)),
        ("new", regular(8, 0)),
    ];
    let report = diff(&before, &after);
    let listed: Vec<_> =
        report.files.iter().map(|one| (one.change, one.path.as_str(), one.pages_changed)).collect();
    let expected = [
        (Change::Gone, "/var/kv/gone", 0),
        (Change::Resized, "/var/kv/grown", 1),
        (Change::New, "/var/kv/new", 0),
        (Change::Changed, "/var/kv/written", 1),
    ];
    assert_eq!(listed, expected);
    assert!(!report.same && report.memory.mappings.is_empty());
    let drawn = drawing::draw(&report);
    assert!(
        drawn.contains("resized  /var/kv/grown, 8.0 KiB, before 8.0 KiB, 4.0 KiB changed in 1 page"),
        "{drawn}"
    );
    assert!(diff(&before, &before).same);
}

#[test]
fn what_is_drawn_begins_with_what_changed_most() {
    let room = || vec![anonymous(0x1_0000, 0x1_4000, "rw"), anonymous(0x5_0000, 0x5_2000, "rw")];
    let before = made(room(), &[]);
    let after = made(room(), &[(SPACE, 0x1_0000, 1), (SPACE, 0x5_0000, 1), (SPACE, 0x5_1000, 1)]);
    let drawn = drawing::draw(&diff(&before, &after));
    let at = |what: &str| drawn.find(what).unwrap_or_else(|| panic!("no {what} in {drawn}"));
    assert!(at("[stack]") < at("[heap]"), "{drawn}");
}

#[test]
fn what_the_kernel_split_and_what_only_ran_on_is_the_same() {
    let before = made(vec![anonymous(0x1_0000, 0x1_4000, "rw")], &[(SPACE, 0x1_0000, 1)]);
    let mut after = made(
        vec![anonymous(0x1_0000, 0x1_2000, "rw"), anonymous(0x1_2000, 0x1_4000, "rw")],
        &[(SPACE, 0x1_0000, 1)],
    );
    after.state.clocks.realtime_ns += 1;
    after.state.processes[0].threads[0].registers.0[0] = 1;
    let report = diff(&before, &after);
    assert!(report.same, "{report:?}");
    assert_eq!((report.from.mappings, report.to.mappings), (1, 1));
}

#[test]
fn of_processes_what_differs_is_listed_and_nothing_else() {
    let mut before =
        made(Vec::new(), &[]).with_file(3, "/log", 10).with_file(4, "/read", 0).with_file(5, "/same", 7);
    before.state.processes.extend([process(30), process(40)]);
    before.state.processes[0].threads.extend([thread(10, "worker"), thread(11, "old"), thread(12, "idle")]);
    let mut after =
        made(Vec::new(), &[]).with_file(3, "/log", 25).with_file(5, "/same", 7).with_file(6, "/new", 0);
    after.state.processes.extend([process(30), process(50)]);
    after.state.processes[0].threads.extend([thread(10, "worker"), thread(12, "busy"), thread(13, "young")]);
    let report = diff(&before, &after);
    assert!(!report.same);
    let processes: Vec<_> = report.processes.iter().map(|one| (one.pid, one.change)).collect();
    assert_eq!(processes, [(2, None), (40, Some(Change::Gone)), (50, Some(Change::New))]);
    let threads = report.processes[0].threads.iter();
    let threads: Vec<_> =
        threads.map(|one| (one.change, one.tid, one.name.as_str(), one.name_before.as_deref())).collect();
    let expected = [
        (Change::Gone, 11, "old", None),
        (Change::Changed, 12, "busy", Some("idle")),
        (Change::New, 13, "young", None),
    ];
    assert_eq!(threads, expected);
    let descriptors: Vec<_> =
        report.processes[0].descriptors.iter().map(|one| (one.change, one.number)).collect();
    assert_eq!(descriptors, [(Change::Changed, 3), (Change::Gone, 4), (Change::New, 6)]);
    let written = &report.processes[0].descriptors[0];
    let position = |side: &Option<super::changes::Opened>| side.as_ref().unwrap().position;
    assert_eq!((position(&written.before), position(&written.after)), (10, 25));
}
