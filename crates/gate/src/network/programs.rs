//! The programs on the packets of a cell's device. Two of them are doors: a word of memory that they share with us
//! says whether they are open. The memory lives as long as they do, so that they go on saying no when nobody of ours is
//! left; and a word is changed at once, where adding or removing a filter waits for every core (milliseconds).

use std::os::fd::OwnedFd;

use sys::bpf::{
    HELPER_KTIME_GET_BOOT_NS, HELPER_REDIRECT, Instruction, LoadError, PACKET_MARK, PACKET_PROTOCOL,
    Register, WordArray, load_traffic_filter,
};

use crate::filter;

const PASS: i32 = 0;
const DROP: i32 = 2;
/// The next filter decides; without one, the packet passes.
const UNDECIDED: i32 = -1;

/// Index of the word of the door on the way out: not zero is open.
pub const OUT: usize = 0;
/// Of the door on the way in.
pub const IN: usize = 1;
pub const DOORS: usize = 2;

/// Drops everything that leaves, while the door is shut.
pub fn way_out(doors: &WordArray) -> Result<OwnedFd, LoadError> {
    let mut program = unless_open(doors, OUT);
    program.extend([Instruction::set(Register::R0, DROP), Instruction::exit()]);
    load_traffic_filter("checksync_shut", &program)
}

/// Drops everything that leaves once the permit with these words has run out, or was revoked.
pub fn while_permitted(permit: &WordArray) -> Result<OwnedFd, LoadError> {
    load_traffic_filter("checksync_until", &permitted(permit, UNDECIDED))
}

/// Lets out what bears our mark, past all filters that follow; with a permit, while that lasts.
pub fn ours(mark: u32, permit: Option<&WordArray>) -> Result<OwnedFd, LoadError> {
    use Register::{R0, R1, R2};
    let mut program = vec![
        Instruction::load_half(R2, R1, PACKET_MARK),
        Instruction::skip_if_equal(R2, mark as i32, 2),
        Instruction::set(R0, UNDECIDED),
        Instruction::exit(),
        // Nobody else is to see it.
        Instruction::set(R2, 0),
        Instruction::store_half(R1, PACKET_MARK, R2),
    ];
    program.extend(match permit {
        Some(permit) => permitted(permit, PASS),
        None => vec![Instruction::set(R0, PASS), Instruction::exit()],
    });
    load_traffic_filter("checksync_ours", &program)
}

fn permitted(permit: &WordArray, verdict: i32) -> Vec<Instruction> {
    use Register::{R0, R6, R7};
    let mut program = Instruction::array_address(R6, permit).to_vec();
    program.extend([
        Instruction::load_word(R7, R6, filter::DEADLINE as i16),
        Instruction::call(HELPER_KTIME_GET_BOOT_NS),
        Instruction::skip_if_greater(R0, R7, 2),
        Instruction::set(R0, verdict),
        Instruction::exit(),
        Instruction::set(R0, DROP),
        Instruction::exit(),
    ]);
    program
}

/// The packet stays in `r6`.
fn unless_open(doors: &WordArray, door: usize) -> Vec<Instruction> {
    use Register::{R0, R1, R2, R6};
    let mut program = vec![Instruction::copy(R6, R1)];
    program.extend(Instruction::array_address(R1, doors));
    program.extend([
        Instruction::load_word(R2, R1, door as i16),
        Instruction::skip_if_equal(R2, 0, 2),
        Instruction::set(R0, UNDECIDED),
        Instruction::exit(),
    ]);
    program
}

/// Has every packet leave through another device; drops it where that is gone.
pub fn divert_to(device: u32) -> Result<OwnedFd, LoadError> {
    let program = [
        Instruction::set(Register::R1, device as i32),
        Instruction::set(Register::R2, 0),
        Instruction::call(HELPER_REDIRECT),
        Instruction::exit(),
    ];
    load_traffic_filter("checksync_gate", &program)
}

/// While the door is shut, drops IP, but not what resolves neighbours: they must not forget us while the sockets are
/// made.
pub fn way_in(doors: &WordArray) -> Result<OwnedFd, LoadError> {
    use Register::{R0, R6};
    const ETHERNET_BYTES: i32 = 14;
    const NEXT_HEADER: i32 = ETHERNET_BYTES + 6;
    const ICMP_KIND: i32 = ETHERNET_BYTES + 40;
    const NEIGHBOUR_SOLICITATION: i32 = 135;
    const NEIGHBOUR_ADVERTISEMENT: i32 = 136;
    let protocol = |number: i32| i32::from((number as u16).to_be());
    let mut program = unless_open(doors, IN);
    program.extend([
        Instruction::load_half(R0, R6, PACKET_PROTOCOL),
        Instruction::skip_if_equal(R0, protocol(libc::ETH_P_IP), 7),
        Instruction::skip_if_equal(R0, protocol(libc::ETH_P_IPV6), 2),
        Instruction::set(R0, PASS),
        Instruction::exit(),
        Instruction::load_packet_byte(NEXT_HEADER),
        Instruction::skip_if_equal(R0, libc::IPPROTO_ICMPV6, 4),
        Instruction::set(R0, DROP),
        Instruction::exit(),
        Instruction::set(R0, DROP),
        Instruction::exit(),
        Instruction::load_packet_byte(ICMP_KIND),
        Instruction::skip_if_equal(R0, NEIGHBOUR_SOLICITATION, 3),
        Instruction::skip_if_equal(R0, NEIGHBOUR_ADVERTISEMENT, 2),
        Instruction::set(R0, DROP),
        Instruction::exit(),
        Instruction::set(R0, PASS),
        Instruction::exit(),
    ]);
    load_traffic_filter("checksync_no_ip", &program)
}
