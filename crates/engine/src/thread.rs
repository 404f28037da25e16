//! The engine's thread and the handle to it.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::{io, panic};

use bytes::Bytes;
use image::FileId;
use sys::bell::Bell;

use crate::command::{Attach, Command, Launch, Settings};
use crate::event::Event;
use crate::{primary, standby};

/// Where events go. It must not block.
pub type EventSink = Box<dyn Fn(Event) + Send>;

/// The engine of one app. Dropping it ends it.
#[derive(Debug)]
pub struct Engine {
    inbox: Inbox,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts an app in a cell; it waits for `Start`.
    pub fn launch(settings: Settings, launch: Launch, events: EventSink) -> io::Result<Self> {
        Self::spawn(settings, events, move |context| primary::launch(context, launch))
    }

    /// Takes hold of a running process.
    pub fn attach(settings: Settings, attach: Attach, events: EventSink) -> io::Result<Self> {
        Self::spawn(settings, events, move |context| primary::attach(context, &attach))
    }

    /// Waits for a copy to come in. `cell` is how a skeleton is made.
    pub fn stand_by(settings: Settings, cell: crate::cell::CellSpec, events: EventSink) -> io::Result<Self> {
        Self::spawn(settings, events, move |context| standby::run(context, cell))
    }

    fn spawn(
        settings: Settings,
        events: EventSink,
        run: impl FnOnce(&mut Context) + Send + 'static,
    ) -> io::Result<Self> {
        let inbox = Inbox { queue: Arc::default(), bell: Bell::new()?, frames: Arc::default() };
        let mut context = Context { settings, inbox: inbox.clone(), events };
        let body = move || {
            // Stopped threads wait for this one: it goes first. Without the right to it, pauses are longer.
            const PRIORITY: i32 = 10;
            let told = match context.settings.in_background {
                true => sys::task::step_back(),
                false => sys::task::become_real_time(PRIORITY),
            };
            if let Err(why) = told {
                tracing::warn!("the engine does not get its priority, pauses will be longer: {why}");
            }
            if panic::catch_unwind(panic::AssertUnwindSafe(|| run(&mut context))).is_err() {
                context.say(Event::Failed { why: "the engine failed; see the log".to_owned() });
            }
            context.say(Event::Ended);
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(body)?;
        Ok(Self { inbox, thread: Some(thread) })
    }

    /// N.B. [`Command::Frames`] waits while the engine has too many of them: call it where that may block.
    /// All others return at once.
    pub fn send(&self, command: Command) {
        if let Command::Frames(bytes) = &command {
            *self.inbox.await_room() += bytes.len();
        }
        self.inbox.put(command);
    }

    pub fn lender(&self) -> Lender {
        Lender(self.inbox.clone())
    }

    /// Waits until [`Self::offer`] may be tried again.
    pub fn await_room(&self) {
        drop(self.inbox.await_room());
    }

    /// As [`Command::Frames`], but returns at once: an engine that has too many gives it back.
    pub fn offer(&self, frames: Bytes) -> Result<(), Bytes> {
        if !self.inbox.make_room(frames.len()) {
            return Err(frames);
        }
        self.inbox.put(Command::Frames(frames));
        Ok(())
    }
}

/// Asks the engine of a copy for files in its state directories, and does not keep it from ending.
#[derive(Debug, Clone)]
pub struct Lender(Inbox);

impl Lender {
    /// Of an engine that says nothing.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> io::Result<Self> {
        Ok(Self(Inbox { queue: Arc::default(), bell: Bell::new()?, frames: Arc::default() }))
    }

    /// Nothing comes from an engine that has ended.
    pub(crate) fn file(&self, file: FileId) -> Receiver<Option<File>> {
        let (to, lent) = mpsc::channel();
        self.0.put(Command::Lend { file, to });
        lent
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.send(Command::End);
        if let Some(thread) = self.thread.take() {
            // A panic was reported as an event.
            let _ = thread.join();
        }
    }
}

/// Frames that wait for an engine.
const WAITING_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Clone)]
struct Inbox {
    queue: Arc<Mutex<VecDeque<Command>>>,
    bell: Bell,
    /// Bytes of frames that wait, and the signal that there are fewer.
    frames: Arc<(Mutex<usize>, Condvar)>,
}

impl Inbox {
    fn await_room(&self) -> MutexGuard<'_, usize> {
        let (waiting, fewer) = &*self.frames;
        let full = |waiting: &mut usize| *waiting > WAITING_BYTES_MAX;
        match fewer.wait_timeout_while(lock(waiting), standby::ROOM_PATIENCE, full) {
            Ok((waiting, _)) => waiting,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }

    fn make_room(&self, len: usize) -> bool {
        let mut waiting = lock(&self.frames.0);
        let room = *waiting <= WAITING_BYTES_MAX;
        if room {
            *waiting += len;
        }
        room
    }

    fn put(&self, command: Command) {
        lock(&self.queue).push_back(command);
        self.bell.ring();
    }

    fn frame_taken(&self, len: usize) {
        let (waiting, fewer) = &*self.frames;
        let mut waiting = lock(waiting);
        *waiting = waiting.saturating_sub(len);
        fewer.notify_all();
    }
}

/// What the thread works with.
pub(crate) struct Context {
    pub settings: Settings,
    inbox: Inbox,
    events: EventSink,
}

impl Context {
    pub fn say(&self, event: Event) {
        (self.events)(event);
    }

    pub fn next_command(&self) -> Option<Command> {
        lock(&self.inbox.queue).pop_front()
    }

    /// Commands that were taken too early: they are the next, in this order.
    pub fn put_back(&self, commands: Vec<Command>) {
        let mut queue = lock(&self.inbox.queue);
        commands.into_iter().rev().for_each(|command| queue.push_front(command));
    }

    /// A frame was looked at: there is room for more.
    pub fn frame_taken(&self, len: usize) {
        self.inbox.frame_taken(len);
    }

    /// Sleeps until there is a command or a tracee has something to say.
    pub fn sleep(&self, at_most: Option<std::time::Duration>) {
        if let Err(why) = self.inbox.bell.wait(at_most) {
            tracing::error!("the bell does not work: {why}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
