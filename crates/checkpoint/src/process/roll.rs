//! What every thread would say about itself, read from the kernel without waking one.
//!
//! To ask a thread is to run it: 40 µs each, and in every freeze. A BPF iterator reads the same words out of the
//! kernel's own structures, at the places that the kernel's description of its types gives. Nothing is taken on
//! trust: in every freeze the leader is asked as well, and as soon as the two differ every thread is asked, then and
//! from there on. Where there is no such iterator (an older kernel, no BTF, no CAP_BPF) every thread is asked, too.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use image::process::AlternateStack;
use serde_bytes::ByteBuf;
use sys::bpf::{Instruction, Register};
use sys::tasks::{self, HELPER_READ_KERNEL, HELPER_SEQUENCE_WRITE, Visit};

use super::credentials::Fingerprint;
use super::layout::Filled;
use super::thread::Answers;
use super::types::Types;

const NAME_BYTES: usize = 16;
/// Who has more is asked.
const GROUPS_MAX: usize = 64;

// One thread's record. The pointers are only steps on the way.
const POINTER: usize = 0;
const LEVEL: usize = 8;
const NUMBER: usize = 16;
const DEATH_SIGNAL: usize = 20;
const STACK: usize = 24;
const STACK_BYTES: usize = 32;
const STACK_FLAGS: usize = 40;
const SECCOMP: usize = 44;
const CLEAR_CHILD_TID: usize = 48;
const TIMER_SLACK: usize = 56;
const FLAGS: usize = 64;
const NAME: usize = 72;
/// Real, effective, saved and filesystem, users first; then securebits.
const IDS: usize = NAME + NAME_BYTES;
const SECURE_BITS: usize = IDS + 8 * 4;
const EFFECTIVE: usize = SECURE_BITS + 8;
const PERMITTED: usize = EFFECTIVE + 8;
const INHERITABLE: usize = PERMITTED + 8;
const GROUPS_COUNT: usize = INHERITABLE + 8;
const GROUPS: usize = GROUPS_COUNT + 4;
const TID: usize = GROUPS + GROUPS_MAX * 4;
const LEADER: usize = TID + 4;
const RECORD_BYTES: usize = (LEADER + 4).next_multiple_of(8);

// What follows the leader's: what the answers about the process as a whole are made of.
const SIGNS_START: usize = 8;
const SIGNS_BYTES: usize = 16 * 16 + 2 * 16 + 8 + 8 + 9 * 8;
const PIECE_BYTES: usize = 256;
const ACTIONS_BYTES: usize = 64 * 32;
const OF_SIGNAL: &[(&str, usize)] =
    &[("rlim", 16 * 16), ("it", 2 * 16), ("it_real_incr", 8), ("is_child_subreaper", 1)];
/// `enum pid_type`.
const PROCESS_GROUP: usize = 2;
const SESSION: usize = 3;

