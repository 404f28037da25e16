//! A piece of memory that a tracee and its tracer share: code that makes system calls from a table, the
//! tables, and room for their arguments.
//!
//! One round trip into a stopped thread costs 16 to 24 µs, a further call in the same trip 0.17 µs. So calls
//! go in tables. The memory is a memfd, mapped by both sides: filling a table and reading its results takes
//! no system call. It lies low in the address space, where no allocator looks unless it is told to.

use std::os::fd::AsFd;
use std::time::Duration;

use sys::mapping::SharedMapping;

use crate::error::TraceError;

/// The size of the mapping in the tracee.
pub const SCRATCH_BYTES: u64 = 2 << 20;
/// Timeouts of calls that restored threads are about to make; nothing else is ever written there.
const TIMES: u64 = 0x1000;
const TIMES_BYTES: u64 = 0x10000;
const TIME_BYTES: u64 = 16;
const TABLE: u64 = TIMES + TIMES_BYTES;
const TABLE_BYTES: u64 = 0x10000;
const BUFFER: u64 = TABLE + TABLE_BYTES;
const THREADS: u64 = 1 << 20;
const BUFFER_BYTES: u64 = THREADS - BUFFER;
const THREAD_BYTES: u64 = 8192;
const THREAD_TABLE_BYTES: u64 = 6144;
const ENTRY_BYTES: u64 = 64;
const END: i64 = -1;

/// How many calls one table takes.
pub(crate) const CALLS_MAX: usize = (TABLE_BYTES / ENTRY_BYTES) as usize - 1;
/// How many calls a thread's batch, and the leader's, may have in [`crate::Frozen::in_threads`].
pub const LEADER_CALLS: usize = CALLS_MAX;
pub const THREAD_CALLS: usize = (THREAD_TABLE_BYTES / ENTRY_BYTES) as usize - 1;
pub(crate) const THREADS_MAX: usize = ((SCRATCH_BYTES - THREADS) / THREAD_BYTES) as usize;
/// How many times there is room for. The first half is for threads that are restored, the other for calls
/// that are made again here.
pub(crate) const TIMES_MAX: usize = (TIMES_BYTES / TIME_BYTES) as usize;
pub(crate) const RESTORED_TIMES: usize = TIMES_MAX / 2;

/// Makes the calls of the table at rbx, stores each result, and traps at the end of the table.
#[rustfmt::skip]
pub(crate) const CODE: [u8; 47] = [
    0x48, 0x8b, 0x03,             // next: mov  rax, [rbx]
    0x48, 0x83, 0xf8, 0xff,       //       cmp  rax, -1
    0x74, 0x24,                   //       je   done
    0x48, 0x8b, 0x7b, 0x08,       //       mov  rdi, [rbx+8]
    0x48, 0x8b, 0x73, 0x10,       //       mov  rsi, [rbx+16]
    0x48, 0x8b, 0x53, 0x18,       //       mov  rdx, [rbx+24]
    0x4c, 0x8b, 0x53, 0x20,       //       mov  r10, [rbx+32]
    0x4c, 0x8b, 0x43, 0x28,       //       mov  r8,  [rbx+40]
    0x4c, 0x8b, 0x4b, 0x30,       //       mov  r9,  [rbx+48]
    0x0f, 0x05,                   //       syscall
    0x48, 0x89, 0x43, 0x38,       //       mov  [rbx+56], rax
    0x48, 0x83, 0xc3, 0x40,       //       add  rbx, 64
    0xeb, 0xd3,                   //       jmp  next
    0x90, 0xcc,                   // done: nop; int3
];

/// A system call to be made by a tracee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub number: i64,
    pub arguments: [u64; 6],
}

impl Call {
    /// Missing arguments are zero.
    pub fn new<const N: usize>(number: libc::c_long, arguments: [u64; N]) -> Self {
        const { assert!(N <= 6, "a system call has six arguments") };
        let mut all = [0; 6];
        all[..N].copy_from_slice(&arguments);
        Self { number, arguments: all }
    }
}

