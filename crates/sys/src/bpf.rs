//! `bpf(2)`: arrays of words in shared memory, and programs on the packets of a cgroup or of a device.
//!
//! What is needed to hand the kernel a dozen instructions and to change a number that they read; no more.
//! Programs come from [`Instruction`]s instead of a compiler: nothing to install, and the verifier checks them
//! either way. Attached programs belong to the cgroup and outlive the process that attached them, unlike
//! links, which open the way again when their last descriptor is closed.

use std::ffi::CStr;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const MAP_GET_FD_BY_ID: u32 = 14;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
pub(crate) const LINK_CREATE: u32 = 28;

const MAP_TYPE_ARRAY: u32 = 2;
pub(crate) const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_CGROUP_SKB: u32 = 8;
/// `BPF_F_MMAPABLE`.
const MAPPABLE: u32 = 1 << 10;
/// `BPF_F_ALLOW_MULTI`: others (systemd's address filters) keep theirs, and all have to agree.
const ALLOW_MULTI: u32 = 1 << 1;
const NAME_BYTES: usize = 16;
const LOG_BYTES: usize = 64 << 10;
/// More programs than this on one hook of one cgroup are refused by the kernel.
const PROGRAMS_MAX: usize = 64;

/// Which packets of a cgroup's sockets a program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CgroupHook {
    /// Before the socket sees them. The program returns 1 to pass, 0 to drop.
    Ingress = 0,
    /// Before the device's queue sees them. 1 passes; 0 drops, and the sender gets `EPERM`; 2 drops as a full
    /// queue would, which TCP repeats later and UDP does not report.
    Egress = 1,
}

/// `bpf_ktime_get_boot_ns`: the host's boot clock, whatever time namespace anybody is in.
pub const HELPER_KTIME_GET_BOOT_NS: i32 = 125;

/// `bpf_redirect(index, 0)`: the packet leaves through the device with this number instead, and is dropped where
/// there is none. Its result is what the program has to return.
pub const HELPER_REDIRECT: i32 = 23;
/// Where `struct __sk_buff` has the mark.
pub const PACKET_MARK: i16 = 8;
/// Where it has the Ethernet protocol, in network order.
pub const PACKET_PROTOCOL: i16 = 16;
/// Where it has the number of the device that the packet came in by; 0 if it comes from here.
pub const PACKET_CAME_BY: i16 = 36;

/// One of the machine's registers. `r0` returns, a call clobbers `r0` to `r5`, and `r6` to `r9` survive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
    R6 = 6,
    R7 = 7,
    R8 = 8,
    /// The end of the stack, which grows down from there and has 512 bytes.
    Frame = 10,
}

/// One slot of a program, as `struct bpf_insn` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Instruction(u64);

impl Instruction {
    const fn new(code: u8, to: Register, from: u8, offset: i16, value: i32) -> Self {
        let registers = (to as u8 | from << 4) as u64;
        Self(code as u64 | registers << 8 | (offset as u16 as u64) << 16 | (value as u32 as u64) << 32)
    }

    /// `to = address of the first word of array`; two slots.
    pub fn array_address(to: Register, array: &WordArray) -> [Self; 2] {
        const PSEUDO_MAP_VALUE: u8 = 2;
        let number = array.descriptor.as_raw_fd();
        [Self::new(0x18, to, PSEUDO_MAP_VALUE, 0, number), Self(0)]
    }

    /// `to = word at index of the array at from`.
    pub const fn load_word(to: Register, from: Register, index: i16) -> Self {
        Self::new(0x79, to, from as u8, index * 8, 0)
    }

    /// `word at index of the array at to = from`.
    pub const fn store_word(to: Register, index: i16, from: Register) -> Self {
        Self::new(0x7b, to, from as u8, index * 8, 0)
    }

    /// `to = the 32 bits at offset from the address in from`.
    pub const fn load_half(to: Register, from: Register, offset: i16) -> Self {
        Self::new(0x61, to, from as u8, offset, 0)
    }

    /// `the 32 bits at offset from the address in to = from`.
    pub const fn store_half(to: Register, offset: i16, from: Register) -> Self {
        Self::new(0x63, to, from as u8, offset, 0)
    }

