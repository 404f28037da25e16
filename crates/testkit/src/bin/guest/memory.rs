//! Memory: each way to change it that a tracker of written pages can miss. A step is where an epoch should end:
//! what comes before it has been captured, and what comes after must be noticed.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::harness::{Context, Guest, Outcome};
use crate::mapping::{Mapping, PAGE};
use crate::{ensure, ensure_eq};

pub const GUESTS: &[Guest] = &[
    Guest::stepped("memory-rewrite", 1, rewrite),
    Guest::stepped("memory-dontneed", 1, dontneed),
    Guest::stepped("memory-dontneed-file", 2, dontneed_private_file),
    Guest::stepped("memory-unmap", 1, unmap_and_map_again),
    Guest::stepped("memory-remap-merge", 2, remap_merge),
    Guest::stepped("memory-remap-move", 1, remap_move),
    Guest::stepped("memory-grow", 1, grow_and_shrink),
    Guest::stepped("memory-heap", 1, heap),
    Guest::stepped("memory-stack", 1, stack),
    Guest::stepped("memory-protect", 1, protect),
    Guest::stepped("memory-guard", 1, guard_pages),
    Guest::stepped("memory-guard-unmap", 1, guard_pages_unmapped),
    Guest::stepped("memory-huge-pages", 1, huge_pages),
    Guest::stepped("memory-shared", 1, shared),
    Guest::stepped("memory-memfd", 1, memfd),
    Guest::stepped("memory-file", 1, shared_file),
    Guest::stepped("memory-kernel-writes", 1, kernel_writes),
    Guest::new("memory-locked", locked),
    Guest::new("memory-reservation", reservation),
    Guest::new("memory-droppable", droppable),
];

const PAGES: usize = 64;
const BYTES: usize = PAGES * PAGE;

macro_rules! ensure_filled {
    ($what:expr, $mapping:expr, $pages:expr, $seed:expr) => {
        if let Some(page) = $mapping.first_wrong($pages, $seed) {
            return Err(format!("{}: page {page} does not hold what was written last", $what).into());
        }
    };
}

macro_rules! ensure_zero {
    ($what:expr, $mapping:expr, $pages:expr) => {
        if let Some(page) = $mapping.first_nonzero($pages) {
            return Err(format!("{}: page {page} is not zero", $what).into());
        }
    };
}

fn rewrite(context: &mut Context) -> Outcome {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill(1);
    context.step();
    memory.fill_pages(3..9, 2);
    context.ready();
    ensure_filled!("untouched", memory, 0..3, 1);
    ensure_filled!("rewritten", memory, 3..9, 2);
    ensure_filled!("untouched", memory, 9..PAGES, 1);
    Ok(())
}

fn dontneed(context: &mut Context) -> Outcome {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill(1);
    context.step();
    memory.advise(4 * PAGE..20 * PAGE, libc::MADV_DONTNEED)?;
    memory.fill_pages(8..10, 2);
    context.ready();
    ensure_zero!("dropped", memory, 4..8);
    ensure_filled!("written after the drop", memory, 8..10, 2);
    ensure_zero!("dropped", memory, 10..20);
    ensure_filled!("kept", memory, 20..PAGES, 1);
    Ok(())
}

/// A dropped private copy of a file's page shows the file again, and the kernel keeps its old mark: such a page
/// is never reported as written.
fn dontneed_private_file(context: &mut Context) -> Outcome {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&vec![b'f'; BYTES])?;
    let memory = Mapping::of_file(file.as_file().as_fd(), BYTES, MapFlags::PRIVATE)?;
    memory.fill(1);
    context.step();
    memory.advise(0..8 * PAGE, libc::MADV_DONTNEED)?;
    context.step();
    memory.fill_pages(4..8, 2);
    context.ready();
    for page in 0..4 {
        ensure_eq!(format!("page {page}, which shows the file"), memory.byte(page * PAGE), b'f');
    }
    ensure_filled!("written after the drop", memory, 4..8, 2);
    ensure_filled!("kept", memory, 8..PAGES, 1);
    Ok(())
}