/// Bytes at an offset from a pointer, and where they go in the record.
struct Field(&'static str, usize, usize);

const OF_TASK: &[Field] = &[
    Field("pdeath_signal", DEATH_SIGNAL, 4),
    Field("sas_ss_sp", STACK, 8),
    Field("sas_ss_size", STACK_BYTES, 8),
    Field("sas_ss_flags", STACK_FLAGS, 4),
    // Its first member is the mode.
    Field("seccomp", SECCOMP, 4),
    Field("clear_child_tid", CLEAR_CHILD_TID, 8),
    Field("timer_slack_ns", TIMER_SLACK, 8),
    Field("atomic_flags", FLAGS, 8),
    Field("comm", NAME, NAME_BYTES),
    Field("pid", TID, 4),
    Field("tgid", LEADER, 4),
];

const OF_CREDENTIALS: &[Field] = &[
    Field("uid", IDS, 4),
    Field("euid", IDS + 4, 4),
    Field("suid", IDS + 8, 4),
    Field("gid", IDS + 12, 4),
    Field("egid", IDS + 16, 4),
    Field("sgid", IDS + 20, 4),
    Field("fsuid", IDS + 24, 4),
    Field("fsgid", IDS + 28, 4),
    Field("securebits", SECURE_BITS, 4),
    Field("cap_effective", EFFECTIVE, 8),
    Field("cap_permitted", PERMITTED, 8),
    Field("cap_inheritable", INHERITABLE, 8),
];

/// The roll of one process.
#[derive(Debug)]
pub(super) struct Roll {
    visit: Visit,
    bytes: Vec<u8>,
}

impl Roll {
    /// `None` where the kernel can't be read like this.
    pub fn of(pid: i32) -> Option<Self> {
        static PROGRAM: OnceLock<Option<OwnedFd>> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| {
            load().inspect_err(|why| tracing::debug!("every thread is asked in every freeze: {why}")).ok()
        });
        let visit = Visit::of(program.as_ref()?.as_fd(), pid).ok()?;
        Some(Self { visit, bytes: Vec::new() })
    }

    pub fn call(&mut self) -> io::Result<Told<'_>> {
        self.visit.read(&mut self.bytes)?;
        let (mut threads, mut signs) = (HashMap::new(), &[][..]);
        let mut rest = &self.bytes[..];
        while let Some((record, more)) = rest.split_at_checked(RECORD_BYTES) {
            let record = Filled(record);
            threads.insert(record.i32(NUMBER), answers(record));
            rest = more;
            if record.i32(TID) == record.i32(LEADER) {
                let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "the leader's record is cut short");
                (signs, rest) = rest.split_at_checked(SIGNS_BYTES + ACTIONS_BYTES).ok_or_else(cut)?;
            }
        }
        if signs.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the leader is not on the roll"));
        }
        Ok(Told { threads, signs })
    }
}

/// What was read.
#[derive(Debug)]
pub(super) struct Told<'a> {
    /// What the threads would answer, by their numbers in the innermost namespace.
    pub threads: HashMap<i32, Answers>,
    /// As long as these stay the same, and no timer runs, the leader would say of the process what it said before. N.B.
    /// no address of anything that may come and go: another thing may take its place.
    pub signs: &'a [u8],
}

fn answers(record: Filled<'_>) -> Answers {
    const NO_NEW_PRIVILEGES: u64 = 1;
    const KEPT_STACK_FLAGS: i32 = 1 << 31;
    let size = record.u64(STACK_BYTES);
    let disabled = if size == 0 { libc::SS_DISABLE } else { 0 };
    let groups = record.u32(GROUPS_COUNT) as usize;
    let id = |number: usize| record.u32(IDS + number * 4);
    let [effective, permitted, inheritable] = [EFFECTIVE, PERMITTED, INHERITABLE].map(|at| record.u64(at));
    // As `capget` has them: the lower halves, then the upper ones.
    let halves = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let identity = (0..6).map(id).chain(halves(0)).chain(halves(32));
    let supplementary = (0..groups.min(GROUPS_MAX)).map(|n| record.u32(GROUPS + n * 4));
    Answers {
        alternate_stack: AlternateStack {
            address: record.u64(STACK),
            flags: record.i32(STACK_FLAGS) & KEPT_STACK_FLAGS | disabled,
            size,
        },
        clear_child_tid: record.u64(CLEAR_CHILD_TID),
        parent_death_signal: record.i32(DEATH_SIGNAL),
        name: ByteBuf::from(record.string(NAME, NAME_BYTES)),
        timer_slack_ns: record.u64(TIMER_SLACK),
        fingerprint: Fingerprint {
            identity: identity.chain(supplementary).flat_map(u32::to_ne_bytes).collect(),
            results: [
                id(6).into(),
                id(7).into(),
                record.u32(SECURE_BITS).into(),
                (record.u64(FLAGS) >> NO_NEW_PRIVILEGES.trailing_zeros() & 1) as i64,
                record.u32(SECCOMP).into(),
            ],
            complete: groups <= GROUPS_MAX,
        },
    }
}

fn load() -> io::Result<OwnedFd> {
    let types = Types::of_kernel()?;
    let missing = || io::Error::new(io::ErrorKind::NotFound, "this kernel's types are others");
    let function = types.function("bpf_iter_task").ok_or_else(missing)?;
    let program = program(&types).ok_or_else(missing)?;
    tasks::load_visitor("checksync_roll", function, &program)
        .map_err(|why| io::Error::new(why.source.kind(), format!("{}: {}", why.source, why.log)))
}

