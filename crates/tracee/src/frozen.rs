//! The loan: every thread of the app stopped, to be looked at and given back.

use std::collections::BTreeMap;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::net::{SocketType, sockopt};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use sys::ptrace::{Registers, RseqConfiguration};
use sys::{memory, ptrace};
use tracing::debug;

use crate::error::TraceError;
use crate::loan::Loan;
use crate::rest::{self, Rest, Stream, Unfinished};
use crate::restart::{Blocked, Settled, Surroundings, Timeout, argument, as_it_is};
use crate::scratch::{Batch, CALLS_MAX, Call, SCRATCH_BYTES, Scratch, THREADS_MAX, Terrain};
use crate::tree::{Process, Run, Tree};

/// No mapping of an unprivileged process may lie lower (`vm.mmap_min_addr`).
const LOWEST: u64 = 0x10000;
pub(crate) const SYSCALL: [u8; 2] = [0x0f, 0x05];
const RSEQ_CS_OFFSET: u64 = 8;

/// Everything stands still. Dropping it thaws.
#[derive(Debug)]
pub struct Frozen<'tree> {
    pub(crate) tree: Hold<'tree>,
    /// When the stop began.
    began: Instant,
    stopped: Instant,
    pub(crate) stands: BTreeMap<i32, Stand>,
}

/// A tree that stands still, for a while or for good.
#[derive(Debug)]
pub(crate) enum Hold<'tree> {
    Borrowed(&'tree mut Tree),
    Owned(Box<Tree>),
    /// Nothing is held any more.
    Given,
}

impl Deref for Hold<'_> {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        match self {
            Self::Borrowed(tree) => tree,
            Self::Owned(tree) => tree,
            Self::Given => unreachable!("a loan that was given back is used"),
        }
    }
}

impl DerefMut for Hold<'_> {
    fn deref_mut(&mut self) -> &mut Tree {
        match self {
            Self::Borrowed(tree) => tree,
            Self::Owned(tree) => tree,
            Self::Given => unreachable!("a loan that was given back is used"),
        }
    }
}

impl Frozen<'static> {
    pub(crate) fn owning(tree: Tree, began: Instant) -> Self {
        Self { tree: Hold::Owned(Box::new(tree)), began, stopped: Instant::now(), stands: BTreeMap::new() }
    }

    /// Gives every thread back, and the tree with them.
    pub fn thaw_into_tree(mut self) -> Tree {
        let Hold::Owned(mut tree) = std::mem::replace(&mut self.tree, Hold::Given) else {
            unreachable!("a hold that lasts for good owns its tree")
        };
        tree.resume_all();
        *tree
    }
}

impl<'tree> Frozen<'tree> {
    /// Ends the loan without giving anything back: everything stays stopped.
    pub(crate) fn stay(mut self) {
        self.tree = Hold::Given;
    }

    pub(crate) fn new(tree: &'tree mut Tree, began: Instant) -> Self {
        Self { tree: Hold::Borrowed(tree), began, stopped: Instant::now(), stands: BTreeMap::new() }
    }

    /// How long it took until the last thread stood.
    pub fn stop_time(&self) -> Duration {
        self.stopped - self.began
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    pub fn pids(&self) -> Vec<i32> {
        self.tree.pids().collect()
    }

    /// The threads of a process, the leader first.
    pub fn threads(&self, pid: i32) -> Vec<i32> {
        let Some(Process { threads, .. }) = self.tree.processes.get(&pid) else { return Vec::new() };
        let leader = threads.contains_key(&pid).then_some(pid);
        leader.into_iter().chain(threads.keys().copied().filter(|&tid| tid != pid)).collect()
    }

    /// Tells a thread from every other that the tree ever had, and from itself before an exec: what was read
    /// of it may be kept while this stays the same.
    pub fn birth(&self, tid: i32) -> Option<u64> {
        self.tree.processes.values().find_map(|process| process.threads.get(&tid)).map(|thread| thread.birth)
    }

    pub fn pidfd(&self, pid: i32) -> BorrowedFd<'_> {
        self.tree.processes[&pid].pidfd.as_fd()
    }

    /// Fails if the process has been killed since it stopped. What was read of it before this succeeded is whole: who
    /// is killed leaves his stop for good, and his memory may look empty from then on.
    pub fn assert_alive(&self, pid: i32) -> Result<(), TraceError> {
        ptrace::signal_mask(pid).map(drop).map_err(TraceError::kernel("look whether it still stands", pid))
    }

