//! Who a thread is and what it may: kept while its fingerprint stays the same, and put back by the calls that
//! a program would use to give up what it has.
//!
//! N.B. the order of giving up is the point: users change while `SECBIT_NO_SETUID_FIXUP` keeps the
//! capabilities, the inheritable set before the bounding set (nothing may be added to it that is not
//! bounded), ambient capabilities while the permitted set is whole, `capset` last.

use std::collections::HashMap;
use std::io;

use image::process::{Credentials, Seccomp, SeccompFilter};
use serde_bytes::ByteBuf;
use sys::ptrace;
use tracee::Batch;

use super::error::{RestoreError, SaveError};
use super::layout::{Filled, words};
use super::status::Status;
use super::steps::Steps;
use super::thread::CAPABILITY_VERSION_3;
use crate::Unsupported;

const NO_SETUID_FIXUP: u64 = 1 << 2;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
// Places in `Credentials::capabilities`.
const PERMITTED: usize = 1;
const BOUNDING: usize = 3;

/// What calls tell of a thread's credentials. As long as it does not change the text is not read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// Users, groups and capabilities, as the calls wrote them.
    pub identity: Vec<u8>,
    /// Filesystem user and group, securebits, no_new_privs, seccomp mode.
    pub results: [i64; 5],
    /// False where there were more groups than the buffer takes.
    pub complete: bool,
}

impl Fingerprint {
    fn secure_bits(&self) -> u32 {
        self.results[2] as u32
    }

    fn seccomp_mode(&self) -> i64 {
        self.results[4]
    }

    /// Whether `other` says that nothing changed since `self`.
    pub fn vouches_for(&self, other: &Self) -> bool {
        self.complete && self == other
    }
}

/// From the text, the fingerprint, and the filters as ptrace tells them.
pub(super) fn read(tid: i32, fingerprint: &Fingerprint, status: &str) -> Result<Credentials, SaveError> {
    let known = Status(status).credentials();
    let mut credentials = known.ok_or(SaveError::Unreadable { what: "the credentials", tid })?;
    credentials.secure_bits = fingerprint.secure_bits();
    credentials.seccomp = match fingerprint.seccomp_mode() {
        0 => Seccomp::Off,
        1 => Seccomp::Strict,
        _ => Seccomp::Filters(Vec::new()),
    };
    read_new_filters(tid, &mut credentials.seccomp)?;
    Ok(credentials)
}

/// Filters are only ever added: reads those beyond the ones in `seccomp`.
pub(super) fn read_new_filters(tid: i32, seccomp: &mut Seccomp) -> Result<(), SaveError> {
    let Seccomp::Filters(known) = seccomp else { return Ok(()) };
    while let Some(filter) =
        filter(tid, known.len() as u64).map_err(SaveError::kernel("a seccomp filter", tid))?
    {
        if asks_somebody(&filter.program) {
            return Err(supervised(tid).into());
        }
        known.push(filter);
    }
    Ok(())
}

fn filter(tid: i32, index: u64) -> io::Result<Option<SeccompFilter>> {
    let Some(program) = ptrace::seccomp_filter(tid, index)? else { return Ok(None) };
    let flags = ptrace::seccomp_flags(tid, index)? as u32;
    Ok(Some(SeccompFilter { program: ByteBuf::from(program), flags }))
}

fn supervised(tid: i32) -> Unsupported {
    Unsupported {
        pid: tid,
        what: "a seccomp filter hands system calls to another process (SECCOMP_RET_USER_NOTIF)".to_owned(),
        way_out: "start the app without that supervisor".to_owned(),
    }
}

/// Whether the program returns `SECCOMP_RET_USER_NOTIF` for anything.
fn asks_somebody(program: &[u8]) -> bool {
    const RETURN_CONSTANT: u16 = 0x06;
    const USER_NOTIF: u32 = 0x7fc0_0000;
    program.chunks_exact(8).map(Filled).any(|instruction| {
        instruction.u16(0) == RETURN_CONSTANT && instruction.u32(4) & 0xffff_0000 == USER_NOTIF
    })
}

/// Large things that calls in several threads point to, once each, in memory that all of them see.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub bytes: Vec<u8>,
    known: HashMap<Vec<u8>, u64>,
}

impl Pool {
    /// The offset of `bytes` in the pool.
    fn offset_of(&mut self, bytes: &[u8]) -> u64 {
        if let Some(&offset) = self.known.get(bytes) {
            return offset;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        self.known.insert(bytes.to_vec(), offset);
        offset
    }
}

/// The filters that all threads have in common: installed before there are other threads, these stay one
/// tree, as a later `SECCOMP_FILTER_FLAG_TSYNC` of the app wants it.
pub(super) fn common_filters<'a>(all: impl Iterator<Item = &'a Credentials>) -> &'a [SeccompFilter] {
    let filters = |credentials: &'a Credentials| match &credentials.seccomp {
        Seccomp::Filters(filters) => filters.as_slice(),
        Seccomp::Off | Seccomp::Strict => &[],
    };
    let shorter = |a: &'a [SeccompFilter], b: &'a [SeccompFilter]| {
        let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        &a[..same]
    };
    all.map(filters).reduce(shorter).unwrap_or(&[])
}

