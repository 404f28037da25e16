//! Where the running kernel keeps what: offsets of members, from the description of its types that it carries
//! (BTF, `Documentation/bpf/btf.rst`).

use std::{fs, io};

const HEADER_BYTES: usize = 24;
const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// Anonymous members in anonymous members: the kernel has few.
const DEPTH_MAX: u32 = 8;
const BITS: u32 = 8;

// Kinds of types, by the number of bytes that follow the three words of each.
const INTEGER: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const NAME: u32 = 8;
const FUNCTION: u32 = 12;
const PROTOTYPE: u32 = 13;
const VARIABLE: u32 = 14;
const SECTION: u32 = 15;
const TAG: u32 = 17;
const ENUM_64: u32 = 19;

/// The types of a kernel.
#[derive(Debug)]
pub(crate) struct Types {
    bytes: Vec<u8>,
    /// Where the names begin.
    names: usize,
    /// Where each type begins; the first has number 1.
    starts: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    count: usize,
    /// Of a structure whose members tell the width of bit fields, too.
    with_widths: bool,
    size: u32,
    /// Where what follows the three words begins.
    rest: usize,
}

impl Types {
    /// Those of the kernel that runs.
    pub fn of_kernel() -> io::Result<Self> {
        let bytes = fs::read("/sys/kernel/btf/vmlinux")?;
        Self::parse(bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no BTF, or a newer form"))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let word = |at: usize| word(&bytes, at);
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let header_bytes = word(4)? as usize;
        let types = header_bytes.checked_add(word(8)? as usize)?;
        let end = types.checked_add(word(12)? as usize)?;
        let names = header_bytes.checked_add(word(16)? as usize)?;
        if header_bytes < HEADER_BYTES || end > bytes.len() || names > bytes.len() {
            return None;
        }
        let mut found = Self { bytes, names, starts: Vec::new() };
        let mut at = types;
        while at < end {
            found.starts.push(at);
            at = found.at(at)?.end()?;
        }
        Some(found)
    }

    /// The number of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        let index = self.starts.iter().position(|&start| {
            self.at(start).is_some_and(|found| found.kind == FUNCTION && self.is_named(found.name, name))
        })?;
        u32::try_from(index + 1).ok()
    }

    /// How many bytes a structure has.
    pub fn size(&self, structure: &str) -> Option<u32> {
        self.structure(structure).map(|found| found.size)
    }

    /// How many bytes into a structure a member of it lies, also one of an anonymous part of it. Of bits, where their
    /// byte is.
    pub fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.bits(structure, member).map(|bits| bits / BITS)
    }

    /// The same, counted in bits.
    pub fn bits(&self, structure: &str, member: &str) -> Option<u32> {
        self.bits_in(self.structure(structure)?, member, DEPTH_MAX)
    }

    fn structure(&self, name: &str) -> Option<Type> {
        let types = self.starts.iter().filter_map(|&start| self.at(start));
        types.filter(|found| self.is_named(found.name, name)).find_map(|found| match found.kind {
            STRUCT => Some(found),
            // What stands in the place of a size is the number of the type that it names.
            NAME => self.number(found.size).filter(|named| named.kind == STRUCT),
            _ => None,
        })
    }

    fn bits_in(&self, structure: Type, member: &str, depth: u32) -> Option<u32> {
        const OFFSET_BITS: u32 = 0x00ff_ffff;
        (0..structure.count).find_map(|index| {
            let at = structure.rest + index * MEMBER_BYTES;
            let (name, kind, place) =
                (word(&self.bytes, at)?, word(&self.bytes, at + 4)?, word(&self.bytes, at + 8)?);
            let bits = if structure.with_widths { place & OFFSET_BITS } else { place };
            if self.is_named(name, member) {
                return Some(bits);
            }
            let inner = self.number(kind).filter(|_| name == 0 && depth > 0)?;
            let inside = matches!(inner.kind, STRUCT | UNION).then(|| self.bits_in(inner, member, depth - 1));
            inside.flatten()?.checked_add(bits)
        })
    }

    fn number(&self, number: u32) -> Option<Type> {
        self.at(*self.starts.get((number as usize).checked_sub(1)?)?)
    }

    fn at(&self, start: usize) -> Option<Type> {
        let info = word(&self.bytes, start + 4)?;
        Some(Type {
            name: word(&self.bytes, start)?,
            kind: info >> 24 & 0x1f,
            count: info as usize & 0xffff,
            with_widths: info >> 31 == 1,
            size: word(&self.bytes, start + 8)?,
            rest: start + TYPE_BYTES,
        })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let start = self.names + name as usize;
        let end = start + wanted.len();
        self.bytes.get(start..end) == Some(wanted.as_bytes()) && self.bytes.get(end) == Some(&0)
    }
}

impl Type {
    fn end(self) -> Option<usize> {
        const WORD: usize = 4;
        let each = match self.kind {
            INTEGER | VARIABLE | TAG => return Some(self.rest + WORD),
            ARRAY => return Some(self.rest + 3 * WORD),
            STRUCT | UNION | SECTION | ENUM_64 => 3 * WORD,
            ENUM | PROTOTYPE => 2 * WORD,
            // Pointers, names for types, qualifiers, functions, floats, declared and not described.
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        };
        Some(self.rest + self.count * each)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int; struct { int inner; }; }`, a function, and another name for the structure.
    fn small() -> Vec<u8> {
        let names = b"\0outer\0inner\0visit\0int\0other\0";
        let (outer, inner, visit, int, other) = (1u32, 7, 13, 19, 23);
        let types: Vec<u32> = [
            vec![int, 1 << 24, 4, 32],
            vec![0, 4 << 24 | 1, 4, inner, 1, 0],
            vec![outer, 4 << 24 | 2, 8, int, 1, 0, 0, 2, 32],
            vec![visit, 12 << 24, 0],
            vec![other, 8 << 24, 3],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let header = [HEADER_BYTES as u32, 0, types.len() as u32, types.len() as u32, names.len() as u32];
        let start = [MAGIC.to_ne_bytes(), [1, 0]].concat();
        let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        [start, header, types, names.to_vec()].concat()
    }

    #[test]
    fn members_of_anonymous_parts_are_found() {
        let types = Types::parse(small()).unwrap();
        assert_eq!(types.offset("outer", "inner"), Some(4));
        assert_eq!(types.bits("outer", "inner"), Some(32));
        assert_eq!(types.offset("outer", "inne"), None);
        assert_eq!(types.size("outer"), Some(8));
        assert_eq!(types.offset("other", "inner"), Some(4));
        assert_eq!(types.function("visit"), Some(4));
        assert_eq!(types.function("outer"), None);
    }

    #[test]
    fn whatever_is_cut_short_or_changed_is_no_panic() {
        let whole = small();
        for len in 0..whole.len() {
            let _ = Types::parse(whole[..len].to_vec()).map(|types| types.offset("outer", "inner"));
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            let _ = Types::parse(changed).map(|types| types.offset("outer", "inner"));
        }
    }

    #[test]
    fn this_kernel_is_described() {
        let types = Types::of_kernel().unwrap();
        assert!(types.function("bpf_iter_task").is_some());
        assert!(types.offset("task_struct", "sas_ss_sp").is_some());
    }
}
