//! What belongs to the process as a whole: asked by one table of calls in its leader, and put back by others.

use std::io;

use image::process::{Filesystem, IntervalTimer, Limit, MemoryMap, Process, SignalAction};
use serde_bytes::ByteBuf;
use tracee::{Batch, Frozen};

use super::error::SaveError;
use super::layout::{Filled, joined, words};
use super::numbers::CellNumbers;
use super::posix_timers;
use super::status::TimerText;
use super::steps::Steps;
use crate::Unsupported;

const SIGNALS: usize = 64;
const LIMITS: usize = 16;
const INTERVAL_TIMERS: usize = 3;
const ACTION_BYTES: usize = 32;
const LIMIT_BYTES: usize = 16;
const SETTING_BYTES: usize = 32;
const PATH_BYTES_MAX: usize = 4096;
const SIGSET_BYTES: u64 = 8;
const MICROSECONDS: u64 = 1_000_000;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_GET_THP_DISABLE: u64 = 42;
const PERSONALITY_ASK: u64 = 0xffff_ffff;
const LDT_READ: u64 = 0;

// The buffer of the table.
const ACTIONS: usize = 0;
const LIMIT_VALUES: usize = ACTIONS + SIGNALS * ACTION_BYTES;
const INTERVALS: usize = LIMIT_VALUES + LIMITS * LIMIT_BYTES;
const DIRECTORY: usize = INTERVALS + INTERVAL_TIMERS * SETTING_BYTES;
const SUBREAPER: usize = DIRECTORY + PATH_BYTES_MAX;
const LDT: usize = SUBREAPER + 8;
const LDT_BYTES: usize = 16;
const TIMERS: usize = LDT + LDT_BYTES;

// The calls that are not answered through the buffer, in their order, after those that are.
const BUFFERED: usize = SIGNALS + LIMITS + INTERVAL_TIMERS;
const DIRECTORY_RESULT: usize = BUFFERED;
const LDT_RESULT: usize = BUFFERED + 2;
const UMASK_RESULT: usize = BUFFERED + 3;
const BRK_RESULT: usize = BUFFERED + 4;
const DUMPABLE_RESULT: usize = BUFFERED + 5;
const THP_RESULT: usize = BUFFERED + 6;
const PERSONALITY_RESULT: usize = BUFFERED + 7;
const PARENT_RESULT: usize = BUFFERED + 8;
const GROUP_RESULT: usize = BUFFERED + 9;
const SESSION_RESULT: usize = BUFFERED + 10;
const TIMER_RESULTS: usize = BUFFERED + 11;

/// What the leader said about the process.
#[derive(Debug)]
pub(super) struct Answers {
    results: Vec<i64>,
    bytes: Vec<u8>,
}

/// How many calls [`ask`] makes about that many timers.
pub(super) fn calls(timers: usize) -> usize {
    TIMER_RESULTS + timers * posix_timers::CALLS_EACH
}

/// Reads the results of [`ask`], and puts back what asking has changed: `umask` was the last one known.
pub(super) fn answers(
    frozen: &mut Frozen<'_>,
    pid: i32,
    umask: u32,
    results: &[i64],
) -> Result<Answers, SaveError> {
    let mut remote = frozen.remote(pid)?;
    let found = results[UMASK_RESULT] as u32;
    if found != umask {
        remote.call("put the umask back", libc::SYS_umask, [u64::from(found)])?;
    }
    let timers = (results.len() - TIMER_RESULTS) / posix_timers::CALLS_EACH;
    let mut bytes = vec![0; TIMERS + timers * SETTING_BYTES];
    remote.get(0, &mut bytes);
    Ok(Answers { results: results.to_vec(), bytes })
}

