//! The gate of timeline mode: a permit to speak, kept by the kernel.
//!
//! Two BPF programs on the app's cgroup, one each way, compare the host's boot clock with a deadline in memory
//! that they share with us, and drop every packet of the cgroup's sockets once it has passed: data,
//! acknowledgements, retransmissions, resets. Extending the permit is a store to that memory.
//!
//! - *Closed by default.* A new permit is shut. When the manager dies, or hangs, or is stopped, nobody moves the
//!   deadline, and the programs go on without it: they belong to the cgroup, not to a process. (A BPF *link*
//!   would open the way again with its last holder's death.) They go when the cgroup and its last
//!   socket are gone, so an orphaned connection does not come alive either.
//! - *No exemption for loopback.* A client on the same host is a client. An app that talks to itself over `lo`
//!   stalls with the rest while the permit is lapsed, and goes on with the next extension.
//! - *The host's clock.* Deadlines are on the boot clock of the initial time namespace ([`boot_clock_ns`]). A guard
//!   that went into a cell's may shut, but must not compute deadlines.
//!
//! What a permit does not reach, so that T2 - T1 or the caller has to: a packet that passed the check and waits
//! in a device's queue (microseconds; up to the pacing delay with `fq`); what the kernel says without a socket
//! of the app's, i.e. resets for ports nobody listens on, acknowledgements of connections in TIME_WAIT, ARP;
//! `AF_PACKET` sockets (a cell with a network of its own obeys the permit in all three:
//! [`CellNetwork::obey`](crate::CellNetwork::obey)); unix sockets; sockets made before the process came into the cgroup (see
//! [`CellCgroup`]); and a virtual machine that stands still with its clock.
//!
//! A process may put the last word in: after [`PermitHandle::revoke`] no extension counts, whoever makes it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use image::CheckpointId;
use rustix::io::FdFlags;
use rustix::time::ClockId;
use sys::bpf::{self, CgroupHook, LoadError, WordArray};

use crate::cgroup::CellCgroup;
use crate::filter;
use crate::{Gate, GateError};

/// Deadlines with a meaning of their own. The first two lie before anything that ever ran.
const SHUT: u64 = 0;
const REVOKED: u64 = 1;
const FOR_EVER: u64 = u64::MAX;

#[derive(Debug, thiserror::Error)]
pub enum PermitError {
    #[error(
        "this process may not load packet filters: it needs CAP_BPF and CAP_NET_ADMIN; run as root, or with \
         --fencing none"
    )]
    Forbidden,
    #[error(
        "the kernel does not accept the permit's program; run with --fencing none and report this: {log}"
    )]
    Program {
        log: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel has no packet filters on cgroups (CONFIG_CGROUP_BPF); run with --fencing none")]
    Unsupported,
    #[error(
        "a program on a cgroup above {cgroup} allows no others below it (`bpftool cgroup tree` names it); put \
         the app below another cgroup, or run with --fencing none"
    )]
    Occupied { cgroup: String },
    #[error("the descriptor is not a permit's")]
    NotAPermit(#[source] io::Error),
    #[error("cannot {what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The permit was revoked: this side has lost the term, and its copy of the app has to die.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("permit was revoked: this side has lost the term")]
pub struct Revoked;

/// Now, on the clock of the deadlines: the host's, also for a manager that is in a time namespace, as in some
/// containers. A process that goes into another one later has to begin anew.
pub fn boot_clock_ns() -> u64 {
    static AHEAD_NS: OnceLock<i64> = OnceLock::new();
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    let offsets = || fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    now_ns.wrapping_add_signed(-*AHEAD_NS.get_or_init(|| boot_clock_ahead_ns(&offsets())))
}

/// How far a time namespace has its boot clock before the host's, by the kernel's words. Where there are none, the
/// kernel knows no such namespaces.
fn boot_clock_ahead_ns(offsets: &str) -> i64 {
    let mut words = offsets.lines().map(str::split_ascii_whitespace);
    let boot = words.find_map(|mut words| (words.next() == Some("boottime")).then_some(words));
    let mut numbers = boot.into_iter().flatten().filter_map(|number| number.parse::<i64>().ok());
    let (seconds, nanos) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

/// The right to move the deadline; cheap to clone, usable from every thread, in a forked process as it is, and
/// after an exec through
/// [`to_inheritable`](Self::to_inheritable) and [`from_inherited`](Self::from_inherited).
#[derive(Debug, Clone)]
pub struct PermitHandle {
    words: Arc<WordArray>,
}

impl PermitHandle {
    /// The permit behind a descriptor that was inherited or received; from here on it is closed on exec, so
    /// that the app does not get it from its guard.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self, PermitError> {
        rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)
            .map_err(|error| PermitError::NotAPermit(error.into()))?;
        WordArray::from_descriptor(descriptor).map_err(PermitError::NotAPermit).and_then(Self::new)
    }

    /// The same for a descriptor that was inherited through `exec` and is known by its number.
    pub fn from_inherited(number: RawFd) -> Result<Self, PermitError> {
        WordArray::from_inherited(number).map_err(PermitError::NotAPermit).and_then(Self::new)
    }

    fn new(words: WordArray) -> Result<Self, PermitError> {
        if words.len() == filter::WORDS {
            return Ok(Self { words: Arc::new(words) });
        }
        Err(PermitError::NotAPermit(io::ErrorKind::InvalidData.into()))
    }

    /// A descriptor that survives `exec`, for the guard. Drop it as soon as the guard is started: until then
    /// every program that another thread starts inherits it too.
    pub fn to_inheritable(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::dup(self.words.as_fd())?)
    }

    /// Lets the app speak until `deadline_ns` on the boot clock ([`boot_clock_ns`]). Never shortens: a late
    /// answer's earlier deadline changes nothing.
    pub fn extend_to(&self, deadline_ns: u64) -> Result<(), Revoked> {
        self.update(|old| if deadline_ns > REVOKED { old.max(deadline_ns) } else { old })
    }

    /// Lets the app speak with nobody's leave: `--fencing none`, or a term register that names it alone.
    pub fn open_for_ever(&self) -> Result<(), Revoked> {
        self.update(|_| FOR_EVER)
    }

    /// Silences the app now, until the next extension. A packet whose check is under way on another
    /// processor may still leave.
    pub fn shut(&self) {
        // Revoked is shut, too.
        let _ = self.update(|_| SHUT);
    }

    /// Silences the app for good, in every process that holds this permit.
    pub fn revoke(&self) {
        self.deadline().store(REVOKED, Ordering::SeqCst);
    }

    /// Until when the app may speak; 0 and 1 mean that it may not.
    pub fn deadline_ns(&self) -> u64 {
        self.deadline().load(Ordering::SeqCst)
    }

    pub fn is_revoked(&self) -> bool {
        self.deadline_ns() == REVOKED
    }

    /// How many packets were dropped so far, both ways.
    pub fn packets_dropped(&self) -> u64 {
        self.words[filter::DROPPED].load(Ordering::Relaxed)
    }

    pub(crate) fn words(&self) -> &WordArray {
        &self.words
    }

    fn deadline(&self) -> &AtomicU64 {
        &self.words[filter::DEADLINE]
    }

    fn update(&self, change: impl Fn(u64) -> u64) -> Result<(), Revoked> {
        let change = |old| (old != REVOKED).then(|| change(old));
        self.deadline()
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change)
            .map(drop)
            .map_err(|_| Revoked)
    }
}

