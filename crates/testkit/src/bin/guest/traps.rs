//! Traps of memory tracking, one guest each: two operations with an epoch between them, after which a tracker
//! that takes the obvious way has lost a page. Unlike the guests of `memory` these choose their addresses, so
//! that the kernel merges and frees what the trap needs.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::ensure_eq;
use crate::harness::{Context, Guest, Outcome};
use crate::mapping::PAGE;
use crate::window::{self, NOTHING, READ, READ_WRITE, Window};

pub const GUESTS: &[Guest] = &[
    Guest::stepped("trap-drop-and-new", 1, drop_and_new),
    Guest::stepped("trap-drop-huge", 1, drop_huge),
    Guest::stepped("trap-move-keeping", 1, move_keeping),
    Guest::stepped("trap-data-and-new", 1, data_and_new),
    Guest::stepped("trap-zero-page", 1, zero_page),
    Guest::stepped("trap-nothing", 1, nothing),
    Guest::stepped("trap-droppable-balance", 1, droppable_balance),
    Guest::stepped("trap-droppable-swap", 2, droppable_swap),
    Guest::stepped("trap-heap", 1, heap),
    Guest::stepped("trap-map-again", 1, map_again),
    Guest::stepped("trap-unmap-then-map", 2, unmap_then_map),
    Guest::stepped("trap-resize", 2, resize_object),
    Guest::stepped("trap-object-again", 2, object_again),
    Guest::stepped("trap-read-only-file", 1, read_only_file),
    Guest::stepped("trap-swapped-file", 2, swapped_file),
    Guest::stepped("trap-out-of-reach", 1, out_of_reach),
    Guest::stepped("trap-refused", 2, refused),
    Guest::stepped("trap-guard-merge", 2, guard_merge),
];

const PAGES: usize = 64;
const BYTES: usize = PAGES * PAGE;

fn pages(pages: std::ops::Range<usize>) -> std::ops::Range<usize> {
    pages.start * PAGE..pages.end * PAGE
}

fn filled() -> std::io::Result<Window> {
    let memory = Window::claim(0, PAGES);
    memory.map(0..BYTES, READ_WRITE)?;
    memory.fill(0..PAGES, 1);
    Ok(memory)
}

macro_rules! ensure_word {
    ($memory:expr, $page:expr, $seed:expr) => {
        let written = ($seed << 32) | $page as u64 | (1 << 63);
        ensure_eq!(format!("page {}", $page), $memory.load($page * PAGE + 8), Some(written));
    };
}

macro_rules! ensure_empty {
    ($memory:expr, $pages:expr) => {
        for page in $pages {
            ensure_eq!(format!("page {page}"), $memory.load(page * PAGE + 8), Some(0));
        }
    };
}

/// As many pages go as come: a count of pages alone does not see it.
fn drop_and_new(context: &mut Context) -> Outcome {
    let memory = Window::claim(0, PAGES);
    memory.map(0..BYTES, READ_WRITE)?;
    memory.fill(0..32, 1);
    context.step();
    memory.advise(pages(4..12), libc::MADV_DONTNEED)?;
    memory.fill(40..48, 2);
    context.ready();
    ensure_empty!(memory, 4..12);
    ensure_word!(memory, 40, 2_u64);
    Ok(())
}

/// Whole huge pages, and with them their page table.
fn drop_huge(context: &mut Context) -> Outcome {
    const HUGE: usize = 512;
    let memory = Window::claim(0, 4 * HUGE);
    memory.map(0..memory.bytes(), READ_WRITE)?;
    memory.advise(0..memory.bytes(), libc::MADV_HUGEPAGE)?;
    memory.fill(0..4 * HUGE, 1);
    context.step();
    memory.advise(pages(HUGE..2 * HUGE), libc::MADV_DONTNEED)?;
    memory.advise(pages(3 * HUGE..4 * HUGE), libc::MADV_DONTNEED)?;
    memory.fill(3 * HUGE + 7..3 * HUGE + 8, 2);
    context.ready();
    ensure_empty!(memory, HUGE..2 * HUGE);
    ensure_word!(memory, 3 * HUGE + 7, 2_u64);
    ensure_word!(memory, 2 * HUGE, 1_u64);
    Ok(())
}