/// Per thread: its record is put together on the stack, and written out; after the leader's, the signs.
fn program(types: &Types) -> Option<Vec<Instruction>> {
    let mut record = Writer::new(types);
    record.record()?;
    let mut signs = Writer::new(types);
    signs.signs()?;
    let is_leader = [
        Instruction::load_half(Register::R1, Register::Frame, place(TID) as i16),
        Instruction::load_half(Register::R2, Register::Frame, place(LEADER) as i16),
        Instruction::skip_if_different(Register::R1, Register::R2, signs.code.len() as i16),
    ];
    let body = [&record.code[..], &is_leader, &signs.code].concat();
    let begin = [
        Instruction::load_word(Register::R7, Register::R1, 0), // The iteration,
        Instruction::load_word(Register::R6, Register::R1, 1), // and the thread: none at the end.
        Instruction::skip_if_equal(Register::R6, 0, body.len() as i16),
    ];
    let end = [Instruction::set(Register::R0, 0), Instruction::exit()];
    Some([&begin[..], &body, &end].concat())
}

/// Where on the stack.
fn place(at: usize) -> i32 {
    at as i32 - RECORD_BYTES as i32
}

/// Writes the instructions. The thread is in `r6`, the iteration in `r7`; `r8` is what was followed last.
struct Writer<'a> {
    types: &'a Types,
    code: Vec<Instruction>,
}

impl<'a> Writer<'a> {
    fn new(types: &'a Types) -> Self {
        Self { types, code: Vec::new() }
    }

    fn record(&mut self) -> Option<()> {
        // What no field covers is written out, too.
        self.fetch(0, RECORD_BYTES, &[Instruction::set(Register::R3, 0)]);
        for &Field(member, to, bytes) in OF_TASK {
            self.read(Register::R6, "task_struct", (member, 0), to, bytes)?;
        }
        self.follow(Register::R6, "task_struct", ("thread_pid", 0))?;
        self.read(Register::R8, "pid", ("level", 0), LEVEL, 4)?;
        let each = self.types.size("upid")? as i32;
        let numbers = self.types.offset("pid", "numbers")? as i32;
        let innermost = [
            Instruction::load_word(Register::R1, Register::Frame, place(LEVEL) as i16 / 8),
            Instruction::multiply(Register::R1, each),
            Instruction::copy(Register::R3, Register::R8),
            Instruction::add_register(Register::R3, Register::R1),
            Instruction::add(Register::R3, numbers),
        ];
        self.fetch(NUMBER, 4, &innermost);
        self.follow(Register::R6, "task_struct", ("cred", 0))?;
        for &Field(member, to, bytes) in OF_CREDENTIALS {
            self.read(Register::R8, "cred", (member, 0), to, bytes)?;
        }
        self.follow(Register::R8, "cred", ("group_info", 0))?;
        self.read(Register::R8, "group_info", ("ngroups", 0), GROUPS_COUNT, 4)?;
        self.read(Register::R8, "group_info", ("gid", 0), GROUPS, GROUPS_MAX * 4)?;
        self.write_out(0, RECORD_BYTES);
        Some(())
    }

