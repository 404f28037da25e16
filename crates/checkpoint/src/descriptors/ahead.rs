//! The changed connections of an app, read side by side on all idle cores: with many of them, reading them is most of a
//! freeze.
//!
//! What was read here is as good as what the walk over the descriptors would read ([`super::internet::keep`]), and is
//! that walk's to judge. What could not be read it reads again, and says what is wrong.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use image::descriptor::TcpState;
use rustix::event::PollFlags;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::pipes::polled;
use super::stream::{self, Dump};
use super::watch::Agreed;
use crate::memory::Workers;

/// A connection to be read.
#[derive(Debug)]
pub(super) struct Wanted {
    pub inode: u64,
    pub number: i32,
    pub agreed: Agreed,
    /// What it has to say, if something of that is unsent.
    pub outwards: Option<TcpState>,
}

/// What was read of one.
#[derive(Debug)]
pub(super) struct Read {
    pub dump: Dump,
    pub events: PollFlags,
}

/// Reads these, by inode: without those that can't be.
pub(super) fn read(
    workers: &Workers,
    pidfd: BorrowedFd<'_>,
    wanted: Vec<Wanted>,
) -> io::Result<HashMap<u64, Read>> {
    const AT_ONCE: usize = 6;
    let pidfd = Arc::new(pidfd.try_clone_to_owned()?);
    let mut wanted = wanted.into_iter();
    let mut next = || wanted.by_ref().take(AT_ONCE).collect::<Vec<_>>();
    let some = std::iter::from_fn(|| Some(next()).filter(|some| !some.is_empty()));
    let job = |some: Vec<Wanted>| {
        let pidfd = Arc::clone(&pidfd);
        move || {
            let mut buffer = Vec::new();
            let read = |one: Wanted| Some((one.inode, read_one(pidfd.as_fd(), one, &mut buffer)?));
            some.into_iter().filter_map(read).collect::<Vec<_>>()
        }
    };
    Ok(workers.run(some.map(job).collect()).into_iter().flatten().collect())
}

/// N.B. the borrowed descriptor is closed within the freeze: the app counts on the last close.
fn read_one(pidfd: BorrowedFd<'_>, wanted: Wanted, buffer: &mut Vec<u8>) -> Option<Read> {
    let Wanted { number, agreed, mut outwards, .. } = wanted;
    let stolen: OwnedFd = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()).ok()?;
    let dump = stream::dump(stolen.as_fd(), Some(agreed), buffer, &mut || outwards.take()).ok()??;
    Some(Read { dump, events: polled(stolen.as_fd()) })
}