/// A move that leaves its source mapped, and empty.
fn move_keeping(context: &mut Context) -> Outcome {
    let memory = filled()?;
    context.step();
    memory.move_to(pages(0..8), 40 * PAGE, true)?;
    context.ready();
    ensure_empty!(memory, 0..8);
    ensure_eq!("what moved", memory.load(40 * PAGE + 8), Some(1 << 32 | 1 << 63));
    Ok(())
}

const DATA_PAGES: usize = 8;
const DATA_WORDS: usize = DATA_PAGES * PAGE / 8;
const ORIGINAL: u64 = 0x0f11_e000_0000_0001;

#[repr(align(4096))]
struct Data([AtomicU64; DATA_WORDS]);

static DATA: Data = Data([const { AtomicU64::new(ORIGINAL) }; DATA_WORDS]);

fn data(page: usize) -> &'static AtomicU64 {
    &DATA.0[page * PAGE / 8]
}

/// As many pages of the program's data revert to the file as others come.
fn data_and_new(context: &mut Context) -> Outcome {
    let memory = Window::claim(0, PAGES);
    memory.map(0..BYTES, READ_WRITE)?;
    (0..DATA_PAGES).for_each(|page| data(page).store(1, Ordering::Relaxed));
    context.step();
    window::revert_to_file(DATA.0.as_ptr().expose_provenance(), 3 * PAGE)?;
    memory.fill(0..3, 1);
    context.ready();
    let found: Vec<u64> = (0..DATA_PAGES).map(|page| data(page).load(Ordering::Relaxed)).collect();
    ensure_eq!("data", found, [ORIGINAL, ORIGINAL, ORIGINAL, 1, 1, 1, 1, 1]);
    ensure_word!(memory, 2, 1_u64);
    Ok(())
}

/// A dropped page that was read again is the zero page: there, and empty.
fn zero_page(context: &mut Context) -> Outcome {
    let memory = filled()?;
    context.step();
    memory.advise(pages(8..16), libc::MADV_DONTNEED)?;
    ensure_empty!(memory, 8..16);
    context.ready();
    ensure_empty!(memory, 8..16);
    ensure_word!(memory, 16, 1_u64);
    Ok(())
}

/// Does nothing between its epochs: what it carries then is what any guest does.
fn nothing(context: &mut Context) -> Outcome {
    let memory = filled()?;
    context.step();
    context.ready();
    ensure_word!(memory, 16, 1_u64);
    Ok(())
}

const MAP_DROPPABLE: i32 = 0x08;

/// Droppable pages are counted by the kernel and never carried; as many others are dropped.
fn droppable_balance(context: &mut Context) -> Outcome {
    let memory = filled()?;
    let droppable = Window::claim(1, 4);
    droppable.map_with(0..4 * PAGE, READ_WRITE, MAP_DROPPABLE | libc::MAP_ANONYMOUS, None)?;
    droppable.fill(0..4, 1);
    context.step();
    memory.advise(pages(8..12), libc::MADV_DONTNEED)?;
    context.ready();
    ensure_empty!(memory, 8..12);
    ensure_word!(memory, 12, 1_u64);
    Ok(())
}

/// Ordinary and droppable memory take each other's place; /proc/PID/maps shows no difference.
fn droppable_swap(context: &mut Context) -> Outcome {
    let memory = filled()?;
    let droppable = Window::claim(1, 4);
    droppable.map_with(0..4 * PAGE, READ_WRITE, MAP_DROPPABLE | libc::MAP_ANONYMOUS, None)?;
    context.step();
    memory.map_with(0..BYTES, READ_WRITE, MAP_DROPPABLE | libc::MAP_ANONYMOUS, None)?;
    droppable.map(0..4 * PAGE, READ_WRITE)?;
    droppable.fill(0..4, 3);
    context.step();
    droppable.fill(2..3, 4);
    context.ready();
    ensure_word!(droppable, 1, 3_u64);
    ensure_word!(droppable, 2, 4_u64);
    Ok(())
}

/// The heap grows by a mapping of its own, since a tracked one can't be made longer by another.
fn heap(context: &mut Context) -> Outcome {
    let first = window::grow_heap(16 * PAGE)?;
    (0..16).for_each(|page| window::store_in_heap(first + page * PAGE, 1));
    context.step();
    let more = window::grow_heap(16 * PAGE)?;
    (0..16).for_each(|page| window::store_in_heap(more + page * PAGE, 2));
    context.ready();
    window::store_in_heap(more, 3);
    Ok(())
}