/// What one thread is to do: its calls, and the bytes that their arguments point to.
#[derive(Debug, Default)]
pub struct Batch {
    pub calls: Vec<Call>,
    pub bytes: Vec<u8>,
}

impl Batch {
    pub fn call<const N: usize>(&mut self, number: libc::c_long, arguments: [u64; N]) {
        self.calls.push(Call::new(number, arguments));
    }

    /// Adds bytes for a call to point to; returns their offset in the thread's buffer.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        offset
    }

    pub fn clear(&mut self) {
        self.calls.clear();
        self.bytes.clear();
    }
}

/// The tracer's side of the shared memory.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub address: u64,
    pub inode: u64,
    ours: SharedMapping,
}

/// Where the argument buffer begins, and how much it holds.
pub(crate) struct Buffer {
    pub address: u64,
    pub len: u64,
}

impl Scratch {
    /// Maps our side of `memfd`, which the tracee has mapped, or will map, at `address`.
    pub fn new(memfd: impl AsFd, address: u64) -> Result<Self, TraceError> {
        let failed = |what| move |why| TraceError::Kernel { what, tid: 0, source: why };
        rustix::fs::ftruncate(&memfd, SCRATCH_BYTES)
            .map_err(|e| failed("size the scratch memory")(e.into()))?;
        let inode =
            rustix::fs::fstat(&memfd).map_err(|e| failed("look at the scratch memory")(e.into()))?.st_ino;
        let mut ours =
            SharedMapping::new(memfd, SCRATCH_BYTES as usize).map_err(failed("map the scratch memory"))?;
        ours.write(0, &CODE);
        Ok(Self { address, inode, ours })
    }

    pub fn buffer(&self) -> Buffer {
        Buffer { address: self.address + BUFFER, len: BUFFER_BYTES }
    }

    /// The small buffer of the thread with this index in the current round.
    pub fn thread_buffer(&self, index: usize) -> Buffer {
        let table = self.thread_table(index);
        Buffer { address: self.address + table + THREAD_TABLE_BYTES, len: THREAD_BYTES - THREAD_TABLE_BYTES }
    }

    pub fn code_address(&self) -> u64 {
        self.address
    }

    /// Fills the big table; returns its address in the tracee.
    pub fn fill(&mut self, calls: &[Call]) -> u64 {
        assert!(calls.len() <= CALLS_MAX, "{} calls in one table", calls.len());
        self.fill_at(TABLE, calls)
    }

    pub fn fill_thread(&mut self, index: usize, calls: &[Call]) -> u64 {
        assert!(index < THREADS_MAX && calls.len() <= THREAD_CALLS, "table {index}, {} calls", calls.len());
        self.fill_at(self.thread_table(index), calls)
    }

    pub fn results(&self, count: usize) -> Vec<i64> {
        self.results_at(TABLE, count)
    }

    pub fn thread_results(&self, index: usize, count: usize) -> Vec<i64> {
        self.results_at(self.thread_table(index), count)
    }

    /// Writes a `timespec` that stays; returns its address.
    pub fn put_time(&mut self, index: usize, time: Duration) -> u64 {
        let address = self.time_address(index);
        let mut bytes = [0; TIME_BYTES as usize];
        bytes[..8].copy_from_slice(&time.as_secs().to_ne_bytes());
        bytes[8..].copy_from_slice(&u64::from(time.subsec_nanos()).to_ne_bytes());
        self.write(address, &bytes);
        address
    }

    pub fn time_address(&self, index: usize) -> u64 {
        assert!(index < TIMES_MAX, "timeout {index}");
        self.address + TIMES + index as u64 * TIME_BYTES
    }

    /// Where the calls of the thread with this birth find their time.
    pub fn live_time(birth: u64) -> usize {
        RESTORED_TIMES + birth as usize % RESTORED_TIMES
    }

    /// The time at `address`, if that is where [`Scratch::put_time`] put one.
    pub fn time_at(&self, address: u64) -> Option<Duration> {
        let offset = address.checked_sub(self.address + TIMES)?;
        if offset >= TIMES_BYTES || offset % TIME_BYTES != 0 {
            return None;
        }
        let mut bytes = [0; TIME_BYTES as usize];
        self.read(address, &mut bytes);
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Some(Duration::new(word(0), u32::try_from(word(8)).ok()?))
    }

