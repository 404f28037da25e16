//! The copy's side: takes epochs in, applies them to a skeleton, and becomes the app when told to.
//!
//! Frames are taken in their order. The header of an epoch is reported. An epoch that goes on from what is held is
//! prepared at once; of any other nothing is looked at until `Receive` says what to do with it. A full epoch goes into
//! a skeleton of its own as it comes, beside the old one if that is to be kept.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use checkpoint::shipped::{Shelf, ShipError};
use checkpoint::skeleton::{self, ApplyError, Collector, EpochBytes, Incoming, Piece, Skeleton, Trees};
use files::{FilesError, Mirror};
use image::frame::{self, Frame, FrameError, FrameKind};
use image::layout::Layout;
use image::state::State;
use image::{CheckpointId, Header, Sync};
use rustix::time::ClockId;
use tempfile::TempDir;
use tracee::Tree;

use crate::awake::Cores;
use crate::capture::{Capturer, EngineError};
use crate::cell::{CHANNEL, Cell, CellSpec};
use crate::clock::now_ns;
use crate::command::{Captures, Command, Promotion};
use crate::event::{Event, RestoreReport};
use crate::files::show_in_cell;
use crate::primary::{App, chain, inodes_of, listen_in, move_into, serve};
use crate::supply::Supply;
use crate::thread::Context;
use crate::twin::{Original, Showing};

/// How long the dying are left alone.
const REAP_AGAIN: Duration = Duration::from_millis(100);

/// A skeleton with what it needs to live.
struct Copy {
    skeleton: Skeleton<'static>,
    cell: Cell,
    /// The state directories.
    mirror: Mirror,
    /// Where their trees are, of a copy in a sealed cell.
    apart: Option<TempDir>,
    /// What was applied last, and when it came.
    held: Option<Held>,
    /// Who makes another of it.
    audience: Option<Showing>,
    _remains: Remains,
}

/// The pid of a copy's process, which is put on the list when the copy is dropped. Only its tracer, this thread,
/// can reap it, and the cell's first process lives until that is done.
struct Remains {
    pid: i32,
    unreaped: Rc<RefCell<Vec<i32>>>,
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.unreaped.borrow_mut().push(self.pid);
    }
}

impl Copy {
    /// All that can fail before the epoch is acknowledged.
    fn prepare(&self, epoch: &EpochBytes) -> Result<(), CopyError> {
        self.skeleton.prepare(epoch)?;
        Ok(self.mirror.check(&epoch.files, &epoch.content)?)
    }

    fn apply(&mut self, epoch: &EpochBytes) -> Result<(), CopyError> {
        // First, since the memory may map them.
        self.mirror.apply(&epoch.files, &epoch.content)?;
        Ok(self.skeleton.apply(epoch)?)
    }
}

struct Held {
    id: CheckpointId,
    state: Arc<State>,
    received_monotonic_ns: u64,
    received_boottime_ns: u64,
}

/// An epoch on its way in.
enum Receiving {
    Nothing,
    /// Its header was reported; `Receive` is awaited.
    Announced(Header, Frame),
    Incremental(CheckpointId, Box<Collector>),
    Full(CheckpointId, Box<FullCopy>),
    /// Refused in the middle: its remaining frames are passed over.
    Skipping,
}

struct FullCopy {
    incoming: Incoming,
    supply: Supply,
    mirror: Mirror,
    apart: Option<TempDir>,
    copy: Option<Copy>,
}

/// Prepared, and waits for `Apply`.
enum Prepared {
    Incremental(Box<EpochBytes>, (u64, u64)),
    Full(Box<Copy>),
}

struct Keeper<'a> {
    context: &'a mut Context,
    cell: CellSpec,
    copy: Option<Copy>,
    frames: VecDeque<Bytes>,
    receiving: Receiving,
    prepared: Option<(CheckpointId, Prepared)>,
    /// Processes of copies that are no more.
    unreaped: Rc<RefCell<Vec<i32>>>,
}

