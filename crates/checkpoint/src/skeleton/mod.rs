//! The skeleton: the stopped process on the standby into which every committed epoch's memory goes.
//!
//! It has the app's numbers and addresses, and the app's memory as of the last epoch that was applied; no
//! thread but its first, no descriptor, no effect on anything outside. So a takeover has no memory to make.
//!
//! An epoch is received whole and checked ([`Incoming`]), planned ([`Skeleton::prepare`]: all that can fail),
//! acknowledged by the caller, and then applied ([`Skeleton::apply`]). A full sync goes into a new skeleton
//! as it comes, since there is nothing to spoil.

mod birth;
mod check;
mod incoming;
mod look;
mod plan;
mod promote;
mod readable;
mod trees;
mod writer;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use image::layout::{FileIdentity, Layout, Mapping, ObjectKey};
use image::state::State;
use image::{FrameError, PageBatch, Range};
use tracee::{Frozen, TraceError};

pub use incoming::{Collector, EpochBytes, Incoming, Piece};
pub use look::Look;
pub use promote::{Promotion, PromotionTimes};
pub use trees::Trees;

use self::writer::HeldObject;
use crate::Unsupported;
use crate::shipped::Places;

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The file is not on this host, or another one.
    #[error("{path}: {why}; install the same version of it on this host")]
    File { path: String, why: String },
    #[error(transparent)]
    Lacking(Lacking),
    #[error("the epoch has pages at {0:#x}, where nothing is mapped")]
    NotMapped(u64),
    #[error("the epoch names a shared object that it does not describe")]
    UnknownObject,
    #[error("the mapping at {0:#x} is of a kind that no process has, or of one that the epoch misdescribes")]
    Mapping(u64),
    /// The mapping lies where the skeleton has memory of ours: a new skeleton leaves that place free.
    #[error("the mapping at {0:#x} is where the copy has its own memory; a full sync makes room for it")]
    Occupied(u64),
    #[error("the host allows {max} mappings and the layout has {found}; raise vm.max_map_count")]
    Crowded { found: usize, max: usize },
    #[error("the shared object {inode} of {size_bytes} bytes is too large, misnamed or described twice")]
    Object { inode: u64, size_bytes: u64 },
    #[error("the state makes no sense: {0}")]
    State(&'static str),
    #[error("the epoch is for address space {0}; process trees are not carried yet")]
    Space(u32),
    #[error("cannot {what} in the skeleton at {address:#x}")]
    Kernel { what: &'static str, address: u64, source: io::Error },
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error("cannot {what}")]
    Host { what: &'static str, source: io::Error },
    #[error(transparent)]
    Descriptors(#[from] crate::descriptors::RebuildError),
    #[error(transparent)]
    Process(#[from] crate::process::RestoreError),
}

/// Files that are not on this host, or other ones, each with how that shows.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", say_lacking(.0))]
pub struct Lacking(pub Vec<(FileIdentity, String)>);

fn say_lacking(files: &[(FileIdentity, String)]) -> String {
    let Some((first, why)) = files.first() else { return String::new() };
    let others = match files.len() - 1 {
        0 => String::new(),
        others => format!(", and {others} more files"),
    };
    let path = String::from_utf8_lossy(&first.path);
    format!("{path}: {why}{others}; install the same version of it on this host")
}

/// A process that waits to become the app. It stands still until it is promoted.
#[derive(Debug)]
pub struct Skeleton<'tree> {
    frozen: Frozen<'tree>,
    pid: i32,
    /// In the cell.
    number: i32,
    /// Where our own memory lies in it.
    scratch: Range,
    memory: File,
    mappings: Vec<Mapping>,
    guards: Vec<Range>,
    objects: BTreeMap<ObjectKey, HeldObject>,
    trees: Trees,
    /// What was shipped, in the cell.
    places: Places,
    /// Files that the app reads, and that are at their paths in the cell.
    readable: RefCell<BTreeSet<FileIdentity>>,
}

impl<'tree> Skeleton<'tree> {
    /// Hollows out a process that was made for it: nothing is left in there but the vdso and our scratch.
    /// `layout` is the first one of the app, whose place is kept free; `trees` says where files are kept that are not at
    /// their paths yet.
    pub fn hollow_out(
        mut frozen: Frozen<'tree>,
        pid: i32,
        layout: &Layout,
        trees: Trees,
    ) -> Result<Self, ApplyError> {
        let scratch = birth::hollow_out(&mut frozen, pid, layout)?;
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map_err(|source| ApplyError::Kernel { what: "open the memory", address: 0, source })?;
        Ok(Self {
            frozen,
            pid,
            number: layout.pid,
            scratch,
            memory,
            mappings: Vec::new(),
            guards: Vec::new(),
            objects: BTreeMap::new(),
            trees,
            places: Places::of(pid),
            readable: RefCell::default(),
        })
    }

    /// Applies a new layout: what is no more is unmapped, what is new is mapped.
    pub fn apply_layout(&mut self, layout: &Layout) -> Result<(), ApplyError> {
        self.check_layout(layout)?;
        self.hold_objects(layout)?;
        let plan = plan::Plan::new(&self.mappings, &layout.mappings);
        self.carry_out(&plan)?;
        self.mappings.clone_from(&layout.mappings);
        self.guards.clone_from(&layout.guards);
        Ok(())
    }

    /// Applies one batch of pages.
    pub fn apply_pages(&mut self, batch: &PageBatch) -> Result<(), ApplyError> {
        self.write_batch(batch)
    }

    /// Whether all pages of a batch have a place in the layout as it is.
    pub fn check_pages(&self, batch: &PageBatch) -> Result<(), ApplyError> {
        self.check_batch(batch, &self.mappings, None)
    }

    /// Checks everything that can fail before the epoch is acknowledged. Nothing is changed.
    pub fn prepare(&self, epoch: &EpochBytes) -> Result<(), ApplyError> {
        let mappings = epoch.layout.as_ref().map_or(&self.mappings, |layout| &layout.mappings);
        if let Some(layout) = &epoch.layout {
            self.check_layout(layout)?;
        }
        self.check_state(&epoch.state)?;
        epoch.batches.iter().try_for_each(|batch| self.check_batch(batch, mappings, epoch.layout.as_ref()))
    }

    /// Applies an epoch that was prepared and acknowledged.
    pub fn apply(&mut self, epoch: &EpochBytes) -> Result<(), ApplyError> {
        if let Some(layout) = &epoch.layout {
            self.apply_layout(layout)?;
        }
        epoch.batches.iter().try_for_each(|batch| {
            self.apply_pages(batch)?;
            tracing::trace!(target: "places", "pages applied");
            Ok::<(), ApplyError>(())
        })?;
        self.supply_readable(&epoch.state)
    }

    /// Whether a state that came with a full epoch can be restored, as far as that shows.
    pub fn check_state(&self, state: &State) -> Result<(), ApplyError> {
        check::check_state(state, self.number)?;
        self.check_readable(state)?;
        crate::descriptors::warm_up_admission(&state.strays);
        Ok(())
    }

    fn check_layout(&self, layout: &Layout) -> Result<(), ApplyError> {
        check_layout(&self.mappings, layout, self.root()?.as_fd(), &self.trees)?;
        match layout.mappings.iter().find(|mapping| mapping.range.intersect(self.scratch).is_some()) {
            Some(mapping) => Err(ApplyError::Occupied(mapping.range.start)),
            None => Ok(()),
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The mappings as they were last applied.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    pub fn frozen(&mut self) -> &mut Frozen<'tree> {
        &mut self.frozen
    }
}

/// Whether a layout that came from the network can be applied over `old`: its mappings are in order, and its
/// files are below `root` and the same, or in `trees`.
pub fn check_layout(
    old: &[Mapping],
    layout: &Layout,
    root: BorrowedFd<'_>,
    trees: &Trees,
) -> Result<(), ApplyError> {
    if layout.space != 0 {
        return Err(ApplyError::Space(layout.space));
    }
    check::check_layout(layout)?;
    let max = mappings_max();
    if layout.mappings.len() > max {
        return Err(ApplyError::Crowded { found: layout.mappings.len(), max });
    }
    plan::check_files(old, layout, root, trees)
}

/// Whether the host certainly has the same file at its path.
pub fn is_here(identity: &FileIdentity) -> bool {
    if identity.build_id.is_none() {
        return false;
    }
    let root = std::fs::File::open("/");
    root.is_ok_and(|root| plan::check_file(root.as_fd(), identity, None).is_ok())
}

fn mappings_max() -> usize {
    const USUAL: usize = 65_530;
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL)
}