fn unmap_and_map_again(context: &mut Context) -> Outcome {
    let mut memory = Mapping::anonymous(BYTES)?;
    memory.fill(1);
    context.step();
    memory.unmap(4 * PAGE..12 * PAGE)?;
    memory.replace(4 * PAGE..8 * PAGE)?;
    memory.fill_pages(6..8, 2);
    context.ready();
    ensure_filled!("before the hole", memory, 0..4, 1);
    ensure_zero!("new and untouched", memory, 4..6);
    ensure_filled!("new and written", memory, 6..8, 2);
    ensure_filled!("after the hole", memory, 12..PAGES, 1);
    let hole = memory.protect(8 * PAGE..12 * PAGE, MprotectFlags::READ);
    ensure!(hole.is_err(), "the hole is mapped");
    Ok(())
}

/// Two tracked halves that a move makes one mapping: the kernel forgets the tracking, but not the marks.
fn remap_merge(context: &mut Context) -> Outcome {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill_pages(0..20, 1);
    context.step();
    memory.move_pages(10 * PAGE..20 * PAGE, 30 * PAGE)?;
    context.step();
    memory.move_pages(30 * PAGE..40 * PAGE, 10 * PAGE)?;
    memory.fill_pages(3..4, 2);
    memory.fill_pages(13..14, 2);
    context.ready();
    ensure_filled!("lower half", memory, 0..3, 1);
    ensure_filled!("written after the merge", memory, 3..4, 2);
    ensure_filled!("lower half", memory, 4..10, 1);
    ensure_filled!("upper half", memory, 10..13, 1);
    ensure_filled!("written after the merge", memory, 13..14, 2);
    Ok(())
}

fn remap_move(context: &mut Context) -> Outcome {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill_pages(0..16, 1);
    memory.fill_pages(40..56, 3);
    context.step();
    memory.move_pages(0..16 * PAGE, 40 * PAGE)?;
    context.ready();
    for page in 0..16 {
        let found = memory.byte((40 + page) * PAGE);
        let written = Mapping::anonymous(BYTES)?;
        written.fill_pages(page..page + 1, 1);
        ensure_eq!(format!("moved page {page}"), found, written.byte(page * PAGE));
    }
    Ok(())
}

fn grow_and_shrink(context: &mut Context) -> Outcome {
    let room = Mapping::anonymous(2 * BYTES)?;
    let mut grown = Mapping::anonymous(BYTES)?;
    grown.fill(1);
    room.fill(2);
    context.step();
    let may_grow = grown.resize(BYTES + 4 * PAGE);
    let pages = if may_grow.is_ok() { PAGES + 4 } else { PAGES };
    grown.fill_pages(PAGES - 1..pages, 3);
    room.unmap(BYTES..2 * BYTES)?;
    context.ready();
    ensure_filled!("kept", grown, 0..PAGES - 1, 1);
    ensure_filled!("grown", grown, PAGES - 1..pages, 3);
    ensure_filled!("what was not cut off", room, 0..PAGES, 2);
    Ok(())
}

/// The allocator's heap: small pieces freed and taken anew, between epochs and after.
fn heap(context: &mut Context) -> Outcome {
    let piece = |number: usize| vec![u8::try_from(number % 250).unwrap_or(0); 100 + number % 900];
    let mut pieces: Vec<Vec<u8>> = (0..20_000).map(piece).collect();
    context.step();
    for number in (0..20_000).step_by(3) {
        pieces[number] = Vec::new();
    }
    for number in (0..20_000).step_by(3) {
        pieces[number] = piece(number + 1);
    }
    context.ready();
    for (number, found) in pieces.iter().enumerate() {
        let written = if number % 3 == 0 { number + 1 } else { number };
        ensure!(*found == piece(written), "piece {number} of the heap has changed");
    }
    Ok(())
}

/// The main thread's stack grows after it was captured.
fn stack(context: &mut Context) -> Outcome {
    context.step();
    let sum = descend(context, 200);
    ensure_eq!("sum over the frames of a grown stack", sum, (0..=200).sum::<u64>());
    Ok(())
}

