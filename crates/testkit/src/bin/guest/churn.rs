//! Everything that changes memory, by several threads at random from a seed (the first argument): for tests that
//! compare all of it after every epoch. Nothing is checked here but that the program comes to its end.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};

use crate::ensure;
use crate::harness::{Context, Guest, Outcome};
use crate::mapping::PAGE;
use crate::window::{self, NOTHING, READ, READ_WRITE, Window};

pub const GUESTS: &[Guest] = &[Guest::new("churn", churn)];

/// Sixteen MiB: eight page tables, so that whole ones come and go.
const PAGES: usize = 4096;
const OBJECT_PAGES: usize = 400;
const HUGE: usize = 512;
const DATA_PAGES: usize = 24;
const DATA_WORDS: usize = DATA_PAGES * PAGE / 8;

/// Whole pages of `.data`: a private mapping of the program's own file that is written to.
#[repr(align(4096))]
struct Data([AtomicU64; DATA_WORDS]);

static DATA: Data = Data([const { AtomicU64::new(0x0da7_a000_0000_0001) }; DATA_WORDS]);

/// Marsaglia's xorshift: a seed gives the same operations in every run, if not the same timing.
struct Chance(u64);

impl Chance {
    fn new(seed: u64, thread: u64) -> Self {
        Self((seed.wrapping_mul(8).wrapping_add(thread)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).unwrap_or(0) % bound
    }

    /// Some pages of `pages`: mostly few, at times whole page tables.
    fn range(&mut self, pages: usize) -> std::ops::Range<usize> {
        let (start, len) = match self.below(8) {
            0 if pages >= HUGE => (self.below(pages / HUGE) * HUGE, HUGE * (1 + self.below(2))),
            0..4 => (self.below(pages), 1 + self.below(16)),
            _ => (self.below(pages), 1 + self.below(300)),
        };
        start * PAGE..(start + len).min(pages) * PAGE
    }
}

fn churn(context: &mut Context) -> Outcome {
    let seed = context.number(0, 1);
    let file = tempfile::tempfile()?;
    for page in 0..PAGES {
        file.write_all_at(&(page as u64 | 1 << 40).to_ne_bytes(), (page * PAGE) as u64)?;
    }
    file.set_len((PAGES * PAGE) as u64)?;
    let path = std::env::current_exe()?;
    let program = File::open(path)?;
    let end = AtomicBool::new(false);
    let end = &end;
    let window = Window::claim(0, PAGES);
    window.map(0..window.bytes(), READ_WRITE)?;
    thread::scope(|scope| {
        let file = program.as_fd();
        for number in 1..3 {
            scope.spawn(move || until(end, Chance::new(seed, number), |chance| write(chance, &window, file)));
        }
        for number in 3..5 {
            scope
                .spawn(move || until(end, Chance::new(seed, number), |chance| change(chance, &window, file)));
        }
        scope.spawn(move || objects(end, Chance::new(seed, 5)));
        scope.spawn(move || sparse(end, Chance::new(seed, 6)));
        scope.spawn(move || births(end, Chance::new(seed, 7), &window));
        // The heap and the stack that grow are the first thread's, so another one waits for the end.
        let waiting = scope.spawn(|| context.ready());
        let mut chance = Chance::new(seed, 8);
        let mut heap = Vec::new();
        while !waiting.is_finished() {
            own_memory(&mut chance, &mut heap);
        }
        end.store(true, Ordering::Relaxed);
    });
    ensure!(window.bytes() > 0, "the window is gone");
    Ok(())
}

fn until(end: &AtomicBool, mut chance: Chance, mut act: impl FnMut(&mut Chance)) {
    while !end.load(Ordering::Relaxed) {
        act(&mut chance);
        thread::sleep(Duration::from_micros(chance.next() % 300));
    }
}

/// A burst of stores, some of them by the kernel. Operations fail as chance has it.
fn write(chance: &mut Chance, window: &Window, file: BorrowedFd<'_>) {
    for _ in 0..8 {
        let base = chance.below(PAGES - 8);
        for page in base..base + 1 + chance.below(7) {
            let offset = page * PAGE + chance.below(PAGE / 8) * 8;
            let _may_fail = match chance.below(16) {
                0 => window.load(offset).is_some(),
                1 => window.store_by_kernel(offset, &chance.next().to_ne_bytes()).is_ok(),
                2 => window.store(offset, 0),
                3 => window.read_into(file, page * PAGE..(page + 1) * PAGE).is_ok(),
                _ => window.store(offset, chance.next()),
            };
        }
    }
}

/// One change of mappings. Operations fail as chance has it: on holes, on what can't be moved there.
fn change(chance: &mut Chance, window: &Window, file: BorrowedFd<'_>) {
    const MADV_COLD: i32 = 20;
    const MADV_PAGEOUT: i32 = 21;
    const MADV_POPULATE_READ: i32 = 22;
    const MADV_POPULATE_WRITE: i32 = 23;
    const MADV_COLLAPSE: i32 = 25;
    const MADV_GUARD_INSTALL: i32 = 102;
    const MADV_GUARD_REMOVE: i32 = 103;
    let range = chance.range(PAGES);
    let pages = range.len() / PAGE;
    let to = chance.below(PAGES - pages + 1) * PAGE;
    let few = range.start..range.start + pages.min(32) * PAGE;
    let either = |chance: &mut Chance, one: i32, other: i32| if chance.below(2) == 0 { one } else { other };
    let _may_fail = match chance.below(28) {
        0 => window.unmap(range),
        1..4 => window.map(range, READ_WRITE),
        4 | 5 => {
            let at = range.start % (64 * PAGE);
            let protection = either(chance, READ_WRITE, READ);
            window.map_with(few, protection, libc::MAP_PRIVATE, Some((file, at)))
        }
        6 | 7 => window.move_to(range, to, false),
        8 | 9 => window.move_to(range, to, true),
        10..13 => window.advise(range, libc::MADV_DONTNEED),
        13 => window.advise(range, libc::MADV_FREE),
        14 => window.advise(range, either(chance, libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE)),
        15 => window.advise(range, MADV_COLLAPSE),
        16 => window.protect(range, READ),
        17 | 18 => window.protect(range, READ_WRITE),
        19 => window.protect(few, NOTHING),
        20 => window.advise(few, MADV_GUARD_INSTALL),
        21 | 22 => window.advise(range, MADV_GUARD_REMOVE),
        23 => window.advise(range, either(chance, MADV_POPULATE_READ, MADV_POPULATE_WRITE)),
        24 => window.advise(range, either(chance, MADV_COLD, MADV_PAGEOUT)),
        25 => window.resize(range.clone(), (pages / 2 + 1) * PAGE),
        _ => {
            let grown = (range.len() * 2).min(window.bytes() - range.start);
            let behind = range.end..range.start + grown;
            let make_room = if behind.is_empty() { Ok(()) } else { window.unmap(behind) };
            make_room.and_then(|()| window.resize(range.clone(), grown))
        }
    };
}

/// A memfd that is mapped twice, and privately, written through each and by system calls, cut and punched;
/// and a shared anonymous mapping.
fn objects(end: &AtomicBool, chance: Chance) {
    let small = Object::new(1, OBJECT_PAGES / 8);
    let large = Object::new(5, OBJECT_PAGES);
    let anonymous = Window::claim(9, 64);
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    anonymous.map_with(0..anonymous.bytes(), READ_WRITE, flags, None).expect("shared memory can be mapped");
    until(end, chance, |chance| {
        match chance.below(4) {
            0 => small.act(chance),
            1 => large.act(chance),
            2 => _ = anonymous.store(chance.below(64) * PAGE, chance.next()),
            _ => _ = anonymous.advise(chance.range(64), either_drop(chance)),
        };
    });
}

fn either_drop(chance: &mut Chance) -> i32 {
    if chance.below(3) == 0 { libc::MADV_REMOVE } else { libc::MADV_DONTNEED }
}

struct Object {
    file: File,
    pages: usize,
    views: [Window; 3],
}

impl Object {
    fn new(first: usize, pages: usize) -> Self {
        let file = File::from(memfd_create("churn", MemfdFlags::CLOEXEC).expect("a memfd can be made"));
        ftruncate(&file, (pages * PAGE) as u64).expect("a memfd can be sized");
        let views = [first, first + 1, first + 2].map(|number| Window::claim(number, pages));
        for (view, flags) in views.iter().zip([libc::MAP_SHARED, libc::MAP_SHARED, libc::MAP_PRIVATE]) {
            view.map_with(0..view.bytes(), READ_WRITE, flags, Some((file.as_fd(), 0)))
                .expect("a memfd can be mapped");
        }
        Self { file, pages, views }
    }

