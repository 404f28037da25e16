//! What came from the network is looked at before anything of it is used: a layout and a state that pass can
//! be applied and restored without a surprise; the others are refused while the last epoch is still whole.

use std::collections::BTreeSet;

use image::layout::{Backing, Layout, Mapping, ObjectKey, ObjectKind, SharedObject};
use image::process::{Credentials, Process, Seccomp, Thread};
use image::state::State;
use image::{PAGE_BYTES, Range};

use super::ApplyError;
use crate::descriptors::{check_references, check_strays};

const LOWEST: u64 = 0x1000;
const HIGHEST: u64 = 0x7fff_ffff_f000;
const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;
/// More than a process can map; an object is sparse, so its size alone costs nothing.
const OBJECT_BYTES_MAX: u64 = 1 << 47;
/// The longest name of a memfd.
const OBJECT_NAME_MAX: usize = 249;
const MAPPING_NAME_MAX: usize = 80;
const PATH_MAX: usize = 4095;

/// Whether a layout's mappings are whole pages in order and in user space, and name only what it describes.
pub fn check_layout(layout: &Layout) -> Result<(), ApplyError> {
    check_order(&layout.mappings)?;
    let keys = check_objects(&layout.objects)?;
    layout.mappings.iter().try_for_each(|mapping| check_mapping(mapping, &keys))?;
    match layout.guards.iter().find(|guard| !is_whole(**guard) || !is_covered(&layout.mappings, **guard)) {
        Some(guard) => Err(ApplyError::NotMapped(guard.start)),
        None => Ok(()),
    }
}

fn check_order(mappings: &[Mapping]) -> Result<(), ApplyError> {
    let mut at = LOWEST;
    for mapping in mappings {
        let Range { start, end } = mapping.range;
        let inside = match mapping.backing {
            Backing::Vsyscall => start == VSYSCALL && end == VSYSCALL + PAGE_BYTES,
            _ => end <= HIGHEST,
        };
        if !is_whole(mapping.range) || start < at || !inside {
            return Err(ApplyError::NotMapped(start));
        }
        at = end;
    }
    Ok(())
}

/// The keys of the objects that a layout describes.
fn check_objects(objects: &[SharedObject]) -> Result<BTreeSet<ObjectKey>, ApplyError> {
    let mut keys = BTreeSet::new();
    for object in objects {
        let whole = match &object.kind {
            ObjectKind::Anonymous => true,
            ObjectKind::Memfd { name, seals: _ } => is_string(name, OBJECT_NAME_MAX),
            ObjectKind::File { path, deleted: _, mode: _ } => is_path(path),
        };
        if !whole || object.size_bytes > OBJECT_BYTES_MAX || !keys.insert(object.key) {
            return Err(ApplyError::Object { inode: object.key.inode, size_bytes: object.size_bytes });
        }
    }
    Ok(keys)
}

fn check_mapping(mapping: &Mapping, objects: &BTreeSet<ObjectKey>) -> Result<(), ApplyError> {
    let possible = match &mapping.backing {
        Backing::Anonymous | Backing::Droppable => !mapping.shared,
        // The file is opened for reading: what the app can write to is an object.
        Backing::File(identity) => is_path(&identity.path) && !(mapping.shared && mapping.protection.write),
        Backing::Object(key) if !objects.contains(key) => return Err(ApplyError::UnknownObject),
        Backing::Object(_) | Backing::Vvar | Backing::VvarClock | Backing::Vdso | Backing::Vsyscall => true,
    };
    let end = mapping.offset.checked_add(mapping.range.len_bytes());
    let offset = mapping.offset.is_multiple_of(PAGE_BYTES) && end.is_some_and(|end| end <= i64::MAX as u64);
    let named = mapping.name.as_ref().is_none_or(|name| is_string(name.as_bytes(), MAPPING_NAME_MAX));
    if possible && offset && named { Ok(()) } else { Err(ApplyError::Mapping(mapping.range.start)) }
}

/// Whether a state is of the process that the skeleton stands for, and names only what it describes.
/// `number` is the process's own in its cell.
pub fn check_state(state: &State, number: i32) -> Result<(), ApplyError> {
    let State { clocks: _, processes, spaces, files, pipes, strays } = state;
    let ([process], [space]) = (&processes[..], &spaces[..]) else {
        return Err(ApplyError::Space(processes.len().max(spaces.len()) as u32));
    };
    if process.pid != number || process.space != 0 {
        return Err(ApplyError::State("the process is not the one that the layout names"));
    }
    check_references(&process.descriptors, files, pipes)?;
    check_strays(strays)?;
    const AUXV_BYTES_MAX: usize = 4096;
    if space.auxv.len() > AUXV_BYTES_MAX {
        return Err(ApplyError::State("the auxiliary vector is too long"));
    }
    check_process(process)?;
    check_threads(process)
}

