//! Whether the mappings of a process may have changed, without reading them.
//!
//! The kernel counts how often an address space was locked for a change of its mappings (`mm_lock_seq`, of which the
//! locks of single mappings are made): nothing is mapped, unmapped, moved, protected or advised without it. As long as
//! the number stays the same, so does the text of the mappings, which takes longer to read than all else about them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use sys::bpf::{Instruction, Register};
use sys::tasks::{self, HELPER_READ_KERNEL, HELPER_SEQUENCE_WRITE, Visit};

use crate::process::types::Types;

/// What the program has on its stack: one word.
const WORD_BYTES: i32 = 8;
const COUNT_BYTES: i32 = 4;

/// Reads the number, where the kernel has it and lets us.
#[derive(Debug)]
pub(super) struct LayoutSign {
    visit: Option<Visit>,
    bytes: Vec<u8>,
}

/// How often the mappings were locked for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changes(u32);

impl LayoutSign {
    pub fn of(pid: i32) -> Self {
        static PROGRAM: OnceLock<Option<OwnedFd>> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| {
            load().inspect_err(|why| tracing::debug!("the mappings are read in every freeze: {why}")).ok()
        });
        let visit = program.as_ref().and_then(|program| Visit::of_thread(program.as_fd(), pid).ok());
        Self { visit, bytes: Vec::new() }
    }

    /// `None` where that is not known, or somebody is about to change them.
    pub fn read(&mut self) -> Option<Changes> {
        self.visit.as_ref()?.read(&mut self.bytes).ok()?;
        let count = u32::from_ne_bytes(self.bytes.as_slice().try_into().ok()?);
        // Odd while they are locked; zero is also what a failed read leaves.
        (count != 0 && count % 2 == 0).then_some(Changes(count))
    }
}

fn load() -> io::Result<OwnedFd> {
    let types = Types::of_kernel()?;
    let missing = || io::Error::new(io::ErrorKind::NotFound, "this kernel's types are others");
    let function = types.function("bpf_iter_task").ok_or_else(missing)?;
    let program = program(&types).ok_or_else(missing)?;
    tasks::load_visitor("checksync_maps", function, &program)
        .map_err(|why| io::Error::new(why.source.kind(), format!("{}: {}", why.source, why.log)))
}

/// Writes out `task->mm->mm_lock_seq`.
fn program(types: &Types) -> Option<Vec<Instruction>> {
    let space = types.offset("task_struct", "mm")? as i32;
    let count = types.offset("mm_struct", "mm_lock_seq")? as i32;
    let on_stack = |to| [Instruction::copy(to, Register::Frame), Instruction::add(to, -WORD_BYTES)];
    let read = |from: [Instruction; 2], bytes| {
        let [begin, end] = on_stack(Register::R1);
        let [from, offset] = from;
        [
            begin,
            end,
            Instruction::set(Register::R2, bytes),
            from,
            offset,
            Instruction::call(HELPER_READ_KERNEL),
        ]
    };
    let [at, place] = on_stack(Register::R2);
    let body = [
        &read(
            [Instruction::copy(Register::R3, Register::R6), Instruction::add(Register::R3, space)],
            WORD_BYTES,
        )[..],
        &[Instruction::load_word(Register::R8, Register::Frame, -1)],
        &read(
            [Instruction::copy(Register::R3, Register::R8), Instruction::add(Register::R3, count)],
            COUNT_BYTES,
        ),
        &[Instruction::load_word(Register::R1, Register::R7, 0), at, place],
        &[Instruction::set(Register::R3, COUNT_BYTES), Instruction::call(HELPER_SEQUENCE_WRITE)],
    ]
    .concat();
    let begin = [
        Instruction::load_word(Register::R7, Register::R1, 0), // The iteration,
        Instruction::load_word(Register::R6, Register::R1, 1), // and the thread: none at the end.
        Instruction::skip_if_equal(Register::R6, 0, body.len() as i16),
    ];
    Some([&begin[..], &body, &[Instruction::set(Register::R0, 0), Instruction::exit()]].concat())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn every_change_of_a_mapping_is_counted() {
        const OBEY: &str = "
import mmap, sys
here = mmap.mmap(-1, 1 << 20)
print('ready', flush=True)
for line in sys.stdin:
    exec(line)
    print('done', flush=True)
";
        let mut child = Command::new("python3")
            .args(["-u", "-c", OBEY])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut lines = BufReader::new(output).lines();
        lines.next().unwrap().unwrap();
        let mut sign = LayoutSign::of(child.id() as i32);
        let mut last = sign.read().expect("a kernel that counts");
        assert_eq!(sign.read(), Some(last));
        for line in [
            "there = mmap.mmap(-1, 1 << 20)",
            "there.close()",
            "here.madvise(mmap.MADV_RANDOM)",
            "here.resize(2 << 20)",
        ] {
            writeln!(input, "{line}").unwrap();
            lines.next().unwrap().unwrap();
            let now = sign.read().unwrap();
            assert_ne!(now, last, "{line}");
            assert_eq!(sign.read(), Some(now));
            last = now;
        }
        drop(input);
        child.wait().unwrap();
    }
}
