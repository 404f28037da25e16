//! Who the process is, and what it may.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::sync::{Arc, Barrier};
use std::thread;

use rustix::process::{Resource, Rlimit, chdir, getrlimit, setrlimit, umask};

use crate::harness::{Context, Guest, Outcome};
use crate::{ensure, ensure_eq, kernel};

pub const GUESTS: &[Guest] = &[
    Guest::new("credentials", credentials),
    Guest::new("capabilities", capabilities),
    Guest::new("seccomp", seccomp),
    Guest::new("limits", limits),
    Guest::new("directory-and-umask", directory_and_umask),
    Guest::new("process-settings", process_settings),
];

const NOBODY: u32 = 65534;

/// The lines of a thread's status that say who it is.
fn identity() -> std::io::Result<BTreeMap<String, String>> {
    const KEYS: [&str; 10] =
        ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    let wanted = lines.filter(|(key, _)| KEYS.contains(key));
    Ok(wanted.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
}

/// Checks that main thread and a second one are after the go who they were before.
fn keeps_identity(context: &mut Context) -> Outcome {
    let meet = Arc::new(Barrier::new(2));
    let worker = {
        let meet = Arc::clone(&meet);
        thread::spawn(move || {
            let before = identity();
            meet.wait();
            meet.wait();
            (before, identity())
        })
    };
    let before = identity()?;
    meet.wait();
    context.ready();
    ensure_eq!("main thread", identity()?, before);
    meet.wait();
    let (before, after) = worker.join().map_err(|_| "the thread panicked")?;
    ensure_eq!("second thread", after?, before?);
    Ok(())
}

/// Another user, without groups and capabilities, that can gain none.
fn credentials(context: &mut Context) -> Outcome {
    kernel::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    kernel::become_user(NOBODY, NOBODY)?;
    keeps_identity(context)
}

/// Root with a smaller bounding set, and one capability that stays across exec.
fn capabilities(context: &mut Context) -> Outcome {
    const CAP_AUDIT_WRITE: u64 = 29;
    const CAP_MKNOD: u64 = 27;
    kernel::prctl(libc::PR_CAPBSET_DROP, CAP_AUDIT_WRITE)?;
    kernel::prctl(libc::PR_CAPBSET_DROP, CAP_MKNOD)?;
    keeps_identity(context)
}

/// A filter, in all threads, which answers getppid with an error of its own. Run with `user` as nobody.
fn seccomp(context: &mut Context) -> Outcome {
    const ANSWER: u16 = 77;
    kernel::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    if context.arguments().iter().any(|argument| argument == "user") {
        kernel::become_user(NOBODY, NOBODY)?;
    }
    kernel::refuse_syscall(libc::SYS_getppid, ANSWER)?;
    let filtered = || kernel::plain_syscall(libc::SYS_getppid).map_err(|error| error.raw_os_error());
    ensure_eq!("filter before", filtered(), Err(Some(ANSWER.into())));
    keeps_identity(context)?;
    ensure_eq!("answer of the filter", filtered(), Err(Some(ANSWER.into())));
    let in_new_thread = thread::spawn(filtered).join().map_err(|_| "the thread panicked")?;
    ensure_eq!("answer of the filter in a new thread", in_new_thread, Err(Some(ANSWER.into())));
    ensure!(kernel::plain_syscall(libc::SYS_getpgrp).is_ok(), "the filter refuses what it allowed");
    Ok(())
}

fn limits(context: &mut Context) -> Outcome {
    let set_up =
        [(Resource::Nofile, 321, 4000), (Resource::Core, 0, 7 << 20), (Resource::Stack, 4 << 20, 64 << 20)];
    for (resource, current, maximum) in set_up {
        setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) })?;
    }
    let all = || fs::read_to_string("/proc/self/limits");
    let before = all()?;
    context.ready();
    for (resource, current, maximum) in set_up {
        let found = getrlimit(resource);
        ensure_eq!(format!("{resource:?}"), (found.current, found.maximum), (Some(current), Some(maximum)));
    }
    ensure_eq!("all limits", all()?, before);
    Ok(())
}

/// The working directory is given by the first argument, or a system directory.
fn directory_and_umask(context: &mut Context) -> Outcome {
    let directory = context.arguments().first().map_or("/usr/lib", String::as_str).to_owned();
    chdir(&*directory)?;
    umask(rustix::fs::Mode::from_raw_mode(0o137));
    context.ready();
    ensure_eq!("working directory", env::current_dir()?, fs::canonicalize(&directory)?);
    ensure_eq!("umask", umask(rustix::fs::Mode::empty()).as_raw_mode(), 0o137);
    Ok(())
}

/// What prctl sets: for the process, and the timer slack of each thread.
fn process_settings(context: &mut Context) -> Outcome {
    const SETTINGS: [(libc::c_int, libc::c_int, u64); 4] = [
        (libc::PR_SET_DUMPABLE, libc::PR_GET_DUMPABLE, 0),
        (libc::PR_SET_TIMERSLACK, libc::PR_GET_TIMERSLACK, 1234),
        (libc::PR_SET_THP_DISABLE, libc::PR_GET_THP_DISABLE, 1),
        (libc::PR_SET_KEEPCAPS, libc::PR_GET_KEEPCAPS, 1),
    ];
    for (set, _, value) in SETTINGS {
        kernel::prctl(set, value)?;
    }
    fs::write("/proc/self/oom_score_adj", "321")?;
    context.ready();
    for (_, get, value) in SETTINGS {
        ensure_eq!(format!("prctl {get}"), kernel::prctl(get, 0)?, usize::try_from(value)?);
    }
    ensure_eq!("oom_score_adj", fs::read_to_string("/proc/self/oom_score_adj")?.trim(), "321");
    Ok(())
}