    /// The inode of the memory that we share with the process, to tell it from the app's.
    pub fn scratch_inode(&self, pid: i32) -> Option<u64> {
        self.tree.processes[&pid].scratch.as_ref().map(|scratch| scratch.inode)
    }

    /// The registers with which a thread goes on elsewhere, and the timeout that it must be given there.
    /// Here it goes on as if nobody had looked.
    pub fn registers(&mut self, tid: i32) -> Result<(Registers, Option<Timeout>), TraceError> {
        self.stand(tid).map(|stand| (stand.settled.elsewhere, stand.settled.timeout))
    }

    /// What the thread still has to do of a call that a stop cut short, if it is making the rest of one.
    pub fn rest(&mut self, tid: i32) -> Result<Option<Rest>, TraceError> {
        self.stand(tid)?;
        let now = self.stopped;
        let thread = self.tree.thread(tid).ok_or(TraceError::Ended(tid))?;
        Ok(thread.rest.as_ref().map(|unfinished| unfinished.at(now)))
    }

    /// Has a thread make the rest of a call, of which its registers make the first piece.
    pub fn set_rest(&mut self, tid: i32, rest: Rest) -> Result<(), TraceError> {
        let thread = self.tree.thread(tid).ok_or(TraceError::Ended(tid))?;
        thread.rest = Some(Unfinished::new(rest, Instant::now()));
        Ok(())
    }

    /// Where the thread registered its restartable sequences.
    pub fn rseq(&mut self, tid: i32) -> Result<RseqConfiguration, TraceError> {
        self.stand(tid).map(|stand| stand.rseq)
    }

    /// Settles a thread once in a freeze, whoever asks first.
    pub(crate) fn stand(&mut self, tid: i32) -> Result<Stand, TraceError> {
        if let Some(stand) = self.stands.get(&tid) {
            return Ok(*stand);
        }
        let failed = |what| TraceError::kernel(what, tid);
        let registers = ptrace::registers(tid).map_err(failed("read the registers"))?;
        let rseq = ptrace::rseq_configuration(tid).map_err(failed("read the rseq registration"))?;
        let found = abort_restartable_sequence(tid, registers, &rseq);
        let settled = self.settle(tid, &found)?;
        if let Some(registers) = &settled.here {
            ptrace::set_registers(tid, registers).map_err(failed("mend the registers"))?;
        }
        let stand = Stand { registers: settled.here.unwrap_or(registers), settled, rseq };
        self.stands.insert(tid, stand);
        Ok(stand)
    }

    /// Settles every thread: none may see that it was stopped, whether anybody looks at it or not.
    pub(crate) fn settle_all(mut self) -> Result<Self, TraceError> {
        for pid in self.pids() {
            for tid in self.threads(pid) {
                match self.stand(tid) {
                    Ok(_) | Err(TraceError::Ended(_)) => (),
                    Err(why) => return Err(why),
                }
            }
        }
        Ok(self)
    }

    /// Settles those that stopped, when others did not: they may not see it either.
    pub(crate) fn settle_stopped(&mut self) {
        let threads = self.tree.processes.values().flat_map(|process| &process.threads);
        let stopped = threads.filter(|(_, thread)| thread.run != Run::Running);
        let stopped: Vec<i32> = stopped.map(|(&tid, _)| tid).collect();
        for tid in stopped {
            if let Err(why) = self.stand(tid) {
                debug!(tid, "a thread may see that it was stopped: {why}");
            }
        }
    }

