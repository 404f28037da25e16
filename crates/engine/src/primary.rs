//! The app's side: pumps the tracees, takes checkpoints when told to, reports how it ends.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use image::CheckpointId;
use tempfile::TempDir;
use tracee::{Ending, TraceError, Tree, TreeEvent};

use crate::capture::{Capturer, EngineError, FullSync};
use crate::cell::{Cell, SOCKET};
use crate::command::{AppStdio, Attach, Command, FrameSink, Launch};
use crate::event::{AppExit, Event, FullSyncProgress};
use crate::thread::Context;

/// What the engine holds of the app.
pub(crate) struct App {
    pub pid: i32,
    pub tree: Tree,
    /// None for a process that was attached to where it is.
    pub cell: Option<Cell>,
    pub capturer: Capturer,
    /// The app's program runs; before that, the process is still the cell's.
    pub begun: bool,
    /// The state directories of a sealed cell, which go with it.
    pub _apart: Option<TempDir>,
}

pub(crate) fn launch(context: &mut Context, launch: Launch) {
    match prepare(context, launch) {
        Ok(app) => {
            context.say(Event::Ready { pid: app.pid });
            serve(context, app);
        }
        Err(why) => context.say(Event::Failed { why: chain(&why) }),
    }
}

fn prepare(context: &Context, launch: Launch) -> Result<App, EngineError> {
    let host = |what| move |source| EngineError::Host { what, source };
    let stdio = inodes_of(&launch.stdio).map_err(host("look at the app's pipes"))?;
    let directory = launch.directory.as_deref();
    let cell = Cell::with_app(launch.cell, &launch.program, &launch.arguments, directory, launch.stdio)
        .map_err(host("make a cell for the app"))?;
    if let Some(cgroup) = &launch.cgroup {
        move_into(cgroup, cell.pid).map_err(host("move the app into its control group"))?;
    }
    listen_in(context, cell.pid);
    let tree = Tree::seize(cell.pid)?;
    let capturer = Capturer::new(cell.pid, &context.settings, stdio)?;
    Ok(App { pid: cell.pid, tree, cell: Some(cell), capturer, begun: false, _apart: None })
}

/// Without the socket the app runs all the same.
pub(crate) fn listen_in(context: &Context, pid: i32) {
    let Some(manager) = &context.settings.manager else { return };
    if let Err(why) = manager.listen(Path::new(&format!("/proc/{pid}/root"))) {
        tracing::warn!("the app can't call its manager, {SOCKET} is not there: {why}");
    }
}

pub(crate) fn attach(context: &mut Context, attach: &Attach) {
    let attached = Tree::seize(attach.pid).map_err(EngineError::from).and_then(|tree| {
        let capturer = Capturer::new(attach.pid, &context.settings, output_pipes(attach.pid))?;
        Ok(App { pid: attach.pid, tree, cell: None, capturer, begun: true, _apart: None })
    });
    match attached {
        Ok(app) => {
            context.say(Event::Ready { pid: app.pid });
            serve(context, app);
        }
        Err(why) => context.say(Event::Failed { why: chain(&why) }),
    }
}

/// The inodes of the manager's pipes, by which the app's descriptors are known as its standard streams.
pub(crate) fn inodes_of(stdio: &AppStdio) -> std::io::Result<Vec<(u64, u8)>> {
    let inode = |fd: &dyn AsRawFd| fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    use std::os::unix::fs::MetadataExt;
    Ok(vec![(inode(&stdio.output)?.ino(), 1), (inode(&stdio.error)?.ino(), 2)])
}

/// The pipes that a process writes its standard output and error to, if somebody else reads them: a terminal's pager, a
/// log, or the guard of a cell whose manager died. The copy's are its own manager's.
pub fn output_pipes(pid: i32) -> Vec<(u64, u8)> {
    let pipes = open_pipes(pid);
    let is_read_inside = |inode| pipes.iter().any(|pipe| pipe.inode == inode && !pipe.only_written);
    let stream = |number: u8| {
        let pipe = pipes.iter().find(|pipe| pipe.number == i32::from(number))?;
        (!is_read_inside(pipe.inode)).then_some((pipe.inode, number))
    };
    [1, 2].into_iter().filter_map(stream).collect()
}