/// The permit of one cell. Dropping this leaves the programs where they are, with the deadline that they have.
#[derive(Debug)]
pub struct Permit {
    handle: PermitHandle,
    cgroup: OwnedFd,
    programs: [(CgroupHook, OwnedFd); 2],
}

impl Permit {
    /// Puts a permit on `cgroup`, shut. An older one of ours that is still there is replaced, without a moment
    /// of freedom in between. On failure nothing of it stays behind.
    pub fn attach(cgroup: &CellCgroup) -> Result<Self, PermitError> {
        let old = ours_on(cgroup)?;
        let words = WordArray::create("checksync_words", filter::WORDS).map_err(create_error)?;
        let permit = Self {
            programs: [load(filter::HOOKS[0], &words)?, load(filter::HOOKS[1], &words)?],
            cgroup: cgroup.directory().try_clone_to_owned().map_err(kernel("duplicate the cgroup"))?,
            handle: PermitHandle::new(words)?,
        };
        if let Err(error) = permit.put_on(cgroup.name()) {
            // The first of the two may be there.
            let _ = permit.remove();
            return Err(error);
        }
        for (hook, program, _) in old {
            detach(cgroup, hook, &program)?;
        }
        Ok(permit)
    }

    /// The permit that an earlier manager put on `cgroup`, with its deadline; none if it has none or half of one.
    pub fn find(cgroup: &CellCgroup) -> Result<Option<Self>, PermitError> {
        let [(a, ingress, words), (b, egress, same)] = match <[_; 2]>::try_from(ours_on(cgroup)?) {
            Ok(both) => both,
            Err(_) => return Ok(None),
        };
        if words != same {
            return Ok(None);
        }
        let words = WordArray::from_id(words).map_err(kernel("open the words of a permit"))?;
        Ok(Some(Self {
            programs: [(a, ingress), (b, egress)],
            cgroup: cgroup.directory().try_clone_to_owned().map_err(kernel("duplicate the cgroup"))?,
            handle: PermitHandle::new(words)?,
        }))
    }

    pub fn handle(&self) -> &PermitHandle {
        &self.handle
    }

    /// See [`PermitHandle::extend_to`].
    pub fn extend_to(&self, deadline_ns: u64) -> Result<(), Revoked> {
        self.handle.extend_to(deadline_ns)
    }

    /// See [`PermitHandle::open_for_ever`].
    pub fn open_for_ever(&self) -> Result<(), Revoked> {
        self.handle.open_for_ever()
    }

    /// See [`PermitHandle::shut`].
    pub fn shut(&self) {
        self.handle.shut();
    }

