//! Files of the app that another host lacks: read where the app has them, kept by their content, and put at their paths
//! in the cell's view of the file system, and in no other.
//!
//! [`Shipment`] reads them through the app's own mappings and descriptors, so that nothing is shipped that the app has
//! not got, and so that a file that was deleted or replaced since is the one that the app has. [`Cache`] keeps what came,
//! by its digest. `place` mounts it in a cell.

mod cache;
mod place;
mod source;
mod stamp;
mod temporary;

pub use cache::{Arriving, Cache, Kept, Shelf, ShipError};
pub use place::Places;
pub use source::{Digests, Shipment};

use std::path::{Component, Path};

/// Whether a path leads from the root straight to a file.
fn is_straight(path: &Path) -> bool {
    const PATH_MAX: usize = 4095;
    let mut parts = path.components();
    let rooted = parts.next() == Some(Component::RootDir);
    let bytes = path.as_os_str().as_encoded_bytes();
    let plain = parts.all(|part| matches!(part, Component::Normal(_))) && !bytes.contains(&0);
    rooted && plain && bytes.len() <= PATH_MAX && path.file_name().is_some()
}

/// Whether it is a name in a directory.
fn is_name(name: &[u8]) -> bool {
    const NAME_MAX: usize = 255;
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.contains(&b'/')
        && !name.contains(&0)
        && !matches!(name, b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_that_lead_elsewhere_are_none() {
        assert!(is_straight(Path::new("/opt/kv/bin/kv")));
        for path in ["", "/", "opt/kv", "/opt/../etc/passwd", "/opt/kv/..", "/opt/\0kv"] {
            assert!(!is_straight(Path::new(path)), "{path:?}");
        }
        assert!(is_name(b"libkv.so.1"));
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
