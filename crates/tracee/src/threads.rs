//! Making threads in a stopped process, and telling them where they go on.
//!
//! All threads of a process are made by one table of `clone3` calls in its leader. Each starts out stopped
//! and traced (`CLONE_PTRACE`), with the leader's registers, so it can do nothing of its own before it is
//! given others. A failure leaves the threads that were made stopped and traced.

use sys::ptrace::Registers;
use sys::wait::{Stop, Whom};
use sys::{memory, ptrace, wait};

use crate::error::TraceError;
use crate::frozen::{Frozen, SYSCALL, Stand};
use crate::loan::Loan;
use crate::restart::{Settled, Timeout, argument};
use crate::scratch::{CALLS_MAX, Call, RESTORED_TIMES};
use crate::tree::{OPTIONS, Run, threads_of};

const CLONE_ARGS_BYTES: usize = size_of::<libc::clone_args>();
/// What threads of one process share.
const SHARED: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

impl Frozen<'_> {
    /// Makes a thread for each of `numbers`, which are those of the process's own PID namespace. Returns what
    /// they are called in ours, in the same order.
    pub fn make_threads(&mut self, pid: i32, numbers: &[i32]) -> Result<Vec<i32>, TraceError> {
        let mut made = Vec::with_capacity(numbers.len());
        for table in numbers.chunks(CALLS_MAX) {
            made.extend(self.make_table_of_threads(pid, table)?);
        }
        Ok(made)
    }

    fn make_table_of_threads(&mut self, pid: i32, numbers: &[i32]) -> Result<Vec<i32>, TraceError> {
        let calls = self.clone_calls(pid, numbers)?;
        let scratch = self.scratch(pid);
        let (code, table) = (scratch.code_address(), scratch.fill(&calls));
        // N.B. without PTRACE_O_TRACECLONE: with it the leader would stop once per thread.
        let mut loan = Loan::begin_with(pid, self.stand(pid)?.registers, 0)?;
        loan.start(code, table)?;
        let deferred = loan.finish(&mut self.tree)?;
        self.defer(pid, deferred);
        let results = self.scratch(pid).results(numbers.len());
        let born = self.welcome(pid, table, numbers.len())?;
        for (&number, result) in numbers.iter().zip(results) {
            if result < 0 {
                let source = sys::kernel::error(result);
                return Err(TraceError::Kernel {
                    what: "make a thread with its number",
                    tid: number,
                    source,
                });
            }
        }
        Ok(born)
    }

    fn clone_calls(&mut self, pid: i32, numbers: &[i32]) -> Result<Vec<Call>, TraceError> {
        let mut remote = self.remote(pid)?;
        let start = remote.buffer().0;
        let (mut bytes, mut calls) = (Vec::new(), Vec::new());
        for (index, number) in numbers.iter().enumerate() {
            let arguments = start + (index * (CLONE_ARGS_BYTES + 8)) as u64;
            let set_tid = arguments + CLONE_ARGS_BYTES as u64;
            // struct clone_args { flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
            // set_tid, set_tid_size, cgroup }
            let words = [(SHARED | libc::CLONE_PTRACE) as u64, 0, 0, 0, 0, 0, 0, 0, set_tid, 1, 0];
            words.iter().for_each(|word: &u64| bytes.extend_from_slice(&word.to_ne_bytes()));
            bytes.extend_from_slice(&i64::from(*number).to_ne_bytes());
            calls.push(Call::new(libc::SYS_clone3, [arguments, CLONE_ARGS_BYTES as u64]));
        }
        remote.put(0, &bytes);
        Ok(calls)
    }

    /// Waits for the first stop of each new thread. Which is which their registers say: rbx still points to
    /// the entry of the table whose call made them.
    fn welcome(&mut self, pid: i32, table: u64, count: usize) -> Result<Vec<i32>, TraceError> {
        const ENTRY_BYTES: u64 = 64;
        let mut born = vec![0; count];
        for tid in threads_of(pid).map_err(TraceError::kernel("list the threads", pid))? {
            if self.tree.thread(tid).is_some() {
                continue;
            }
            self.tree.add_thread(pid, tid, Run::Stopped);
            await_birth(tid)?;
            let failed = |what| TraceError::kernel(what, tid);
            ptrace::set_options(tid, OPTIONS).map_err(failed("trace a new thread"))?;
            let rbx = ptrace::registers(tid).map_err(failed("recognise a new thread"))?.rbx;
            let index = (rbx.wrapping_sub(table) / ENTRY_BYTES) as usize;
            *born.get_mut(index).ok_or_else(|| unexpected(tid, "registers of none that we made"))? = tid;
        }
        Ok(born)
    }

    /// Has a thread go on with `registers`. If they make a call whose timeout lies in memory, it gets
    /// one of ours: number `index`, which no other thread of the process may use.
    pub fn set_registers(
        &mut self,
        pid: i32,
        tid: i32,
        mut registers: Registers,
        timeout: Option<(usize, Timeout)>,
    ) -> Result<(), TraceError> {
        if let Some((index, timeout)) = timeout {
            self.remote(pid)?;
            let address = self.scratch(pid).put_time(index % RESTORED_TIMES, timeout.remaining);
            *argument(&mut registers, timeout.argument) = address;
        }
        ptrace::set_registers(tid, &registers).map_err(TraceError::kernel("set the registers", tid))?;
        let timeout = timeout.map(|(_, timeout)| timeout);
        // What calls of ours registered since the stop counts.
        let rseq =
            ptrace::rseq_configuration(tid).map_err(TraceError::kernel("read the rseq registration", tid))?;
        let settled = Settled { here: None, elsewhere: registers, timeout, slot_time: None };
        self.stands.insert(tid, Stand { registers, settled, rseq });
        Ok(())
    }

    /// A thread that did not come to make its call yet, since it was restored or settled, still points to a
    /// time of ours.
    pub(crate) fn timeout_given(&mut self, tid: i32, registers: &Registers) -> Option<Timeout> {
        if registers.orig_rax as i64 >= 0 {
            return None;
        }
        let pid = self.tree.process_of(tid)?;
        let scratch = self.tree.processes[&pid].scratch.as_ref()?;
        let find = |number: u8| {
            let remaining = scratch.time_at(*argument(&mut registers.clone(), number))?;
            Some(Timeout { argument: number, remaining })
        };
        let given = (0..6).find_map(find)?;
        // It may just not have used that register since.
        let mut instruction = [0; 2];
        memory::read(pid, registers.rip, &mut instruction).ok()?;
        (instruction == SYSCALL).then_some(given)
    }
}

fn await_birth(tid: i32) -> Result<(), TraceError> {
    loop {
        match wait::wait(Whom::Only(tid)) {
            Ok(waited) => match waited.stop {
                Stop::Interrupted | Stop::Group(_) => return Ok(()),
                Stop::Exited(_) | Stop::Killed(_) => return Err(TraceError::Ended(tid)),
                stop @ (Stop::Signal(_)
                | Stop::Call
                | Stop::Clone
                | Stop::Fork
                | Stop::Vfork
                | Stop::Exec
                | Stop::Exit
                | Stop::Other(_)) => return Err(unexpected(tid, &format!("{stop:?}"))),
            },
            Err(why) if why.raw_os_error() == Some(libc::EINTR) => (),
            Err(why) => return Err(TraceError::kernel("wait for a new thread", tid)(why)),
        }
    }
}

fn unexpected(tid: i32, stop: &str) -> TraceError {
    TraceError::NotRestored { tid, stop: stop.to_owned() }
}
