//! Swap space for a test: a small file that the kernel may swap to while the guard lives.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rights::skip_aloud;

const BYTES: usize = 16 << 20;

#[derive(Debug)]
pub struct Swap(PathBuf);

impl Swap {
    /// Makes a swap file in `dir` and has the kernel use it. `None`, aloud, where that can't be had, such as in most
    /// containers.
    #[track_caller]
    #[must_use]
    pub fn on(dir: &Path) -> Option<Self> {
        let path = dir.join(format!("swap-{}-{:?}", std::process::id(), std::thread::current().id()));
        let swap = Self(path);
        match swap.switch_on() {
            Ok(()) => Some(swap),
            Err(why) => {
                skip_aloud(&format!("swap space ({why})"));
                None
            }
        }
    }

    fn switch_on(&self) -> io::Result<()> {
        let mut file = File::create(&self.0)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        // N.B. written out: a swap file must not have holes.
        file.write_all(&vec![0; BYTES])?;
        file.sync_all()?;
        run("mkswap", &self.0)?;
        run("swapon", &self.0)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // It fails where it was never switched on; then there is only the file.
        let _ = run("swapoff", &self.0);
        let _ = fs::remove_file(&self.0);
    }
}

fn run(program: &str, path: &Path) -> io::Result<()> {
    let done = Command::new(program).arg(path).output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
    }
}