    fn settle(&mut self, tid: i32, found: &Found) -> Result<Settled, TraceError> {
        let now = self.stopped;
        let pid = self.tree.process_of(tid).ok_or(TraceError::Ended(tid))?;
        let thread = self.tree.thread(tid).ok_or(TraceError::Ended(tid))?;
        if thread.rest.is_some() {
            return Ok(as_it_is(&found.registers));
        }
        let (mut blocked, index) = (thread.blocked, Scratch::live_time(thread.birth));
        let scratch = self.tree.processes[&pid].scratch.as_ref();
        let around = Surroundings {
            read_time: &|address| read_timespec(tid, address),
            read: &|address, into| memory::read(tid, address, into).is_ok(),
            stream: &|fd, sends| stream(&self.tree.processes[&pid].pidfd, fd, sends),
            is_file: &|fd| is_file(&self.tree.processes[&pid].pidfd, fd),
            socket_time: &|fd, sends| socket_time(tid, &self.tree.processes[&pid].pidfd, fd, sends),
            slot: scratch.map(|scratch| scratch.time_address(index)),
        };
        if let Some((unfinished, settled)) = rest::cut(&blocked, &found.registers, now, &around) {
            if let Some(thread) = self.tree.thread(tid) {
                thread.rest = Some(unfinished);
                thread.blocked = Blocked::default();
            }
            return Ok(settled);
        }
        let settled = blocked.settle(&found.registers, now, &around);
        if let Some(thread) = self.tree.thread(tid) {
            thread.blocked = blocked;
        }
        if let Some(time) = settled.slot_time {
            self.scratch(pid).put_time(index, time);
        }
        let here = settled.here.or(found.changed.then_some(found.registers));
        let timeout = settled.timeout.or_else(|| self.timeout_given(tid, &found.registers));
        Ok(Settled { here, timeout, ..settled })
    }

    /// Borrows the leader of `pid` to make calls in the process.
    pub fn remote(&mut self, pid: i32) -> Result<Remote<'_, 'tree>, TraceError> {
        self.remote_in(pid, pid)
    }

    /// Borrows the thread `tid` of `pid`, for calls that only it can make for itself.
    pub fn remote_in(&mut self, pid: i32, tid: i32) -> Result<Remote<'_, 'tree>, TraceError> {
        self.stand(pid)?;
        self.stand(tid)?;
        if self.tree.processes[&pid].scratch.is_none() {
            self.make_scratch(pid, &[])?;
        }
        Ok(Remote { frozen: self, pid, tid })
    }

    /// Makes calls in several threads at once. `fill` says what a thread does, given the address of a buffer that
    /// is the thread's own for the time and begins with the batch's bytes; the results come back by thread,
    /// with the buffer's content. A thread's batch has room for [`THREAD_CALLS`] calls, the leader's for
    /// [`LEADER_CALLS`]; the leader may have calls for the process in it, with their arguments in the buffer
    /// that a [`Remote`] has.
    pub fn in_threads(
        &mut self,
        pid: i32,
        threads: &[i32],
        mut fill: impl FnMut(i32, u64, &mut Batch),
        mut done: impl FnMut(i32, &[i64], &[u8]),
    ) -> Result<(), TraceError> {
        self.remote(pid)?;
        let mut batch = Batch::default();
        let mut bytes = Vec::new();
        for round in threads.chunks(THREADS_MAX) {
            let mut loans = Vec::with_capacity(round.len());
            for (index, &tid) in round.iter().enumerate() {
                let registers = self.stand(tid)?.registers;
                let scratch = self.scratch(pid);
                let buffer = scratch.thread_buffer(index);
                batch.clear();
                fill(tid, buffer.address, &mut batch);
                assert!(batch.bytes.len() as u64 <= buffer.len, "{} bytes for a thread", batch.bytes.len());
                scratch.write(buffer.address, &batch.bytes);
                let table = match tid == pid {
                    true => scratch.fill(&batch.calls),
                    false => scratch.fill_thread(index, &batch.calls),
                };
                let code = scratch.code_address();
                loans.push((Loan::begin(tid, registers)?, batch.calls.len()));
                loans[index].0.start(code, table)?;
            }
            for (index, (loan, count)) in loans.into_iter().enumerate() {
                let tid = loan.tid;
                let deferred = loan.finish(&mut self.tree)?;
                self.defer(tid, deferred);
                let scratch = self.scratch(pid);
                let results = match tid == pid {
                    true => scratch.results(count),
                    false => scratch.thread_results(index, count),
                };
                let buffer = scratch.thread_buffer(index);
                bytes.resize(buffer.len as usize, 0);
                scratch.read(buffer.address, &mut bytes);
                done(tid, &results, &bytes);
            }
        }
        Ok(())
    }