    fn act(&self, chance: &mut Chance) {
        let view = self.views[chance.below(3)];
        let range = chance.range(self.pages);
        let offset = range.start as u64;
        match chance.below(10) {
            0..5 => _ = view.store(range.start, chance.next()),
            5 => _ = self.file.write_at(&chance.next().to_ne_bytes(), offset),
            6 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                _ = fallocate(&self.file, flags, offset, range.len() as u64);
            }
            7 => _ = ftruncate(&self.file, offset + chance.next() % 4096),
            8 => _ = ftruncate(&self.file, (self.pages * PAGE) as u64),
            _ => _ = view.advise(range, libc::MADV_DONTNEED),
        }
    }
}

/// Huge reservations of which little is opened, and less is written.
fn sparse(end: &AtomicBool, chance: Chance) {
    const RESERVED: usize = (64 << 30) / PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let (closed, open) = (Window::claim(10, RESERVED), Window::claim(11, RESERVED));
    closed.map_with(0..closed.bytes(), NOTHING, flags, None).expect("address space can be reserved");
    open.map_with(0..open.bytes(), READ_WRITE, flags, None).expect("address space can be reserved");
    // Few places, so that the page tables stay few.
    let place = |chance: &mut Chance| chance.below(16) * 0x1000_1000;
    until(end, chance, |chance| {
        let at = place(chance);
        let pages = at..at + (1 + chance.below(8)) * PAGE;
        match chance.below(8) {
            0 => _ = closed.protect(pages, READ_WRITE),
            1 => _ = closed.protect(pages, NOTHING),
            2 => _ = open.advise(pages, libc::MADV_DONTNEED),
            3 => _ = closed.advise(pages, libc::MADV_DONTNEED),
            4 | 5 => _ = closed.store(at, chance.next()),
            _ => _ = open.store(at, chance.next()),
        }
    });
}

