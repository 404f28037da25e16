//! The traced app while it runs: a list of processes and their threads, all seized.
//!
//! ```text
//!           seize                freeze                 thaw
//! foreign ────────▶ running ◀──────────▶ stopped (on loan) ──▶ running
//!                      │ signal, clone, fork, exec: answered at once by `pump`
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::marker::PhantomData;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;
use sys::alarm::Alarm;
use sys::wait::{Stop, Waited, Whom};
use sys::{ptrace, wait};
use tracing::debug;

use crate::error::TraceError;
use crate::frozen::Frozen;
use crate::rest::Unfinished;
use crate::restart::Blocked;
use crate::scratch::Scratch;

/// New threads and processes are traced from their birth, and an exec is announced.
pub(crate) const OPTIONS: i32 = libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC
    // Only threads that make the rest of a call stop at calls, and this tells that from a SIGTRAP.
    | libc::PTRACE_O_TRACESYSGOOD;

/// How long a wait for a leader goes on before we look whether its threads have died: see
/// [`Tree::reap_threads`].
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Exited(i32),
    Killed(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeEvent {
    /// `child` is traced, too.
    Forked {
        child: i32,
    },
    /// The address space is another one now.
    Executed {
        pid: i32,
    },
    /// A signal is killing all of its threads, and the first is dead. What they share goes with the last, and a large memory
    /// takes long.
    Dying {
        pid: i32,
        signal: i32,
    },
    Ended {
        pid: i32,
        ending: Ending,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Running,
    /// By us; resume it.
    Stopped,
    /// By job control as well; let it listen.
    GroupStopped,
}

#[derive(Debug)]
pub(crate) struct Thread {
    pub run: Run,
    pub blocked: Blocked,
    /// Of a call that a stop cut short, which it makes when it runs.
    pub rest: Option<Unfinished>,
    /// Signals that came while the thread ran calls for us: sent again at the thaw.
    pub deferred: Vec<i32>,
    /// Counts the births in the tree, an exec included: the kernel uses numbers again, this one never.
    pub birth: u64,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub threads: BTreeMap<i32, Thread>,
    pub scratch: Option<Scratch>,
    dying: bool,
}

/// A traced app. `!Send`: ptrace answers only the thread that seized.
#[derive(Debug)]
pub struct Tree {
    pub(crate) processes: BTreeMap<i32, Process>,
    pub(crate) alarm: Alarm,
    events: VecDeque<TreeEvent>,
    births: u64,
    here: PhantomData<*const ()>,
}

impl Tree {
    /// Seizes a running process with all its threads, without stopping it for longer than that takes. On
    /// failure nothing of it is traced.
    pub fn seize(pid: i32) -> Result<Self, TraceError> {
        let alarm = Alarm::new().map_err(TraceError::kernel("make a timer", pid))?;
        let mut tree =
            Self { processes: BTreeMap::new(), alarm, events: VecDeque::new(), births: 0, here: PhantomData };
        tree.adopt(pid)?;
        match tree.seize_threads(pid) {
            Ok(()) => Ok(tree),
            Err(why) => {
                if let Err(why) = tree.release() {
                    debug!(pid, "cannot let go of what was seized: {why}");
                }
                Err(why)
            }
        }
    }

    /// Threads that are being born while we look belong to threads that aren't traced yet.
    fn seize_threads(&mut self, pid: i32) -> Result<(), TraceError> {
        loop {
            let known = self.processes[&pid].threads.len();
            for tid in threads_of(pid).map_err(TraceError::kernel("list the threads", pid))? {
                self.seize_thread(pid, tid)?;
            }
            if self.processes[&pid].threads.len() == known && known > 0 {
                return Ok(());
            }
        }
    }

    fn seize_thread(&mut self, pid: i32, tid: i32) -> Result<(), TraceError> {
        if self.processes[&pid].threads.contains_key(&tid) {
            return Ok(());
        }
        match ptrace::seize(tid, OPTIONS) {
            Ok(()) => (),
            // It ended, or it was born to a traced thread and is traced already.
            Err(why) if why.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(why)
                if why.raw_os_error() == Some(libc::EPERM)
                    && tracer_of(tid) == Some(sys::task::own_tid()) => {}
            // The kernel has no other word for one that is about to be gone.
            Err(why) if why.raw_os_error() == Some(libc::EPERM) && is_ending(tid) => return Ok(()),
            Err(why) => return Err(refusal(pid, tid, &why)),
        }
        self.add_thread(pid, tid, Run::Running);
        Ok(())
    }

    fn adopt(&mut self, pid: i32) -> Result<(), TraceError> {
        let number = Pid::from_raw(pid).ok_or(TraceError::Ended(pid))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())
            .map_err(|why| TraceError::kernel("open the process", pid)(why.into()))?;
        self.processes
            .insert(pid, Process { pid, pidfd, threads: BTreeMap::new(), scratch: None, dying: false });
        Ok(())
    }

    pub(crate) fn add_thread(&mut self, pid: i32, tid: i32, run: Run) {
        self.births += 1;
        let process = self.processes.get_mut(&pid).expect("threads are added to known processes");
        let (blocked, deferred) = (Blocked::default(), Vec::new());
        let thread = Thread { run, blocked, rest: None, deferred, birth: self.births };
        process.threads.entry(tid).or_insert(thread);
    }

    /// The processes of the tree, the first one first.
    pub fn pids(&self) -> impl Iterator<Item = i32> + '_ {
        self.processes.keys().copied()
    }

    pub fn threads(&self, pid: i32) -> usize {
        self.processes.get(&pid).map_or(0, |process| process.threads.len())
    }

    /// Answers everything that tracees have to say, without waiting: signals go on to where they were going,
    /// new threads join. Call it whenever the bell rings.
    pub fn pump(&mut self) -> Result<Vec<TreeEvent>, TraceError> {
        loop {
            match wait::poll(Whom::Any) {
                Ok(Some(waited)) => {
                    self.answer(waited)?;
                }
                Ok(None) => break,
                Err(why) if why.raw_os_error() == Some(libc::ECHILD) => break,
                Err(why) if why.raw_os_error() == Some(libc::EINTR) => (),
                Err(why) => return Err(TraceError::kernel("wait for the app", 0)(why)),
            }
        }
        Ok(self.events.drain(..).collect())
    }

    /// Records a stop and resumes the thread; only a stop that we caused leaves it stopped.
    fn answer(&mut self, Waited { tid, stop }: Waited) -> Result<(), TraceError> {
        let Some(pid) = self.process_of(tid) else { return self.answer_stranger(Waited { tid, stop }) };
        match stop {
            Stop::Exited(code) => self.thread_ended(pid, tid, Ending::Exited(code)),
            Stop::Killed(signal) => self.thread_ended(pid, tid, Ending::Killed(signal)),
            Stop::Signal(signal) => {
                self.signalled(tid, signal)?;
                self.go_on(tid, signal)?;
            }
            Stop::Group(_) => gone_is_fine(ptrace::listen(tid), tid)?,
            Stop::Call => {
                self.at_call(tid)?;
                self.go_on(tid, 0)?;
            }
            Stop::Interrupted => {
                self.settle_late(tid);
                self.go_on(tid, 0)?;
            }
            Stop::Exit | Stop::Other(_) => self.go_on(tid, 0)?,
            Stop::Clone | Stop::Fork | Stop::Vfork => {
                let made =
                    ptrace::event_message(tid).map_err(TraceError::kernel("see what was made", tid))? as i32;
                if stop == Stop::Clone && process_of_new_thread(made) == Some(pid) {
                    self.add_thread(pid, made, Run::Running);
                } else {
                    self.child_made(made)?;
                }
                gone_is_fine(ptrace::resume(tid, 0), tid)?;
            }
            Stop::Exec => {
                self.executed(pid);
                gone_is_fine(ptrace::resume(tid, 0), tid)?;
            }
        }
        Ok(())
    }

    fn go_on(&self, tid: i32, signal: i32) -> Result<(), TraceError> {
        let thread = self.processes.values().find_map(|process| process.threads.get(&tid));
        gone_is_fine(go(tid, thread.is_some_and(|thread| thread.rest.is_some()), signal), tid)
    }

    /// A thread that stopped when nobody waited for it any more may not see it either.
    fn settle_late(&mut self, tid: i32) {
        let mut frozen = Frozen::new(self, Instant::now());
        if let Err(why) = frozen.stand(tid) {
            debug!(tid, "a thread may see that it was stopped: {why}");
        }
        frozen.stay();
    }

    /// A thread that makes the rest of a call stopped at the beginning of a piece, or at its end: there it
    /// gets the next, or what the app is to see. Returns whether it was the end.
    fn at_call(&mut self, tid: i32) -> Result<bool, TraceError> {
        let Some(thread) = self.thread(tid) else { return Ok(true) };
        gone_is(true, advance_rest(tid, thread), tid)
    }

    /// A signal whose handler is about to run ends the rest of a call: the app sees how far it came.
    fn signalled(&mut self, tid: i32, signal: i32) -> Result<(), TraceError> {
        let Some(thread) = self.thread(tid) else { return Ok(()) };
        if thread.rest.is_none() || !catches(tid, signal) {
            return Ok(());
        }
        gone_is((), end_rest(tid, thread), tid)
    }

    /// A tracee that we have not heard of yet: born to one that we have, and faster than its parent's report.
    fn answer_stranger(&mut self, Waited { tid, stop }: Waited) -> Result<(), TraceError> {
        if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
            return Ok(()); // A child of this process that is no tracee, or one that lived too short to matter.
        }
        match process_of_new_thread(tid) {
            Some(pid) if self.processes.contains_key(&pid) => self.add_thread(pid, tid, Run::Running),
            Some(_) => self.child_made(tid)?,
            None => return Ok(()),
        }
        self.answer(Waited { tid, stop })
    }

    fn child_made(&mut self, child: i32) -> Result<(), TraceError> {
        if self.processes.contains_key(&child) {
            return Ok(());
        }
        match self.adopt(child) {
            Ok(()) => {
                self.add_thread(child, child, Run::Running);
                self.events.push_back(TreeEvent::Forked { child });
                Ok(())
            }
            Err(TraceError::Ended(_)) => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// After an exec only the leader is left, with a new address space.
    fn executed(&mut self, pid: i32) {
        let process = self.processes.get_mut(&pid).expect("an exec of a known process");
        process.threads.clear();
        process.scratch = None;
        self.add_thread(pid, pid, Run::Running);
        self.events.push_back(TreeEvent::Executed { pid });
    }

    /// N.B. the kernel reports a leader's end only when all its other threads have been reaped, and they wait
    /// for us. So whoever waits for a leader calls this now and then.
    pub(crate) fn reap_threads(&mut self, leader: i32) {
        let Some(process) = self.processes.get(&leader) else { return };
        let others: Vec<i32> = process.threads.keys().copied().filter(|&tid| tid != leader).collect();
        for tid in others {
            if let Ok(Some(Waited { stop, .. })) = wait::reap(tid) {
                self.ended(tid, stop);
            }
        }
    }

    /// Takes note of an end that somebody else waited for.
    pub(crate) fn ended(&mut self, tid: i32, stop: Stop) {
        let ending = match stop {
            Stop::Exited(code) => Ending::Exited(code),
            Stop::Killed(signal) => Ending::Killed(signal),
            _ => return,
        };
        if let Some(pid) = self.process_of(tid) {
            self.thread_ended(pid, tid, ending);
        }
    }

    fn thread_ended(&mut self, pid: i32, tid: i32, ending: Ending) {
        let process = self.processes.get_mut(&pid).expect("a thread of a known process");
        process.threads.remove(&tid);
        // The leader is reported last, and for the whole process.
        if tid == pid {
            debug!(pid, ?ending, "process ended");
            self.processes.remove(&pid);
            self.events.push_back(TreeEvent::Ended { pid, ending });
        } else if let Ending::Killed(signal) = ending
            && !std::mem::replace(&mut process.dying, true)
        {
            self.events.push_back(TreeEvent::Dying { pid, signal });
        }
    }

    pub(crate) fn process_of(&self, tid: i32) -> Option<i32> {
        self.processes.values().find(|process| process.threads.contains_key(&tid)).map(|process| process.pid)
    }

    /// Stops every thread of the tree. On failure everything runs again.
    pub fn freeze(&mut self, patience: Duration) -> Result<Frozen<'_>, TraceError> {
        let began = Instant::now();
        self.alarm.arm(patience.min(TICK)).map_err(TraceError::kernel("set a deadline", 0))?;
        let stopped = self.stop_all(began, patience);
        let disarmed = self.alarm.disarm().map_err(TraceError::kernel("take back a deadline", 0));
        match stopped.and(disarmed) {
            // A frozen tree that is dropped runs again, also if this fails.
            Ok(()) => Frozen::new(self, began).settle_all(),
            Err(why) => {
                Frozen::new(self, began).settle_stopped();
                Err(why)
            }
        }
    }

    /// Stops every thread until [`Frozen::thaw_into_tree`]. On failure everything runs again, untraced.
    pub fn freeze_for_good(mut self, patience: Duration) -> Result<Frozen<'static>, TraceError> {
        let began = Instant::now();
        self.freeze(patience)?.stay();
        Ok(Frozen::owning(self, began))
    }

    fn stop_all(&mut self, began: Instant, patience: Duration) -> Result<(), TraceError> {
        let running: Vec<i32> = self.processes.values().flat_map(|p| p.threads.keys().copied()).collect();
        for &tid in &running {
            gone_is_fine(ptrace::interrupt(tid), tid)?;
        }
        for tid in running {
            self.await_stop(tid, began, patience)?;
        }
        // Threads that were born meanwhile stop at birth.
        while let Some(tid) = self.any_running() {
            self.await_stop(tid, began, patience)?;
        }
        if self.processes.is_empty() {
            return Err(TraceError::Ended(0));
        }
        Ok(())
    }

    fn any_running(&self) -> Option<i32> {
        let threads = self.processes.values().flat_map(|process| process.threads.iter());
        threads.filter(|(_, thread)| thread.run == Run::Running).map(|(&tid, _)| tid).next()
    }

    fn await_stop(&mut self, tid: i32, began: Instant, patience: Duration) -> Result<(), TraceError> {
        while self.thread(tid).is_some_and(|thread| thread.run == Run::Running) {
            let waited = match wait::wait(Whom::Only(tid)) {
                Ok(waited) => waited,
                Err(why) if why.raw_os_error() == Some(libc::EINTR) => {
                    self.reap_threads(tid);
                    if began.elapsed() >= patience {
                        return Err(TraceError::NotStopping {
                            tid,
                            waited_ms: began.elapsed().as_millis() as u64,
                        });
                    }
                    continue;
                }
                Err(why) => return Err(TraceError::kernel("wait for the thread to stop", tid)(why)),
            };
            let run = match waited.stop {
                Stop::Interrupted => Run::Stopped,
                Stop::Group(_) => Run::GroupStopped,
                Stop::Fork | Stop::Vfork => {
                    self.answer(waited)?;
                    return Err(TraceError::Forked(tid));
                }
                // Where a piece of a call's rest ends is as good a place as any.
                Stop::Call if self.at_call(tid)? => Run::Stopped,
                // N.B. any other stop takes the pending interrupt away, so it is asked for again before the
                // thread goes on. A thread about to receive a signal gets it: the frame of its handler is then
                // part of what we capture.
                Stop::Signal(_)
                | Stop::Call
                | Stop::Clone
                | Stop::Exec
                | Stop::Exit
                | Stop::Other(_)
                | Stop::Exited(_)
                | Stop::Killed(_) => {
                    gone_is_fine(ptrace::interrupt(tid), tid)?;
                    self.answer(waited)?;
                    continue;
                }
            };
            if let Some(thread) = self.thread(tid) {
                thread.run = run;
            }
        }
        Ok(())
    }

    pub(crate) fn thread(&mut self, tid: i32) -> Option<&mut Thread> {
        self.processes.values_mut().find_map(|process| process.threads.get_mut(&tid))
    }

    /// Gives every stopped thread back. Threads that are gone are left to `pump`.
    pub(crate) fn resume_all(&mut self) {
        for process in self.processes.values_mut() {
            for (&tid, thread) in &mut process.threads {
                let _gone = match thread.run {
                    Run::Running => continue,
                    Run::Stopped => go(tid, thread.rest.is_some(), 0),
                    Run::GroupStopped => listen_again(tid),
                };
                thread.run = Run::Running;
                for signal in thread.deferred.drain(..) {
                    let _gone = sys::task::kill_thread(process.pid, tid, signal);
                }
                tracing::trace!(target: "places", tid, "thread goes on");
            }
        }
    }
}