/// The call that installs a filter whose program is in the pool at `pool`.
pub(super) fn install(
    filter: &SeccompFilter,
    (pool, at): (&mut Pool, u64),
    (batch, buffer): (&mut Batch, u64),
    steps: &mut Steps,
) {
    const INSTRUCTION_BYTES: usize = 8;
    let program = at + pool.offset_of(&filter.program);
    // struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    let count = (filter.program.len() / INSTRUCTION_BYTES) as u64;
    let description = buffer + batch.put(&words(&[count, program]));
    let arguments = [u64::from(libc::SECCOMP_SET_MODE_FILTER), u64::from(filter.flags), description];
    steps.add(batch, "install a seccomp filter", libc::SYS_seccomp, arguments);
}

/// Whether a thread of the skeleton can be given `target`.
pub(super) fn check(present: &Credentials, target: &Credentials) -> Result<(), RestoreError> {
    let missing = target.capabilities[PERMITTED] & !present.capabilities[PERMITTED];
    if missing == 0 { Ok(()) } else { Err(RestoreError::Capabilities { missing }) }
}

/// The calls that turn `present` into `target`; none if they are the same. Filters that are not common to
/// all threads come first, while the thread may still install them.
pub(super) fn become_like(
    (present, target): (&Credentials, &Credentials),
    common: usize,
    (pool, at): (&mut Pool, u64),
    (batch, buffer): (&mut Batch, u64),
    steps: &mut Steps,
) {
    if let Seccomp::Filters(filters) = &target.seccomp {
        for filter in &filters[common..] {
            install(filter, (&mut *pool, at), (&mut *batch, buffer), steps);
        }
    }
    if differ(present, target) {
        change(present, target, (pool, at), (batch, buffer), steps);
    }
    if target.no_new_privs {
        let arguments = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0];
        steps.add(batch, "forbid new privileges", libc::SYS_prctl, arguments);
    }
    if target.seccomp == Seccomp::Strict {
        let arguments = [libc::PR_SET_SECCOMP as u64, u64::from(libc::SECCOMP_MODE_STRICT)];
        steps.add(batch, "enter strict seccomp", libc::SYS_prctl, arguments);
    }
}

/// In anything but seccomp and no_new_privs.
fn differ(a: &Credentials, b: &Credentials) -> bool {
    let rest = |c: &Credentials| (c.users, c.groups, c.supplementary.clone(), c.capabilities, c.secure_bits);
    rest(a) != rest(b)
}

fn change(
    present: &Credentials,
    target: &Credentials,
    (pool, at): (&mut Pool, u64),
    (batch, buffer): (&mut Batch, u64),
    steps: &mut Steps,
) {
    let groups: Vec<u8> = target.supplementary.iter().flat_map(|group| group.to_ne_bytes()).collect();
    let list = at + pool.offset_of(&groups);
    let [user, effective_user, saved_user, filesystem_user] = target.users.map(u64::from);
    let [group, effective_group, saved_group, filesystem_group] = target.groups.map(u64::from);
    let everything = present.capabilities[PERMITTED];
    let [inheritable, permitted, effective, bounding, ambient] = target.capabilities;
    let free = capabilities(batch, buffer, [inheritable, everything, everything]);
    let bound = capabilities(batch, buffer, [inheritable, permitted, effective]);
    let mut add = |what, number, arguments: [u64; 4]| steps.add(batch, what, number, arguments);
    let keep = libc::PR_SET_SECUREBITS as u64;
    add("keep capabilities", libc::SYS_prctl, [keep, NO_SETUID_FIXUP, 0, 0]);
    add("set the groups", libc::SYS_setgroups, [target.supplementary.len() as u64, list, 0, 0]);
    add("set the group", libc::SYS_setresgid, [group, effective_group, saved_group, 0]);
    add("set the filesystem group", libc::SYS_setfsgid, [filesystem_group, 0, 0, 0]);
    add("set the user", libc::SYS_setresuid, [user, effective_user, saved_user, 0]);
    add("set the filesystem user", libc::SYS_setfsuid, [filesystem_user, 0, 0, 0]);
    add("set the inheritable capabilities", libc::SYS_capset, [free.0, free.1, 0, 0]);
    for bit in bits(present.capabilities[BOUNDING] & !bounding) {
        add("drop a capability", libc::SYS_prctl, [libc::PR_CAPBSET_DROP as u64, bit, 0, 0]);
    }
    for bit in bits(ambient) {
        let arguments = [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, bit, 0];
        add("raise an ambient capability", libc::SYS_prctl, arguments);
    }
    add("set securebits", libc::SYS_prctl, [keep, u64::from(target.secure_bits), 0, 0]);
    add("set the capabilities", libc::SYS_capset, [bound.0, bound.1, 0, 0]);
}

/// The addresses of the header and of the sets (inheritable, permitted, effective) for `capset`.
fn capabilities(batch: &mut Batch, buffer: u64, sets: [u64; 3]) -> (u64, u64) {
    let [inheritable, permitted, effective] = sets;
    let half = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let data: Vec<u8> = [half(0), half(32)].concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
    let header = batch.put(&CAPABILITY_VERSION_3.to_ne_bytes());
    (buffer + header, buffer + batch.put(&data))
}

fn bits(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| set >> bit & 1 == 1)
}
