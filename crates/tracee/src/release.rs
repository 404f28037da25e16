//! Letting go of the app: it runs on untraced, and nothing of ours is in it.
//!
//! Every thread is detached from the stop that a freeze brought it to. Nobody runs then, so nobody is born to a
//! thread that is traced; and nobody is about to receive a signal, which a detach would lose. Only a thread that
//! makes the rest of a call stays a little longer: it can do nothing but that, and at its end it is detached.

use std::io;
use std::time::{Duration, Instant};

use sys::wait::{Stop, Whom};
use sys::{ptrace, wait};

use crate::error::TraceError;
use crate::tree::{Thread, Tree, advance_rest, catches, end_rest, go, gone_is_fine};

const PATIENCE: Duration = Duration::from_secs(2);
/// How long the rest of a call may take before the app is told how far it came.
const REST_PATIENCE: Duration = Duration::from_secs(2);

impl Tree {
    /// Lets go of the app, which runs on untraced. On failure some threads may stay traced as long as the
    /// thread lives that calls this.
    pub fn release(mut self) -> Result<(), TraceError> {
        let began = Instant::now();
        let mut frozen = loop {
            match self.freeze(PATIENCE) {
                Err(TraceError::Forked(_)) if began.elapsed() < PATIENCE => (),
                frozen => break frozen?,
            }
        };
        let mut released = frozen.remove_scratch();
        frozen.stay();
        let mut busy = Vec::new();
        for (pid, process) in std::mem::take(&mut self.processes) {
            for (tid, mut thread) in process.threads {
                let is_gone = let_go(pid, tid, &mut thread);
                if matches!(is_gone, Ok(false)) {
                    busy.push((tid, thread));
                }
                released = released.and(gone_is_fine(is_gone.map(drop), tid));
            }
        }
        released.and(finish(busy))
    }
}

/// Detaches a stopped thread, or has it make the rest of its call: whether it is gone. What was held back goes
/// first: a signal that comes later must not overtake it.
fn let_go(pid: i32, tid: i32, thread: &mut Thread) -> io::Result<bool> {
    for signal in thread.deferred.drain(..) {
        sys::task::kill_thread(pid, tid, signal)?;
    }
    let is_free = thread.rest.is_none();
    match is_free {
        true => ptrace::detach(tid, 0)?,
        false => go(tid, true, 0)?,
    }
    Ok(is_free)
}

/// Waits for threads that make the rest of a call, all at once.
fn finish(mut busy: Vec<(i32, Thread)>) -> Result<(), TraceError> {
    const PAUSE: Duration = Duration::from_micros(200);
    let deadline = Instant::now() + REST_PATIENCE;
    let mut is_late = false;
    let mut finished = Ok(());
    while !busy.is_empty() {
        if !is_late && Instant::now() >= deadline {
            is_late = true;
            for (tid, _) in &busy {
                finished = finished.and(gone_is_fine(ptrace::interrupt(*tid), *tid));
            }
        }
        busy.retain_mut(|(tid, thread)| match attend(*tid, thread, is_late) {
            Ok(is_gone) => !is_gone,
            Err(why) => {
                finished = std::mem::replace(&mut finished, Ok(())).and(gone_is_fine(Err(why), *tid));
                false
            }
        });
        std::thread::sleep(PAUSE);
    }
    finished
}

/// Answers what a thread has to say that makes the rest of a call: whether it is gone.
fn attend(tid: i32, thread: &mut Thread, is_late: bool) -> io::Result<bool> {
    let Some(waited) = wait::poll(Whom::Only(tid))? else { return Ok(false) };
    let signal = match waited.stop {
        Stop::Exited(_) | Stop::Killed(_) => return Ok(true),
        Stop::Call => {
            match advance_rest(tid, thread)? {
                true if is_late => end_rest(tid, thread)?,
                // N.B. this stop has taken the interrupt away.
                false if is_late => ptrace::interrupt(tid)?,
                true | false => (),
            }
            0
        }
        Stop::Signal(signal) => {
            if is_late || catches(tid, signal) {
                end_rest(tid, thread)?;
            }
            signal
        }
        // By job control: it may stand for long.
        Stop::Group(_) => {
            end_rest(tid, thread)?;
            0
        }
        Stop::Interrupted
        | Stop::Clone
        | Stop::Fork
        | Stop::Vfork
        | Stop::Exec
        | Stop::Exit
        | Stop::Other(_) => {
            if is_late {
                end_rest(tid, thread)?;
            }
            0
        }
    };
    let is_over = thread.rest.is_none();
    match is_over {
        true => ptrace::detach(tid, signal)?,
        false => go(tid, true, signal)?,
    }
    Ok(is_over)
}
