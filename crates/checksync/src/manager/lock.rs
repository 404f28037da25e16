//! One manager per name and per state directory: a file with its number, locked as long as it lives.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held until dropped. The file stays: removing it would let two managers lock two files of one name.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks `dir/name.pid`. `what` names what is locked, for the message to whoever comes second.
    pub fn take(dir: &Path, name: &str, what: &str) -> anyhow::Result<Self> {
        let path = dir.join(format!("{name}.pid"));
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = open.with_context(|| format!("cannot open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => (),
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Its number is a help only.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    number => format!("process {number}"),
                };
                bail!("{what} is in use by {holder}; stop that first, or choose another");
            }
            Err(why) => return Err(why).with_context(|| format!("cannot lock {}", path.display())),
        }
        let noted = file.set_len(0).and_then(|()| file.rewind());
        if let Err(why) = noted.and_then(|()| writeln!(file, "{}", std::process::id())) {
            tracing::warn!("whoever comes second won't be told our number by {}: {why}", path.display());
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it_and_gets_it_later() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), "kv", "app kv").unwrap();
        let why = Lock::take(dir.path(), "kv", "app kv").unwrap_err().to_string();
        assert!(why.contains("app kv") && why.contains(&std::process::id().to_string()), "{why}");
        drop(first);
        Lock::take(dir.path(), "kv", "app kv").unwrap();
    }
}
