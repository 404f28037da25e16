//! The host: each right and each call of the kernel that the managers need is tried once, on something of our
//! own that is gone afterwards.

use std::fs::{self, File};
use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use checkpoint::memory::self_test::{self, SelfTestError};
use gate::{CellCgroup, Permit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MlockAllFlags, mlockall, munlockall};
use tracee::{TraceError, Tree};

use super::finding::{Area, Finding, cause_and_fix, chain};

const ROOT: &str = "run checksync as root, or give it CAP_SYS_PTRACE, CAP_SYS_ADMIN and CAP_NET_ADMIN";
const PATIENCE: Duration = Duration::from_secs(2);
const PRIORITY: i32 = 10;

pub fn look() -> Vec<Finding> {
    vec![
        kernel(),
        write_tracking(),
        tracing(),
        comparing(),
        mapped_files(),
        chosen_numbers(),
        namespaces(),
        permit(),
        real_time(),
        locked_memory(),
    ]
}

fn green(what: &str, found: impl Into<String>) -> Finding {
    Finding::green(Area::Host, what, found)
}

fn red(what: &str, cause: impl Into<String>, fix: &str) -> Finding {
    Finding::red(Area::Host, what, cause, fix)
}

/// For the reader; nothing is decided by a version.
fn kernel() -> Finding {
    let name = rustix::system::uname();
    green("kernel", format!("{} on {}", name.release().to_string_lossy(), name.machine().to_string_lossy()))
}

fn write_tracking() -> Finding {
    const WHAT: &str = "write tracking";
    match self_test::run() {
        Ok(_) => green(WHAT, "every write to a page is seen"),
        Err(SelfTestError::Missing { what, source }) if source.kind() == io::ErrorKind::PermissionDenied => {
            red(WHAT, format!("{what}: {source}"), ROOT)
        }
        Err(error) => Finding::red_by(Area::Host, WHAT, &error),
    }
}

/// Stops a process of our own, has it make a call, and lets it go.
fn tracing() -> Finding {
    const WHAT: &str = "tracing";
    let traced = match Bystander::start() {
        Ok(bystander) => trace(bystander.0.id() as i32),
        Err(why) => return red(WHAT, format!("cannot start a process to try it on: {why}"), ROOT),
    };
    match traced {
        Ok(()) => green(WHAT, "a process was stopped, made a call for us, and ran on"),
        Err(error) => {
            let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
            let fix = if scope.trim() == "3" {
                "tracing is switched off until the next boot: remove kernel.yama.ptrace_scope=3, and boot"
            } else {
                ROOT
            };
            red(WHAT, chain(&error), fix)
        }
    }
}

fn trace(pid: i32) -> Result<(), TraceError> {
    let mut tree = Tree::seize(pid)?;
    let mut frozen = tree.freeze(PATIENCE)?;
    frozen.remote(pid)?.call("ask for its number", libc::SYS_getpid, [])?;
    drop(frozen);
    tree.release()
}

/// A process that waits for its end.
struct Bystander(Child);

impl Bystander {
    /// It has made all its threads when this returns: what it says comes after them.
    fn start() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["demo-app", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let bystander = Self(command.spawn()?);
        let words = bystander.0.stdout.as_ref().expect("its output is piped");
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        match poll(&mut [PollFd::new(words, PollFlags::IN)], Some(&timeout))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(bystander),
        }
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // It has ended already, then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn comparing() -> Finding {
    const WHAT: &str = "comparing descriptors";
    let own = rustix::process::getpid().as_raw_nonzero().get();
    match sys::task::same_open_file((own, 2), (own, 2)) {
        Ok(_) => green(WHAT, "descriptors that share a file are known"),
        Err(why) => red(WHAT, format!("kcmp: {why}"), "use a kernel with CONFIG_KCMP, and run as root"),
    }
}

fn mapped_files() -> Finding {
    const WHAT: &str = "mapped files";
    let first = fs::read_dir("/proc/self/map_files")
        .and_then(|mut files| files.next().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into())));
    match first.and_then(|entry| File::open(entry.path())) {
        Ok(_) => green(WHAT, "files are found by their mappings"),
        Err(why) => {
            let fix = "use a kernel with CONFIG_CHECKPOINT_RESTORE, and run as root";
            red(WHAT, format!("/proc/PID/map_files: {why}"), fix)
        }
    }
}

/// A restored thread has the number that it had.
fn chosen_numbers() -> Finding {
    const WHAT: &str = "chosen numbers";
    match sys::rights::chosen_number() {
        Ok(()) => green(WHAT, "a process was made with the number that was asked for"),
        Err(why) => {
            let fix = "run as root, or with CAP_CHECKPOINT_RESTORE";
            red(WHAT, format!("clone3 with set_tid: {why}"), fix)
        }
    }
}

fn namespaces() -> Finding {
    const WHAT: &str = "namespaces";
    for (kind, flag) in
        [("PID", libc::CLONE_NEWPID), ("mount", libc::CLONE_NEWNS), ("time", libc::CLONE_NEWTIME)]
    {
        let tried = thread::spawn(move || sys::rights::new_namespace(flag)).join();
        if let Err(why) = tried.unwrap_or_else(|_| Err(io::Error::other("the try failed"))) {
            let fix = "run as root, on a kernel with PID, mount and time namespaces";
            return red(WHAT, format!("no new {kind} namespace: {why}"), fix);
        }
    }
    green(WHAT, "PID, mount and time namespaces can be made")
}

/// Without it a primary can't be silenced, and `--fencing none` is what is left.
fn permit() -> Finding {
    const WHAT: &str = "permit";
    let fix = "run as root where a cgroup v2 file system is writable, or use --fencing none";
    match try_permit() {
        Ok(()) => green(WHAT, "a cgroup was made, and the kernel took the permit's programs"),
        Err(error) => Finding::yellow(Area::Host, WHAT, cause_and_fix(error.as_ref()).0, fix),
    }
}

fn try_permit() -> anyhow::Result<()> {
    let cgroup = CellCgroup::create("checksync", "check")?;
    let attached = Permit::attach(&cgroup).and_then(Permit::remove);
    cgroup.remove(PATIENCE)?;
    Ok(attached?)
}

fn real_time() -> Finding {
    const WHAT: &str = "real-time priority";
    let tried = thread::spawn(|| sys::task::become_real_time(PRIORITY)).join();
    match tried.unwrap_or_else(|_| Err(io::Error::other("the try failed"))) {
        Ok(()) => green(WHAT, "heartbeats go out on time also on a busy host"),
        Err(why) => {
            let fix = "give checksync CAP_SYS_NICE (systemd: LimitRTPRIO=10); pauses are longer without";
            Finding::yellow(Area::Host, WHAT, why.to_string(), fix)
        }
    }
}

fn locked_memory() -> Finding {
    const WHAT: &str = "locked memory";
    match mlockall(MlockAllFlags::CURRENT).and_then(|()| munlockall()) {
        Ok(()) => green(WHAT, "heartbeats never wait for a disk"),
        Err(why) => {
            let fix = "give checksync CAP_IPC_LOCK (systemd: LimitMEMLOCK=infinity)";
            Finding::yellow(Area::Host, WHAT, why.to_string(), fix)
        }
    }
}
