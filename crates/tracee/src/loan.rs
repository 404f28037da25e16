//! One thread at a time: what it had is put away, it runs something of ours, and it is given back.
//!
//! A thread that runs calls for us gets back its registers, its signal mask and its seccomp filters before
//! anything else can happen to it. Only its death is no failure to give it back.

use std::io;

use sys::ptrace::Registers;
use sys::wait::{Stop, Whom};
use sys::{ptrace, wait};

use crate::error::TraceError;
use crate::frozen::SYSCALL;
use crate::scratch::{CODE, Call};
use crate::tree::{OPTIONS, TICK, Tree};

const ALL_SIGNALS: u64 = u64::MAX;

/// One thread, borrowed to run something of ours. It must end in `finish` or `give_back`.
#[derive(Debug)]
pub(crate) struct Loan {
    pub tid: i32,
    registers: Registers,
    mask: u64,
    /// Where it stands once all that was started is done.
    end: u64,
    deferred: Vec<i32>,
}

impl Loan {
    /// N.B. with its signals open, a pending one would get in between, and a filter could kill the app for
    /// a call that is ours.
    ///
    /// `registers` are those that the thread has.
    pub fn begin(tid: i32, registers: Registers) -> Result<Self, TraceError> {
        Self::begin_with(tid, registers, OPTIONS)
    }

    /// With other options than ours for the time.
    pub fn begin_with(tid: i32, registers: Registers, options: i32) -> Result<Self, TraceError> {
        let failed = |what| TraceError::kernel(what, tid);
        let mask = ptrace::signal_mask(tid).map_err(failed("read the signal mask"))?;
        ptrace::set_signal_mask(tid, ALL_SIGNALS).map_err(failed("block the signals"))?;
        ptrace::set_options(tid, options | ptrace::O_SUSPEND_SECCOMP).map_err(failed("suspend seccomp"))?;
        Ok(Self { tid, registers, mask, end: 0, deferred: Vec::new() })
    }

    /// N.B. the stack pointer is not the app's: `sigaltstack` answers for the stack that it points into.
    pub fn start(&mut self, code: u64, table: u64) -> Result<(), TraceError> {
        let registers = Registers { rip: code, rbx: table, rsp: 0, orig_rax: u64::MAX, ..self.registers };
        self.set(&registers)?;
        self.end = code + CODE.len() as u64;
        ptrace::resume(self.tid, 0).map_err(TraceError::kernel("start calls", self.tid))
    }

    /// Waits for the end of what was started; returns the signals that came meanwhile.
    pub fn finish(mut self, tree: &mut Tree) -> Result<Vec<i32>, TraceError> {
        self.await_trap(tree, |tid| ptrace::resume(tid, 0))?;
        self.give_back()
    }

    /// Makes one call through the `syscall` at `instruction`.
    pub fn step(&mut self, tree: &mut Tree, instruction: u64, call: Call) -> Result<i64, TraceError> {
        let [rdi, rsi, rdx, r10, r8, r9] = call.arguments;
        let registers = Registers {
            rip: instruction,
            rax: call.number as u64,
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        };
        self.set(&registers)?;
        self.end = instruction + SYSCALL.len() as u64;
        ptrace::single_step(self.tid).map_err(TraceError::kernel("step", self.tid))?;
        self.await_trap(tree, ptrace::single_step)?;
        let after = ptrace::registers(self.tid).map_err(TraceError::kernel("read a result", self.tid))?;
        Ok(after.rax as i64)
    }

    pub fn checked_step(
        &mut self,
        tree: &mut Tree,
        instruction: u64,
        call: Call,
        what: &'static str,
    ) -> Result<u64, TraceError> {
        let result = self.step(tree, instruction, call)?;
        u64::try_from(result).map_err(|_| TraceError::Kernel {
            what,
            tid: self.tid,
            source: sys::kernel::error(result),
        })
    }

    fn set(&self, registers: &Registers) -> Result<(), TraceError> {
        ptrace::set_registers(self.tid, registers).map_err(TraceError::kernel("set the registers", self.tid))
    }

    /// Waits for the trap at the end of what we started. A signal that can't be blocked is kept for later.
    fn await_trap(
        &mut self,
        tree: &mut Tree,
        go_on: impl Fn(i32) -> io::Result<()>,
    ) -> Result<(), TraceError> {
        loop {
            match self.await_stop(tree)? {
                Stop::Signal(libc::SIGTRAP) => return Ok(()),
                Stop::Signal(signal @ libc::SIGSTOP) => self.deferred.push(signal),
                // The kernel looks for the trap, which it unblocks, and takes the first fault in the queue, blocked or not:
                // one of the app's own, which it makes again when it goes on, since it stands where it made it.
                Stop::Signal(libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL)
                    if self.is_at_end()? => {}
                Stop::Interrupted | Stop::Group(_) => (),
                stop @ (Stop::Exited(_) | Stop::Killed(_)) => {
                    tree.ended(self.tid, stop);
                    return Err(TraceError::Ended(self.tid));
                }
                stop @ (Stop::Signal(_)
                | Stop::Call
                | Stop::Clone
                | Stop::Fork
                | Stop::Vfork
                | Stop::Exec
                | Stop::Exit
                | Stop::Other(_)) => {
                    return Err(TraceError::NotRestored { tid: self.tid, stop: format!("{stop:?}") });
                }
            }
            go_on(self.tid).map_err(TraceError::kernel("go on with a call", self.tid))?;
        }
    }

    /// All that we had started is done, so that no fault is ours.
    fn is_at_end(&self) -> Result<bool, TraceError> {
        let found =
            ptrace::registers(self.tid).map_err(TraceError::kernel("read the registers", self.tid))?;
        Ok(found.rip == self.end)
    }

    /// Somebody may kill the app meanwhile: see [`Tree::reap_threads`].
    fn await_stop(&self, tree: &mut Tree) -> Result<Stop, TraceError> {
        let failed = |what| TraceError::kernel(what, self.tid);
        let is_leader = tree.processes.contains_key(&self.tid);
        if is_leader {
            tree.alarm.arm(TICK).map_err(failed("set a deadline"))?;
        }
        let waited = loop {
            match wait::wait(Whom::Only(self.tid)) {
                Err(why) if why.raw_os_error() == Some(libc::EINTR) => tree.reap_threads(self.tid),
                waited => break waited,
            }
        };
        if is_leader {
            tree.alarm.disarm().map_err(failed("take back a deadline"))?;
        }
        waited.map(|waited| waited.stop).map_err(failed("wait for a call"))
    }

    pub fn give_back(self) -> Result<Vec<i32>, TraceError> {
        self.set(&self.registers)?;
        let failed = |what| TraceError::kernel(what, self.tid);
        ptrace::set_signal_mask(self.tid, self.mask).map_err(failed("restore the signal mask"))?;
        ptrace::set_options(self.tid, OPTIONS).map_err(failed("restore seccomp"))?;
        Ok(self.deferred)
    }
}
