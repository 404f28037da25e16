//! What a cell is made with: its guard's orders, and the pipes of the app's output.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use engine::AppStdio;
use engine::cell::CellSpec;
use gate::PermitHandle;
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::guard::{self, Order};

/// Everything that belongs to one cell.
#[derive(Debug)]
pub struct CellKit {
    pub spec: CellSpec,
    pub guard: GuardLine,
    /// The app's ends of its output.
    pub stdio: AppStdio,
    /// Ours.
    pub streams: [OwnedFd; 2],
}

impl CellKit {
    pub fn new(permit: Option<&PermitHandle>) -> io::Result<Self> {
        Self::make(permit, guard::UNGATED)
    }

    /// For an app whose output this process holds back: it is not to outlive us, as nobody would hear it.
    pub fn gated(permit: Option<&PermitHandle>) -> io::Result<Self> {
        Self::make(permit, guard::GATED)
    }

    fn make(permit: Option<&PermitHandle>, way_out: &str) -> io::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let ((orders, ours), (output, output_end), (error, error_end)) = (pipe()?, pipe()?, pipe()?);
        let mut inherited = vec![
            (orders, guard::ORDERS),
            (output.try_clone()?, guard::OUTPUT),
            (error.try_clone()?, guard::ERROR),
        ];
        let mut kind = guard::WITHOUT_PERMIT;
        if let Some(permit) = permit {
            let permit = permit.to_inheritable()?;
            // The engine places it; until then nobody else whom we start is to have it.
            rustix::io::fcntl_setfd(permit.as_fd(), FdFlags::CLOEXEC)?;
            inherited.push((permit, guard::PERMIT));
            kind = guard::WITH_PERMIT;
        }
        let spec = CellSpec {
            program: "/proc/self/exe".into(),
            arguments: vec!["cell-init".into(), kind.into(), way_out.into()],
            inherited,
            network: None,
            socket: false,
            sealed: false,
            cgroup: None,
        };
        let stdio = AppStdio { output: output_end, error: error_end };
        Ok(Self { spec, guard: GuardLine::new(ours), stdio, streams: [output, error] })
    }
}

/// The manager's end of the guard's orders. It closes when the manager dies, and that is the last order.
#[derive(Debug)]
pub struct GuardLine {
    orders: File,
}

impl GuardLine {
    /// The kernel closes the files of a killed process from the highest number down, and a network device among them
    /// takes it 70 ms or more: the guard is to hear of the death first.
    fn new(orders: OwnedFd) -> Self {
        const BEYOND_THE_OTHERS: i32 = 512;
        // With a low limit on descriptors it stays where it is, and the word comes later.
        let first = rustix::io::fcntl_dupfd_cloexec(&orders, BEYOND_THE_OTHERS);
        Self { orders: first.unwrap_or(orders).into() }
    }

    pub fn send(&mut self, order: &Order) {
        let mut line = serde_json::to_vec(order).expect("an order is plain data");
        line.push(b'\n');
        // One write of less than PIPE_BUF: never half an order.
        if let Err(why) = self.orders.write_all(&line) {
            tracing::warn!("the app's guard is gone: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_guard_hears_of_a_death_before_the_devices_of_the_dead_are_gone() {
        let kit = CellKit::new(None).unwrap();
        let later: Vec<File> = (0..20).map(|_| File::open("/dev/null").unwrap()).collect();
        let highest = later.iter().map(AsRawFd::as_raw_fd).max();
        let orders = kit.guard.orders.as_raw_fd();
        assert!(Some(orders) > highest, "files are closed from the highest number down");
    }
}
