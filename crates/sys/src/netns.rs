//! Network namespaces of one thread.

use std::io;

/// Gives this thread, and only it, a network namespace that nobody else is in. `EPERM` without
/// CAP_SYS_ADMIN. The namespace lives as long as a thread is in it or a descriptor of it is open.
pub fn unshare_network() -> io::Result<()> {
    crate::rights::new_namespace(libc::CLONE_NEWNET)
}
