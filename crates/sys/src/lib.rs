//! Kernel calls that no library has, behind safe functions. Every `unsafe` line of CheckSync is in here;
//! there is no policy: each function does one call and says what the kernel said.
#![allow(unsafe_code, reason = "this is the one crate that talks to the kernel directly")]

pub mod admit;
pub mod alarm;
pub mod bell;
pub mod bpf;
pub mod clone;
pub mod descriptors;
pub mod idle;
pub mod kernel;
pub mod mapping;
pub mod memory;
pub mod mounts;
pub mod netns;
pub mod pagemap;
pub mod peek;
pub mod ptrace;
pub mod rights;
pub mod seal;
pub mod servant;
pub mod sockets;
pub mod spawn;
pub mod task;
pub mod tasks;
pub mod tryout;
pub mod tun;
pub mod userfault;
pub mod wait;

use std::io;

/// What a system call returned, as a result.
fn check(ret: libc::c_long) -> io::Result<u64> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret as u64) }
}
