//! Network namespaces that have no names and no files: they go with the last descriptor and the last process in
//! them, and the devices in them, whatever way their owner ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::Netlink;

/// The loopback device is the first of every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// A network namespace, held by a descriptor.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
}

impl Namespace {
    /// A new one, with nothing in it but its own loopback, which is up.
    pub fn new() -> io::Result<Self> {
        on_a_thread(make)
    }

    /// A new one whose table of established connections has `entries` entries: a dump walks all of it, and the
    /// host's is large. The kernel takes the size from the setting of the *parent*, so a namespace that is
    /// gone right afterwards has to be that.
    pub(crate) fn with_small_tables(entries: u32) -> io::Result<Self> {
        on_a_thread(|| {
            sys::netns::unshare_network()?;
            // Where /proc/sys is read-only the table is shared with the host, and a dump takes longer.
            let _ = fs::write("/proc/sys/net/ipv4/tcp_child_ehash_entries", entries.to_string());
            make()
        })
    }

    /// The namespace of this thread.
    pub fn current() -> io::Result<Self> {
        Ok(Self { descriptor: File::open("/proc/thread-self/ns/net")?.into() })
    }

    /// Does something inside, on a thread of its own. Sockets that are made and processes that are started
    /// there stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        within(self.as_fd(), work)
    }

    /// Moves this thread in, for good.
    pub fn enter(&self) -> io::Result<()> {
        enter(self.as_fd())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn make() -> io::Result<Namespace> {
    sys::netns::unshare_network()?;
    Netlink::open()?.set_up(LOOPBACK)?;
    Namespace::current()
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

/// As [`Namespace::within`], by descriptor and with errors of the caller's choice.
pub(crate) fn within<T: Send, E: Send + From<io::Error>>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    on_a_thread(|| {
        enter(namespace)?;
        work()
    })
}

/// A namespace is entered by a thread, and ours would not come back out.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match thread::scope(|scope| scope.spawn(work).join()) {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