/// Leaves a thread in its group stop. One that has run calls for us stands at their end instead, where nobody can
/// listen: it stops again before it runs anything of its own, and is answered then.
fn listen_again(tid: i32) -> io::Result<()> {
    match ptrace::listen(tid) {
        Err(why) if why.raw_os_error() == Some(libc::EIO) => {
            ptrace::interrupt(tid)?;
            ptrace::resume(tid, 0)
        }
        other => other,
    }
}

/// Resumes a thread. One that makes the rest of a call does that alone, past any seccomp filter, and stops
/// at its end.
pub(crate) fn go(tid: i32, makes_rest: bool, signal: i32) -> io::Result<()> {
    if !makes_rest {
        return ptrace::resume(tid, signal);
    }
    match ptrace::set_options(tid, OPTIONS | ptrace::O_SUSPEND_SECCOMP) {
        // Who may not do that takes no epochs either, and must not leave the thread standing.
        Err(why) if why.raw_os_error() == Some(libc::EPERM) => (),
        result => result?,
    }
    ptrace::resume_to_call(tid, signal)
}

/// At a stop for a call: see [`Tree::at_call`].
pub(crate) fn advance_rest(tid: i32, thread: &mut Thread) -> io::Result<bool> {
    if !ptrace::at_end_of_call(tid)? {
        return Ok(false);
    }
    let Some(unfinished) = &mut thread.rest else { return Ok(true) };
    let (next, is_over) = unfinished.advance(&ptrace::registers(tid)?, Instant::now());
    ptrace::set_registers(tid, &next)?;
    if is_over {
        thread.rest = None;
        ptrace::set_options(tid, OPTIONS)?;
    }
    Ok(true)
}

