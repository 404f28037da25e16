//! BPF programs on the packets of a device, as classifiers of its `clsact` queueing discipline.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{CREATE, EXCLUSIVE, Message, Netlink, REPLACE};

const NEW_DISCIPLINE: u16 = 36;
const NEW_FILTER: u16 = 44;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_DESCRIPTOR: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
/// The program's answer is the verdict.
const DIRECT_ACTION: u32 = 1;

const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ROOT: u32 = u32::MAX;
const FILTER_HANDLE: u32 = 1;

/// Which packets of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    In = 0xffff_fff2,
    Out = 0xffff_fff3,
}

impl Netlink {
    /// Lets the device have filters. Does nothing to one that may have them already.
    pub fn allow_filters(&self, index: u32) -> io::Result<()> {
        let mut request = Message::new(NEW_DISCIPLINE, CREATE | EXCLUSIVE);
        traffic_header(&mut request, index, CLSACT_HANDLE, CLSACT, 0);
        request.text(KIND, "clsact");
        match self.ask(request) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Has packets go to the device's driver without a queue of the kernel's before it.
    pub(crate) fn remove_queue(&self, index: u32) -> io::Result<()> {
        let mut request = Message::new(NEW_DISCIPLINE, CREATE | REPLACE);
        traffic_header(&mut request, index, 0, ROOT, 0);
        request.text(KIND, "noqueue");
        self.ask(request)
    }

    /// Asks `program` about every packet, in the place of the program that has this `rank` now. The lower rank
    /// is asked first.
    pub fn set_filter(
        &self,
        index: u32,
        direction: Direction,
        rank: u16,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<()> {
        let mut request = filter_request(NEW_FILTER, CREATE | REPLACE, index, direction, rank);
        request.nest(OPTIONS, |options| {
            options.number(BPF_DESCRIPTOR, program.as_raw_fd() as u32);
            options.text(BPF_NAME, name);
            options.number(BPF_FLAGS, DIRECT_ACTION);
        });
        self.ask(request)
    }
}

fn filter_request(kind: u16, flags: u16, index: u32, direction: Direction, rank: u16) -> Message {
    let every_protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
    let mut request = Message::new(kind, flags);
    let info = u32::from(rank) << 16 | every_protocol;
    traffic_header(&mut request, index, FILTER_HANDLE, direction as u32, info);
    request.text(KIND, "bpf");
    request
}

/// `struct tcmsg`.
fn traffic_header(request: &mut Message, index: u32, handle: u32, parent: u32, info: u32) {
    let family = [0; 4];
    request.raw(&family);
    for word in [index, handle, parent, info] {
        request.raw(&word.to_ne_bytes());
    }
}
