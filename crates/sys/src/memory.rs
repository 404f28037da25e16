//! Reading and writing another process's memory.

use std::io;

use libc::pid_t;

use crate::check;

/// The kernel takes no more vectors than this in one call.
pub const VECTORS_MAX: usize = 1024;

/// A piece of another process's memory. Not a pointer: nothing here can follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub address: u64,
    pub len: usize,
}

fn vectors(pieces: &[Piece]) -> ([libc::iovec; VECTORS_MAX], usize) {
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; VECTORS_MAX];
    let count = pieces.len().min(VECTORS_MAX);
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        *vector = libc::iovec { iov_base: piece.address as *mut libc::c_void, iov_len: piece.len };
    }
    (vectors, count)
}

/// Gathers up to [`VECTORS_MAX`] pieces of `pid`'s memory into `into`; returns how many bytes came, fewer
/// than asked if a piece could not be read.
pub fn gather(pid: pid_t, pieces: &[Piece], into: &mut [u8]) -> io::Result<usize> {
    let (remote, count) = vectors(pieces);
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: `local` is `into`, live and exclusively ours; the remote addresses are the other process's.
    let ret = unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), count as u64, 0) };
    check(ret as libc::c_long).map(|n| n as usize)
}

/// Writes each piece of bytes to its address in `pid`, up to [`VECTORS_MAX`] of them; returns how many bytes
/// went. Fails on read-only mappings.
pub fn scatter_each(pid: pid_t, pieces: &[(u64, &[u8])]) -> io::Result<usize> {
    let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let (mut local, mut remote) = ([none; VECTORS_MAX], [none; VECTORS_MAX]);
    let count = pieces.len().min(VECTORS_MAX);
    for (n, &(address, bytes)) in pieces[..count].iter().enumerate() {
        local[n] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        remote[n] = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    }
    let count = count as u64;
    // SAFETY: the local vectors are the live slices of `pieces`, only read; the remote addresses are the
    // other process's.
    let ret = unsafe { libc::process_vm_writev(pid, local.as_ptr(), count, remote.as_ptr(), count, 0) };
    check(ret as libc::c_long).map(|n| n as usize)
}

pub fn read(pid: pid_t, address: u64, into: &mut [u8]) -> io::Result<()> {
    let wanted = into.len();
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: wanted };
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: wanted };
    // SAFETY: `local` is `into`, live and exclusively ours; the remote address is the other process's.
    let ret = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    let got = check(ret as libc::c_long)? as usize;
    if got == wanted { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

pub fn read_word(pid: pid_t, address: u64) -> io::Result<u64> {
    let mut word = [0; 8];
    read(pid, address, &mut word).map(|()| u64::from_ne_bytes(word))
}