/// Ends the rest of a call before its next piece.
pub(crate) fn end_rest(tid: i32, thread: &mut Thread) -> io::Result<()> {
    let Some(unfinished) = thread.rest.take() else { return Ok(()) };
    ptrace::set_registers(tid, &unfinished.end_before(&ptrace::registers(tid)?))?;
    ptrace::set_options(tid, OPTIONS)
}

/// Whether the signal has a handler. If that can't be known, it is taken to have one.
pub(crate) fn catches(tid: i32, signal: i32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{tid}/status")) else { return true };
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_none_or(|mask| mask >> (signal - 1) & 1 == 1)
}

fn gone_is<T>(gone: T, result: io::Result<T>, tid: i32) -> Result<T, TraceError> {
    match result {
        Err(why) if why.raw_os_error() == Some(libc::ESRCH) => Ok(gone),
        other => other.map_err(TraceError::kernel("go on with a call", tid)),
    }
}

/// A thread that is gone has been resumed for good.
pub(crate) fn gone_is_fine(result: io::Result<()>, tid: i32) -> Result<(), TraceError> {
    match result {
        Err(why) if why.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map_err(TraceError::kernel("resume", tid)),
    }
}

pub(crate) fn threads_of(pid: i32) -> std::io::Result<Vec<i32>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).collect())
}

fn process_of_new_thread(tid: i32) -> Option<i32> {
    status_number(tid, "Tgid:")
}

fn tracer_of(tid: i32) -> Option<i32> {
    status_number(tid, "TracerPid:").filter(|&tracer| tracer != 0)
}

fn is_ending(tid: i32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{tid}/status")) else { return true };
    status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX"))
}

fn status_number(tid: i32, key: &str) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
}

fn refusal(pid: i32, tid: i32, why: &std::io::Error) -> TraceError {
    let why = match tracer_of(tid) {
        Some(tracer) => format!("process {tracer} traces it already; end that debugger or strace first"),
        None if why.raw_os_error() == Some(libc::EPERM) => {
            "permission denied; checksync needs root, or CAP_SYS_PTRACE and CAP_SYS_ADMIN".to_owned()
        }
        None => why.to_string(),
    };
    TraceError::Refused { pid, why }
}
