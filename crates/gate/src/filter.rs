//! The permit's program, and the three words of memory that it shares with us.
//!
//! ```text
//! r6 = &words; r7 = words[DEADLINE]
//! if boot_clock() <= r7: return 1            pass
//! words[DROPPED] += 1; return verdict        drop
//! ```
//!
//! Ingress and egress differ in the verdict only. On the way out it is 2, "dropped by a full queue", and not 0:
//! a 0 comes back to the sender as EPERM, which is an error that a UDP server never expects and may die of,
//! where a lost datagram is its daily bread. TCP repeats either; after a 2 it does so every half second
//! without backing off, so that connections come back to life soon after the permit does.

use std::os::fd::OwnedFd;

use sys::bpf::{CgroupHook, HELPER_KTIME_GET_BOOT_NS, Instruction, LoadError, Register, WordArray};

/// Index of the deadline: nanoseconds on the host's boot clock.
pub const DEADLINE: usize = 0;
/// Index of the number of packets dropped, both ways.
pub const DROPPED: usize = 1;
pub const WORDS: usize = 2;

pub const HOOKS: [CgroupHook; 2] = [CgroupHook::Ingress, CgroupHook::Egress];

/// By this name a restarted manager finds its programs again.
pub const fn name(hook: CgroupHook) -> &'static str {
    match hook {
        CgroupHook::Ingress => "checksync_in",
        CgroupHook::Egress => "checksync_out",
    }
}

pub fn load(hook: CgroupHook, words: &WordArray) -> Result<OwnedFd, LoadError> {
    sys::bpf::load_packet_filter(name(hook), hook, &program(hook, words))
}

fn program(hook: CgroupHook, words: &WordArray) -> Vec<Instruction> {
    use Register::{R0, R1, R6, R7};
    let drop_verdict = match hook {
        CgroupHook::Ingress => 0,
        CgroupHook::Egress => 2,
    };
    let mut program = Instruction::array_address(R6, words).to_vec();
    program.extend([
        Instruction::load_word(R7, R6, DEADLINE as i16),
        Instruction::call(HELPER_KTIME_GET_BOOT_NS),
        Instruction::skip_if_greater(R0, R7, 2),
        Instruction::set(R0, 1),
        Instruction::exit(),
        Instruction::set(R1, 1),
        Instruction::add_to_word(R6, DROPPED as i16, R1),
        Instruction::set(R0, drop_verdict),
        Instruction::exit(),
    ]);
    program
}
