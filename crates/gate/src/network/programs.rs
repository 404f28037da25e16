//! The programs on the packets of a cell's device. They say no with a word of the kernel's own and need no
//! memory, so that they go on saying it when nobody of ours is left.

use std::os::fd::OwnedFd;

use sys::bpf::{HELPER_REDIRECT, Instruction, LoadError, PACKET_PROTOCOL, Register, load_traffic_filter};

const PASS: i32 = 0;
const DROP: i32 = 2;

/// Drops everything.
pub fn nothing() -> Result<OwnedFd, LoadError> {
    load_traffic_filter("checksync_shut", &[Instruction::set(Register::R0, DROP), Instruction::exit()])
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

/// Drops IP, but not what resolves neighbours: they must not forget us while the sockets are made.
pub fn no_ip() -> Result<OwnedFd, LoadError> {
    use Register::{R0, R1, R6};
    const ETHERNET_BYTES: i32 = 14;
    const NEXT_HEADER: i32 = ETHERNET_BYTES + 6;
    const ICMP_KIND: i32 = ETHERNET_BYTES + 40;
    const NEIGHBOUR_SOLICITATION: i32 = 135;
    const NEIGHBOUR_ADVERTISEMENT: i32 = 136;
    let protocol = |number: i32| i32::from((number as u16).to_be());
    let program = [
        Instruction::copy(R6, R1),
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
    ];
    load_traffic_filter("checksync_no_ip", &program)
}
