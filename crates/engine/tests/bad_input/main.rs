//! Whatever comes in over the network: a copy refuses it by name, stays bounded, and keeps its last good epoch.

#[path = "../common/mod.rs"]
mod common;
mod mutated;
mod state_changes;

use bytes::Bytes;
use engine::{Command, Event};
use image::batch::BatchWriter;
use image::frame::{Frame, FrameKind, FrameWriter, PAYLOAD_BYTES_MAX, join};
use image::layout::{
    Advice, Backing, FileIdentity, Layout, LayoutPart, Mapping, ObjectKey, ObjectKind, Protection,
    SharedObject,
};
use image::state::State;
use image::{CheckpointId, Header, PageTarget, Range, Sync};
use testkit::guest::GoFile;

use common::{PATIENCE, Pair, Side, peak_bytes};

const PAGE: u64 = image::PAGE_BYTES;
/// How much the peak of our memory may grow over all the hostile input of one test.
const GROWTH_BYTES_MAX: u64 = 400 << 20;

fn main() {
    common::main(&[
        ("damaged_frames_are_refused", damaged_frames_are_refused),
        ("a_header_in_the_middle_begins_its_epoch", a_header_in_the_middle_begins_its_epoch),
        ("an_epoch_without_its_parent_is_refused", an_epoch_without_its_parent_is_refused),
        ("an_epoch_that_was_dropped_is_never_taken_for_held", an_epoch_that_was_dropped),
        ("hostile_layouts_and_pages_are_refused", hostile_layouts_and_pages_are_refused),
        ("hostile_states_are_refused", hostile_states_are_refused),
        ("a_state_that_fails_late_fails_by_name", a_state_that_fails_late_fails_by_name),
        (
            "a_working_directory_that_is_missing_is_the_cells",
            a_working_directory_that_is_missing_is_the_cells,
        ),
        ("changes_of_another_state_are_refused", state_changes::of_another_state_are_refused),
        ("mutated_changes_of_a_state_never_break_the_engine", state_changes::mutated_never_break_the_engine),
        ("mutated_epochs_never_break_the_engine", mutated::epochs_never_break_the_engine),
        ("mutated_full_syncs_never_break_the_engine", mutated::full_syncs_never_break_the_engine),
        ("mutated_states_never_break_a_takeover", mutated::states_never_break_a_takeover),
    ]);
}

/// A copy of a guest with a good epoch in it, and what its primary would have sent next.
struct Victim {
    standby: Side,
    last: CheckpointId,
    next: Vec<Bytes>,
    full: Vec<Bytes>,
    go_file: GoFile,
    peak_before: u64,
}

impl Victim {
    fn new() -> Self {
        let go_file = GoFile::new();
        let mut pair = Pair::of_guest("memory-memfd", &go_file, &[]);
        pair.full_sync();
        pair.epoch();
        go_file.step(1);
        pair.primary.output.wait_for("ready 1", PATIENCE);
        pair.epoch();
        let next = pair.capture_aside(false);
        let full = pair.capture_aside(true);
        let Pair { primary, standby, last } = pair;
        drop(primary);
        Self { standby, last, next, full, go_file, peak_before: peak_bytes() }
    }

    fn refuses(&self, what: &str, frames: &[Bytes]) {
        match feed(&self.standby, frames) {
            Outcome::Refused(why) => assert!(!why.is_empty(), "{what} was refused without a word"),
            Outcome::Ignored => (),
            Outcome::Prepared => panic!("{what} was accepted"),
        }
    }

    /// Refused with these words in the reason.
    fn refuses_for(&self, what: &str, frames: &[Bytes], wanted: &str) {
        match feed(&self.standby, frames) {
            Outcome::Refused(why) => assert!(why.contains(wanted), "{what}: {why:?} is not about {wanted:?}"),
            Outcome::Ignored => panic!("{what} was passed over"),
            Outcome::Prepared => panic!("{what} was accepted"),
        }
    }