/// The calls with which the leader answers; `buffer` is the one of its [`tracee::Remote`]. `umask` is the last
/// one known, for there is no asking without setting one.
pub(super) fn ask(buffer: u64, umask: u32, timers: &[TimerText], batch: &mut Batch) {
    let at = |offset: usize| buffer + offset as u64;
    for index in 0..SIGNALS {
        let action = at(ACTIONS + index * ACTION_BYTES);
        batch.call(libc::SYS_rt_sigaction, [index as u64 + 1, 0, action, SIGSET_BYTES]);
    }
    for resource in 0..LIMITS {
        let limit = at(LIMIT_VALUES + resource * LIMIT_BYTES);
        batch.call(libc::SYS_prlimit64, [0, resource as u64, 0, limit]);
    }
    for which in 0..INTERVAL_TIMERS {
        batch.call(libc::SYS_getitimer, [which as u64, at(INTERVALS + which * SETTING_BYTES)]);
    }
    batch.call(libc::SYS_getcwd, [at(DIRECTORY), PATH_BYTES_MAX as u64]);
    batch.call(libc::SYS_prctl, [libc::PR_GET_CHILD_SUBREAPER as u64, at(SUBREAPER)]);
    batch.call(libc::SYS_modify_ldt, [LDT_READ, at(LDT), LDT_BYTES as u64]);
    batch.call(libc::SYS_umask, [u64::from(umask)]);
    batch.call(libc::SYS_brk, [0]);
    batch.call(libc::SYS_prctl, [libc::PR_GET_DUMPABLE as u64]);
    batch.call(libc::SYS_prctl, [PR_GET_THP_DISABLE]);
    batch.call(libc::SYS_personality, [PERSONALITY_ASK]);
    batch.call(libc::SYS_getppid, []);
    batch.call(libc::SYS_getpgid, [0]);
    batch.call(libc::SYS_getsid, [0]);
    for (index, timer) in timers.iter().enumerate() {
        posix_timers::ask(timer, at(TIMERS + index * SETTING_BYTES), batch);
    }
}

/// Where the process stands, as seen from outside: while that stays, so does what `getcwd` tells.
pub(super) fn places(pid: i32) -> Result<Vec<u8>, SaveError> {
    let read = |name: &'static str| {
        rustix::fs::readlink(format!("/proc/{pid}/{name}"), Vec::new())
            .map_err(SaveError::kernel("the root or working directory", pid))
    };
    Ok([read("root")?.into_bytes_with_nul(), read("cwd")?.into_bytes_with_nul()].concat())
}

impl Answers {
    /// Whether an interval timer is set.
    pub fn counts_down(&self) -> bool {
        self.interval_timers().iter().any(|timer| timer.value_us != 0 || timer.interval_us != 0)
    }