    /// Takes the programs off the cgroup, which *sets its sockets free*, orphaned ones included. For a cell that
    /// has ended, remove the cgroup instead: the programs then stay as long as its last socket.
    pub fn remove(self) -> Result<(), PermitError> {
        let mut outcome = Ok(());
        for (hook, program) in &self.programs {
            match bpf::detach_from_cgroup(self.cgroup.as_fd(), *hook, program.as_fd()) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    outcome = Err(kernel("take the permit off its cgroup")(error));
                }
                _ => (),
            }
        }
        outcome
    }

    fn put_on(&self, cgroup: &str) -> Result<(), PermitError> {
        for (hook, program) in &self.programs {
            bpf::attach_to_cgroup(self.cgroup.as_fd(), *hook, program.as_fd()).map_err(|source| {
                match source.raw_os_error() {
                    // We could load it, so it is not our rights.
                    Some(libc::EPERM) => PermitError::Occupied { cgroup: cgroup.to_owned() },
                    Some(libc::EINVAL) => PermitError::Unsupported,
                    _ => kernel("put the permit on its cgroup")(source),
                }
            })?;
        }
        Ok(())
    }
}

impl<Proof: Into<CheckpointId>> Gate<Proof> for Permit {
    /// Nothing is held back in timeline mode.
    fn barrier(&mut self, _epoch: CheckpointId) -> Result<(), GateError> {
        if self.handle.is_revoked() { Err(GateError::Discarded) } else { Ok(()) }
    }

    /// Nothing is held back in timeline mode.
    fn release(&mut self, _proof: Proof) -> Result<(), GateError> {
        if self.handle.is_revoked() { Err(GateError::Discarded) } else { Ok(()) }
    }

    fn discard(&mut self) -> Result<(), GateError> {
        self.handle.revoke();
        Ok(())
    }
}

/// Our programs on exactly this cgroup, each with the number of its words.
fn ours_on(cgroup: &CellCgroup) -> Result<Vec<(CgroupHook, OwnedFd, u32)>, PermitError> {
    let mut ours = Vec::new();
    for hook in filter::HOOKS {
        let ids = bpf::programs_on_cgroup(cgroup.directory(), hook).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EPERM) => PermitError::Forbidden,
                Some(libc::EINVAL | libc::ENOSYS) => PermitError::Unsupported,
                _ => kernel("list the programs of the cgroup")(source),
            }
        })?;
        for id in ids {
            let program = match bpf::program_by_id(id) {
                // Somebody took it off in between.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                program => program.map_err(kernel("open a program of the cgroup"))?,
            };
            let info = bpf::program_info(program.as_fd()).map_err(kernel("read about a program"))?;
            if let (true, [words]) = (info.name == filter::name(hook), &info.map_ids[..]) {
                ours.push((hook, program, *words));
            }
        }
    }
    Ok(ours)
}

fn load(hook: CgroupHook, words: &WordArray) -> Result<(CgroupHook, OwnedFd), PermitError> {
    let loaded = filter::load(hook, words).map_err(|LoadError { source, log }| match source.raw_os_error() {
        Some(libc::EPERM) => PermitError::Forbidden,
        _ => PermitError::Program { log, source },
    });
    Ok((hook, loaded?))
}

fn detach(cgroup: &CellCgroup, hook: CgroupHook, program: &OwnedFd) -> Result<(), PermitError> {
    bpf::detach_from_cgroup(cgroup.directory(), hook, program.as_fd())
        .map_err(kernel("take an older permit off the cgroup"))
}

fn create_error(source: io::Error) -> PermitError {
    match source.raw_os_error() {
        Some(libc::EPERM) => PermitError::Forbidden,
        Some(libc::ENOSYS) => PermitError::Unsupported,
        _ => kernel("make the words of a permit")(source),
    }
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> PermitError {
    move |source| PermitError::Kernel { what, source }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use testkit::needs;

    use super::*;

    #[test]
    fn offsets_are_read_as_the_kernel_writes_them() {
        let offsets = "monotonic           0         0\nboottime       -864000 500000000\n";
        assert_eq!(boot_clock_ahead_ns(offsets), -863_999_500_000_000);
        assert_eq!(boot_clock_ahead_ns(""), 0);
    }

    #[test]
    #[ignore = "the next one asks for it, elsewhere"]
    fn says_the_boot_clock() {
        println!("{}", boot_clock_ns());
    }

    /// The kernel's programs go by the host's clock, wherever a manager lives.
    #[test]
    fn the_boot_clock_is_the_hosts_in_a_time_namespace_as_well() {
        needs!(CAP_SYS_ADMIN, "debian:util-linux");
        const A_WHILE_NS: u64 = 60_000_000_000;
        for ahead in ["-5", "864000"] {
            let mut command = Command::new("unshare");
            command.args(["--time", "--boottime", ahead, "--fork", "--kill-child", "--"]);
            command.arg(std::env::current_exe().unwrap());
            command.args(["--ignored", "--exact", "permit::tests::says_the_boot_clock", "--nocapture"]);
            let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
            let there: u64 =
                said.lines().find_map(|line| line.parse().ok()).unwrap_or_else(|| panic!("{said}"));
            let here = boot_clock_ns();
            assert!(there <= here && here - there < A_WHILE_NS, "{ahead}: {there} there, {here} here");
        }
    }
}
