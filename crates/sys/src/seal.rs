//! A view of the file system in which whatever is written stays with the process and goes with it.
//!
//! Each mount is replaced by an overlay whose upper layer lies in memory; where that can't be, and where it makes no
//! sense (`/sys`, `/dev`, control groups), by a read-only view. Sockets and FIFOs of the file system are cut off on the
//! way, since an overlay's are others. What is not sealed: device nodes, and `/proc` but for `/proc/sys`.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::check;

/// How much all that is written may take of the host's memory.
const UPPER: &std::ffi::CStr = c"size=25%,mode=755";
/// What the kernel shows of itself, or of devices: writing there is not writing a file.
const KERNEL_S_OWN: [&str; 19] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tracefs",
];

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    kind: String,
}

/// Seals the files of this process, whose mounts have to be its own already. `stage` is a directory that nobody needs.
/// On failure the process has half of it, and must end.
pub fn seal_files(stage: &Path) -> io::Result<()> {
    let mounts = mounts(&fs::read("/proc/self/mountinfo")?);
    mount(Some("none".as_ref()), stage, Some("tmpfs"), 0, Some(UPPER))?;
    let root = stage.join("root");
    fs::create_dir(&root)?;
    for (number, mounted) in mounts.iter().enumerate() {
        let place = match mounted.at.strip_prefix("/") {
            Ok(below) if !below.as_os_str().is_empty() => root.join(below),
            _ => root.clone(),
        };
        // What lies below another mount is to be seen by nobody.
        if mounted.at.starts_with(stage) || fs::symlink_metadata(&place).is_err() {
            continue;
        }
        show(mounted, &place, &stage.join(number.to_string()))?;
    }
    let settings = root.join("proc/sys");
    if settings.exists() {
        bind(&settings, &settings)?;
        make_read_only(&settings)?;
    }
    crate::mounts::make_root(&root)
}

fn show(mounted: &Mount, place: &Path, upper: &Path) -> io::Result<()> {
    if mounted.kind == "proc" {
        return bind(&mounted.at, place);
    }
    let is_kernel_s = KERNEL_S_OWN.contains(&mounted.kind.as_str());
    let fits = !is_kernel_s && mounted.at.is_dir() && overlay(&mounted.at, place, upper).is_ok();
    if fits {
        return Ok(());
    }
    bind(&mounted.at, place)?;
    make_read_only(place)
}

/// Mounts the files of `lower` at `place`; what is written goes below `upper`.
fn overlay(lower: &Path, place: &Path, upper: &Path) -> io::Result<()> {
    let odd = |byte: &u8| b",:\\\"".contains(byte);
    if lower.as_os_str().as_bytes().iter().any(odd) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (above, work) = (upper.join("upper"), upper.join("work"));
    fs::create_dir_all(&above)?;
    fs::create_dir_all(&work)?;
    // The directory itself is the upper layer's, and has to look like the one below.
    let like = fs::metadata(lower)?;
    std::os::unix::fs::chown(&above, Some(like.uid()), Some(like.gid()))?;
    fs::set_permissions(&above, like.permissions())?;
    let mut options = b"lowerdir=".to_vec();
    for (name, path) in [("", lower), (",upperdir=", &above), (",workdir=", &work)] {
        options.extend_from_slice(name.as_bytes());
        options.extend_from_slice(path.as_os_str().as_bytes());
    }
    let flags = flags_of(lower)?;
    mount(Some("overlay".as_ref()), place, Some("overlay"), flags, Some(&CString::new(options)?))
}

/// Those of the mount itself that a new one does not get by itself.
fn flags_of(path: &Path) -> io::Result<libc::c_ulong> {
    let kept = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    Ok(rustix::fs::statvfs(path)?.f_flag.bits() & kept)
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    mount(Some(from), to, None, libc::MS_BIND, None)
}

/// N.B. a remount would take away the other restrictions of the mount.
fn make_read_only(place: &Path) -> io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let path = CString::new(place.as_os_str().as_bytes())?;
    let (set, clear, propagation, user) = (MOUNT_ATTR_RDONLY, 0, 0, 0);
    let attributes: [u64; 4] = [set, clear, propagation, user];
    let (at, flags, len) = (libc::AT_FDCWD, 0, size_of_val(&attributes));
    // SAFETY: `path` ends with zero; `attributes` is a live `struct mount_attr` of `len` bytes and only read.
    let ret =
        unsafe { libc::syscall(libc::SYS_mount_setattr, at, path.as_ptr(), flags, attributes.as_ptr(), len) };
    check(ret).map(drop)
}

fn mount(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: Option<&std::ffi::CStr>,
) -> io::Result<()> {
    let source = source.map(|path| CString::new(path.as_os_str().as_bytes())).transpose()?;
    let target = CString::new(target.as_os_str().as_bytes())?;
    let kind = kind.map(CString::new).transpose()?;
    let text = |text: Option<&std::ffi::CStr>| text.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
    let (source, kind) = (text(source.as_deref()), text(kind.as_deref()));
    // SAFETY: all strings are live and end with zero, or are null.
    check(unsafe { libc::mount(source, target.as_ptr(), kind, flags, text(data).cast()) }.into()).map(drop)
}

/// The mounts of `/proc/PID/mountinfo`, parents first; of several at one place the last, which is the one to be seen.
fn mounts(text: &[u8]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ');
        let Some(at) = words.nth(4) else { continue };
        let Some(kind) = words.skip_while(|word| *word != b"-").nth(1) else { continue };
        let at = PathBuf::from(std::ffi::OsString::from_vec(unescape(at)));
        mounts.retain(|mount| mount.at != at);
        mounts.push(Mount { at, kind: String::from_utf8_lossy(kind).into_owned() });
    }
    mounts.sort_by_key(|mount| mount.at.components().count());
    mounts
}

/// Spaces and the like stand there as three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        out.push(digits.unwrap_or(*first));
        rest = if digits.is_some() { &after[3..] } else { after };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_come_parents_first_and_the_hidden_ones_are_left_out() {
        let text = b"25 24 0:23 / /dev/my\\040disk rw,relatime - tmpfs tmpfs rw\n\
                     27 1 254:0 / / rw,relatime master:1 - ext4 /dev/vda rw\n\
                     22 27 0:21 / /proc rw - proc proc rw\n\
                     24 27 0:6 / /dev rw - devtmpfs devtmpfs rw\n\
                     90 22 0:50 / /proc rw - proc none rw\n";
        let found: Vec<(String, String)> =
            mounts(text).into_iter().map(|m| (m.at.display().to_string(), m.kind)).collect();
        let wanted = [("/", "ext4"), ("/dev", "devtmpfs"), ("/proc", "proc"), ("/dev/my disk", "tmpfs")];
        assert_eq!(found, wanted.map(|(at, kind)| (at.to_owned(), kind.to_owned())));
    }
}