/// Threads that live short, with stacks of their own.
fn births(end: &AtomicBool, chance: Chance, window: &Window) {
    until(end, chance, |chance| {
        let (page, value) = (chance.below(PAGES), chance.next());
        let window = *window;
        let brief = move || {
            let frame = std::hint::black_box([value; 512]);
            window.store(page * PAGE, frame[7])
        };
        let born = thread::Builder::new().stack_size(64 << 10).spawn(brief);
        let _stored = born.map(thread::JoinHandle::join);
        thread::sleep(Duration::from_millis(2));
    });
}

/// The program's own memory: heap, stack, data.
fn own_memory(chance: &mut Chance, heap: &mut Vec<Vec<u8>>) {
    match chance.below(8) {
        0..4 => heap.push(vec![1; 1 + chance.below(100_000)]),
        4 => heap.truncate(chance.below(heap.len() + 1)),
        5 => _ = descend(chance.below(100)),
        6 => {
            let first = chance.below(DATA_PAGES);
            let address = DATA.0.as_ptr().expose_provenance() + first * PAGE;
            let _may_fail = window::revert_to_file(address, (DATA_PAGES - first).min(3) * PAGE);
        }
        _ => DATA.0[chance.below(DATA_WORDS)].store(chance.next(), Ordering::Relaxed),
    }
    if heap.len() > 100 {
        heap.drain(..50);
    }
    thread::sleep(Duration::from_micros(chance.next() % 200));
}

/// Frames of 8 KiB.
fn descend(depth: usize) -> usize {
    let frame = std::hint::black_box([depth; 1024]);
    let deeper = if depth == 0 { 0 } else { descend(depth - 1) };
    deeper + frame[depth]
}