/// Frames of 8 KiB, the deepest of which waits for the check.
fn descend(context: &mut Context, depth: u64) -> u64 {
    let mut frame = [0_u64; 1024];
    frame[usize::try_from(depth).unwrap_or(0)] = depth;
    let frame = std::hint::black_box(&mut frame);
    let deeper = if depth == 0 {
        context.ready();
        0
    } else {
        descend(context, depth - 1)
    };
    deeper + frame.iter().sum::<u64>()
}

fn protect(context: &mut Context) -> Outcome {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill(1);
    memory.protect(0..8 * PAGE, MprotectFlags::READ)?;
    memory.protect(8 * PAGE..16 * PAGE, MprotectFlags::empty())?;
    context.step();
    memory.protect(0..4 * PAGE, MprotectFlags::READ | MprotectFlags::WRITE)?;
    memory.fill_pages(0..2, 2);
    memory.protect(0..4 * PAGE, MprotectFlags::READ)?;
    context.ready();
    let kinds: Vec<_> = [0, 8, 16].map(|page| permissions_at(memory.range().start + page * PAGE)).into();
    ensure_eq!("protections", kinds, ["r--p", "---p", "rw-p"].map(|kind| Some(kind.to_owned())));
    ensure_filled!("written in between", memory, 0..2, 2);
    ensure_filled!("read-only", memory, 2..8, 1);
    memory.protect(8 * PAGE..16 * PAGE, MprotectFlags::READ)?;
    ensure_filled!("was out of reach", memory, 8..16, 1);
    Ok(())
}

/// What /proc/self/maps says about the mapping at an address.
fn permissions_at(address: usize) -> Option<String> {
    mapping_line(address)?.split(' ').nth(1).map(str::to_owned)
}

fn mapping_line(address: usize) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let holds = |line: &&str| {
        let bounds = line.split(' ').next()?.split_once('-')?;
        let start = usize::from_str_radix(bounds.0, 16).ok()?;
        let end = usize::from_str_radix(bounds.1, 16).ok()?;
        Some((start..end).contains(&address))
    };
    maps.lines().find(|line| holds(line) == Some(true)).map(str::to_owned)
}

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// Guards make an access fail; process_vm_readv tells without dying.
fn guard_pages(context: &mut Context) -> Outcome {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill(1);
    memory.advise(0..2 * PAGE, MADV_GUARD_INSTALL)?;
    context.step();
    memory.advise(4 * PAGE..6 * PAGE, MADV_GUARD_INSTALL)?;
    memory.advise(PAGE..2 * PAGE, MADV_GUARD_REMOVE)?;
    context.ready();
    let start = memory.range().start;
    let readable: Vec<_> =
        [0, 1, 3, 4, 5, 6].into_iter().filter(|page| is_readable(start + page * PAGE)).collect();
    ensure_eq!("pages without a guard", readable, [1, 3, 6]);
    ensure_zero!("a page whose guard was taken away", memory, 1..2);
    ensure_filled!("kept", memory, 6..PAGES, 1);
    Ok(())
}

/// A guard goes with its mapping.
fn guard_pages_unmapped(context: &mut Context) -> Outcome {
    let memory = Mapping::anonymous(BYTES)?;
    memory.fill(1);
    memory.advise(2 * PAGE..4 * PAGE, MADV_GUARD_INSTALL)?;
    context.step();
    memory.unmap(PAGE..5 * PAGE)?;
    context.ready();
    let start = memory.range().start;
    let readable: Vec<_> = (0..6).filter(|page| is_readable(start + page * PAGE)).collect();
    ensure_eq!("pages that are left", readable, [0, 5]);
    Ok(())
}

/// Whether a system call can read the byte: write(2) to a pipe answers EFAULT where a load would kill.
fn is_readable(address: usize) -> bool {
    let (_keep, pipe) = rustix::pipe::pipe().expect("a pipe can be made");
    crate::kernel::write_from(pipe.as_fd(), address).is_ok()
}