fn check_process(process: &Process) -> Result<(), ApplyError> {
    const SIGNALS: usize = 64;
    const LIMITS: usize = 16;
    const TIMERS_MAX: usize = 4096;
    let Process { filesystem, attributes, .. } = process;
    let paths = [&attributes.executable, &filesystem.working_directory, &filesystem.root];
    if !paths.into_iter().all(|path| is_path(path)) {
        return Err(ApplyError::State("a path of the process is none"));
    }
    if process.actions.len() > SIGNALS || process.limits.len() > LIMITS {
        return Err(ApplyError::State("there are more signal actions or limits than a process has"));
    }
    if process.posix_timers.len() > TIMERS_MAX {
        return Err(ApplyError::State("there are more timers than a restore has room for"));
    }
    check_pending(&process.pending)
}

fn check_threads(process: &Process) -> Result<(), ApplyError> {
    let numbers: BTreeSet<i32> = process.threads.iter().map(|thread| thread.tid).collect();
    let leads = process.threads.first().is_some_and(|leader| leader.tid == process.pid);
    if !leads || numbers.len() != process.threads.len() || numbers.first().is_none_or(|&tid| tid <= 0) {
        return Err(ApplyError::State("the threads' numbers are none, or not those of one process"));
    }
    process.threads.iter().try_for_each(check_thread)
}

fn check_thread(thread: &Thread) -> Result<(), ApplyError> {
    const NAME_MAX: usize = 15;
    const CPUS_BYTES_MAX: usize = 1024;
    const XSTATE_BYTES: std::ops::RangeInclusive<usize> = 576..=(64 << 10);
    const ARGUMENTS: u8 = 6;
    /// How many buffers one call may have.
    const PIECES_MAX: usize = 1024;
    let Thread { xstate, attributes, credentials, timeout, rest, .. } = thread;
    if !XSTATE_BYTES.contains(&xstate.len()) || timeout.is_some_and(|time| time.argument >= ARGUMENTS) {
        return Err(ApplyError::State("a thread's registers are none"));
    }
    if rest.as_ref().is_some_and(|rest| !(1..=PIECES_MAX).contains(&rest.pieces.len())) {
        return Err(ApplyError::State("the rest of a thread's call is none"));
    }
    if !is_string(&attributes.name, NAME_MAX) || attributes.affinity.len() > CPUS_BYTES_MAX {
        return Err(ApplyError::State("a thread's name or its CPUs are none"));
    }
    check_credentials(credentials)?;
    check_pending(&thread.pending)
}

fn check_credentials(credentials: &Credentials) -> Result<(), ApplyError> {
    const GROUPS_MAX: usize = 65_536;
    const INSTRUCTION_BYTES: usize = 8;
    const PROGRAM_BYTES_MAX: usize = 4096 * INSTRUCTION_BYTES;
    let filters = match &credentials.seccomp {
        Seccomp::Off | Seccomp::Strict => &[][..],
        Seccomp::Filters(filters) => filters,
    };
    let is_program = |len: usize| len.is_multiple_of(INSTRUCTION_BYTES) && len <= PROGRAM_BYTES_MAX;
    if credentials.supplementary.len() > GROUPS_MAX || !filters.iter().all(|f| is_program(f.program.len())) {
        return Err(ApplyError::State("a thread's groups or filters are more than the kernel takes"));
    }
    Ok(())
}

fn check_pending(pending: &[serde_bytes::ByteBuf]) -> Result<(), ApplyError> {
    const INFO_BYTES: usize = 128;
    /// What a restore has room for.
    const PENDING_MAX: usize = 6000;
    if pending.len() > PENDING_MAX || pending.iter().any(|info| info.len() != INFO_BYTES) {
        return Err(ApplyError::State("a pending signal is none, or there are too many"));
    }
    Ok(())
}

fn is_whole(range: Range) -> bool {
    !range.is_empty() && range.start.is_multiple_of(PAGE_BYTES) && range.end.is_multiple_of(PAGE_BYTES)
}

fn is_covered(mappings: &[Mapping], range: Range) -> bool {
    let mut at = range.start;
    let first = mappings.partition_point(|mapping| mapping.range.end <= at);
    for mapping in &mappings[first..] {
        if mapping.range.start > at {
            return false;
        }
        at = mapping.range.end;
        if at >= range.end {
            return true;
        }
    }
    false
}

fn is_string(bytes: &[u8], len_max: usize) -> bool {
    bytes.len() <= len_max && !bytes.contains(&0)
}

fn is_path(bytes: &[u8]) -> bool {
    bytes.starts_with(b"/") && is_string(bytes, PATH_MAX)
}