    /// But for what time changes.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        // Behind the working directory's end lies what an earlier one left there.
        let directory = |answers: &Self| Filled(&answers.bytes).string(DIRECTORY, PATH_BYTES_MAX);
        self.results == other.results
            && self.bytes[..INTERVALS] == other.bytes[..INTERVALS]
            && directory(self) == directory(other)
            && self.subreaper() == other.subreaper()
    }

    pub fn umask(&self) -> u32 {
        self.results[UMASK_RESULT] as u32
    }

    pub fn brk(&self) -> u64 {
        self.results[BRK_RESULT] as u64
    }

    pub fn dumpable(&self) -> u32 {
        self.results[DUMPABLE_RESULT] as u32
    }

    pub fn huge_pages_off(&self) -> bool {
        self.results[THP_RESULT] == 1
    }

    pub fn personality(&self) -> u32 {
        self.results[PERSONALITY_RESULT] as u32
    }

    pub fn subreaper(&self) -> bool {
        Filled(&self.bytes).u32(SUBREAPER) == 1
    }

    /// Parent, group and session, as the cell counts them; zero lies outside of it.
    pub fn family(&self) -> [i32; 3] {
        [PARENT_RESULT, GROUP_RESULT, SESSION_RESULT].map(|index| self.results[index] as i32)
    }

    pub fn has_segments(&self) -> bool {
        self.results[LDT_RESULT] > 0
    }

    pub fn actions(&self) -> Vec<SignalAction> {
        let filled = Filled(&self.bytes);
        let action = |index: usize| {
            let at = ACTIONS + index * ACTION_BYTES;
            SignalAction {
                handler: filled.u64(at),
                flags: filled.u64(at + 8),
                restorer: filled.u64(at + 16),
                mask: filled.u64(at + 24),
            }
        };
        (0..SIGNALS).map(action).collect()
    }

    pub fn limits(&self) -> Vec<Limit> {
        let filled = Filled(&self.bytes);
        let limit = |resource: usize| {
            let at = LIMIT_VALUES + resource * LIMIT_BYTES;
            Limit { resource: resource as u32, soft: filled.u64(at), hard: filled.u64(at + 8) }
        };
        (0..LIMITS).map(limit).collect()
    }

    pub fn interval_timers(&self) -> [IntervalTimer; INTERVAL_TIMERS] {
        let filled = Filled(&self.bytes);
        std::array::from_fn(|which| {
            let at = INTERVALS + which * SETTING_BYTES;
            let time = |at| joined(filled.u64(at), filled.u64(at + 8), MICROSECONDS);
            IntervalTimer { interval_us: time(at), value_us: time(at + 16) }
        })
    }

    pub fn posix_timers(
        &self,
        frozen: &Frozen<'_>,
        numbers: &mut CellNumbers,
        timers: &[TimerText],
    ) -> Result<Vec<image::process::PosixTimer>, SaveError> {
        let results = self.results[TIMER_RESULTS..].chunks_exact(posix_timers::CALLS_EACH);
        let settings = self.bytes[TIMERS..].chunks_exact(posix_timers::SETTING_BYTES);
        let answers = timers.iter().zip(results.zip(settings));
        answers.map(|(timer, answer)| posix_timers::answer(frozen, numbers, timer, answer)).collect()
    }

    /// N.B. `getcwd` tells the path inside the app's root, which is the one to go back to after `chroot`.
    pub fn filesystem(&self, pid: i32) -> Result<Filesystem, SaveError> {
        let directory = Filled(&self.bytes).string(DIRECTORY, PATH_BYTES_MAX);
        if self.results[DIRECTORY_RESULT] < 0 || !directory.starts_with(b"/") {
            return Err(Unsupported {
                pid,
                what: "its working directory was deleted, or lies outside of its root".to_owned(),
                way_out: "start it in a directory that stays".to_owned(),
            }
            .into());
        }
        let root = rustix::fs::readlink(format!("/proc/{pid}/root"), Vec::new())
            .map_err(SaveError::kernel("the root directory", pid))?;
        Ok(Filesystem {
            working_directory: ByteBuf::from(directory),
            root: ByteBuf::from(root.into_bytes()),
            umask: self.umask(),
        })
    }
}

/// The calls that make a skeleton's leader what the process was, before it has threads. `present` are its
/// group and session as they are. The executable, open in the skeleton as `executable`, is changed only if
/// there is one.
pub(super) fn furnish(
    process: &Process,
    memory: &MemoryMap,
    present: [i32; 2],
    executable: Option<i32>,
    (buffer, batch): (u64, &mut Batch),
    steps: &mut Steps,
) {
    let attributes = &process.attributes;
    let mut add = |batch: &mut Batch, what, number, arguments: [u64; 4]| {
        steps.add(batch, what, number, arguments);
    };
    let map = memory_map(memory, executable, buffer, batch);
    let (set_mm, set_mm_map) = (libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64);
    add(batch, "set the bounds of the memory", libc::SYS_prctl, [set_mm, set_mm_map, map.0, map.1]);
    add(batch, "set the personality", libc::SYS_personality, [attributes.personality.into(), 0, 0, 0]);
    let huge = u64::from(attributes.transparent_huge_pages_off);
    add(batch, "set the use of huge pages", libc::SYS_prctl, [PR_SET_THP_DISABLE, huge, 0, 0]);
    let subreaper = u64::from(attributes.child_subreaper);
    let set_subreaper = libc::PR_SET_CHILD_SUBREAPER as u64;
    add(batch, "set the subreaper", libc::SYS_prctl, [set_subreaper, subreaper, 0, 0]);
    let files = &process.filesystem;
    let path = |batch: &mut Batch, path: &[u8]| buffer + batch.put(&[path, &[0]].concat());
    if files.root.as_slice() != b"/" {
        let root = path(batch, &files.root);
        add(batch, "change the root directory", libc::SYS_chroot, [root, 0, 0, 0]);
    }
    let directory = path(batch, &files.working_directory);
    add(batch, "change the working directory", libc::SYS_chdir, [directory, 0, 0, 0]);
    add(batch, "set the umask", libc::SYS_umask, [files.umask.into(), 0, 0, 0]);
    // A group or session that is led by somebody outside of the app stays what the cell has.
    if process.session == process.pid && present[1] != process.session {
        add(batch, "begin a session", libc::SYS_setsid, [0; 4]);
    } else if process.group == process.pid && present[0] != process.group {
        add(batch, "begin a process group", libc::SYS_setpgid, [0; 4]);
    }
    set_actions(&process.actions, buffer, batch, steps);
}