    /// `r0 = the packet's byte at offset`. The packet has to be in `r6`; where it is shorter, the program
    /// returns 0.
    pub const fn load_packet_byte(offset: i32) -> Self {
        Self::new(0x30, Register::R0, 0, 0, offset)
    }

    /// `to = from`.
    pub const fn copy(to: Register, from: Register) -> Self {
        Self::new(0xbf, to, from as u8, 0, 0)
    }

    /// `word at index of the array at to += from`, atomically.
    pub const fn add_to_word(to: Register, index: i16, from: Register) -> Self {
        Self::new(0xdb, to, from as u8, index * 8, 0)
    }

    /// `to = value`.
    pub const fn set(to: Register, value: i32) -> Self {
        Self::new(0xb7, to, 0, 0, value)
    }

    /// `to += value`.
    pub const fn add(to: Register, value: i32) -> Self {
        Self::new(0x07, to, 0, 0, value)
    }

    /// `to += from`.
    pub const fn add_register(to: Register, from: Register) -> Self {
        Self::new(0x0f, to, from as u8, 0, 0)
    }

    /// `to *= value`.
    pub const fn multiply(to: Register, value: i32) -> Self {
        Self::new(0x27, to, 0, 0, value)
    }

    /// `r0 = helper(r1, …)`.
    pub const fn call(helper: i32) -> Self {
        Self::new(0x85, Register::R0, 0, 0, helper)
    }

    /// `r0 = function(r1, …)`: one of the kernel's own, by its number in the kernel's type information.
    pub const fn call_kernel(function: u32) -> Self {
        const PSEUDO_KERNEL_CALL: u8 = 2;
        Self::new(0x85, Register::R0, PSEUDO_KERNEL_CALL, 0, function as i32)
    }

    /// Skips `slots` slots.
    pub const fn skip(slots: i16) -> Self {
        Self::new(0x05, Register::R0, 0, slots, 0)
    }

    /// Skips `slots` slots if `left > right`, both unsigned.
    pub const fn skip_if_greater(left: Register, right: Register, slots: i16) -> Self {
        Self::new(0x2d, left, right as u8, slots, 0)
    }

    /// Skips `slots` slots if `left == value`.
    pub const fn skip_if_equal(left: Register, value: i32, slots: i16) -> Self {
        Self::new(0x15, left, 0, slots, value)
    }

    /// Skips `slots` slots if `left != right`.
    pub const fn skip_if_different(left: Register, right: Register, slots: i16) -> Self {
        Self::new(0x5d, left, right as u8, slots, 0)
    }

    /// `to <<= bits`.
    pub const fn shift_left(to: Register, bits: i32) -> Self {
        Self::new(0x67, to, 0, 0, bits)
    }

    /// `to >>= bits`, and keeps the sign.
    pub const fn shift_right_signed(to: Register, bits: i32) -> Self {
        Self::new(0xc7, to, 0, 0, bits)
    }

    /// Returns `r0`.
    pub const fn exit() -> Self {
        Self::new(0x95, Register::R0, 0, 0, 0)
    }
}

/// The kernel refused a program.
#[derive(Debug)]
pub struct LoadError {
    pub source: io::Error,
    /// What the verifier says about it; empty if it did not get that far.
    pub log: String,
}

/// What the kernel says about a loaded program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    pub id: u32,
    pub name: String,
    pub map_ids: Vec<u32>,
}

/// A BPF array of one entry made of 64-bit words, mapped into this process: a store here is what a program
/// reads next. Every process that holds the descriptor shares the words; they live as long as any descriptor,
/// mapping or loaded program needs them.
#[derive(Debug)]
pub struct WordArray {
    descriptor: OwnedFd,
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping is of shared memory that no thread owns, and is reached as atomics only.
unsafe impl Send for WordArray {}
// SAFETY: as for `Send`.
unsafe impl Sync for WordArray {}

impl WordArray {
    /// Makes an array of `count` zeros. `EPERM` without CAP_BPF (or CAP_SYS_ADMIN).
    pub fn create(name: &str, count: usize) -> io::Result<Self> {
        let value_bytes = u32::try_from(count * 8).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut create = MapCreate {
            map_type: MAP_TYPE_ARRAY,
            key_bytes: 4,
            value_bytes,
            entries: 1,
            flags: MAPPABLE,
            name: kernel_name(name),
            ..MapCreate::default()
        };
        // SAFETY: `create` is what this command reads, and holds no address.
        let descriptor = unsafe { call_for_descriptor(MAP_CREATE, &mut create) }?;
        Self::from_descriptor(descriptor)
    }