    /// Takes our memory out of every process of the tree, so that nothing of ours is left; but for the page of
    /// a timeout that a thread is about to pass to the kernel.
    pub fn remove_scratch(&mut self) -> Result<(), TraceError> {
        for pid in self.pids() {
            match self.remove_scratch_of(pid) {
                Ok(()) | Err(TraceError::Ended(_)) => (),
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    fn remove_scratch_of(&mut self, pid: i32) -> Result<(), TraceError> {
        let registers = self.stand(pid)?.registers;
        let process = self.tree.processes.get_mut(&pid).ok_or(TraceError::Ended(pid))?;
        let Some(scratch) = process.scratch.take() else { return Ok(()) };
        let vdso = self.terrain(pid, &[])?.vdso;
        let Some(instruction) = find_syscall(pid, vdso)? else { return Ok(()) };
        let mut kept = Vec::new();
        for tid in self.threads(pid) {
            let Ok(Stand { mut registers, .. }) = self.stand(tid) else { continue };
            let mut pointers = (0..6).map(|number| *argument(&mut registers, number));
            kept.extend(pointers.find(|&pointer| scratch.time_at(pointer).is_some()));
        }
        let mut loan = Loan::begin(pid, registers)?;
        for (start, len) in scratch.without(kept) {
            let unmap = Call::new(libc::SYS_munmap, [start, len]);
            loan.step(&mut self.tree, instruction, unmap)?;
        }
        let deferred = loan.give_back()?;
        self.defer(pid, deferred);
        Ok(())
    }

    /// Gives every thread back; the time is that of the last one.
    pub fn thaw(self) -> Duration {
        let began = self.began;
        drop(self);
        began.elapsed()
    }

    /// Puts our memory into a process where it keeps `avoid` free; returns where it lies.
    pub fn make_room(&mut self, pid: i32, avoid: &[(u64, u64)]) -> Result<(u64, u64), TraceError> {
        self.stand(pid)?;
        if self.tree.processes[&pid].scratch.is_none() {
            self.make_scratch(pid, avoid)?;
        }
        let start = self.scratch(pid).address;
        Ok((start, start + SCRATCH_BYTES))
    }

    pub(crate) fn scratch(&mut self, pid: i32) -> &mut Scratch {
        let process = self.tree.processes.get_mut(&pid).expect("a process of the tree");
        process.scratch.as_mut().expect("made before it is used")
    }

    pub(crate) fn defer(&mut self, tid: i32, signals: Vec<i32>) {
        if let Some(thread) = self.tree.thread(tid) {
            thread.deferred.extend(signals);
        }
    }

    fn terrain(&self, pid: i32, avoid: &[(u64, u64)]) -> Result<Terrain, TraceError> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
            .map_err(TraceError::kernel("read the mappings", pid))?;
        Ok(Terrain::survey(&maps, LOWEST, SCRATCH_BYTES, avoid))
    }

    /// Has the process make a memfd and map it, by single steps through the `syscall` of its vdso; nothing
    /// else of ours is in there yet. `avoid` are ranges that must stay free for what is to come.
    fn make_scratch(&mut self, pid: i32, avoid: &[(u64, u64)]) -> Result<(), TraceError> {
        let terrain = self.terrain(pid, avoid)?;
        let address = terrain.hole.ok_or(TraceError::NoRoom(SCRATCH_BYTES, pid))?;
        let instruction = find_syscall(pid, terrain.vdso)?.ok_or_else(|| TraceError::Refused {
            pid,
            why: "it has no vdso to make system calls from; start it without vdso=0".to_owned(),
        })?;
        let mut loan = Loan::begin(pid, self.stand(pid)?.registers)?;
        let made = self.map_scratch(pid, &mut loan, instruction, address);
        let deferred = loan.give_back()?;
        self.defer(pid, deferred);
        let scratch = made?;
        self.tree.processes.get_mut(&pid).expect("a process of the tree").scratch = Some(scratch);
        Ok(())
    }

    fn map_scratch(
        &mut self,
        pid: i32,
        loan: &mut Loan,
        instruction: u64,
        address: u64,
    ) -> Result<Scratch, TraceError> {
        let all = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE) as u64;
        let name = name_in_vdso(pid, self.terrain(pid, &[])?.vdso)?;
        let memfd = Call::new(libc::SYS_memfd_create, [name, u64::from(libc::MFD_CLOEXEC)]);
        let fd = loan.checked_step(&mut self.tree, instruction, memfd, "make shared memory")?;
        let scratch = self.steal(pid, fd as i32).and_then(|memfd| Scratch::new(memfd, address));
        let map = Call::new(libc::SYS_mmap, [address, SCRATCH_BYTES, all, flags, fd, 0]);
        let mapped = loan.checked_step(&mut self.tree, instruction, map, "map shared memory");
        loan.checked_step(
            &mut self.tree,
            instruction,
            Call::new(libc::SYS_close, [fd]),
            "close the shared memory",
        )?;
        mapped?;
        scratch
    }

    /// A duplicate of one of the process's descriptors. Close it before the thaw unless it is ours alone.
    pub fn steal(&self, pid: i32, fd: i32) -> Result<OwnedFd, TraceError> {
        pidfd_getfd(self.pidfd(pid), fd, PidfdGetfdFlags::empty())
            .map_err(|why| TraceError::kernel("take a descriptor", pid)(why.into()))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        match &mut self.tree {
            Hold::Borrowed(tree) => tree.resume_all(),
            Hold::Owned(tree) => tree.resume_all(),
            Hold::Given => (),
        }
    }
}

/// Makes system calls in a stopped process, through one of its threads.
#[derive(Debug)]
pub struct Remote<'frozen, 'tree> {
    frozen: &'frozen mut Frozen<'tree>,
    pid: i32,
    tid: i32,
}

impl Remote<'_, '_> {
    /// Makes the calls in their order, in as few round trips as there are tables; each result is the
    /// kernel's, negative for an error.
    pub fn calls(&mut self, calls: &[Call]) -> Result<Vec<i64>, TraceError> {
        let mut results = Vec::with_capacity(calls.len());
        for table in calls.chunks(CALLS_MAX) {
            let scratch = self.frozen.scratch(self.pid);
            let (code, address) = (scratch.code_address(), scratch.fill(table));
            let registers = self.frozen.stand(self.tid)?.registers;
            let mut loan = Loan::begin(self.tid, registers)?;
            loan.start(code, address)?;
            let deferred = loan.finish(&mut self.frozen.tree)?;
            self.frozen.defer(self.tid, deferred);
            results.extend(self.frozen.scratch(self.pid).results(table.len()));
        }
        Ok(results)
    }