/// `struct prctl_mm_map`: its address and length.
fn memory_map(memory: &MemoryMap, executable: Option<i32>, buffer: u64, batch: &mut Batch) -> (u64, u64) {
    let auxv = buffer + batch.put(&memory.auxv);
    let bounds = [
        memory.start_code,
        memory.end_code,
        memory.start_data,
        memory.end_data,
        memory.start_brk,
        memory.brk,
        memory.start_stack,
        memory.arg_start,
        memory.arg_end,
        memory.env_start,
        memory.env_end,
        auxv,
    ];
    let mut bytes = words(&bounds);
    bytes.extend_from_slice(&(memory.auxv.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&executable.unwrap_or(-1).to_ne_bytes());
    (buffer + batch.put(&bytes), bytes.len() as u64)
}

fn set_actions(actions: &[SignalAction], buffer: u64, batch: &mut Batch, steps: &mut Steps) {
    for (signal, action) in (1..).zip(actions) {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let SignalAction { handler, flags, restorer, mask } = *action;
        let action = buffer + batch.put(&words(&[handler, flags, restorer, mask]));
        let arguments = [signal as u64, action, 0, SIGSET_BYTES];
        steps.add(batch, "set a signal's action", libc::SYS_rt_sigaction, arguments);
    }
}

/// The calls that set the limits, one for each.
pub(super) fn set_limits(limits: &[Limit], buffer: u64, batch: &mut Batch, steps: &mut Steps) {
    for limit in limits {
        let value = buffer + batch.put(&words(&[limit.soft, limit.hard]));
        let arguments = [0, limit.resource.into(), value, 0];
        steps.add(batch, "set a resource limit", libc::SYS_prlimit64, arguments);
    }
}

/// A periodic timer whose signal nobody has taken yet has no time left and stands still: the kernel starts it again
/// when the signal is taken. Here it rings at once, its signal merges with the one that waits, and it goes on likewise.
pub(super) fn arm(timers: &[IntervalTimer], buffer: u64, batch: &mut Batch, steps: &mut Steps) {
    let is_set = |timer: &IntervalTimer| timer.value_us != 0 || timer.interval_us != 0;
    for (which, timer) in timers.iter().enumerate().filter(|(_, timer)| is_set(timer)) {
        let parts = |time: u64| [time / MICROSECONDS, time % MICROSECONDS];
        let setting = words(&[parts(timer.interval_us), parts(timer.value_us.max(1))].concat());
        let setting = buffer + batch.put(&setting);
        steps.add(batch, "start an interval timer", libc::SYS_setitimer, [which as u64, setting, 0]);
    }
}

/// What of the process is set from outside of it; only where it differs.
pub(super) fn set_from_outside(pid: i32, process: &Process) -> io::Result<()> {
    let attributes = &process.attributes;
    let score = attributes.oom_score_adj.to_string();
    set_text(&format!("/proc/{pid}/oom_score_adj"), &score, |text| text.trim() == score)?;
    let filter = format!("{:#x}", attributes.coredump_filter);
    let same = |text: &str| u32::from_str_radix(text.trim(), 16) == Ok(attributes.coredump_filter);
    set_text(&format!("/proc/{pid}/coredump_filter"), &filter, same)
}

fn set_text(path: &str, text: &str, is_set: impl Fn(&str) -> bool) -> io::Result<()> {
    if is_set(&std::fs::read_to_string(path)?) {
        return Ok(());
    }
    std::fs::write(path, text)
}