    /// The ranges of our memory, address and length, without the pages of these addresses in it.
    pub fn without(&self, mut kept: Vec<u64>) -> Vec<(u64, u64)> {
        const PAGE_BYTES: u64 = 0x1000;
        kept.sort_unstable();
        let (mut ranges, mut at) = (Vec::new(), self.address);
        let end = self.address + SCRATCH_BYTES;
        for page in kept.iter().map(|address| address & !(PAGE_BYTES - 1)).chain([end]) {
            ranges.push((at, page.saturating_sub(at)));
            at = page + PAGE_BYTES;
        }
        ranges.retain(|&(_, len)| len > 0);
        ranges
    }

    /// Copies into the tracee's view of the buffers; `address` is the tracee's.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        self.ours.write((address - self.address) as usize, bytes);
    }

    pub fn read(&self, address: u64, into: &mut [u8]) {
        self.ours.read((address - self.address) as usize, into);
    }

    fn thread_table(&self, index: usize) -> u64 {
        THREADS + index as u64 * THREAD_BYTES
    }

    fn fill_at(&mut self, table: u64, calls: &[Call]) -> u64 {
        let mut bytes = Vec::with_capacity((calls.len() + 1) * ENTRY_BYTES as usize);
        for call in calls {
            bytes.extend_from_slice(&call.number.to_ne_bytes());
            call.arguments.iter().for_each(|argument| bytes.extend_from_slice(&argument.to_ne_bytes()));
            bytes.extend_from_slice(&0u64.to_ne_bytes());
        }
        bytes.extend_from_slice(&END.to_ne_bytes());
        self.ours.write(table as usize, &bytes);
        self.address + table
    }

    fn results_at(&self, table: u64, count: usize) -> Vec<i64> {
        let result = |n| {
            let mut word = [0; 8];
            self.ours.read((table + n as u64 * ENTRY_BYTES + ENTRY_BYTES - 8) as usize, &mut word);
            i64::from_ne_bytes(word)
        };
        (0..count).map(result).collect()
    }
}

/// What the tracer has to know of a tracee's address space before it has anything of its own in there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Terrain {
    pub vdso: Option<(u64, u64)>,
    pub hole: Option<u64>,
}

impl Terrain {
    /// From the text of `/proc/PID/maps`: the vdso, and the lowest hole that takes `len` bytes with a page
    /// to spare on either side. `avoid` are ranges that must stay free although nothing is mapped there yet.
    pub fn survey(maps: &str, lowest: u64, len: u64, avoid: &[(u64, u64)]) -> Self {
        const SPARE: u64 = 0x1000;
        const TOP: u64 = 0x7fff_0000_0000;
        let mut taken: Vec<(u64, u64)> = avoid.to_vec();
        let mut vdso = None;
        for line in maps.lines() {
            let Some((start, end)) = line.split(' ').next().and_then(parse_range) else { continue };
            if line.ends_with("[vdso]") {
                vdso = Some((start, end));
            }
            taken.push((start, end));
        }
        taken.sort_unstable();
        let mut at = lowest;
        for (start, end) in taken {
            if start >= at && start - at >= len + SPARE {
                break;
            }
            at = at.max(end + SPARE);
        }
        Self { vdso, hole: (at + len <= TOP).then_some(at) }
    }
}

fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_hole_that_fits_is_found() {
        let maps = "00010000-00020000 rw-p 0 00:00 0\n00400000-00500000 r-xp 0 00:00 0 /bin/x\n\
                    7ffff000-7ffff800 r-xp 0 00:00 0 [vdso]\n";
        let terrain = Terrain::survey(maps, 0x10000, 0x100000, &[]);
        assert_eq!(terrain, Terrain { vdso: Some((0x7fff_f000, 0x7fff_f800)), hole: Some(0x21000) });
        let avoid = [(0x30000, 0x40_0000)];
        assert_eq!(Terrain::survey(maps, 0x10000, 0x100000, &avoid).hole, Some(0x50_1000));
    }
}