    /// Makes one call; an error of the kernel's is an error.
    pub fn call<const N: usize>(
        &mut self,
        what: &'static str,
        number: libc::c_long,
        arguments: [u64; N],
    ) -> Result<u64, TraceError> {
        let result = self.calls(&[Call::new(number, arguments)])?[0];
        u64::try_from(result).map_err(|_| TraceError::Kernel {
            what,
            tid: self.tid,
            source: sys::kernel::error(result),
        })
    }

    /// Where the argument buffer lies in the process, and its size.
    pub fn buffer(&mut self) -> (u64, u64) {
        let buffer = self.frozen.scratch(self.pid).buffer();
        (buffer.address, buffer.len)
    }

    /// The same, for who only looks.
    pub fn buffer_place(&self) -> (u64, u64) {
        let scratch = self.frozen.tree.processes[&self.pid].scratch.as_ref().expect("made before it is used");
        let buffer = scratch.buffer();
        (buffer.address, buffer.len)
    }

    /// Puts bytes into the buffer at `offset`; returns their address in the process.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        let scratch = self.frozen.scratch(self.pid);
        let buffer = scratch.buffer();
        assert!(offset + bytes.len() as u64 <= buffer.len, "{} bytes into the buffer", bytes.len());
        scratch.write(buffer.address + offset, bytes);
        buffer.address + offset
    }

    pub fn get(&mut self, offset: u64, into: &mut [u8]) {
        let scratch = self.frozen.scratch(self.pid);
        let buffer = scratch.buffer();
        assert!(offset + into.len() as u64 <= buffer.len, "{} bytes out of the buffer", into.len());
        scratch.read(buffer.address + offset, into);
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A duplicate of one of the process's descriptors.
    pub fn steal(&self, fd: i32) -> Result<OwnedFd, TraceError> {
        self.frozen.steal(self.pid, fd)
    }
}

/// What a freeze found out about a thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stand {
    /// Those that it has now.
    pub registers: Registers,
    pub settled: Settled,
    pub rseq: RseqConfiguration,
}

struct Found {
    registers: Registers,
    changed: bool,
}

