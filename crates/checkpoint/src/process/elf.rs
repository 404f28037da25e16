//! Looks into an executable: does it carry Go's runtime? Trusts nothing that the file says.

use std::io;
use std::os::unix::fs::FileExt;

/// Sections that every Go program has, stripped ones included.
const OF_GO: [&[u8]; 3] = [b".go.buildinfo", b".gopclntab", b".data.rel.ro.gopclntab"];
const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const SECTIONS_MAX: usize = 4096;
const NAMES_BYTES_MAX: usize = 1 << 20;

/// Whether `file` is a 64-bit ELF with one of Go's sections.
pub(super) fn is_go(file: &impl FileExt) -> io::Result<bool> {
    let Some(names) = section_names(file)? else { return Ok(false) };
    Ok(names.split(|&byte| byte == 0).any(|name| OF_GO.contains(&name)))
}

/// The table of section names.
fn section_names(file: &impl FileExt) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; HEADER_BYTES];
    if !filled(file, &mut header, 0)? || !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let half = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (count, names) = (half(0x3c), half(0x3e));
    if names >= count.min(SECTIONS_MAX) {
        return Ok(None);
    }
    let mut section = [0; SECTION_BYTES];
    let at = word(&header, 0x28).saturating_add((names * SECTION_BYTES) as u64);
    if !filled(file, &mut section, at)? {
        return Ok(None);
    }
    let len = word(&section, 0x20).min(NAMES_BYTES_MAX as u64) as usize;
    let mut bytes = vec![0; len];
    Ok(filled(file, &mut bytes, word(&section, 0x18))?.then_some(bytes))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Whether the file has that many bytes there.
fn filled(file: &impl FileExt, into: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(into, at) {
        Ok(()) => Ok(true),
        // An offset beyond what files can have is as good as beyond the end.
        Err(why) if matches!(why.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput) => {
            Ok(false)
        }
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn elf(name: &[u8]) -> std::fs::File {
        let mut bytes = vec![0; HEADER_BYTES + SECTION_BYTES];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[0x28..0x30].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes());
        bytes[0x3c] = 1;
        let section = HEADER_BYTES;
        bytes[section + 0x18..section + 0x20].copy_from_slice(&128u64.to_le_bytes());
        bytes[section + 0x20..section + 0x28].copy_from_slice(&(name.len() as u64).to_le_bytes());
        bytes.extend_from_slice(name);
        file(&bytes)
    }

    fn file(bytes: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("it takes bytes");
        file
    }

    #[test]
    fn go_is_known_by_its_sections() {
        assert!(is_go(&elf(b"\0.text\0.go.buildinfo\0")).expect("readable"));
        assert!(!is_go(&elf(b"\0.text\0.data\0")).expect("readable"));
    }

    #[test]
    fn what_is_no_elf_or_lies_about_itself_is_not_go() {
        assert!(!is_go(&file(b"#!/bin/sh\n")).expect("readable"));
        let mut lying = vec![0xff; 200];
        lying[..6].copy_from_slice(b"\x7fELF\x02\x01");
        lying[0x3e..0x40].copy_from_slice(&[0, 0]);
        assert!(!is_go(&file(&lying)).expect("readable"));
    }
}
