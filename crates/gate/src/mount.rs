//! Finds the cgroup v2 file system: `/sys/fs/cgroup` on most hosts, `/sys/fs/cgroup/unified` where version 1
//! has the controllers ("hybrid"). Either will do: sockets belong to the v2 tree alone, and the permit needs no
//! controller.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where cgroup v2 is mounted, from the text of `/proc/self/mountinfo`. A mount of the whole tree is taken
/// before one of a part of it, and the last of several wins, as it hides the others.
pub fn cgroup2_mount(mountinfo: &[u8]) -> Option<PathBuf> {
    let mounts: Vec<Mount> = mountinfo.split(|&byte| byte == b'\n').filter_map(cgroup2_line).collect();
    let whole = mounts.iter().rfind(|mount| mount.root == Path::new("/"));
    whole.or(mounts.last()).map(|mount| mount.point.clone())
}

struct Mount {
    root: PathBuf,
    point: PathBuf,
}

/// `31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw`; the fields before the dash vary.
fn cgroup2_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (root, point) = (fields.nth(3)?, fields.next()?);
    let kind = fields.skip_while(|&field| field != b"-").nth(1)?;
    (kind == b"cgroup2").then(|| Mount { root: unescaped(root), point: unescaped(point) })
}

/// Blanks and backslashes in a path are written as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, after) = octal(rest).map_or((first, tail), |byte| (byte, &rest[4..]));
        out.push(byte);
        rest = after;
    }
    OsString::from_vec(out).into()
}

fn octal(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"\\")?.get(..3)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Whether `name` can be one directory below another one.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && !name.contains(['/', '\n', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const PURE: &[u8] =
        b"35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn version_2_is_found_beside_version_1_and_alone() {
        assert_eq!(cgroup2_mount(HYBRID).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_mount(PURE).unwrap(), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn version_1_alone_is_not_enough() {
        let lines: Vec<&[u8]> = HYBRID.split(|&byte| byte == b'\n').take(2).collect();
        assert_eq!(cgroup2_mount(&lines.join(&b'\n')), None);
        assert_eq!(cgroup2_mount(b"garbage\n\n1 2 3"), None);
    }

    #[test]
    fn whole_tree_is_taken_before_a_part_of_it() {
        let part = b"50 1 0:38 /box /mnt/part rw - cgroup2 none rw\n";
        assert_eq!(cgroup2_mount(part).unwrap(), Path::new("/mnt/part"));
        assert_eq!(cgroup2_mount(&[PURE, part].concat()).unwrap(), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn blanks_in_a_path_are_read_back() {
        let mount = cgroup2_mount(b"1 2 0:3 / /mnt/a\\040b\\134 rw - cgroup2 none rw").unwrap();
        assert_eq!(mount, Path::new("/mnt/a b\\"));
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", ".hidden", "a\nb"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        assert!(is_plain_name("kv-1.0"));
    }
}