/// Another mapping in the same place: /proc/PID/maps is the same, byte for byte.
fn map_again(context: &mut Context) -> Outcome {
    let memory = filled()?;
    context.step();
    memory.unmap(0..BYTES)?;
    memory.map(0..BYTES, READ_WRITE)?;
    memory.fill(10..20, 2);
    context.ready();
    ensure_empty!(memory, 0..10);
    ensure_word!(memory, 10, 2_u64);
    Ok(())
}

/// The unmapping may be in an epoch that is lost; the mapping after it looks like the one before it.
fn unmap_then_map(context: &mut Context) -> Outcome {
    let memory = filled()?;
    context.step();
    memory.unmap(0..BYTES)?;
    context.step();
    memory.map(0..BYTES, READ_WRITE)?;
    context.ready();
    ensure_empty!(memory, 0..PAGES);
    Ok(())
}

/// Large enough that an object is compared only where it changed, or shows a sign of it.
const OBJECT_PAGES: usize = 600;

fn object() -> std::io::Result<(File, Window)> {
    let file = File::from(memfd_create("trap", MemfdFlags::CLOEXEC)?);
    ftruncate(&file, (OBJECT_PAGES * PAGE) as u64)?;
    let memory = Window::claim(0, OBJECT_PAGES);
    memory.map_with(0..memory.bytes(), READ_WRITE, libc::MAP_SHARED, Some((file.as_fd(), 0)))?;
    memory.fill(0..OBJECT_PAGES, 1);
    Ok((file, memory))
}

/// Cut off and made longer again: what was there is zero, also for who did not hear of the cut.
fn resize_object(context: &mut Context) -> Outcome {
    let (file, memory) = object()?;
    context.step();
    ftruncate(&file, (100 * PAGE) as u64)?;
    context.step();
    ftruncate(&file, (OBJECT_PAGES * PAGE) as u64)?;
    file.write_all_at(&[9], (300 * PAGE) as u64)?;
    context.ready();
    ensure_word!(memory, 99, 1_u64);
    ensure_empty!(memory, 100..OBJECT_PAGES);
    ensure_eq!("written into the new part", memory.load(300 * PAGE), Some(9));
    Ok(())
}

/// An object whose last mapping goes, that is emptied while nobody can see it, and is mapped again.
fn object_again(context: &mut Context) -> Outcome {
    let (file, memory) = object()?;
    context.step();
    memory.unmap(0..memory.bytes())?;
    context.step();
    ftruncate(&file, 0)?;
    ftruncate(&file, (OBJECT_PAGES * PAGE) as u64)?;
    memory.map_with(0..memory.bytes(), READ_WRITE, libc::MAP_SHARED, Some((file.as_fd(), 0)))?;
    memory.fill(5..6, 2);
    context.ready();
    ensure_word!(memory, 5, 2_u64);
    ensure_empty!(memory, 6..OBJECT_PAGES);
    Ok(())
}

/// Private copies in a mapping of a file that is read-only by now, as a linker leaves them.
fn read_only_file(context: &mut Context) -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    File::create(&path)?.write_all(&vec![b'f'; BYTES])?;
    let file = File::open(&path)?;
    let memory = Window::claim(0, PAGES);
    memory.map_with(0..BYTES, READ_WRITE, libc::MAP_PRIVATE, Some((file.as_fd(), 0)))?;
    memory.fill(0..16, 1);
    memory.protect(0..BYTES, READ)?;
    context.step();
    memory.advise(pages(4..8), libc::MADV_DONTNEED)?;
    context.ready();
    let original = u64::from_ne_bytes([b'f'; 8]);
    ensure_eq!("what shows the file again", memory.load(5 * PAGE + 8), Some(original));
    ensure_word!(memory, 8, 1_u64);
    Ok(())
}