    /// Maps the array behind a descriptor that came from elsewhere. `EINVAL` if it is no mappable array.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let info: MapInfo = info_of(descriptor.as_fd())?;
        let is_array = info.map_type == MAP_TYPE_ARRAY && info.flags & MAPPABLE != 0 && info.entries == 1;
        if !is_array || !info.value_bytes.is_multiple_of(8) || info.value_bytes == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len_bytes = info.value_bytes as usize;
        let (access, raw) = (libc::PROT_READ | libc::PROT_WRITE, descriptor.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), len_bytes, access, libc::MAP_SHARED, raw, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { descriptor, words, count: len_bytes / 8 })
    }

    /// Maps the array behind a descriptor that came through `exec`, known by its number. The number stays open
    /// and is closed on the next exec.
    pub fn from_inherited(number: RawFd) -> io::Result<Self> {
        // SAFETY: this sets a flag of a number that we were given; it takes no address.
        let set = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: this makes a new descriptor; it takes no address.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the copy is new and only ours.
        Self::from_descriptor(unsafe { OwnedFd::from_raw_fd(copy) })
    }

    /// Maps the array with this number. `EPERM` without CAP_SYS_ADMIN.
    pub fn from_id(id: u32) -> io::Result<Self> {
        Self::from_descriptor(descriptor_of(MAP_GET_FD_BY_ID, id)?)
    }
}

