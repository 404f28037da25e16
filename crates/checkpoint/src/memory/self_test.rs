//! Whether this kernel's write tracking does what we rely on: tried, not asked for by version.
//!
//! The states of pages that are not there have differed between kernels of one number (a stable fix), and
//! a wrong answer loses pages. So at start the calls are made on memory of our own, and every case that the
//! tracker relies on must come out right.

use std::fs::File;
use std::io;

use sys::pagemap::{Query, Region, category, scan};
use sys::tryout::Tryout;
use sys::userfault::{self, Userfault};

/// What was found out about this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// `PAGE_IS_GUARD` is known.
    pub guards: bool,
    /// Dropped pages can be told by the count of anonymous pages alone.
    pub counts_anonymous_pages: bool,
}

impl Kernel {
    pub(super) fn guard(self) -> u64 {
        if self.guards { category::GUARD } else { 0 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    #[error("this kernel lacks {what}; CheckSync needs Linux 6.7 or newer with it, and is claimed for 6.18")]
    Missing { what: &'static str, source: io::Error },
    #[error(
        "this kernel's write tracking is not reliable ({what}); use a kernel with the fixed PAGEMAP_SCAN, such as 6.18"
    )]
    Wrong { what: &'static str },
}

const PAGES: u64 = 64;
const PAGE: u64 = image::PAGE_BYTES;

/// Runs every case once.
pub fn run() -> Result<Kernel, SelfTestError> {
    let missing = |what| move |source| SelfTestError::Missing { what, source };
    let fd = userfault::own().map_err(missing("userfaultfd (CONFIG_USERFAULTFD)"))?;
    let fault = Userfault::enable(fd).map_err(missing("asynchronous userfaultfd write protection"))?;
    let pagemap = File::open("/proc/self/pagemap").map_err(missing("/proc/PID/pagemap"))?;
    let memory = Tryout::new(PAGES as usize * PAGE as usize).map_err(missing("memory"))?;
    let case = Case { fault, pagemap, memory };
    case.scanned(0).map_err(missing("PAGEMAP_SCAN"))?;
    case.run()
}

struct Case {
    fault: Userfault,
    pagemap: File,
    memory: Tryout,
}

impl Case {
    fn run(&self) -> Result<Kernel, SelfTestError> {
        let io = |source| SelfTestError::Missing { what: "a call of the self-test", source };
        let wrong = |what| Err(SelfTestError::Wrong { what });
        let (start, end) = self.bounds();
        self.fault.register(start, end).map_err(io)?;
        self.memory.fill(1);
        let guards = self.scanned(category::GUARD).is_ok();
        let report = if guards { category::GUARD } else { 0 };
        if self.written(report).map_err(io)? != PAGES {
            return wrong("written pages are not reported");
        }
        if self.written(report).map_err(io)? != 0 {
            return wrong("unwritten pages are reported");
        }
        self.memory.touch(3 * PAGE as usize, 2);
        if self.written(report).map_err(io)? != 1 {
            return wrong("a page that was written again is not reported");
        }
        self.memory.drop_pages(8 * PAGE as usize, 4 * PAGE as usize).map_err(io)?;
        if self.absent().map_err(io)? != 4 {
            return wrong("dropped pages are not seen");
        }
        self.memory.touch(9 * PAGE as usize, 3);
        if self.written(report).map_err(io)? != 1 {
            return wrong("a dropped page that was written is not reported");
        }
        Ok(Kernel { guards, counts_anonymous_pages: guards })
    }

    fn bounds(&self) -> (u64, u64) {
        (self.memory.address(), self.memory.address() + PAGES * PAGE)
    }

    fn count(&self, query: Query) -> io::Result<u64> {
        let (start, end) = self.bounds();
        let mut pages = 0;
        let mut room = [Region::default(); 128];
        scan(&self.pagemap, start, end, query, &mut room, |region| {
            pages += (region.end - region.start) / PAGE
        })?;
        Ok(pages)
    }

    fn scanned(&self, report: u64) -> io::Result<u64> {
        self.count(Query { report: category::PRESENT | report, ..Query::default() })
    }

    fn written(&self, report: u64) -> io::Result<u64> {
        self.count(Query {
            inverted: 0,
            all: category::WRITTEN,
            any: category::PRESENT | category::SWAPPED,
            report: category::PRESENT | report,
            protect: true,
        })
    }

    fn absent(&self) -> io::Result<u64> {
        let none = category::PRESENT | category::SWAPPED;
        self.count(Query { inverted: none, all: none, any: 0, report: category::PRESENT, protect: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_tracks_writes() {
        assert_eq!(run().unwrap(), Kernel { guards: true, counts_anonymous_pages: true });
    }
}