    /// The copy takes over with what the last good epoch brought.
    fn still_serves(self) {
        let grown = peak_bytes().saturating_sub(self.peak_before);
        assert!(grown < GROWTH_BYTES_MAX, "the input made us grow by {} MiB", grown >> 20);
        let report = self.standby.promote().expect("the last good epoch takes over");
        assert_eq!(report.id, self.last, "another epoch than the last good one went on");
        self.go_file.go();
        assert_eq!(self.standby.output.wait_for_any(&["pass", "fail"], PATIENCE), "pass");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused(String),
    Prepared,
    /// Not a word: the frames begin no epoch, or end in the middle of one.
    Ignored,
}

/// Feeds frames as they would come in, and throws away what becomes of them.
fn feed(standby: &Side, frames: &[Bytes]) -> Outcome {
    for frame in frames {
        let header = Frame::parse(frame.clone()).ok().and_then(|frame| frame.decode::<Header>("header").ok());
        standby.engine.send(Command::Frames(frame.clone()));
        if let Some(Header { id, sync, .. }) = header {
            standby.engine.send(Command::Receive { id, full: sync == Sync::Full, keep_old: true });
        }
    }
    settle(standby)
}

/// What the engine said until it has dropped all of it.
fn settle(standby: &Side) -> Outcome {
    standby.engine.send(Command::DropHalf);
    let mut outcome = Outcome::Ignored;
    loop {
        match standby.next_event("answer to hostile input") {
            Event::HalfDropped => return outcome,
            Event::EpochBegins { .. } => (),
            Event::Refused { why, .. } => outcome = Outcome::Refused(why),
            Event::Prepared { .. } => outcome = Outcome::Prepared,
            other => panic!("hostile input led to {other:?}"),
        }
    }
}

/// An epoch in parts that a test can change.
#[derive(Clone)]
struct Parts {
    header: Header,
    layout: Layout,
    pages: Vec<Bytes>,
    state: State,
}

impl Parts {
    /// Of a full epoch.
    fn of(frames: &[Bytes]) -> Self {
        let frames: Vec<Frame> =
            frames.iter().map(|frame| Frame::parse(frame.clone()).expect("a good frame")).collect();
        let of_kind = |kind| frames.iter().filter(move |frame| frame.kind == kind);
        let header = of_kind(FrameKind::Header).next().expect("a header");
        let state: Vec<u8> = of_kind(FrameKind::State).flat_map(|frame| frame.payload.to_vec()).collect();
        let layout = of_kind(FrameKind::Layout).last();
        let layout = layout.map_or_else(nothing_mapped, |frame| {
            frame.decode::<LayoutPart>("layout").expect("a layout").layout
        });
        Self {
            header: header.decode("header").expect("a header"),
            layout,
            pages: of_kind(FrameKind::Pages).map(|frame| frame.payload.clone()).collect(),
            state: image::frame::decode(&state, "state").expect("a state"),
        }
    }

    fn frames(&self) -> Vec<Bytes> {
        self.frames_with(|writer| writer.state(&self.state))
    }

