//! Small disks that a test can fill.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::scene::{A, B};
use super::street::Street;

/// A file system in memory. Dropping it takes it away, whoever uses it still.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// One under the data of each member of the register, and one under what the managers of each host keep.
    pub fn all_of(street: &Street) -> Vec<Self> {
        // etcd's log alone takes 64 MB before anything is written to it.
        let members =
            (0..3).map(|number| Self::mount(&street.dir.path().join(format!("etcd/m{number}")), "110m"));
        let hosts = [A, B].map(|host| Self::mount(&street.run_dir(host), "4m"));
        members.chain(hosts).collect()
    }

    fn mount(path: &Path, size: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status();
        assert!(mounted.unwrap().success(), "no small disk at {}", path.display());
        Self { path: path.to_owned() }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        let mut piece = vec![7; 64 << 10];
        loop {
            match ballast.write_all(&piece) {
                Ok(()) => (),
                Err(why) if why.kind() == ErrorKind::StorageFull && piece.len() > 1 => {
                    piece.truncate(piece.len() / 2)
                }
                Err(why) => break assert_eq!(why.kind(), ErrorKind::StorageFull),
            }
        }
    }

    pub fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever writes to it still goes on, to nothing.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
