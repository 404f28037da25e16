//! What two hosts must have in common for a process to move between them, compared when the pair is formed.

use std::fs;
use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;
use image::frame;
use serde::{Deserialize, Serialize};

/// Encoded as CBOR in hello and welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    pub release: String,
    /// Of the whole vdso, into which restored threads may have to return.
    pub vdso: Vec<u8>,
    /// (leaf, subleaf, eax, ebx, ecx, edx)
    pub cpu: Vec<[u32; 6]>,
}

/// Why a process of one host could not live on another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("the standby's CPU lacks {feature}, which programs here may be using")]
    Cpu { feature: String },
    #[error("the CPUs save their registers in different layouts ({0:#x} here, {1:#x} on the standby)")]
    Registers(u32, u32),
    #[error("the primary runs Linux {0}, the standby {1}")]
    Kernel(String, String),
    #[error("the kernels have different vdsos, though both say Linux {0}")]
    Vdso(String),
    #[error("the host's facts can't be read: {0}")]
    Unreadable(String),
}

impl Mismatch {
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::Cpu { .. } | Self::Registers(..) => {
                "use hosts with the same CPU model, or hide what only one has"
            }
            Self::Kernel(..) | Self::Vdso(_) => "run the same kernel on both hosts",
            Self::Unreadable(_) => "install the same release on both hosts",
        }
    }
}

impl HostFacts {
    pub fn read() -> anyhow::Result<Self> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        Ok(Self { release, vdso: vdso_digest()?, cpu: sys::kernel::cpu_features() })
    }

    pub fn encode(&self) -> Bytes {
        frame::encode(self).into()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Mismatch> {
        frame::decode(bytes, "host's facts").map_err(|why| Mismatch::Unreadable(why.to_string()))
    }

    /// Whether what runs here, on the primary, could run on `standby`.
    pub fn fits(&self, standby: &Self) -> Result<(), Mismatch> {
        if self.release != standby.release {
            return Err(Mismatch::Kernel(self.release.clone(), standby.release.clone()));
        }
        if self.vdso != standby.vdso {
            return Err(Mismatch::Vdso(self.release.clone()));
        }
        for ours in &self.cpu {
            let same = |theirs: &&[u32; 6]| theirs[..2] == ours[..2];
            let theirs = standby.cpu.iter().find(same).copied().unwrap_or([ours[0], ours[1], 0, 0, 0, 0]);
            compare_leaf(ours, &theirs)?;
        }
        Ok(())
    }
}

const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

