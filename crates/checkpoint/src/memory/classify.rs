//! What a mapping is, and whether it can be carried.

use std::fs::File;

use image::layout::{Backing, FileIdentity, ObjectKey, ObjectKind};

use super::maps::MapLine;
use crate::unsupported::Unsupported;

/// A mapping of the app, or one that is none of our business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    Carried(Backing),
    /// A shared object that has to be looked at through the mapping itself.
    Object(ObjectKey, ObjectKind),
    /// Ours, or the kernel's and the same everywhere.
    Ignored,
}

const DELETED: &[u8] = b" (deleted)";

/// Decides about one line of `/proc/PID/maps`. `ours` is the inode of the memory that we share with the app.
pub fn classify(pid: i32, line: &MapLine<'_>, ours: Option<u64>) -> Result<Class, Unsupported> {
    let refuse = |what: &str, way_out: &str| {
        Err(Unsupported {
            pid,
            what: format!("the mapping at {:#x} is {what}", line.range.start),
            way_out: way_out.to_owned(),
        })
    };
    if line.inode != 0 && Some(line.inode) == ours && line.name.starts_with(b"/memfd:linux-vdso.so.1") {
        return Ok(Class::Ignored);
    }
    let key = ObjectKey { device: line.device, inode: line.inode };
    match line.name {
        b"[vdso]" => return Ok(Class::Carried(Backing::Vdso)),
        b"[vvar]" => return Ok(Class::Carried(Backing::Vvar)),
        b"[vvar_vclock]" => return Ok(Class::Carried(Backing::VvarClock)),
        b"[vsyscall]" => return Ok(Class::Ignored),
        b"[uprobes]" => return refuse("a uprobe's", "remove the probe (perf, bpftrace) and try again"),
        name if name.starts_with(b"anon_inode:") => {
            let what = format!("of {}", String::from_utf8_lossy(name));
            return refuse(&what, "start the app without it (io_uring: switch it off in its configuration)");
        }
        name if name.starts_with(b"/[aio]") => {
            return refuse("a ring of asynchronous I/O", "configure the app not to use AIO");
        }
        name if name.starts_with(b"/SYSV") => {
            return refuse(
                "a System V shared memory segment",
                "configure the app to use POSIX or anonymous shared memory",
            );
        }
        name if name.starts_with(b"/anon_hugepage") => {
            return refuse(
                "of huge TLB pages",
                "configure the app without explicit huge pages; transparent ones are carried",
            );
        }
        _ => (),
    }
    if line.inode == 0 || line.name.is_empty() {
        return Ok(Class::Carried(Backing::Anonymous));
    }
    if !line.shared && line.name == b"/dev/zero" {
        return Ok(Class::Carried(Backing::Anonymous));
    }
    if let Some(name) = line.name.strip_prefix(b"/memfd:") {
        let name = name.strip_suffix(DELETED).unwrap_or(name).to_vec();
        return Ok(Class::Object(key, ObjectKind::Memfd { name, seals: 0 }));
    }
    let deleted = line.name.ends_with(DELETED);
    let path = line.name.strip_suffix(DELETED).unwrap_or(line.name);
    if deleted && path == b"/dev/zero" {
        return Ok(Class::Object(key, ObjectKind::Anonymous));
    }
    if path.starts_with(b"/dev/") && !path.starts_with(b"/dev/shm/") {
        let what = format!("of the device {}", String::from_utf8_lossy(path));
        return refuse(&what, "devices can't be moved to another host; run the app without it");
    }
    let writable = line.shared && may_write(pid, line);
    if writable {
        return Ok(Class::Object(key, ObjectKind::File { path: path.to_vec(), deleted, mode: 0o600 }));
    }
    let identity = identity(pid, line, path);
    // Its content can still be shipped; without a build-id nobody could tell it from what is at its path now.
    if deleted && identity.build_id.is_none() {
        let what = format!("of {}, which was deleted or replaced", String::from_utf8_lossy(path));
        return refuse(&what, "restart the app, so that it maps the file that is there now");
    }
    Ok(Class::Carried(Backing::File(identity)))
}