    fn signs(&mut self) -> Option<()> {
        self.fetch(0, RECORD_BYTES, &[Instruction::set(Register::R3, 0)]);
        let mut whole = SIGNS_START;
        let mut room = |bytes: usize| {
            whole += bytes;
            whole - bytes
        };
        self.follow(Register::R6, "task_struct", ("signal", 0))?;
        for &(member, bytes) in OF_SIGNAL {
            self.read(Register::R8, "signal_struct", (member, 0), room(bytes.max(8)), bytes)?;
        }
        let state = self.types.offset("hrtimer", "state")? as usize;
        self.read(Register::R8, "signal_struct", ("real_timer", state), room(8), 1)?;
        for kind in [PROCESS_GROUP, SESSION] {
            self.follow(Register::R6, "task_struct", ("signal", 0))?;
            self.follow(Register::R8, "signal_struct", ("pids", kind * 8))?;
            self.read(Register::R8, "pid", ("numbers", 0), room(8), 4)?;
        }
        self.read(Register::R6, "task_struct", ("personality", 0), room(8), 4)?;
        self.follow(Register::R6, "task_struct", ("real_parent", 0))?;
        self.read(Register::R8, "task_struct", ("tgid", 0), room(8), 4)?;
        self.follow(Register::R6, "task_struct", ("fs", 0))?;
        self.read(Register::R8, "fs_struct", ("umask", 0), room(8), 4)?;
        self.follow(Register::R6, "task_struct", ("mm", 0))?;
        self.read(Register::R8, "mm_struct", ("brk", 0), room(8), 8)?;
        self.read(Register::R8, "mm_struct", ("flags", 0), room(8), 8)?;
        let segments = self.types.offset("mm_context_t", "ldt")? as usize;
        self.read(Register::R8, "mm_struct", ("context", segments), room(8), 8)?;
        debug_assert_eq!(whole - SIGNS_START, SIGNS_BYTES);
        self.write_out(SIGNS_START, SIGNS_BYTES);
        self.follow(Register::R6, "task_struct", ("sighand", 0))?;
        for skip in (0..ACTIONS_BYTES).step_by(PIECE_BYTES) {
            self.read(Register::R8, "sighand_struct", ("action", skip), SIGNS_START, PIECE_BYTES)?;
            self.write_out(SIGNS_START, PIECE_BYTES);
        }
        Some(())
    }

    /// Bytes from the address that `from` leaves in `r3`.
    fn fetch(&mut self, to: usize, bytes: usize, from: &[Instruction]) {
        self.code.extend(from);
        self.code.extend([
            Instruction::copy(Register::R1, Register::Frame),
            Instruction::add(Register::R1, place(to)),
            Instruction::set(Register::R2, bytes as i32),
            Instruction::call(HELPER_READ_KERNEL),
        ]);
    }

    /// What a member has, from some bytes on.
    fn read(
        &mut self,
        base: Register,
        structure: &str,
        (member, skip): (&str, usize),
        to: usize,
        bytes: usize,
    ) -> Option<()> {
        let offset = self.types.offset(structure, member)? as usize + skip;
        let from = [Instruction::copy(Register::R3, base), Instruction::add(Register::R3, offset as i32)];
        self.fetch(to, bytes, &from);
        Some(())
    }

    /// `r8` = the pointer there.
    fn follow(&mut self, base: Register, structure: &str, member: (&str, usize)) -> Option<()> {
        self.read(base, structure, member, POINTER, 8)?;
        self.code.push(Instruction::load_word(Register::R8, Register::Frame, place(POINTER) as i16 / 8));
        Some(())
    }

    fn write_out(&mut self, from: usize, bytes: usize) {
        self.code.extend([
            Instruction::load_word(Register::R1, Register::R7, 0),
            Instruction::copy(Register::R2, Register::Frame),
            Instruction::add(Register::R2, place(from)),
            Instruction::set(Register::R3, bytes as i32),
            Instruction::call(HELPER_SEQUENCE_WRITE),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_thread_has_set_is_read_back() {
        // The numbers of a PID namespace of ours would be the innermost ones, too.
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        rustix::thread::set_name(c"on the roll").unwrap();
        let death = rustix::process::Signal::USR2;
        rustix::process::set_parent_process_death_signal(Some(death)).unwrap();
        let mut roll = Roll::of(std::process::id() as i32).expect("an iterator over tasks");
        let Told { threads: all, signs } = roll.call().unwrap();
        assert_eq!(signs.len(), SIGNS_BYTES + ACTIONS_BYTES);
        assert!(all.len() > 1, "other threads are on it");
        let own = &all[&tid];
        assert_eq!(own.name.as_slice(), b"on the roll");
        assert_eq!(own.parent_death_signal, death.as_raw());
        // Rust gives each of its threads one.
        assert_ne!(own.alternate_stack.address, 0);
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let known = super::super::status::Status(&status).credentials().unwrap();
        let identity = Filled(&own.fingerprint.identity);
        assert_eq!(identity.u32(0), known.users[0]);
    }
}