/// The registers of a leaf that say what user code may execute: (leaf, subleaf, eax to edx).
const FEATURES: [(u32, u32, [bool; 4]); 5] = [
    (1, 0, [false, false, true, true]),
    (7, 0, [false, true, true, true]),
    (7, 1, [true, false, false, true]),
    (0xd, 1, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
];

fn compare_leaf(ours: &[u32; 6], theirs: &[u32; 6]) -> Result<(), Mismatch> {
    const EXTENDED_STATE: [u32; 2] = [0xd, 0];
    if ours[..2] == EXTENDED_STATE && ours[2] != theirs[2] {
        return Err(Mismatch::Registers(ours[2], theirs[2]));
    }
    let Some((leaf, subleaf, which)) =
        FEATURES.iter().find(|(leaf, subleaf, _)| ours[..2] == [*leaf, *subleaf]).copied()
    else {
        return Ok(());
    };
    for register in (0..4).filter(|register| which[*register]) {
        let missing = ours[2 + register] & !theirs[2 + register];
        if missing != 0 {
            let feature = feature_name(leaf, subleaf, register, missing.trailing_zeros());
            return Err(Mismatch::Cpu { feature });
        }
    }
    Ok(())
}

/// Names of the bits that differ between CPUs on sale: (leaf, subleaf, register, bit).
const NAMES: [(u32, u32, usize, u32, &str); 24] = [
    (1, 0, 2, 0, "sse3"),
    (1, 0, 2, 1, "pclmulqdq"),
    (1, 0, 2, 9, "ssse3"),
    (1, 0, 2, 12, "fma"),
    (1, 0, 2, 19, "sse4.1"),
    (1, 0, 2, 20, "sse4.2"),
    (1, 0, 2, 23, "popcnt"),
    (1, 0, 2, 25, "aes"),
    (1, 0, 2, 26, "xsave"),
    (1, 0, 2, 28, "avx"),
    (1, 0, 2, 30, "rdrand"),
    (7, 0, 1, 3, "bmi1"),
    (7, 0, 1, 5, "avx2"),
    (7, 0, 1, 8, "bmi2"),
    (7, 0, 1, 9, "erms"),
    (7, 0, 1, 16, "avx512f"),
    (7, 0, 1, 18, "rdseed"),
    (7, 0, 1, 29, "sha"),
    (7, 0, 1, 30, "avx512bw"),
    (7, 0, 1, 31, "avx512vl"),
    (7, 0, 2, 9, "vaes"),
    (7, 0, 3, 4, "fsrm"),
    (7, 0, 3, 24, "amx-tile"),
    (0x8000_0001, 0, 2, 5, "lzcnt"),
];

fn feature_name(leaf: u32, subleaf: u32, register: usize, bit: u32) -> String {
    let place = format!("CPUID leaf {leaf:#x}.{subleaf} {} bit {bit}", REGISTERS[register]);
    let name = NAMES.iter().find(|name| (name.0, name.1, name.2, name.3) == (leaf, subleaf, register, bit));
    name.map_or(place.clone(), |name| format!("{} ({place})", name.4))
}

/// The vdso's content is the kernel's own, the same in every process.
fn vdso_digest() -> anyhow::Result<Vec<u8>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"));
    let Some((start, end)) = line.and_then(|line| line.split(' ').next()?.split_once('-')) else {
        return Ok(Vec::new());
    };
    let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
    let mut memory = fs::File::open("/proc/self/mem")?;
    memory.seek(SeekFrom::Start(start))?;
    let mut content = vec![0; usize::try_from(end - start)?];
    memory.read_exact(&mut content)?;
    Ok(build_id(&content).unwrap_or_default())
}

/// The GNU build-id note: "GNU\0" after the lengths and type 3.
fn build_id(elf: &[u8]) -> Option<Vec<u8>> {
    const NOTE: [u8; 8] = [3, 0, 0, 0, b'G', b'N', b'U', 0];
    let at = elf.windows(NOTE.len()).position(|window| window == NOTE)?;
    let len = elf.get(at.checked_sub(4)?..at)?.try_into().map(u32::from_le_bytes).ok()?;
    elf.get(at + NOTE.len()..at + NOTE.len() + usize::try_from(len).ok()?).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_fits_itself_also_after_the_wire() {
        let facts = HostFacts::read().unwrap();
        assert!(!facts.vdso.is_empty(), "this kernel's vdso has a build-id");
        let read = HostFacts::decode(&facts.encode()).unwrap();
        assert_eq!(facts.fits(&read), Ok(()));
    }

    #[test]
    fn a_missing_feature_is_named_and_one_too_many_is_none() {
        let facts = HostFacts { release: "6.18".into(), vdso: vec![1], cpu: vec![[7, 0, 0, 1 << 5, 0, 0]] };
        let without = HostFacts { cpu: vec![[7, 0, 0, 0, 0, 0]], ..facts.clone() };
        let why = facts.fits(&without).unwrap_err().to_string();
        assert!(why.contains("avx2"), "{why}");
        assert_eq!(without.fits(&facts), Ok(()));
    }

    #[test]
    fn another_kernel_or_vdso_is_refused() {
        let facts = HostFacts { release: "6.18".into(), vdso: vec![1], cpu: Vec::new() };
        let other = HostFacts { release: "6.12".into(), ..facts.clone() };
        assert!(matches!(facts.fits(&other), Err(Mismatch::Kernel(..))));
        let other = HostFacts { vdso: vec![2], ..facts.clone() };
        assert!(matches!(facts.fits(&other), Err(Mismatch::Vdso(_))));
    }

    #[test]
    fn garbage_for_facts_is_refused() {
        assert!(matches!(HostFacts::decode(b"\xff garbage"), Err(Mismatch::Unreadable(_))));
    }
}