struct OpenPipe {
    number: i32,
    inode: u64,
    only_written: bool,
}

fn open_pipes(pid: i32) -> Vec<OpenPipe> {
    let look = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        Some(OpenPipe { number, inode, only_written: flags & libc::O_ACCMODE == libc::O_WRONLY })
    };
    // Whoever is gone has none; the capture says so.
    fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().filter_map(look).collect()
}

pub(crate) fn move_into(cgroup: &Path, pid: i32) -> std::io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string())
}

/// A full sync that waits for the app's program to begin, or is under way.
enum Syncing {
    Waiting(CheckpointId, FrameSink),
    Running(FullSync, FrameSink),
}

/// Runs until the engine is ended or lets go of the app.
pub(crate) fn serve(context: &mut Context, mut app: App) {
    let mut syncing: Option<Syncing> = None;
    let mut kill_at: Option<Instant> = None;
    let mut ended = false;
    loop {
        ended |= pump(context, &mut app, &mut syncing);
        while let Some(command) = context.next_command() {
            match command {
                Command::End => return end(app),
                Command::Release => return release(context, app),
                Command::Stop { grace } => {
                    signal(&app, libc::SIGTERM);
                    kill_at = Some(Instant::now() + grace);
                }
                Command::FullSync { id, sink } => syncing = Some(Syncing::Waiting(id, sink)),
                command if ended => answer_for_the_dead(context, &command),
                command => ended |= obey(context, &mut app, command, &mut syncing),
            }
            ended |= pump(context, &mut app, &mut syncing);
        }
        if kill_at.is_some_and(|at| at <= Instant::now()) {
            kill_at = None;
            kill(&app);
        }
        if ended {
            if let Some(Syncing::Waiting(id, _) | Syncing::Running(FullSync { id, .. }, _)) = syncing.take() {
                failed(context, id, "the app has ended", false);
            }
            context.sleep(None);
            continue;
        }
        syncing = match syncing.take() {
            Some(Syncing::Waiting(id, sink)) if !app.begun => {
                context.sleep(remaining(kill_at));
                Some(Syncing::Waiting(id, sink))
            }
            Some(step) => advance(context, &mut app, step),
            None => {
                context.sleep(remaining(kill_at));
                None
            }
        };
    }
}

fn remaining(until: Option<Instant>) -> Option<Duration> {
    until.map(|at| at.saturating_duration_since(Instant::now()))
}

/// Answers the tracees. True if the app has ended.
fn pump(context: &Context, app: &mut App, syncing: &mut Option<Syncing>) -> bool {
    let events = match app.tree.pump() {
        Ok(events) => events,
        Err(why) => {
            tracing::error!("cannot follow the app: {}", chain(&why));
            return false;
        }
    };
    let mut ended = false;
    for event in events {
        match event {
            TreeEvent::Forked { child } => {
                app.capturer.note_child();
                context.say(Event::ChildSeen { pid: child });
            }
            TreeEvent::Executed { pid } if pid == app.pid => executed(context, app, syncing),
            TreeEvent::Executed { .. } => (),
            TreeEvent::Ended { pid, ending } if pid == app.pid => {
                ended = true;
                say_end(context, app, ending);
            }
            TreeEvent::Ended { pid, .. } => context.say(Event::ChildGone { pid }),
            TreeEvent::Dying { pid, signal } if pid == app.pid => context.say(Event::Dying { signal }),
            TreeEvent::Dying { .. } => (),
        }
    }
    ended
}

fn executed(context: &Context, app: &mut App, syncing: &mut Option<Syncing>) {
    let first = !std::mem::replace(&mut app.begun, true);
    app.capturer.start_over();
    *syncing = match syncing.take() {
        Some(Syncing::Running(sync, _gone)) => {
            failed(context, sync.id, "the app replaced its program", false);
            None
        }
        waiting => waiting,
    };
    if !first {
        context.say(Event::Executed);
    }
}