    /// With these frames in the place of the state's.
    fn frames_with(&self, state: impl FnOnce(&mut FrameWriter) -> Vec<Bytes>) -> Vec<Bytes> {
        let mut writer = FrameWriter::default();
        let mut frames = vec![writer.cbor(FrameKind::Header, &self.header)];
        frames.extend(writer.layout(&self.layout));
        frames.extend(self.pages.iter().map(|pages| writer.frame(FrameKind::Pages, pages)));
        frames.extend(state(&mut writer));
        frames.push(writer.end());
        frames
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Vec<Bytes> {
        let mut changed = self.clone();
        change(&mut changed);
        changed.frames()
    }
}

fn nothing_mapped() -> Layout {
    Layout { space: 0, pid: 0, mappings: Vec::new(), guards: Vec::new(), objects: Vec::new() }
}

/// The next epoch, with a layout and all of the state; and the full one.
fn both(victim: &Victim) -> [Parts; 2] {
    let full = Parts::of(&victim.full);
    let next: Vec<Frame> =
        victim.next.iter().map(|frame| Frame::parse(frame.clone()).expect("a good frame")).collect();
    let pages = next.iter().filter(|frame| frame.kind == FrameKind::Pages);
    let next = Parts {
        header: next[0].decode("header").expect("a header"),
        pages: pages.map(|frame| frame.payload.clone()).collect(),
        ..full.clone()
    };
    for parts in [&next, &full] {
        assert_eq!(feed(&victim.standby, &parts.frames()), Outcome::Prepared, "unchanged, it is accepted");
    }
    [next, full]
}

/// A primary that gives an epoch up just begins another.
fn a_header_in_the_middle_begins_its_epoch() {
    let victim = Victim::new();
    for half in [&victim.full[..2], &victim.next[..2]] {
        assert_eq!(feed(&victim.standby, &[half, &victim.next].concat()), Outcome::Prepared);
        assert_eq!(feed(&victim.standby, &[half, &victim.full].concat()), Outcome::Prepared);
    }
    victim.still_serves();
}

fn damaged_frames_are_refused() {
    let victim = Victim::new();
    assert_eq!(feed(&victim.standby, &victim.next), Outcome::Prepared, "unchanged, it is accepted");
    assert_eq!(
        feed(&victim.standby, &join(victim.next.clone(), usize::MAX)),
        Outcome::Prepared,
        "and joined"
    );
    for garbage in [&b""[..], b"CSF1", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 5000], &[0; 24]] {
        victim.refuses("garbage", &[Bytes::copy_from_slice(garbage)]);
        let mut within = victim.next.clone();
        within.insert(1, Bytes::copy_from_slice(garbage));
        victim.refuses_for("garbage within an epoch", &within, "frame");
    }
    for frames in [&victim.next, &victim.full] {
        for cut in 0..frames.len() {
            victim.refuses("an epoch that is cut off", &frames[..cut]);
            let mut lost = frames.clone();
            lost.remove(cut);
            victim.refuses("an epoch with a lost frame", &lost);
            let mut repeated = frames.clone();
            repeated.insert(cut, frames[cut].clone());
            if cut + 1 < frames.len() {
                // A header that comes again just begins the epoch again.
                match cut {
                    0 => assert_eq!(feed(&victim.standby, &repeated), Outcome::Prepared),
                    _ => victim.refuses("an epoch with a repeated frame", &repeated),
                }
                let mut swapped = frames.clone();
                swapped.swap(cut, cut + 1);
                victim.refuses("an epoch out of order", &swapped);
            }
            flip_bits(&victim, frames, cut);
        }
    }
    victim.still_serves();
}

fn flip_bits(victim: &Victim, frames: &[Bytes], at: usize) {
    let bits = frames[at].len() * 8;
    for bit in [0, 33, 64, 130, 165, bits / 2, bits - 1] {
        let mut flipped = frames.to_vec();
        let mut bytes = frames[at].to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        flipped[at] = bytes.into();
        victim.refuses(&format!("frame {at} with bit {bit} flipped"), &flipped);
        let cut = &frames[at][..frames[at].len() - 1 - bit % 20];
        flipped[at] = Bytes::copy_from_slice(cut);
        victim.refuses(&format!("frame {at}, shortened"), &flipped);
    }
}

/// Whoever was told that it is prepared, just before he had it dropped, and has it applied, must hear that it is not.
fn an_epoch_that_was_dropped() {
    let victim = Victim::new();
    assert_eq!(feed(&victim.standby, &victim.next), Outcome::Prepared);
    let header = Frame::parse(victim.next[0].clone()).expect("a frame").decode::<Header>("header");
    let dropped = header.expect("a header").id;
    victim.standby.engine.send(Command::Apply(dropped));
    match victim.standby.next_event("answer about an epoch that is gone") {
        Event::ApplyFailed { id, .. } => assert_eq!(id, dropped),
        other => panic!("an epoch that was dropped led to {other:?}"),
    }
    victim.still_serves();
}

fn an_epoch_without_its_parent_is_refused() {
    let victim = Victim::new();
    let [next, _] = both(&victim);
    let unknown =
        |epoch| move |parts: &mut Parts| parts.header.sync = Sync::Since(CheckpointId::new(1, epoch));
    for epoch in [0, 1, victim.last.epoch.0 - 1, victim.last.epoch.0 + 1, u64::MAX] {
        let frames = next.with(unknown(epoch));
        victim.refuses_for("an epoch on another base", &frames, "could build on");
    }
    let replayed = next.with(|parts| {
        parts.header.id = CheckpointId::new(1, 2);
        parts.header.sync = Sync::Since(CheckpointId::new(1, 1));
    });
    victim.refuses_for("an old epoch, replayed", &replayed, "could build on");
    let empty = Side::standby();
    assert!(matches!(feed(&empty, &victim.next), Outcome::Refused(_)), "an epoch for no copy was accepted");
    assert_eq!(empty.promote().unwrap_err(), "there is no copy here");
    victim.still_serves();
}

fn anonymous(start: u64, end: u64) -> Mapping {
    Mapping {
        range: Range::new(start, end),
        protection: Protection { read: true, write: true, execute: false },
        shared: false,
        backing: Backing::Anonymous,
        offset: 0,
        advice: Advice::default(),
        name: None,
    }
}

fn of_file(path: &[u8], build_id: Option<Vec<u8>>) -> Mapping {
    let identity =
        FileIdentity { path: path.to_vec(), size: 1, build_id: build_id.map(serde_bytes::ByteBuf::from) };
    Mapping { backing: Backing::File(identity), ..anonymous(0x1_0000, 0x1_1000) }
}

fn object(size_bytes: u64, kind: ObjectKind) -> SharedObject {
    SharedObject { key: ObjectKey { device: 7, inode: 7 }, kind, size_bytes }
}

fn memfd(name: &[u8]) -> ObjectKind {
    ObjectKind::Memfd { name: name.to_vec(), seals: 0 }
}

type Change = (&'static str, Box<dyn Fn(&mut Parts)>);

/// The mapping comes first: it lies where nothing else does.
fn mapped(what: &'static str, mapping: Mapping) -> Change {
    (what, Box::new(move |parts| parts.layout.mappings.insert(0, mapping.clone())))
}

fn described(what: &'static str, object: SharedObject) -> Change {
    (what, Box::new(move |parts| parts.layout.objects.push(object.clone())))
}

fn with_pages(what: &'static str, pages: impl Fn() -> Bytes + 'static) -> Change {
    (what, Box::new(move |parts| parts.pages.push(pages())))
}

fn batch(target: PageTarget, fill: impl Fn(&mut BatchWriter)) -> Bytes {
    let mut writer = BatchWriter::new(target);
    fill(&mut writer);
    writer.finish()
}

fn hostile_mappings() -> Vec<Change> {
    let own = |change: fn(&mut Mapping)| {
        let mut mapping = anonymous(0x1_0000, 0x1_1000);
        change(&mut mapping);
        mapping
    };
    vec![
        mapped("page zero", anonymous(0, PAGE)),
        mapped("an empty mapping", anonymous(0x1_0000, 0x1_0000)),
        mapped("a mapping that ends before it begins", anonymous(0x1_1000, 0x1_0000)),
        mapped("an unaligned mapping", anonymous(0x1_0001, 0x1_1000)),
        mapped("kernel space", anonymous(0xffff_8000_0000_0000, 0xffff_8000_0000_1000)),
        mapped("beyond user space", anonymous(0x1_0000, !0xfff)),
        mapped("all of user space", anonymous(0x1_0000, 0x7fff_ffff_f000)),
        mapped("a false vsyscall", own(|m| m.backing = Backing::Vsyscall)),
        mapped("another vdso", own(|m| (m.backing, m.range.end) = (Backing::Vdso, 0x2_0000))),
        mapped("shared anonymous memory without an object", own(|m| m.shared = true)),
        mapped(
            "an object that is not described",
            own(|m| {
                m.backing = Backing::Object(ObjectKey { device: 9, inode: 9 });
            }),
        ),
        mapped("an unaligned offset", own(|m| m.offset = 1)),
        mapped("an offset that overflows", own(|m| m.offset = !0xfff)),
        mapped("a name of a megabyte", own(|m| m.name = Some("n".repeat(1 << 20)))),
        mapped("a name with a NUL", own(|m| m.name = Some("a\0b".to_owned()))),
        mapped("a file that is missing", of_file(b"/nonexistent/library.so", None)),
        mapped("a path with a NUL", of_file(b"/etc/\0passwd", None)),
        mapped("a path of a megabyte", of_file(&vec![b'/'; 1 << 20], None)),
        mapped("a path that is empty", of_file(b"", None)),
        mapped("a directory", of_file(b"/etc", None)),
        mapped("a device", of_file(b"/dev/zero", None)),
        mapped("a file of another size", of_file(b"/etc/passwd", None)),
        (
            "overlapping mappings",
            Box::new(|parts| {
                let first = parts.layout.mappings[0].clone();
                parts.layout.mappings.insert(0, first);
            }),
        ),
        ("unsorted mappings", Box::new(|parts| parts.layout.mappings.reverse())),
        (
            "another build-id",
            Box::new(|parts| {
                let identity =
                    parts.layout.mappings.iter_mut().find_map(|mapping| match &mut mapping.backing {
                        Backing::File(identity) if identity.build_id.is_some() => Some(identity),
                        _ => None,
                    });
                identity.expect("the guest has one").build_id = Some(vec![1; 20].into());
            }),
        ),
        (
            "more mappings than the kernel allows",
            Box::new(|parts| {
                let page = |n: u64| anonymous(0x1_0000 + 2 * n * PAGE, 0x1_0000 + (2 * n + 1) * PAGE);
                let many = (0..100_000).map(page);
                parts.layout.mappings = many.chain(parts.layout.mappings.drain(..)).collect();
            }),
        ),
        ("another address space", Box::new(|parts| parts.layout.space = 1)),
        (
            "a guard where nothing is",
            Box::new(|parts| parts.layout.guards.push(Range::new(0x1_0000, 0x1_1000))),
        ),
        ("a guard that ends before it begins", Box::new(|parts| parts.layout.guards.push(Range::new(9, 3)))),
    ]
}

fn hostile_objects() -> Vec<Change> {
    let file = |path: &[u8]| ObjectKind::File { path: path.to_vec(), deleted: false, mode: 0o600 };
    vec![
        described("an object of 2^60 bytes", object(1 << 60, memfd(b"large"))),
        described("an object of 2^64 bytes", object(u64::MAX, memfd(b"large"))),
        described("a file of 2^60 bytes", object(1 << 60, file(b"/tmp/checksync-hostile"))),
        described("a name that is too long", object(PAGE, memfd(&[b'n'; 300]))),
        described("a name with a NUL", object(PAGE, memfd(b"a\0b"))),
        described("a name of a megabyte", object(PAGE, memfd(&[b'n'; 1 << 20]))),
        described("a file's path with a NUL", object(PAGE, file(b"/tmp/a\0b"))),
        described("a file without a path", object(PAGE, file(b""))),
        (
            "an object that is described twice",
            Box::new(|parts| {
                let first = parts.layout.objects[0].clone();
                parts.layout.objects.push(first);
            }),
        ),
    ]
}

fn hostile_pages() -> Vec<Change> {
    let page = [7; PAGE as usize];
    let whole = move |target, at| move || batch(target, |writer| writer.whole(at, &page));
    let unknown = PageTarget::Object(ObjectKey { device: 9, inode: 9 });
    let raw = |count: u32, pages: u32, kind: u32| {
        move || {
            let mut bytes = vec![0; 48];
            bytes[0] = 1;
            bytes[20..24].copy_from_slice(&count.to_le_bytes());
            bytes[32..36].copy_from_slice(&pages.to_le_bytes());
            bytes[36..40].copy_from_slice(&kind.to_le_bytes());
            Bytes::from(bytes)
        }
    };
    vec![
        with_pages("pages where nothing is mapped", whole(PageTarget::Space(0), 0x1_0000)),
        with_pages("pages in kernel space", whole(PageTarget::Space(0), 0xffff_8000_0000_0000)),
        with_pages("pages of another space", whole(PageTarget::Space(3), 0x1_0000)),
        with_pages("pages of an unknown object", whole(unknown, 0)),
        with_pages("an absurd count", raw(1_000_000_000, 1, 1)),
        with_pages("an absurd number of pages", raw(1, u32::MAX, 1)),
        with_pages("terabytes that are gone", raw(1, u32::MAX, 2)),
        with_pages("an unknown kind", raw(1, 1, 77)),
        with_pages("no bytes", Bytes::new),
        with_pages("pages beyond an object's end", || Bytes::from(vec![2; 48])),
    ]
}

fn hostile_layouts_and_pages_are_refused() {
    let victim = Victim::new();
    for parts in both(&victim) {
        for (what, change) in hostile_mappings().into_iter().chain(hostile_objects()).chain(hostile_pages()) {
            victim.refuses_for(what, &parts.with(change), "");
        }
        victim.refuses_for("CBOR that is nested deeply", &nested(&parts), "decode");
        victim.refuses_for("CBOR with an absurd count", &counted(&parts), "decode");
    }
    sparse_objects_cost_nothing(&victim);
    victim.still_serves();
}

/// The layout's frame is an array in an array in an array …
fn nested(parts: &Parts) -> Vec<Bytes> {
    const ARRAY_OF_ONE: u8 = 0x81;
    replaced_layout(parts, &vec![ARRAY_OF_ONE; PAYLOAD_BYTES_MAX])
}

/// An array that says it has 10^9 entries, and text that says it has 2^62 bytes.
fn counted(parts: &Parts) -> Vec<Bytes> {
    let whole = image::frame::encode(&LayoutPart { layout: parts.layout.clone(), more: false });
    let key = b"mappings";
    let at = whole.windows(key.len()).position(|bytes| bytes == key).expect("it has mappings") + key.len();
    let mut bytes = whole[..at].to_vec();
    bytes.extend([0x9a, 0x3b, 0x9a, 0xca, 0x00, 0x7b, 0x40, 0, 0, 0, 0, 0, 0, 0]);
    replaced_layout(parts, &bytes)
}

fn replaced_layout(parts: &Parts, payload: &[u8]) -> Vec<Bytes> {
    let mut writer = FrameWriter::default();
    let header = writer.cbor(FrameKind::Header, &parts.header);
    vec![header, writer.frame(FrameKind::Layout, payload), writer.end()]
}

/// A large object is no fault: its holes take no room, even when they are said to be gone.
fn sparse_objects_cost_nothing(victim: &Victim) {
    let key = ObjectKey { device: 7, inode: 7 };
    let frames = Parts::of(&victim.full).with(|parts| {
        parts.layout.objects.push(object(1 << 43, memfd(b"sparse")));
        parts.pages.push(batch(PageTarget::Object(key), |writer| writer.gone(Range::new(0, 1 << 43))));
    });
    assert_eq!(feed(&victim.standby, &frames), Outcome::Prepared, "a sparse object is refused");
}

fn hostile_states() -> Vec<Change> {
    fn state(what: &'static str, change: impl Fn(&mut State) + 'static) -> Change {
        (what, Box::new(move |parts| change(&mut parts.state)))
    }
    vec![
        state("no process", |s| s.processes.clear()),
        state("two processes", |s| s.processes.push(s.processes[0].clone())),
        state("no space", |s| s.spaces.clear()),
        state("a space out of range", |s| s.processes[0].space = 7),
        state("another process", |s| s.processes[0].pid += 1),
        state("no thread", |s| s.processes[0].threads.clear()),
        state("two threads of one number", |s| {
            let leader = s.processes[0].threads[0].clone();
            s.processes[0].threads.push(leader);
        }),
        state("a thread of no number", |s| {
            let leader = s.processes[0].threads[0].clone();
            s.processes[0].threads.push(image::process::Thread { tid: -1, ..leader });
        }),
        state("a descriptor's file out of range", |s| s.processes[0].descriptors[0].file = u32::MAX),
        state("a descriptor of a negative number", |s| s.processes[0].descriptors[0].number = -5),
        state("a file of nobody", |s| s.files.push(s.files[0].clone())),
        state("a pipe out of range", |s| {
            s.files[0].kind = image::descriptor::FileKind::Pipe { pipe: u32::MAX };
        }),
        state("a stream that is none", |s| {
            s.files[0].kind = image::descriptor::FileKind::Stdio { stream: 200 };
        }),
        state("registers that are none", |s| s.processes[0].threads[0].xstate = vec![0; 3].into()),
        state("an executable with a NUL", |s| {
            s.processes[0].attributes.executable = b"/a\0b".to_vec().into()
        }),
        state("an executable of a megabyte", |s| {
            s.processes[0].attributes.executable = vec![b'/'; 1 << 20].into();
        }),
        state("a pending signal of no length", |s| s.processes[0].pending.push(Vec::new().into())),
        state("pending signals without end", |s| {
            s.processes[0].threads[0].pending = vec![vec![1; 128].into(); 50_000];
        }),
        state("limits without end", |s| {
            let limit = s.processes[0].limits[0];
            s.processes[0].limits = vec![limit; 100_000];
        }),
        state("an auxiliary vector of a megabyte", |s| s.spaces[0].auxv = vec![0; 1 << 20].into()),
        state("a filter of a megabyte", |s| {
            let filter = image::process::SeccompFilter { program: vec![0; 1 << 20].into(), flags: 0 };
            let filters = image::process::Seccomp::Filters(vec![filter]);
            s.processes[0].threads[0].credentials.seccomp = filters;
        }),
    ]
}

fn hostile_states_are_refused() {
    let victim = Victim::new();
    for parts in both(&victim) {
        for (what, change) in hostile_states() {
            victim.refuses_for(what, &parts.with(change), "");
        }
    }
    victim.still_serves();
}

/// What only the kernel can judge: the takeover fails, or the app does; the engine tells.
fn a_state_that_fails_late_fails_by_name() {
    use image::descriptor::FileKind;
    let victim = Victim::new();
    let full = Parts::of(&victim.full);
    let missing =
        FileKind::Path { path: b"/nonexistent/file".to_vec().into(), file_type: libc::S_IFREG, reads: None };
    let object = FileKind::Object { key: ObjectKey { device: 9, inode: 9 } };
    let changes: Vec<Change> = vec![
        ("open a file that is missing", Box::new(move |p| p.state.files[0].kind = missing.clone())),
        ("an object that is unknown", Box::new(move |p| p.state.files[0].kind = object.clone())),
        (
            "an executable that is missing",
            Box::new(|p| {
                p.state.processes[0].attributes.executable = b"/nonexistent/program".to_vec().into();
            }),
        ),
        (
            "a scheduling policy that is none",
            Box::new(|p| {
                p.state.processes[0].threads[0].attributes.policy = 77;
            }),
        ),
        ("a limit that is none", Box::new(|p| p.state.processes[0].limits[0].resource = 9999)),
    ];
    for (what, change) in changes {
        let why = promoted(&full.with(change)).expect_err(what);
        assert!(why.len() > 10, "{what}: {why:?} says nothing");
    }
    victim.still_serves();
}

fn a_working_directory_that_is_missing_is_the_cells() {
    const MISSING: &str = "/nonexistent";
    let victim = Victim::new();
    let elsewhere = Parts::of(&victim.full).with(|p| {
        p.state.processes[0].filesystem.working_directory = MISSING.as_bytes().to_vec().into();
    });
    promoted(&elsewhere).expect("a directory that is missing is made");
    assert!(!std::path::Path::new(MISSING).exists(), "the host has it now");
    victim.still_serves();
}

/// A copy of its own from these frames, which must be accepted, takes over.
fn promoted(frames: &[Bytes]) -> Result<(), String> {
    let standby = Side::standby();
    let first = Frame::parse(frames[0].clone()).expect("a header");
    let Header { id, .. } = first.decode("header").expect("a header");
    standby.engine.send(Command::Frames(frames[0].clone()));
    standby.engine.send(Command::Receive { id, full: true, keep_old: true });
    frames[1..].iter().for_each(|frame| standby.engine.send(Command::Frames(frame.clone())));
    loop {
        match standby.next_event("prepared epoch") {
            Event::EpochBegins { .. } => (),
            Event::Prepared { .. } => break,
            Event::Refused { why, .. } => return Err(why),
            other => panic!("a full sync led to {other:?}"),
        }
    }
    standby.engine.send(Command::Apply(id));
    standby.promote().map(drop)
}