fn huge_pages(context: &mut Context) -> Outcome {
    const HUGE_PAGES: usize = 3 * 512;
    let memory = Mapping::anonymous(HUGE_PAGES * PAGE)?;
    memory.advise(0..HUGE_PAGES * PAGE, libc::MADV_HUGEPAGE)?;
    memory.fill(1);
    context.step();
    memory.fill_pages(600..601, 2);
    memory.advise(900 * PAGE..1000 * PAGE, libc::MADV_DONTNEED)?;
    context.ready();
    ensure_filled!("kept", memory, 0..600, 1);
    ensure_filled!("rewritten", memory, 600..601, 2);
    ensure_filled!("kept", memory, 601..900, 1);
    ensure_zero!("dropped", memory, 900..1000);
    ensure_filled!("kept", memory, 1000..HUGE_PAGES, 1);
    Ok(())
}

fn shared(context: &mut Context) -> Outcome {
    let memory = Mapping::shared(BYTES)?;
    memory.fill(1);
    context.step();
    memory.fill_pages(5..7, 2);
    memory.advise(20 * PAGE..24 * PAGE, libc::MADV_REMOVE)?;
    context.ready();
    ensure_filled!("kept", memory, 0..5, 1);
    ensure_filled!("rewritten", memory, 5..7, 2);
    ensure_zero!("removed", memory, 20..24);
    let line = mapping_line(memory.range().start).unwrap_or_default();
    ensure!(line.contains("rw-s"), "the mapping is no longer shared: {line}");
    Ok(())
}

/// One memfd mapped twice, written through the other mapping, by write(2), and punched: no scan of the first
/// mapping sees any of it. Afterwards both must still be the same memory.
fn memfd(context: &mut Context) -> Outcome {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, BYTES as u64)?;
    let file = File::from(file);
    let one = Mapping::of_file(file.as_fd(), BYTES, MapFlags::SHARED)?;
    let other = Mapping::of_file(file.as_fd(), BYTES, MapFlags::SHARED)?;
    let copy = Mapping::of_file(file.as_fd(), BYTES, MapFlags::PRIVATE)?;
    one.fill(1);
    copy.fill_pages(0..2, 9);
    context.step();
    other.fill_pages(4..6, 2);
    file.write_all_at(b"written", 8 * PAGE as u64)?;
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        12 * PAGE as u64,
        2 * PAGE as u64,
    )?;
    context.ready();
    ensure_filled!("private copy", copy, 0..2, 9);
    ensure_filled!("written through the other mapping", one, 4..6, 2);
    ensure_filled!("seen by the private mapping", copy, 4..6, 2);
    ensure_eq!("written by a system call", one.byte(8 * PAGE), b'w');
    ensure_zero!("punched", one, 12..14);
    other.fill_pages(30..31, 3);
    ensure_filled!("still one memory", one, 30..31, 3);
    let mut found = [0];
    file.read_exact_at(&mut found, 30 * PAGE as u64)?;
    ensure_eq!("still one file", found[0], one.byte(30 * PAGE));
    Ok(())
}

/// A shared mapping of a file on disk, given by the first argument or a deleted one of our own.
fn shared_file(context: &mut Context) -> Outcome {
    let file = match context.arguments().first() {
        Some(path) => File::options().read(true).write(true).create(true).truncate(true).open(path)?,
        None => tempfile::tempfile()?,
    };
    file.set_len(BYTES as u64)?;
    let memory = Mapping::of_file(file.as_fd(), BYTES, MapFlags::SHARED)?;
    memory.fill(1);
    context.step();
    memory.fill_pages(7..9, 2);
    context.ready();
    ensure_filled!("kept", memory, 0..7, 1);
    ensure_filled!("rewritten", memory, 7..9, 2);
    Ok(())
}

/// The kernel writes into our memory: by read(2), and for another thread.
fn kernel_writes(context: &mut Context) -> Outcome {
    let mut buffers: Vec<Vec<u8>> = (0..16).map(|_| vec![1; 3 * PAGE]).collect();
    context.step();
    let source = tempfile::tempfile()?;
    source.write_all_at(&vec![2; 3 * PAGE], 0)?;
    for buffer in buffers.iter_mut().step_by(2) {
        source.read_exact_at(buffer, 0)?;
    }
    let buffers = thread::spawn(move || buffers).join().map_err(|_| "the thread panicked")?;
    context.ready();
    for (number, buffer) in buffers.iter().enumerate() {
        let expected = if number % 2 == 0 { 2 } else { 1 };
        ensure!(buffer.iter().all(|&byte| byte == expected), "buffer {number} is not all {expected}");
    }
    Ok(())
}