/// Private copies of a file's pages that the kernel swaps out, beside some that are dropped: both are not there. With
/// the argument `swap` it is a failure if they stay.
fn swapped_file(context: &mut Context) -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    File::create(&path)?.write_all(&vec![b'f'; BYTES])?;
    let file = File::open(&path)?;
    let (data, relocated) = (Window::claim(0, PAGES), Window::claim(1, PAGES));
    for memory in [data, relocated] {
        memory.map_with(0..BYTES, READ_WRITE, libc::MAP_PRIVATE, Some((file.as_fd(), 0)))?;
        memory.fill(0..16, 1);
    }
    relocated.protect(0..BYTES, READ)?;
    context.step();
    let must = context.arguments().iter().any(|argument| argument == "swap");
    for memory in [data, relocated] {
        memory.advise(pages(4..8), libc::MADV_DONTNEED)?;
        swap_out(memory, 0..4, must)?;
        swap_out(memory, 8..16, must)?;
    }
    context.step();
    data.fill(20..24, 2);
    swap_out(data, 20..24, must)?;
    context.ready();
    let original = u64::from_ne_bytes([b'f'; 8]);
    for memory in [data, relocated] {
        ensure_eq!("what shows the file again", memory.load(5 * PAGE + 8), Some(original));
        ensure_word!(memory, 3, 1_u64);
        ensure_word!(memory, 8, 1_u64);
    }
    ensure_word!(data, 20, 2_u64);
    Ok(())
}

/// Has the kernel swap pages out. It passes over those that another core is still about to put into its lists.
fn swap_out(memory: Window, which: std::ops::Range<usize>, must: bool) -> Outcome {
    const PATIENCE: Duration = Duration::from_secs(20);
    const PAUSE: Duration = Duration::from_millis(1);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        memory.advise(pages(which.clone()), libc::MADV_PAGEOUT)?;
        if !must || memory.are_swapped(pages(which.clone()))? {
            return Ok(());
        }
        std::thread::park_timeout(PAUSE);
    }
    Err(format!("pages {which:?} were not swapped out: is there swap space?").into())
}

/// Pages that nobody may read, or write, have content too; it changes behind a protection that comes back.
fn out_of_reach(context: &mut Context) -> Outcome {
    let memory = filled()?;
    memory.protect(pages(0..8), NOTHING)?;
    memory.protect(pages(8..16), READ)?;
    context.step();
    memory.protect(pages(0..16), READ_WRITE)?;
    memory.fill(2..4, 2);
    memory.fill(10..12, 2);
    memory.protect(pages(0..8), NOTHING)?;
    memory.protect(pages(8..16), READ)?;
    context.ready();
    memory.protect(pages(0..16), READ_WRITE)?;
    ensure_word!(memory, 1, 1_u64);
    ensure_word!(memory, 2, 2_u64);
    ensure_word!(memory, 10, 2_u64);
    Ok(())
}

/// Something that can't be followed comes in the same epoch in which other memory was mapped anew, and goes
/// in the next. Only with the argument `refuse`: other tests let every guest go through a takeover.
fn refused(context: &mut Context) -> Outcome {
    let memory = filled()?;
    context.step();
    memory.unmap(0..BYTES)?;
    memory.map(0..BYTES, READ_WRITE)?;
    // At a higher address: what is looked at before the refusal is the memory that was mapped anew.
    let claimed = Window::claim(1, 4);
    claimed.map(0..4 * PAGE, READ_WRITE)?;
    let refuse = context.arguments().iter().any(|argument| argument == "refuse");
    let own = if refuse { Some(claimed.take_faults(0..4 * PAGE)?) } else { None };
    context.step();
    drop(own);
    context.ready();
    ensure_empty!(memory, 0..PAGES);
    Ok(())
}

/// Guards go and come back by moves, the second of which makes one mapping of two.
fn guard_merge(context: &mut Context) -> Outcome {
    const MADV_GUARD_INSTALL: i32 = 102;
    let memory = Window::claim(0, PAGES);
    memory.map(pages(0..20), READ_WRITE)?;
    memory.fill(0..20, 1);
    memory.advise(pages(2..4), MADV_GUARD_INSTALL)?;
    memory.advise(pages(12..14), MADV_GUARD_INSTALL)?;
    context.step();
    memory.move_to(pages(10..20), 40 * PAGE, false)?;
    context.step();
    memory.move_to(pages(40..50), 10 * PAGE, false)?;
    context.ready();
    for page in [2, 3, 12, 13] {
        ensure_eq!(format!("guard at page {page}"), memory.load(page * PAGE), None);
    }
    ensure_word!(memory, 14, 1_u64);
    Ok(())
}