fn say_end(context: &Context, app: &mut App, ending: Ending) {
    if !app.begun
        && let Some(why) = app.cell.as_mut().and_then(Cell::failure)
    {
        context.say(Event::Failed { why });
    }
    context.say(Event::Exited(match ending {
        Ending::Exited(code) => AppExit::Code(code),
        Ending::Killed(signal) => AppExit::Signal(signal),
    }));
}

/// True if the app has ended.
fn obey(context: &Context, app: &mut App, command: Command, syncing: &mut Option<Syncing>) -> bool {
    match command {
        Command::Start => {
            if let Some(cell) = &mut app.cell
                && let Err(why) = cell.go()
            {
                context.say(Event::Failed { why: format!("cannot let the app begin: {why}") });
            }
        }
        Command::Capture { id, parent } => match app.capturer.capture(&mut app.tree, id, parent) {
            Ok((frames, report)) => {
                say_uncovered(context, app);
                context.say(Event::Captured { id, frames, report });
            }
            Err(why) => {
                let ended = has_ended(context, app, &why, syncing);
                failed(context, id, &chain(&why), why.is_refusal());
                return ended;
            }
        },
        Command::CaptureLast { id, parent, barrier } => {
            let pid = app.pid;
            let stand_still = &mut |frames, report| {
                context.say(Event::Captured { id, frames, report });
                await_thaw(context, pid);
            };
            if let Err(why) = app.capturer.capture_last(&mut app.tree, id, parent, barrier, stand_still) {
                let ended = has_ended(context, app, &why, syncing);
                failed(context, id, &chain(&why), why.is_refusal());
                return ended;
            }
        }
        // It goes on already.
        Command::Thaw => {}
        Command::Ship(files) => app.capturer.ship(files),
        Command::Committed(id) => app.capturer.committed(id),
        Command::ReturnToLedger => app.capturer.return_to_ledger(),
        Command::Signal(number) => signal(app, number),
        Command::Kill => kill(app),
        Command::FullSync { .. } | Command::Stop { .. } | Command::Release | Command::End => {
            unreachable!("answered by the caller")
        }
        Command::Frames(_)
        | Command::Receive { .. }
        | Command::DropHalf
        | Command::Apply(_)
        | Command::CaptureAs(_)
        | Command::Promote(_)
        | Command::Show(_)
        | Command::Lend { .. }
        | Command::Discard => {
            tracing::warn!(?command, "a command for a copy came to the app's own engine");
        }
    }
    false
}

fn say_uncovered(context: &Context, app: &mut App) {
    if let Some(paths) = app.capturer.uncovered() {
        context.say(Event::Uncovered { paths });
    }
}

/// Returns when the app is to go on, or to die.
fn await_thaw(context: &Context, pid: i32) {
    let mut early = Vec::new();
    loop {
        match context.next_command() {
            None => context.sleep(None),
            Some(Command::Thaw) => break,
            Some(Command::Kill) => {
                // While it still stands: not one more instruction of it runs. Gone already is as good.
                let _ = sys::task::kill(pid, libc::SIGKILL);
                break;
            }
            Some(command @ (Command::End | Command::Release)) => {
                early.push(command);
                break;
            }
            Some(command) => early.push(command),
        }
    }
    context.put_back(early);
}

/// Whether a capture failed because the app is ending, whose end has then been told: before the failure, which
/// alone would have the standby let go that has to take over. A death shows itself in a capture in many ways,
/// and its end is told only when all of its memory is gone.
fn has_ended(context: &Context, app: &mut App, why: &EngineError, syncing: &mut Option<Syncing>) -> bool {
    const PATIENCE: Duration = Duration::from_secs(2);
    const BENEFIT_OF_THE_DOUBT: Duration = Duration::from_millis(20);
    const AGAIN: Duration = Duration::from_micros(500);
    let patience = match why {
        EngineError::Trace(TraceError::Ended(_)) => PATIENCE,
        why if why.is_refusal() => return false,
        _ => BENEFIT_OF_THE_DOUBT,
    };
    let deadline = Instant::now() + patience;
    loop {
        if pump(context, app, syncing) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(AGAIN);
    }
}

