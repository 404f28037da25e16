//! What the running kernel and CPU are: to compare two hosts, and to name the numbers of errors.

use std::io;

/// Every CPUID leaf that says what user code may use, as (leaf, subleaf, eax, ebx, ecx, edx).
pub fn cpu_features() -> Vec<[u32; 6]> {
    use std::arch::x86_64::__cpuid_count;
    const LEAVES: [(u32, u32); 9] =
        [(0, 0), (1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x14, 0), (0x8000_0001, 0), (0x8000_0008, 0)];
    LEAVES
        .map(|(leaf, subleaf)| {
            let found = __cpuid_count(leaf, subleaf);
            [leaf, subleaf, found.eax, found.ebx, found.ecx, found.edx]
        })
        .to_vec()
}

/// The name of an error number, for messages.
pub fn error(number: i64) -> io::Error {
    io::Error::from_raw_os_error(number.unsigned_abs() as i32)
}
