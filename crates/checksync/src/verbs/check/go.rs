//! Which Go built a program: `runtime/debug.BuildInfo` as it lies in the file, the version's string inline
//! since Go 1.18.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: &[u8] = b"\xff Go buildinf:";
const ALIGNMENT: usize = 16;
const FLAGS_AT: usize = 15;
const INLINE: u8 = 2;
const VERSION_AT: usize = 32;
const VERSION_BYTES_MAX: usize = 64;
const CHUNK_BYTES: usize = 1 << 20;
/// A record that begins in a chunk ends in it: chunks overlap by more than the longest.
const OVERLAP_BYTES: usize = 256;

/// `None`: not Go's, or older than 1.18.
pub fn version(file: &File) -> io::Result<Option<String>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let len = file.read_at(&mut chunk, at)?;
        if let Some(version) = in_chunk(&chunk[..len]) {
            return Ok(Some(version));
        }
        if len <= OVERLAP_BYTES {
            return Ok(None);
        }
        // N.B. a short read moves on by a multiple of the alignment, too.
        at += ((len - OVERLAP_BYTES).next_multiple_of(ALIGNMENT)) as u64;
    }
}

fn in_chunk(chunk: &[u8]) -> Option<String> {
    let starts = (0..chunk.len()).step_by(ALIGNMENT);
    starts.filter(|&at| chunk[at..].starts_with(MAGIC)).find_map(|at| in_record(&chunk[at..]))
}

fn in_record(record: &[u8]) -> Option<String> {
    if record.get(FLAGS_AT)? & INLINE == 0 {
        return None;
    }
    let len = usize::from(*record.get(VERSION_AT)?);
    let text = record.get(VERSION_AT + 1..VERSION_AT + 1 + len).filter(|_| len <= VERSION_BYTES_MAX)?;
    let text = std::str::from_utf8(text).ok()?;
    text.starts_with("go").then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn record() -> Vec<u8> {
        let mut record = MAGIC.to_vec();
        record.extend([8, INLINE]);
        record.resize(VERSION_AT, 0);
        record.push(8);
        record.extend(b"go1.26.1");
        record
    }

    #[test]
    fn version_is_found_wherever_it_lies() {
        for at in [0, 4096, CHUNK_BYTES - 16, CHUNK_BYTES - OVERLAP_BYTES, CHUNK_BYTES] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[vec![0; at], record(), vec![0; 4096]].concat()).unwrap();
            assert_eq!(version(&file).unwrap().as_deref(), Some("go1.26.1"), "at {at}");
        }
    }

    #[test]
    fn cut_records_and_other_files_have_no_version() {
        for len in 0..record().len() {
            assert_eq!(in_chunk(&record()[..len]), None);
        }
        assert_eq!(version(&tempfile::tempfile().unwrap()).unwrap(), None);
    }
}