pub(crate) fn run(context: &mut Context, cell: CellSpec) {
    let promoted = {
        let mut keeper = Keeper {
            context,
            cell,
            copy: None,
            frames: VecDeque::new(),
            receiving: Receiving::Nothing,
            prepared: None,
            unreaped: Rc::default(),
        };
        keeper.keep()
    };
    if let Some(app) = promoted {
        serve(context, app);
    }
}

impl Keeper<'_> {
    /// Takes commands until the copy became the app, or the engine is ended.
    fn keep(&mut self) -> Option<App> {
        loop {
            while let Some(command) = self.context.next_command() {
                match command {
                    Command::Frames(bytes) => self.frames.extend(frame::split(bytes)),
                    Command::Receive { id, full, keep_old } => self.receive(id, full, keep_old),
                    Command::DropHalf => {
                        self.drop_half();
                        self.context.say(Event::HalfDropped);
                    }
                    Command::Apply(id) => self.apply(id),
                    Command::CaptureAs(captures) => {
                        let Captures { shadow_bytes, connections, barrier, state_dirs, shared_dirs } =
                            captures;
                        let settings = &mut self.context.settings;
                        settings.shadow_bytes = shadow_bytes;
                        (settings.connections, settings.barrier) = (connections, barrier);
                        (settings.state_dirs, settings.shared_dirs) = (state_dirs, shared_dirs);
                    }
                    Command::Promote(promotion) => {
                        if let Some(app) = self.promote(promotion) {
                            return Some(app);
                        }
                    }
                    Command::Show(showing) => self.show(showing),
                    Command::Lend { file, to } => {
                        let lent = self.copy.as_ref().and_then(|copy| copy.mirror.open(file));
                        let _nobody_may_wait = to.send(lent);
                    }
                    Command::Discard => {
                        self.drop_half();
                        self.copy = None;
                        self.context.say(Event::HalfDropped);
                    }
                    Command::End => return None,
                    Command::Start
                    | Command::FullSync { .. }
                    | Command::Ship(_)
                    | Command::Capture { .. }
                    | Command::CaptureLast { .. }
                    | Command::Thaw
                    | Command::Committed(_)
                    | Command::ReturnToLedger
                    | Command::Signal(_)
                    | Command::Stop { .. }
                    | Command::Kill
                    | Command::Release => {
                        tracing::warn!(?command, "a command for an app came to a copy's engine")
                    }
                }
                self.take_frames();
            }
            let again = self.reap().then_some(REAP_AGAIN);
            self.context.sleep(again);
        }
    }

    /// Whether some are still dying, which takes the longer the more memory they had.
    fn reap(&self) -> bool {
        let mut unreaped = self.unreaped.borrow_mut();
        unreaped.retain(|pid| matches!(sys::wait::reap(*pid), Ok(None)));
        !unreaped.is_empty()
    }

    fn take_frames(&mut self) {
        // A prepared epoch is applied before the next is looked at.
        while self.prepared.is_none() && !matches!(self.receiving, Receiving::Announced(..)) {
            let Some(bytes) = self.frames.pop_front() else { return };
            self.context.frame_taken(bytes.len());
            match Frame::parse(bytes) {
                Ok(frame) => self.take(frame),
                Err(why) => self.refuse(&why),
            }
        }
    }

    fn take(&mut self, frame: Frame) {
        let receiving = match std::mem::replace(&mut self.receiving, Receiving::Skipping) {
            // Its sender gave it up, as a full sync that another follows: nobody waits to hear of it.
            Receiving::Incremental(id, _) | Receiving::Full(id, _) if frame.kind == FrameKind::Header => {
                tracing::debug!(%id, "dropped the half of an epoch that another follows");
                Receiving::Nothing
            }
            other => other,
        };
        self.receiving = match receiving {
            Receiving::Nothing | Receiving::Skipping if frame.kind == FrameKind::Header => {
                match frame.decode::<Header>("header") {
                    Ok(header) => {
                        self.context.say(Event::EpochBegins { id: header.id, sync: header.sync });
                        self.begin(header, frame)
                    }
                    Err(why) => {
                        tracing::warn!("a header can't be read: {why}");
                        Receiving::Skipping
                    }
                }
            }
            Receiving::Nothing | Receiving::Skipping => Receiving::Skipping,
            Receiving::Announced(..) => unreachable!("no frame is taken while one waits"),
            Receiving::Incremental(id, collector) => self.take_incremental(id, collector, &frame),
            Receiving::Full(id, full) => self.take_full(id, full, &frame),
        };
    }

    /// What goes on from what is held is taken in at once, and nobody's word waited for: until `Apply` it changes
    /// nothing, and `DropHalf` forgets it.
    fn begin(&mut self, header: Header, frame: Frame) -> Receiving {
        let held = self.copy.as_ref().and_then(|copy| copy.held.as_ref());
        let Some(held) = held.filter(|held| header.sync == Sync::Since(held.id)) else {
            return Receiving::Announced(header, frame);
        };
        let bytes_max = self.context.settings.epoch_bytes_max;
        let before = (held.id, Arc::clone(&held.state));
        let collector = Box::new(Collector::new(bytes_max, Some(before)));
        self.take_incremental(header.id, collector, &frame)
    }

    fn take_incremental(
        &mut self,
        id: CheckpointId,
        mut collector: Box<Collector>,
        frame: &Frame,
    ) -> Receiving {
        match collector.accept(frame) {
            Ok(None) => return Receiving::Incremental(id, collector),
            Ok(Some(epoch)) => match self.copy.as_ref().map(|copy| copy.prepare(&epoch)) {
                Some(Ok(())) => {
                    self.prepared = Some((id, Prepared::Incremental(Box::new(epoch), received())));
                    self.context.say(Event::Prepared { id });
                }
                Some(Err(why)) => self.say_lacking(id, &why, &Supply::default()),
                None => self.say_refused(id, &EngineError::NoBase),
            },
            Err(why) => self.say_refused(id, &why),
        }
        Receiving::Nothing
    }

    fn take_full(&mut self, id: CheckpointId, mut full: Box<FullCopy>, frame: &Frame) -> Receiving {
        match self.fill(&mut full, frame) {
            Ok(None) => return Receiving::Full(id, full),
            Ok(Some(state)) => match full.copy.take() {
                Some(mut copy) => {
                    (copy.mirror, copy.apart) = (std::mem::take(&mut full.mirror), full.apart.take());
                    let (received_monotonic_ns, received_boottime_ns) = received();
                    let state = Arc::new(state);
                    copy.held = Some(Held { id, state, received_monotonic_ns, received_boottime_ns });
                    self.prepared = Some((id, Prepared::Full(Box::new(copy))));
                    self.context.say(Event::Prepared { id });
                }
                None => self.say_refused(id, &FrameError::Place(FrameKind::End)),
            },
            Err(why) => self.say_lacking(id, &why, &full.supply),
        }
        Receiving::Nothing
    }

    /// Applies a frame of a full epoch. `Some` at its end.
    fn fill(&self, full: &mut FullCopy, frame: &Frame) -> Result<Option<State>, CopyError> {
        let piece = full.incoming.accept(frame)?;
        match (piece, &mut full.copy) {
            (Piece::Shipped(shipped), None) => {
                full.supply.take(self.shelf().as_ref(), shipped)?;
            }
            (Piece::Shipped(_), Some(_)) => return Err(FrameError::Place(FrameKind::Shipped).into()),
            (Piece::Files(part), _) => full.mirror.add_part(part)?,
            (Piece::Content(batch), _) => full.mirror.take_content(batch)?,
            (Piece::Layout(layout), None) => {
                let state = full.mirror.located().into_iter().map(|it| (it.path, it.tree)).collect();
                let trees = Trees { state, shipped: self.shelf() };
                full.copy = Some(self.make_copy(&layout, trees)?);
            }
            (Piece::Layout(layout), Some(copy)) => {
                copy.skeleton.apply_layout(&layout)?;
            }
            (Piece::Pages(batch), Some(copy)) => {
                copy.skeleton.check_pages(&batch)?;
                copy.skeleton.apply_pages(&batch)?;
            }
            (Piece::Pages(_), None) => return Err(FrameError::Place(FrameKind::Pages).into()),
            (Piece::Header(_) | Piece::Part, _) => (),
            (Piece::End(state), Some(copy)) => {
                copy.skeleton.check_state(&state)?;
                copy.skeleton.supply_readable(&state)?;
                return Ok(Some(*state));
            }
            (Piece::End(_), None) => return Err(FrameError::Place(FrameKind::End).into()),
        }
        Ok(None)
    }

    /// Where this app's files are kept that are not here.
    fn shelf(&self) -> Option<Shelf> {
        let settings = &self.context.settings;
        settings.shipped.as_ref().map(|cache| cache.of(&settings.app))
    }

    /// N.B. the number of the app's process is not known before the state comes, at the end; the layout's
    /// frame has it, see [`Layout::pid`].
    fn make_copy(&self, layout: &Layout, trees: Trees) -> Result<Copy, CopyError> {
        let host = |what| move |source| CopyError::Host { what, source };
        let root = std::fs::File::open("/").map_err(host("open the root directory"))?;
        skeleton::check_layout(&[], layout, root.as_fd(), &trees)?;
        let spec = self.cell.try_clone().map_err(host("prepare a cell"))?;
        let cell = Cell::with_skeleton(spec, layout.pid).map_err(host("make a cell for the copy"))?;
        if let Some(cgroup) = &self.cell.cgroup {
            move_into(cgroup, cell.pid).map_err(host("move the copy into its control group"))?;
        }
        let tree = Tree::seize(cell.pid).map_err(ApplyError::from)?;
        let frozen = tree.freeze_for_good(self.context.settings.freeze_patience).map_err(ApplyError::from)?;
        let mut skeleton = Skeleton::hollow_out(frozen, cell.pid, layout, trees)?;
        skeleton.apply_layout(layout)?;
        let remains = Remains { pid: cell.pid, unreaped: Rc::clone(&self.unreaped) };
        let (mirror, apart) = (Mirror::default(), None);
        Ok(Copy { skeleton, cell, mirror, apart, held: None, audience: None, _remains: remains })
    }

    fn receive(&mut self, id: CheckpointId, full: bool, keep_old: bool) {
        if !full && self.under_way() == Some(id) {
            return;
        }
        let (header, frame) = match std::mem::replace(&mut self.receiving, Receiving::Nothing) {
            Receiving::Announced(header, frame) if header.id == id => (header, frame),
            other => {
                tracing::debug!(%id, "told to receive an epoch that is not announced, or was refused");
                self.receiving = other;
                return;
            }
        };
        if !full || header.sync != Sync::Full {
            let base = EngineError::NoBase;
            let place = FrameError::Place(FrameKind::Header);
            let why: &dyn std::error::Error = if full { &place } else { &base };
            self.say_refused(id, why);
            self.receiving = Receiving::Skipping;
            return;
        }
        if !keep_old {
            self.copy = None;
        }
        let mut incoming = Incoming::new(u64::MAX);
        self.receiving = match (incoming.accept(&frame), self.begin_mirror()) {
            (Ok(_), Ok((mirror, apart))) => {
                let supply = Supply::default();
                Receiving::Full(id, Box::new(FullCopy { incoming, supply, mirror, apart, copy: None }))
            }
            (Ok(_), Err(why)) => {
                self.say_refused(id, &why);
                Receiving::Skipping
            }
            (Err(_), _) => Receiving::Skipping,
        };
    }

    /// N.B. nothing that a sealed cell has is put at a path of the host's.
    fn begin_mirror(&self) -> Result<(Mirror, Option<TempDir>), CopyError> {
        if !self.cell.sealed {
            return Ok((Mirror::default(), None));
        }
        let made = tempfile::Builder::new().prefix("checksync-sealed-").tempdir();
        let apart = made.map_err(|source| CopyError::Host { what: "make a directory for files", source })?;
        Ok((Mirror::apart(apart.path().to_owned()), Some(apart)))
    }

    /// The incremental epoch that is being taken in, or was.
    fn under_way(&self) -> Option<CheckpointId> {
        match &self.receiving {
            Receiving::Incremental(id, _) => Some(*id),
            Receiving::Nothing | Receiving::Announced(..) | Receiving::Full(..) | Receiving::Skipping => {
                self.prepared.as_ref().map(|(id, _)| *id)
            }
        }
    }

    fn drop_half(&mut self) {
        self.frames.drain(..).for_each(|frame| self.context.frame_taken(frame.len()));
        self.receiving = Receiving::Nothing;
        self.prepared = None;
    }

    fn apply(&mut self, id: CheckpointId) {
        match self.prepared.take() {
            Some((prepared, epoch)) if prepared == id => self.apply_prepared(id, epoch),
            // Who takes it for held must not go on with that.
            other => {
                self.prepared = other;
                self.context.say(Event::ApplyFailed { id, why: "it is not prepared".to_owned() });
            }
        }
    }

    fn apply_prepared(&mut self, id: CheckpointId, epoch: Prepared) {
        match (epoch, &mut self.copy) {
            (Prepared::Full(copy), place) => *place = Some(*copy),
            (Prepared::Incremental(epoch, received), Some(copy)) => {
                tracing::trace!(target: "epochs", %id, "epoch applying");
                if copy.audience.as_ref().is_some_and(|audience| !audience.show(&epoch)) {
                    copy.audience = None;
                }
                if let Err(why) = copy.apply(&epoch) {
                    self.copy = None;
                    return self.context.say(Event::ApplyFailed { id, why: chain(&why) });
                }
                copy.audience.iter().for_each(Showing::applied);
                tracing::trace!(target: "epochs", %id, "epoch applied");
                let (received_monotonic_ns, received_boottime_ns) = received;
                let state = Arc::new(epoch.state);
                copy.held = Some(Held { id, state, received_monotonic_ns, received_boottime_ns });
            }
            (Prepared::Incremental(..), None) => {
                let why = "the copy that it builds on is gone".to_owned();
                return self.context.say(Event::ApplyFailed { id, why });
            }
        }
        self.context.say(Event::Applied { id });
    }

    /// Shows what is held, and from now on what becomes of it.
    fn show(&mut self, showing: Showing) {
        let app = &self.context.settings.app;
        let Some(copy) = &mut self.copy else {
            let _nobody_may_listen = showing.begin(None);
            return;
        };
        let shown = copy.held.as_ref().and_then(|held| {
            let look = copy.skeleton.look();
            let look = look.inspect_err(|why| tracing::warn!("the copy can't be looked at: {why}")).ok()?;
            let app = app.clone();
            let (state, files) = (State::clone(&held.state), copy.mirror.census());
            Some(Original { app, id: held.id, look, state, files })
        });
        let is_there = shown.is_some();
        copy.audience = (showing.begin(shown) && is_there).then_some(showing);
    }

    fn promote(&mut self, promotion: Promotion) -> Option<App> {
        let began = Instant::now();
        let cores = Cores::new();
        let _awake = cores.keep_awake();
        self.drop_half();
        let Some(copy) = self.copy.take() else {
            self.context.say(Event::RestoreFailed { why: "there is no copy here".to_owned() });
            return None;
        };
        match self.set_going(copy, promotion, began) {
            Ok((app, report)) => {
                self.context.say(Event::Restored(report));
                Some(app)
            }
            Err(why) => {
                self.context.say(Event::RestoreFailed { why: chain(&why) });
                None
            }
        }
    }

    fn set_going(
        &self,
        copy: Copy,
        mut promotion: Promotion,
        began: Instant,
    ) -> Result<(App, RestoreReport), CopyError> {
        let host = |what| move |source| CopyError::Host { what, source };
        let Copy { skeleton, cell, mirror, apart, held, audience, _remains } = copy;
        drop(audience);
        let mut held = held.ok_or(CopyError::Empty)?;
        match apart {
            Some(_) => {
                show_in_cell(&mirror, cell.pid).map_err(host("put the state directories into the cell"))?
            }
            None => put_in_place(mirror, held.id)?,
        }
        if promotion.alone {
            checkpoint::descriptors::forget_others(Arc::make_mut(&mut held.state));
        }
        let pid = skeleton.pid();
        if let Some(cgroup) = promotion.cgroup.as_ref().filter(|_| self.cell.cgroup.is_none()) {
            move_into(cgroup, pid).map_err(host("move the app into its control group"))?;
        }
        let stdio = inodes_of(&promotion.stdio).map_err(host("look at the app's pipes"))?;
        let channel = cell.channel().ok_or(CopyError::Empty)?;
        let default_cgroup = std::path::Path::new("/sys/fs/cgroup");
        let given = skeleton::Promotion {
            state: &held.state,
            received_monotonic_ns: held.received_monotonic_ns,
            received_boottime_ns: held.received_boottime_ns,
            output: promotion.stdio.output.as_fd(),
            error: promotion.stdio.error.as_fd(),
            cgroup: promotion.cgroup.as_deref().unwrap_or(default_cgroup),
            channel,
            channel_number: CHANNEL,
            manager: self.context.settings.manager.as_deref(),
        };
        listen_in(self.context, pid);
        let (frozen, times) =
            skeleton.promote(&given, promotion.network.as_deref_mut().map(|network| network as _))?;
        let tree = frozen.thaw_into_tree();
        let report = RestoreReport {
            id: held.id,
            pid,
            frozen_at_ns: held.state.clocks.realtime_ns,
            total: began.elapsed(),
            clocks: times.clocks,
            objects: times.objects,
            descriptors: times.descriptors,
            threads: times.threads,
            revival: times.revival,
            connections: times.connections,
        };
        let capturer = Capturer::new(pid, &self.context.settings, stdio).map_err(CopyError::Engine)?;
        Ok((App { pid, tree, cell: Some(cell), capturer, begun: true, _apart: apart }, report))
    }

    fn refuse(&mut self, why: &FrameError) {
        match std::mem::replace(&mut self.receiving, Receiving::Skipping) {
            Receiving::Incremental(id, _) | Receiving::Full(id, _) => self.say_refused(id, why),
            Receiving::Announced(header, _) => self.say_refused(header.id, why),
            Receiving::Nothing | Receiving::Skipping => tracing::warn!("a damaged frame came: {why}"),
        }
    }

    fn say_refused(&self, id: CheckpointId, why: &dyn std::error::Error) {
        self.context.say(Event::Refused { id, why: chain(why), lacks: Vec::new() });
    }

    /// Asks for the files that are missing, where that is what is wrong.
    fn say_lacking(&self, id: CheckpointId, why: &CopyError, supply: &Supply) {
        let CopyError::Apply(ApplyError::Lacking(lacking)) = why else { return self.say_refused(id, why) };
        let takes = self.context.settings.shipped.is_some();
        let (lacks, why) = supply.lacks(lacking, takes);
        self.context.say(Event::Refused { id, why, lacks });
    }
}

fn put_in_place(mirror: Mirror, id: CheckpointId) -> Result<(), FilesError> {
    for replaced in mirror.replace(&format!("{}-{}", id.term, id.epoch))? {
        let before = replaced.before.map(|before| before.display().to_string());
        tracing::info!(path = %replaced.path.display(), before, "the state directory is in its place");
    }
    Ok(())
}

fn received() -> (u64, u64) {
    (now_ns(ClockId::Monotonic), now_ns(ClockId::Boottime))
}

#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Shipped(#[from] ShipError),
    #[error(transparent)]
    Engine(EngineError),
    #[error("cannot {what}")]
    Host { what: &'static str, source: std::io::Error },
    #[error("nothing was ever applied to the copy")]
    Empty,
}

/// Longest wait of a sender of frames for room before it is told that the engine hangs.
pub(crate) const ROOM_PATIENCE: Duration = Duration::from_secs(60);
