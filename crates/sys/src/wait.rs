//! Waiting for tracees and children, as events instead of status bits.

use std::io;

use libc::pid_t;

/// Why a traced thread stopped, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// About to receive this signal; it is lost unless it is given back on resuming.
    Signal(i32),
    /// At the beginning or the end of a system call, as `PTRACE_O_TRACESYSGOOD` reports it.
    Call,
    /// Because we interrupted it, or because it was born traced.
    Interrupted,
    /// Stopped by job control with this signal.
    Group(i32),
    /// Made a thread.
    Clone,
    /// Made a process.
    Fork,
    /// Made a process and waits for its end or exec.
    Vfork,
    Exec,
    /// On its way out, as `PTRACE_O_TRACEEXIT` reports it.
    Exit,
    /// A ptrace event that we did not ask for.
    Other(i32),
    Exited(i32),
    Killed(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    pub tid: pid_t,
    pub stop: Stop,
}

/// Which of this thread's tracees and children to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    Any,
    Only(pid_t),
}

/// Waits until `whom` has something to say. `EINTR` when a signal came, which is how a deadline ends it.
pub fn wait(whom: Whom) -> io::Result<Waited> {
    waitpid(whom, 0).map(|waited| waited.expect("a blocking wait returns somebody"))
}

/// What `whom` has to say now, if anything.
pub fn poll(whom: Whom) -> io::Result<Option<Waited>> {
    waitpid(whom, libc::WNOHANG)
}

/// N.B. `__WNOTHREAD`: only what *this* thread traces or made. A manager has one tracer thread per app, and
/// none may reap for another.
fn waitpid(whom: Whom, flags: i32) -> io::Result<Option<Waited>> {
    let pid = match whom {
        Whom::Any => -1,
        Whom::Only(tid) => tid,
    };
    let mut status = 0;
    // SAFETY: `status` is a live integer that the kernel fills.
    let tid = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::__WNOTHREAD | flags) };
    match tid {
        ..0 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        tid => Ok(Some(Waited { tid, stop: decode(status) })),
    }
}

/// Takes the end of a thread, if it has ended: any other report of it is left for later.
///
/// N.B. the kernel reports the stops of a tracee whatever it is asked for, so this looks before it takes.
pub fn reap(tid: pid_t) -> io::Result<Option<Waited>> {
    // SAFETY: all-zero is a valid `siginfo_t`.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: `info` is live and filled by the kernel.
    let ret = unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, &raw mut info, flags) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    match info.si_code {
        libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => poll(Whom::Only(tid)),
        _ => Ok(None),
    }
}

fn decode(status: i32) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Killed(libc::WTERMSIG(status));
    }
    const CALL: i32 = libc::SIGTRAP | 0x80;
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == CALL => Stop::Call,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        libc::PTRACE_EVENT_CLONE => Stop::Clone,
        libc::PTRACE_EVENT_FORK => Stop::Fork,
        libc::PTRACE_EVENT_VFORK => Stop::Vfork,
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_EXIT => Stop::Exit,
        event => Stop::Other(event),
    }
}