impl AsFd for WordArray {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Deref for WordArray {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `words` starts a live mapping of `count` words, page-aligned, that only `drop` unmaps; the
        // kernel and other processes change it with whole-word accesses, which atomics allow.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }
}

impl Drop for WordArray {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every slice of it borrowed `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * 8) };
    }
}

/// Loads a program for a cgroup's packets. It is freed with its last descriptor and attachment.
pub fn load_packet_filter(
    name: &str,
    hook: CgroupHook,
    instructions: &[Instruction],
) -> Result<OwnedFd, LoadError> {
    // The verifier allows the egress answer 2 only if it knows the hook.
    load(Kind { program_type: PROG_TYPE_CGROUP_SKB, attach_type: hook as u32, ..NO_GPL }, name, instructions)
}

/// Loads a program for the packets of a device, which gets the packet in `r1` and returns `TC_ACT_*`. It is
/// freed with its last descriptor and use.
pub fn load_traffic_filter(name: &str, instructions: &[Instruction]) -> Result<OwnedFd, LoadError> {
    load(Kind { program_type: PROG_TYPE_SCHED_CLS, ..NO_GPL }, name, instructions)
}

/// What the verifier holds a program to.
#[derive(Clone, Copy)]
pub(crate) struct Kind<'a> {
    pub program_type: u32,
    pub attach_type: u32,
    /// The number of the kernel's function that it is attached to, in the kernel's own type information.
    pub function: u32,
    /// Some helpers are for programs only that may be used under the GPL.
    pub license: &'a CStr,
}

pub(crate) const NO_GPL: Kind<'static> =
    Kind { program_type: 0, attach_type: 0, function: 0, license: c"Apache-2.0" };

pub(crate) fn load(kind: Kind<'_>, name: &str, instructions: &[Instruction]) -> Result<OwnedFd, LoadError> {
    // What is not refused needs no words, and a log that is too short for them would make it fail.
    load_with(kind, name, instructions, None).or_else(|refused| {
        let mut log = vec![0; LOG_BYTES];
        load_with(kind, name, instructions, Some(&mut log))
            .map_err(|_| LoadError { source: refused.source, log: text(&log) })
    })
}

fn load_with(
    kind: Kind<'_>,
    name: &str,
    instructions: &[Instruction],
    log: Option<&mut Vec<u8>>,
) -> Result<OwnedFd, LoadError> {
    let log: &mut [u8] = log.map_or(&mut [], |log| log);
    let mut load = ProgramLoad {
        program_type: kind.program_type,
        instructions_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: kind.license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_bytes: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        name: kernel_name(name),
        attach_type: kind.attach_type,
        function: kind.function,
        ..ProgramLoad::default()
    };
    // SAFETY: `load` is what this command reads; its addresses are of live buffers with the lengths beside
    // them, of which only the log is written.
    unsafe { call_for_descriptor(PROG_LOAD, &mut load) }
        .map_err(|source| LoadError { source, log: String::new() })
}

/// Puts `program` on `hook` of a cgroup (a descriptor of its directory), beside what others put there. It
/// stays when this process ends, until it is detached or the cgroup is gone *and* its last socket.
pub fn attach_to_cgroup(cgroup: BorrowedFd<'_>, hook: CgroupHook, program: BorrowedFd<'_>) -> io::Result<()> {
    attachment(PROG_ATTACH, cgroup, hook, program, ALLOW_MULTI)
}

/// Takes `program` off `hook`. `ENOENT` if it is not there.
pub fn detach_from_cgroup(
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    attachment(PROG_DETACH, cgroup, hook, program, 0)
}

/// The numbers of the programs on `hook` of exactly this cgroup.
pub fn programs_on_cgroup(cgroup: BorrowedFd<'_>, hook: CgroupHook) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; PROGRAMS_MAX];
    let mut query = Query {
        cgroup: cgroup.as_raw_fd() as u32,
        attach_type: hook as u32,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS_MAX as u32,
        ..Query::default()
    };
    // SAFETY: `query` is what this command reads and writes; `ids` is live and has room for `count` numbers.
    unsafe { call(PROG_QUERY, &mut query) }?;
    ids.truncate(query.count as usize);
    Ok(ids)
}

/// The program with this number. `ENOENT` if there is none, `EPERM` without CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    descriptor_of(PROG_GET_FD_BY_ID, id)
}

pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let counted: ProgramInfoHead = info_of(program)?;
    let mut map_ids = vec![0u32; counted.map_ids_count as usize];
    let wanted = ProgramInfoHead {
        map_ids_count: counted.map_ids_count,
        map_ids: map_ids.as_mut_ptr() as u64,
        ..ProgramInfoHead::default()
    };
    // SAFETY: `map_ids` is live and has room for `map_ids_count` numbers.
    let info = unsafe { fill_info(program, wanted) }?;
    Ok(ProgramInfo { id: info.id, name: text(&info.name), map_ids })
}

fn attachment(
    command: u32,
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
    program: BorrowedFd<'_>,
    flags: u32,
) -> io::Result<()> {
    let mut attach = Attachment {
        cgroup: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: hook as u32,
        flags,
    };
    // SAFETY: `attach` is what both commands read, and holds no address.
    unsafe { call(command, &mut attach) }.map(drop)
}

fn descriptor_of(command: u32, id: u32) -> io::Result<OwnedFd> {
    let mut by_id = ById { id, ..ById::default() };
    // SAFETY: `by_id` is what both commands read, and holds no address.
    unsafe { call_for_descriptor(command, &mut by_id) }
}

fn info_of<Info: KernelInfo>(object: BorrowedFd<'_>) -> io::Result<Info> {
    // SAFETY: an empty info asks for no buffer to be filled.
    unsafe { fill_info(object, Info::default()) }
}

/// # Safety
/// Addresses in `info` are of live buffers that are as long as the counts beside them say.
unsafe fn fill_info<Info: KernelInfo>(object: BorrowedFd<'_>, mut info: Info) -> io::Result<Info> {
    let mut ask = AskInfo {
        object: object.as_raw_fd() as u32,
        info_bytes: size_of::<Info>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `ask` is what this command reads; it writes at most `info_bytes` to `info`, which is live and
    // valid with any content, and whose own addresses the caller vouches for.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut ask) }?;
    Ok(info)
}

/// # Safety
/// As for [`call`], and the command answers with a new descriptor.
pub(crate) unsafe fn call_for_descriptor<Attributes>(
    command: u32,
    attributes: &mut Attributes,
) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let number = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel just made this descriptor for us; nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// # Safety
/// `attributes` starts with the fields that `command` reads and writes, and every address in it is of a
/// live buffer that is as long as the field beside it says.
pub(crate) unsafe fn call<Attributes>(command: u32, attributes: &mut Attributes) -> io::Result<i32> {
    let (start, len_bytes) = (ptr::from_mut(attributes), size_of::<Attributes>());
    // SAFETY: the kernel touches at most `len_bytes` of `attributes`; for what it points to the caller vouches.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, start, len_bytes) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

/// `name` as the kernel stores it: cut to 15 bytes and a zero.
fn kernel_name(name: &str) -> [u8; NAME_BYTES] {
    let mut out = [0; NAME_BYTES];
    for (to, from) in out[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    out
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
}

// The structures of `union bpf_attr` and of the answers, cut after the last field that we use. The kernel
// takes what is missing as zero.

#[derive(Debug, Default)]
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; NAME_BYTES],
}

#[derive(Debug, Default)]
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instructions_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_BYTES],
    interface: u32,
    attach_type: u32,
    types: u32,
    function_info_bytes: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_bytes: u32,
    line_info: u64,
    line_info_count: u32,
    function: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Attachment {
    cgroup: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// For [`LINK_CREATE`].
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct LinkCreate {
    pub program: u32,
    pub target: u32,
    pub attach_type: u32,
    pub flags: u32,
    pub whom: u64,
    pub whom_bytes: u32,
    pub padding: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Query {
    cgroup: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct AskInfo {
    object: u32,
    info_bytes: u32,
    info: u64,
}

/// What `OBJ_GET_INFO_BY_FD` writes to: plain numbers and bytes, all zero to begin with.
trait KernelInfo: Default {}

#[derive(Debug, Default)]
#[repr(C)]
struct MapInfo {
    map_type: u32,
    id: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

#[derive(Debug, Default)]
#[repr(C)]
struct ProgramInfoHead {
    program_type: u32,
    id: u32,
    tag: [u8; 8],
    machine_code_bytes: u32,
    instructions_bytes: u32,
    machine_code: u64,
    instructions: u64,
    loaded_at_ns: u64,
    created_by: u32,
    map_ids_count: u32,
    map_ids: u64,
    name: [u8; NAME_BYTES],
}

impl KernelInfo for MapInfo {}
impl KernelInfo for ProgramInfoHead {}

// The offsets of `linux/bpf.h`, where a slip would not show as an error.
const _: () = {
    assert!(std::mem::offset_of!(MapCreate, name) == 28);
    assert!(std::mem::offset_of!(ProgramLoad, name) == 48);
    assert!(std::mem::offset_of!(ProgramLoad, attach_type) == 68);
    assert!(std::mem::offset_of!(ProgramLoad, function) == 108);
    assert!(std::mem::offset_of!(Query, count) == 24);
    assert!(std::mem::offset_of!(ProgramInfoHead, map_ids) == 56);
    assert!(size_of::<ProgramInfoHead>() == 80);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        let load = Instruction::load_word(Register::R7, Register::R6, 1);
        assert_eq!(load.0.to_le_bytes(), [0x79, 0x67, 8, 0, 0, 0, 0, 0]);
        let set = Instruction::set(Register::R0, 2);
        assert_eq!(set.0.to_le_bytes(), [0xb7, 0, 0, 0, 2, 0, 0, 0]);
        let skip = Instruction::skip_if_greater(Register::R0, Register::R7, 2);
        assert_eq!(skip.0.to_le_bytes(), [0x2d, 0x70, 2, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_descriptor_that_is_no_array_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(WordArray::from_descriptor(file.into()).is_err());
    }

    #[test]
    fn names_are_cut_to_what_the_kernel_stores() {
        assert_eq!(text(&kernel_name("a_name_of_nineteen_")), "a_name_of_ninet");
    }
}