fn answer_for_the_dead(context: &Context, command: &Command) {
    if let Command::Capture { id, .. } | Command::CaptureLast { id, .. } = command {
        failed(context, *id, "the app has ended", false);
    }
}

fn advance(context: &Context, app: &mut App, step: Syncing) -> Option<Syncing> {
    match step {
        Syncing::Waiting(id, mut sink) => match app.capturer.begin_full_sync(&mut app.tree, id, &mut sink) {
            Ok(sync) => Some(Syncing::Running(sync, sink)),
            Err(why) => {
                failed(context, id, &chain(&why), why.is_refusal());
                None
            }
        },
        Syncing::Running(mut sync, mut sink) => match app.capturer.advance_full_sync(&mut sync, &mut sink) {
            Ok(false) => {
                let bytes_total = app.capturer.resident_bytes();
                context.say(Event::Progress(FullSyncProgress {
                    id: sync.id,
                    bytes_done: sync.bytes,
                    bytes_total,
                }));
                Some(Syncing::Running(sync, sink))
            }
            Ok(true) => {
                let id = sync.id;
                match app.capturer.finish_full_sync(&mut app.tree, sync, &mut sink) {
                    Ok(report) => {
                        say_uncovered(context, app);
                        context.say(Event::Captured { id, frames: Vec::new(), report });
                    }
                    Err(why) => failed(context, id, &chain(&why), why.is_refusal()),
                }
                None
            }
            Err(why) => {
                failed(context, sync.id, &chain(&why), why.is_refusal());
                None
            }
        },
    }
}

fn failed(context: &Context, id: CheckpointId, why: &str, refused: bool) {
    context.say(Event::CaptureFailed { id, why: why.to_owned(), refused });
}

fn signal(app: &App, number: i32) {
    if let Err(why) = sys::task::kill(app.pid, number) {
        tracing::debug!("cannot send signal {number} to the app: {why}");
    }
}

fn kill(app: &App) {
    for pid in app.tree.pids() {
        // Gone already is as good.
        let _ = sys::task::kill(pid, libc::SIGKILL);
    }
}

/// An app of its own goes with its engine, and is gone when this returns; one that was attached to runs on.
fn end(app: App) {
    let App { mut tree, cell, .. } = app;
    let Some(cell) = cell else { return let_go(tree) };
    const PATIENCE: Duration = Duration::from_secs(10);
    const AGAIN: Duration = Duration::from_millis(1);
    let deadline = Instant::now() + PATIENCE;
    cell.kill();
    // N.B. the cell's first process waits for all others, and those are ours to reap.
    while !cell.has_ended(AGAIN) && Instant::now() < deadline {
        if let Err(why) = tree.pump() {
            tracing::warn!("cannot reap the app: {}", chain(&why));
            return;
        }
    }
}

fn release(context: &Context, app: App) {
    let App { tree, cell, .. } = app;
    let_go(tree);
    if let Some(cell) = cell {
        // The cell's first process stays with the app, and ends when it does.
        std::mem::forget(cell);
    }
    tracing::debug!(app = context.settings.app, "let go of the app");
}

fn let_go(tree: Tree) {
    match tree.release() {
        // The app ended first: there is nothing to let go of.
        Ok(()) | Err(TraceError::Ended(_)) => (),
        Err(why) => tracing::warn!("cannot let go of the app cleanly: {}", chain(&why)),
    }
}

/// An error with all its causes.
pub(crate) fn chain(why: &dyn std::error::Error) -> String {
    let mut text = why.to_string();
    let mut cause = why.source();
    while let Some(why) = cause {
        let said = why.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = why.source();
    }
    text
}