/// A thread that stopped inside a restartable sequence starts it over, as after any preemption. The kernel
/// would see to it, but not once the thread has run something else for us, and not on another host.
fn abort_restartable_sequence(tid: i32, registers: Registers, configuration: &RseqConfiguration) -> Found {
    let unchanged = Found { registers, changed: false };
    if configuration.address == 0 {
        return unchanged;
    }
    let Ok(descriptor @ 1..) = memory::read_word(tid, configuration.address + RSEQ_CS_OFFSET) else {
        return unchanged;
    };
    // struct rseq_cs { u32 version, flags; u64 start_ip, post_commit_offset, abort_ip; }
    let mut words = [0u8; 32];
    if memory::read(tid, descriptor, &mut words).is_err() {
        return unchanged;
    }
    let word = |at: usize| u64::from_ne_bytes(words[at..at + 8].try_into().expect("eight bytes"));
    let (start, length, abort) = (word(8), word(16), word(24));
    if registers.rip.wrapping_sub(start) < length {
        return Found { registers: Registers { rip: abort, ..registers }, changed: true };
    }
    unchanged
}

fn read_timespec(tid: i32, address: u64) -> Option<Duration> {
    let mut bytes = [0; 16];
    memory::read(tid, address, &mut bytes).ok()?;
    let word = |at: usize| i64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    Some(Duration::new(u64::try_from(word(0)).ok()?, u32::try_from(word(8)).ok()?))
}

/// How long a call on this socket waits, if not for ever.
///
/// N.B. not asked under seccomp: a filter that looks at descriptors would see our mark on the call. There a
/// timeout starts over at each stop.
fn socket_time(tid: i32, pidfd: &OwnedFd, fd: i32, sends: bool) -> Option<Duration> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    if !status.contains("\nSeccomp:\t0\n") {
        return None;
    }
    let socket = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).ok()?;
    patience(&socket, sends)
}

fn patience(socket: &OwnedFd, sends: bool) -> Option<Duration> {
    let which = if sends { sockopt::Timeout::Send } else { sockopt::Timeout::Recv };
    sockopt::socket_timeout(socket, which).ok().flatten()
}

/// What `fd` is, if calls on it wait until all bytes have moved.
fn stream(pidfd: &OwnedFd, fd: i32, sends: bool) -> Option<Stream> {
    let file = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).ok()?;
    // N.B. on a pipe O_DIRECT keeps packets apart.
    if fcntl_getfl(&file).ok()?.intersects(OFlags::NONBLOCK | OFlags::DIRECT) {
        return None;
    }
    // An error is the app's to find, and the rest of a call would take it from the socket.
    let mut polled = [PollFd::new(&file, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).ok()?;
    if polled[0].revents().contains(PollFlags::ERR) {
        return None;
    }
    match FileType::from_raw_mode(fstat(&file).ok()?.st_mode) {
        FileType::Fifo => Some(Stream { is_socket: false, patience: None }),
        FileType::Socket if sockopt::socket_type(&file).ok()? == SocketType::STREAM => {
            Some(Stream { is_socket: true, patience: patience(&file, sends) })
        }
        _ => None,
    }
}

fn is_file(pidfd: &OwnedFd, fd: i32) -> bool {
    let file = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty());
    let stat = file.and_then(fstat);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

fn vdso_bytes(pid: i32, vdso: Option<(u64, u64)>) -> Result<Vec<u8>, TraceError> {
    let Some((start, end)) = vdso else { return Ok(Vec::new()) };
    let mut bytes = vec![0; (end - start) as usize];
    memory::read(pid, start, &mut bytes).map_err(TraceError::kernel("read the vdso", pid))?;
    Ok(bytes)
}

fn find_syscall(pid: i32, vdso: Option<(u64, u64)>) -> Result<Option<u64>, TraceError> {
    let bytes = vdso_bytes(pid, vdso)?;
    let at = bytes.windows(2).position(|pair| pair == SYSCALL);
    Ok(at.zip(vdso).map(|(at, (start, _))| start + at as u64))
}

/// A string for the memfd's name that is already in the process.
fn name_in_vdso(pid: i32, vdso: Option<(u64, u64)>) -> Result<u64, TraceError> {
    const NAME: &[u8] = b"linux-vdso.so.1\0";
    let bytes = vdso_bytes(pid, vdso)?;
    let at = bytes.windows(NAME.len()).position(|piece| piece == NAME).unwrap_or(0);
    Ok(vdso.map_or(0, |(start, _)| start) + at as u64)
}
