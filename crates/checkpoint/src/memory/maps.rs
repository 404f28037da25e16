//! `/proc/PID/maps`, parsed. Pure: it works on text.

use image::Range;
use image::layout::Protection;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapLine<'a> {
    pub range: Range,
    pub protection: Protection,
    pub shared: bool,
    pub offset: u64,
    /// As the kernel packs major and minor.
    pub device: u64,
    pub inode: u64,
    /// The path or the name in brackets; empty for anonymous memory. Newlines in it are `\012`.
    pub name: &'a [u8],
}

/// Parses the whole file; a line that does not look like one is an error with its text.
pub fn parse(text: &[u8]) -> Result<Vec<MapLine<'_>>, BadLine> {
    text.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| parse_line(line).ok_or_else(|| BadLine(String::from_utf8_lossy(line).into_owned())))
        .collect()
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot understand the mapping {0:?}")]
pub struct BadLine(String);

fn parse_line(line: &[u8]) -> Option<MapLine<'_>> {
    let mut rest = line;
    let range = field(&mut rest)?;
    let (start, end) = split_at_byte(range, b'-')?;
    let flags = field(&mut rest)?;
    let offset = hexadecimal(field(&mut rest)?)?;
    let (major, minor) = split_at_byte(field(&mut rest)?, b':')?;
    let inode = std::str::from_utf8(field(&mut rest)?).ok()?.parse().ok()?;
    let name = &rest[rest.iter().take_while(|&&byte| byte == b' ').count()..];
    let &[read, write, execute, shared] = flags else { return None };
    Some(MapLine {
        range: Range::new(hexadecimal(start)?, hexadecimal(end)?),
        protection: Protection { read: read == b'r', write: write == b'w', execute: execute == b'x' },
        shared: shared == b's',
        offset,
        device: rustix::fs::makedev(hexadecimal(major)? as u32, hexadecimal(minor)? as u32),
        inode,
        name,
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
    let (field, after) = rest.split_at(end);
    *rest = after.strip_prefix(b" ").unwrap_or(after);
    (!field.is_empty()).then_some(field)
}

fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&b| b == byte)?;
    Some((&text[..at], &text[at + 1..]))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = (digit as char).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

/// The flags of a mapping in `/proc/PID/smaps`, by the mapping's range.
pub fn parse_smaps_flags(text: &str) -> Vec<(Range, Vec<&str>)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(range) = current.take() {
                found.push((range, flags.split_whitespace().collect()));
            }
        } else if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-'))
            && let (Some(start), Some(end)) = (hexadecimal(start.as_bytes()), hexadecimal(end.as_bytes()))
        {
            current = Some(Range::new(start, end));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_gives_all_its_fields() {
        let text = b"7f00-8f00 rw-s 00001000 08:01 1234                       /a file (deleted)\n8f00-9f00 ---p 00000000 00:00 0 \n";
        let lines = parse(text).unwrap();
        assert_eq!(
            lines[0],
            MapLine {
                range: Range::new(0x7f00, 0x8f00),
                protection: Protection { read: true, write: true, execute: false },
                shared: true,
                offset: 0x1000,
                device: rustix::fs::makedev(8, 1),
                inode: 1234,
                name: b"/a file (deleted)",
            }
        );
        assert_eq!(
            (lines[1].protection, lines[1].shared, lines[1].name),
            (Protection::NONE, false, &b""[..])
        );
    }

    #[test]
    fn flags_belong_to_the_mapping_above_them() {
        let text = "1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr mr mw me ac nh \n";
        let flags = parse_smaps_flags(text);
        assert_eq!(flags[0].0, Range::new(0x1000, 0x2000));
        assert!(flags[0].1.contains(&"nh"));
    }

    #[test]
    fn our_own_maps_are_understood() {
        let text = std::fs::read("/proc/self/maps").unwrap();
        let lines = parse(&text).unwrap();
        assert!(lines.iter().any(|line| line.name == b"[stack]"));
        assert!(lines.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    }

    proptest! {
        #[test]
        fn any_text_gives_an_error_and_no_panic(text: Vec<u8>) {
            let _ = parse(&text);
            let _ = parse_smaps_flags(&String::from_utf8_lossy(&text));
        }
    }
}
