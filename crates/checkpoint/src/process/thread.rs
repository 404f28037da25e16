//! What only a thread itself can say: the table of calls that each thread makes in a freeze, and the table
//! that puts it back.

use image::process::{AlternateStack, Rseq, Thread};
use serde_bytes::ByteBuf;
use tracee::Batch;

use super::credentials::Fingerprint;
use super::layout::{Filled, words};
use super::steps::Steps;

/// How many groups the table has room for; whoever has more is read as text each time.
pub(super) const GROUPS_MAX: usize = 128;

// The buffer of the table.
const STACK: usize = 0;
const CLEAR_CHILD_TID: usize = 24;
const USERS: usize = 32;
const GROUPS: usize = 44;
const CAPABILITIES: usize = 56;
const CAPABILITIES_HEADER: usize = 80;
const DEATH_SIGNAL: usize = 88;
const NAME: usize = 96;
const NAME_BYTES: usize = 16;
const SUPPLEMENTARY: usize = 112;
const IDENTITY_BYTES: usize = CAPABILITIES_HEADER - USERS;

// The calls in their order.
const SUPPLEMENTARY_RESULT: usize = 6;
const IDENTITY_RESULTS: usize = 7;
const TIMER_SLACK_RESULT: usize = 12;
/// How many there are.
pub(super) const CALLS: usize = 14;

pub(super) const CAPABILITY_VERSION_3: u64 = 0x2008_0522;
pub(super) const PR_GET_TID_ADDRESS: u64 = 40;

/// What a thread said about itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answers {
    pub alternate_stack: AlternateStack,
    pub clear_child_tid: u64,
    pub parent_death_signal: i32,
    pub name: ByteBuf,
    pub timer_slack_ns: u64,
    pub fingerprint: Fingerprint,
}

/// The calls with which a thread answers; `buffer` is its own for the time.
pub(super) fn ask(buffer: u64, batch: &mut Batch) {
    let at = |offset: usize| buffer + offset as u64;
    let all = u64::from(u32::MAX);
    batch.bytes.resize(SUPPLEMENTARY, 0);
    batch.bytes[CAPABILITIES_HEADER..CAPABILITIES_HEADER + 8]
        .copy_from_slice(&CAPABILITY_VERSION_3.to_ne_bytes());
    batch.call(libc::SYS_sigaltstack, [0, at(STACK)]);
    batch.call(libc::SYS_prctl, [PR_GET_TID_ADDRESS, at(CLEAR_CHILD_TID)]);
    batch.call(libc::SYS_getresuid, [at(USERS), at(USERS + 4), at(USERS + 8)]);
    batch.call(libc::SYS_getresgid, [at(GROUPS), at(GROUPS + 4), at(GROUPS + 8)]);
    batch.call(libc::SYS_capget, [at(CAPABILITIES_HEADER), at(CAPABILITIES)]);
    batch.call(libc::SYS_prctl, [libc::PR_GET_PDEATHSIG as u64, at(DEATH_SIGNAL)]);
    batch.call(libc::SYS_getgroups, [GROUPS_MAX as u64, at(SUPPLEMENTARY)]);
    // What is no user or group changes nothing and tells the present one.
    batch.call(libc::SYS_setfsuid, [all]);
    batch.call(libc::SYS_setfsgid, [all]);
    batch.call(libc::SYS_prctl, [libc::PR_GET_SECUREBITS as u64]);
    batch.call(libc::SYS_prctl, [libc::PR_GET_NO_NEW_PRIVS as u64]);
    batch.call(libc::SYS_prctl, [libc::PR_GET_SECCOMP as u64]);
    batch.call(libc::SYS_prctl, [libc::PR_GET_TIMERSLACK as u64]);
    batch.call(libc::SYS_prctl, [libc::PR_GET_NAME as u64, at(NAME)]);
    debug_assert_eq!(batch.calls.len(), CALLS);
}

/// Reads the results of [`ask`].
pub(super) fn answers(results: &[i64], bytes: &[u8]) -> Answers {
    let filled = Filled(bytes);
    let groups = usize::try_from(results[SUPPLEMENTARY_RESULT]).ok();
    let groups_end = SUPPLEMENTARY + groups.unwrap_or(0) * 4;
    let identity = &bytes[USERS..USERS + IDENTITY_BYTES];
    Answers {
        alternate_stack: AlternateStack {
            address: filled.u64(STACK),
            flags: filled.i32(STACK + 8),
            size: filled.u64(STACK + 16),
        },
        clear_child_tid: filled.u64(CLEAR_CHILD_TID),
        parent_death_signal: filled.i32(DEATH_SIGNAL),
        name: ByteBuf::from(filled.string(NAME, NAME_BYTES)),
        timer_slack_ns: results[TIMER_SLACK_RESULT] as u64,
        fingerprint: Fingerprint {
            identity: [identity, &bytes[SUPPLEMENTARY..groups_end]].concat(),
            results: results[IDENTITY_RESULTS..TIMER_SLACK_RESULT].try_into().expect("five results"),
            complete: groups.is_some(),
        },
    }
}

/// The calls that make a thread of the skeleton what `thread` was. Credentials come after these, and then
/// [`after_credentials`].
pub(super) fn furnish(thread: &Thread, buffer: u64, batch: &mut Batch, steps: &mut Steps) {
    const ROBUST_LIST_BYTES: u64 = 24;
    let stack = &thread.alternate_stack;
    let stack = buffer + batch.put(&words(&[stack.address, u64::from(stack.flags as u32), stack.size]));
    let name = buffer + batch.put(&[thread.attributes.name.as_slice(), &[0]].concat());
    let mut add = |what, number, arguments| steps.add(batch, what, number, arguments);
    let list = thread.robust_list.head;
    add("set the robust list", libc::SYS_set_robust_list, [list, ROBUST_LIST_BYTES, 0, 0]);
    add("set the alternate stack", libc::SYS_sigaltstack, [stack, 0, 0, 0]);
    add(
        "set the address that is cleared at the end",
        libc::SYS_set_tid_address,
        [thread.clear_child_tid, 0, 0, 0],
    );
    add("set the name", libc::SYS_prctl, [libc::PR_SET_NAME as u64, name, 0, 0]);
    let slack = thread.attributes.timer_slack_ns;
    add("set the timer slack", libc::SYS_prctl, [libc::PR_SET_TIMERSLACK as u64, slack, 0, 0]);
    if let Some(Rseq { address, size, signature }) = thread.rseq {
        let arguments = [address, u64::from(size), 0, u64::from(signature)];
        add("register the restartable sequences", libc::SYS_rseq, arguments);
    }
}

/// A change of credentials clears it.
pub(super) fn after_credentials(thread: &Thread, batch: &mut Batch, steps: &mut Steps) {
    let signal = thread.attributes.parent_death_signal as u64;
    let arguments = [libc::PR_SET_PDEATHSIG as u64, signal, 0, 0];
    steps.add(batch, "set the signal of the parent's death", libc::SYS_prctl, arguments);
}