/// Locked memory, and advice that stays with a mapping.
fn locked(context: &mut Context) -> Outcome {
    let locked = Mapping::anonymous(4 * PAGE)?;
    locked.fill(1);
    locked.lock()?;
    let advised = Mapping::anonymous_with(8 << 20, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?;
    for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP, libc::MADV_NOHUGEPAGE] {
        advised.advise(0..8 << 20, advice)?;
    }
    advised.fill_pages(0..4, 2);
    let before = (flags_at(locked.range().start), flags_at(advised.range().start));
    context.ready();
    let after = (flags_at(locked.range().start), flags_at(advised.range().start));
    ensure_eq!("flags of mappings", after, before);
    ensure!(after.0.iter().any(|flag| flag == "lo"), "the memory is no longer locked: {:?}", after.0);
    ensure_filled!("locked", locked, 0..4, 1);
    Ok(())
}

/// The VmFlags of the mapping at an address that a program can set; those of a tracker are left out.
fn flags_at(address: usize) -> Vec<String> {
    const SETTABLE: [&str; 9] = ["lo", "dc", "dd", "nh", "hg", "sr", "rr", "mg", "wf"];
    let Some(header) = mapping_line(address) else { return Vec::new() };
    let bounds = header.split(' ').next().unwrap_or_default().to_owned();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let entry = smaps.lines().skip_while(|line| !line.starts_with(&bounds));
    let flags = entry.into_iter().find_map(|line| line.strip_prefix("VmFlags: ")).unwrap_or_default();
    flags.split(' ').filter(|flag| SETTABLE.contains(flag)).map(str::to_owned).collect()
}

/// 64 GiB of address space of which almost nothing is memory.
fn reservation(context: &mut Context) -> Outcome {
    const GIB: usize = 1 << 30;
    let reserved = Mapping::reserved(64 * GIB)?;
    let opened = 7 * GIB..7 * GIB + 16 * PAGE;
    reserved.protect(opened.clone(), MprotectFlags::READ | MprotectFlags::WRITE)?;
    let first = opened.start / PAGE;
    reserved.fill_pages(first..first + 8, 1);
    let sparse = Mapping::anonymous_with(
        64 * GIB,
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::PRIVATE | MapFlags::NORESERVE,
    )?;
    sparse.fill_pages(1_000_000..1_000_002, 2);
    context.ready();
    ensure_filled!("opened part", reserved, first..first + 8, 1);
    ensure_zero!("untouched part", reserved, first + 8..first + 16);
    ensure_filled!("sparse part", sparse, 1_000_000..1_000_002, 2);
    ensure_zero!("sparse hole", sparse, 999_000..999_002);
    Ok(())
}

/// Droppable memory holds what must never be seen twice, such as the state of a random generator: after a
/// restore it is zero, and where nothing was restored it may be as it was.
fn droppable(context: &mut Context) -> Outcome {
    let droppable = MapFlags::from_bits_retain(0x08);
    let memory = Mapping::anonymous_with(4 * PAGE, ProtFlags::READ | ProtFlags::WRITE, droppable)?;
    memory.fill(1);
    let process = std::fs::read_link("/proc/self/ns/pid")?;
    context.ready();
    let restored = std::fs::read_link("/proc/self/ns/pid")? != process;
    if restored {
        ensure_zero!("droppable memory after a restore", memory, 0..4);
    }
    memory.fill(2);
    ensure_filled!("droppable memory is usable", memory, 0..4, 2);
    let line = mapping_line(memory.range().start).unwrap_or_default();
    ensure!(line.contains("rw-p") || line.contains("rw-s"), "the mapping is gone: {line}");
    Ok(())
}