/// A shared mapping that is read-only now may become writable if its descriptor was.
fn may_write(pid: i32, line: &MapLine<'_>) -> bool {
    use std::os::unix::fs::MetadataExt;
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", line.range.start, line.range.end);
    const OWNER_WRITES: u32 = 0o200;
    std::fs::symlink_metadata(link).map_or(line.protection.write, |link| link.mode() & OWNER_WRITES != 0)
}

fn identity(pid: i32, line: &MapLine<'_>, path: &[u8]) -> FileIdentity {
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", line.range.start, line.range.end);
    let file = File::open(link);
    let size = file.as_ref().ok().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
    let build_id = file.ok().and_then(|file| build_id(&file)).map(Into::into);
    FileIdentity { path: path.to_vec(), size, build_id }
}

/// The build-id of an ELF file, from its notes.
pub fn build_id(file: &File) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    const GNU_BUILD_ID: u32 = 3;
    const GO_BUILD_ID: u32 = 4;
    const NOTES_MAX: u64 = 64 << 10;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).ok()?;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let word =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
    let (table, entry, count) = (word(&head, 32), half(&head, 54), half(&head, 56));
    if entry != 56 {
        return None;
    }
    for n in 0..u64::from(count) {
        const NOTE: u32 = 4;
        let mut program = [0; 56];
        file.read_exact_at(&mut program, table.checked_add(n * 56)?).ok()?;
        if u32::from_le_bytes(program[..4].try_into().expect("four bytes")) != NOTE {
            continue;
        }
        let mut notes = vec![0; word(&program, 32).min(NOTES_MAX) as usize];
        file.read_exact_at(&mut notes, word(&program, 8)).ok()?;
        let found = notes_in(&notes).find(|(name, kind, _)| {
            matches!((*name, *kind), (b"GNU\0", GNU_BUILD_ID) | (b"Go\0\0", GO_BUILD_ID))
        });
        if let Some((_, _, id)) = found {
            return Some(id.to_vec());
        }
    }
    None
}

fn notes_in(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    std::iter::from_fn(move || {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (name_len, len, kind) = (number(0)? as usize, number(4)? as usize, number(8)?);
        let padded = |len: usize| len.checked_next_multiple_of(4);
        let name = bytes.get(12..12usize.checked_add(padded(name_len)?)?)?;
        let content = 12 + name.len();
        let id = bytes.get(content..content.checked_add(len)?)?;
        bytes = bytes.get(content + padded(len)?..).unwrap_or_default();
        Some((name, kind, id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::maps::parse;

    fn class(line: &str) -> Result<Class, Unsupported> {
        classify(1, &parse(line.as_bytes()).unwrap()[0], Some(77))
    }

    #[test]
    fn memory_of_the_kernel_and_of_ours_is_told_from_the_apps() {
        assert_eq!(class("1000-2000 rw-p 0 00:00 0 [heap]").unwrap(), Class::Carried(Backing::Anonymous));
        assert_eq!(class("1000-2000 r-xp 0 00:00 0 [vdso]").unwrap(), Class::Carried(Backing::Vdso));
        let ours = "1000-2000 rwxs 0 00:01 77 /memfd:linux-vdso.so.1 (deleted)";
        assert_eq!(class(ours).unwrap(), Class::Ignored);
    }

    #[test]
    fn what_cannot_be_carried_is_refused_by_its_address() {
        for line in [
            "1000-2000 rw-s 0 00:0e 5 anon_inode:[io_uring]",
            "1000-2000 rw-s 0 00:0e 5 /[aio] (deleted)",
            "1000-2000 rw-s 0 00:0e 5 /SYSV00000000 (deleted)",
            "1000-2000 rw-s 0 00:05 5 /dev/dri/card0",
            "1000-2000 r-xp 0 08:01 5 /usr/bin/gone (deleted)",
        ] {
            let refusal = class(line).unwrap_err();
            assert!(refusal.what.contains("0x1000") && !refusal.way_out.is_empty(), "{refusal}");
        }
    }

    #[test]
    fn cut_notes_are_no_build_id() {
        for len in 0..40 {
            assert!(notes_in(&vec![0xff; len]).next().is_none());
        }
    }
}
