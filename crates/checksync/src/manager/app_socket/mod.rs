//! The manager's own socket in the app's cell: the app asks, and the actor answers.
//!
//! A thread of its own reads; whoever has an answer writes it, at once. All of it stands behind one lock, which a
//! freeze takes while it looks at conversations ([`checkpoint::descriptors::ManagerSocket`]): it is held for a few
//! calls that never wait. A request stays in [`Talk::said`] until its answer is written, so what is captured of a
//! conversation is either a request or its answer, and never both.

mod http;
mod talk;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use checkpoint::descriptors::{ManagerSocket, Unanswered};
use engine::cell::SOCKET;
use image::{CheckpointId, Term};
use replica::primary::SyncCall;
use rustix::event::{EventfdFlags, epoll, eventfd};
use serde::Serialize;

use self::http::{Question, Refusal};
use self::talk::{Talk, Waiting};

/// More at once than a program has reason for; who comes then is let go again.
const TALKS_MAX: usize = 1024;
const LISTENER: u64 = 0;
const QUIT: u64 = u64::MAX;

/// What an app is told of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Role {
    pub app: String,
    pub host: String,
    /// Of the manager: an app that runs is served by a primary.
    pub role: &'static str,
    pub term: u64,
    /// The newest committed one.
    pub epoch: Option<u64>,
    pub state: String,
    pub protected: bool,
    #[serde(rename = "reason")]
    pub why_not: Option<String>,
    /// What this process was restored from, if it was.
    pub restored: Option<Restored>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub term: u64,
    pub epoch: u64,
}

/// Hands a call of `sync` to the actor, with how long it will wait for protection.
pub type OnSync = Box<dyn Fn(SyncCall, Option<Duration>) + Send>;

/// Dropped, it ends every conversation.
#[derive(Debug)]
pub struct AppSocket {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    poll: OwnedFd,
    quit: OwnedFd,
    inner: Mutex<Inner>,
}

struct Inner {
    listener: Option<UnixListener>,
    /// By the inode of our end.
    talks: HashMap<u64, Talk>,
    /// Whose calls wait.
    calls: HashMap<SyncCall, u64>,
    last_call: u64,
    role: Role,
    on_sync: OnSync,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("talks", &self.talks).field("role", &self.role).finish_non_exhaustive()
    }
}

impl AppSocket {
    pub fn new(app: &str, host: &str, on_sync: OnSync) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let quit = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&poll, &quit, epoll::EventData::new_u64(QUIT), epoll::EventFlags::IN)?;
        let role = Role { app: app.to_owned(), host: host.to_owned(), role: "primary", ..Role::default() };
        let inner = Inner {
            listener: None,
            talks: HashMap::new(),
            calls: HashMap::new(),
            last_call: 0,
            role,
            on_sync,
        };
        let shared = Arc::new(Shared { poll, quit, inner: Mutex::new(inner) });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("app-socket".to_owned()).spawn(move || own.serve())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// For the engine.
    pub fn for_engine(&self) -> Arc<dyn ManagerSocket> {
        Arc::<Shared>::clone(&self.shared)
    }

    /// How things are from now on; who waits for a later term is answered.
    pub fn tell(&self, change: impl FnOnce(&mut Role)) {
        let mut inner = self.shared.lock();
        let before = inner.role.term;
        change(&mut inner.role);
        if inner.role.term != before {
            inner.answer_promotions();
        }
    }

    pub fn synced(&self, call: SyncCall, id: CheckpointId) {
        let answer = |last| http::answer(&Restored { term: id.term.0, epoch: id.epoch.0 }, last);
        self.shared.lock().answer_sync(call, answer);
    }

    pub fn refuse(&self, call: SyncCall, why: String) {
        let why = Refusal::Unprotected(why);
        self.shared.lock().answer_sync(call, |last| http::refusal(&why, last));
    }
}

impl Drop for AppSocket {
    fn drop(&mut self) {
        // Eight bytes always fit into a counter that is read.
        let _ = rustix::io::write(&self.shared.quit, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic in there was told already.
            let _ = thread.join();
        }
        let mut inner = self.shared.lock();
        inner.listener = None;
        inner.forget_talks();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        const EVENTS: usize = 64;
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(why) => return tracing::error!("the app's calls can't be heard any more: {why}"),
            }
            let mut inner = self.lock();
            for event in &events {
                match event.data.u64() {
                    QUIT => return,
                    LISTENER => inner.let_in(&self.poll),
                    number => inner.hear(&self.poll, number),
                }
            }
        }
    }
}

impl ManagerSocket for Shared {
    /// What was said in an earlier cell is over.
    fn listen(&self, root: &Path) -> io::Result<()> {
        let path = root.join(SOCKET.trim_start_matches('/'));
        let listener = UnixListener::bind(&path)?;
        // Whoever the app is in its cell.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        let mut inner = self.lock();
        inner.forget_talks();
        epoll::add(&self.poll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        inner.listener = Some(listener);
        Ok(())
    }

    fn hold(&self, look: &mut dyn FnMut(&Unanswered<'_>)) {
        let mut inner = self.lock();
        inner.let_in(&self.poll);
        look(&|number| inner.talks.get(&number).and_then(|talk| talk.unanswered().ok()));
    }

    /// The state that was restored is later than all that was said before it was captured: so who waits for a commit
    /// has it.
    fn take_up(&self, ours: OwnedFd, unanswered: &[u8]) {
        let mut inner = self.lock();
        let restored = inner
            .role
            .restored
            .map(|Restored { term, epoch }| CheckpointId { term: Term(term), epoch: image::Epoch(epoch) });
        if let Err(why) = inner.begin(&self.poll, ours.into(), unanswered, restored) {
            tracing::warn!("a call of the app could not be taken up, and ends: {why}");
        }
    }
}

impl Inner {
    fn let_in(&mut self, poll: &OwnedFd) {
        loop {
            let accepted = match &self.listener {
                Some(listener) => listener.accept(),
                None => return,
            };
            // Nobody waits, or there are no descriptors left: who waits goes on waiting.
            let Ok((stream, _)) = accepted else { return };
            if self.talks.len() >= TALKS_MAX {
                tracing::warn!("more than {TALKS_MAX} connections of the app to its manager: one is refused");
                continue;
            }
            if let Err(why) = self.begin(poll, stream, &[], None) {
                tracing::warn!("a connection of the app to its manager is refused: {why}");
            }
        }
    }

    /// A conversation in which `said` was said already; a call of `sync` in it is covered by `covered`.
    fn begin(
        &mut self,
        poll: &OwnedFd,
        stream: UnixStream,
        said: &[u8],
        covered: Option<CheckpointId>,
    ) -> io::Result<()> {
        let number = rustix::fs::fstat(&stream)?.st_ino;
        stream.set_nonblocking(true)?;
        epoll::add(poll, stream.as_fd(), epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        self.talks.insert(number, Talk::new(stream, said));
        self.go_on(number, covered);
        Ok(())
    }

    fn hear(&mut self, poll: &OwnedFd, number: u64) {
        let Some(talk) = self.talks.get_mut(&number) else { return };
        if talk.read() {
            talk.stop_polling(poll);
            self.go_on(number, None);
        } else {
            self.end(number);
        }
    }

    /// Takes up what was said and is whole, one after the other.
    fn go_on(&mut self, number: u64, covered: Option<CheckpointId>) {
        while let Some(question) = self.talks.get_mut(&number).and_then(Talk::next_question) {
            match question {
                Ok(Question::Epoch) => {
                    let Role { term, epoch, .. } = self.role;
                    self.answer(number, |last| http::answer(&Epoch { term, epoch }, last));
                }
                Ok(Question::Role { after }) if after.is_none_or(|after| after < self.role.term) => {
                    let role = self.role.clone();
                    self.answer(number, |last| http::answer(&role, last));
                }
                Ok(Question::Role { after }) => self.wait(number, Waiting::Promotion(after.unwrap_or(0))),
                Ok(Question::Sync { patience }) => match covered {
                    Some(CheckpointId { term, epoch }) => {
                        let covered = Restored { term: term.0, epoch: epoch.0 };
                        self.answer(number, |last| http::answer(&covered, last));
                    }
                    None => {
                        self.last_call += 1;
                        let call = SyncCall(self.last_call);
                        self.calls.insert(call, number);
                        self.wait(number, Waiting::Sync(call));
                        (self.on_sync)(call, patience);
                    }
                },
                Err(why) => self.answer(number, |last| http::refusal(&why, last)),
            }
        }
        if self.talks.get(&number).is_some_and(Talk::is_over) {
            self.end(number);
        }
    }

    fn wait(&mut self, number: u64, waiting: Waiting) {
        if let Some(talk) = self.talks.get_mut(&number) {
            talk.wait(waiting);
        }
    }

    fn answer(&mut self, number: u64, answer: impl FnOnce(bool) -> Vec<u8>) {
        if let Some(talk) = self.talks.get_mut(&number) {
            talk.answer(answer);
        }
    }

    fn answer_sync(&mut self, call: SyncCall, answer: impl FnOnce(bool) -> Vec<u8>) {
        // Who called may have gone.
        let Some(number) = self.calls.remove(&call) else { return };
        self.answer(number, answer);
        self.go_on(number, None);
    }

    fn answer_promotions(&mut self) {
        let term = self.role.term;
        let due = |talk: &Talk| matches!(talk.waiting(), Some(Waiting::Promotion(after)) if after < term);
        let numbers: Vec<u64> =
            self.talks.iter().filter(|(_, talk)| due(talk)).map(|(&number, _)| number).collect();
        for number in numbers {
            let role = self.role.clone();
            self.answer(number, |last| http::answer(&role, last));
            self.go_on(number, None);
        }
    }

    fn end(&mut self, number: u64) {
        if let Some(Waiting::Sync(call)) = self.talks.remove(&number).and_then(|talk| talk.waiting()) {
            self.calls.remove(&call);
        }
    }

    fn forget_talks(&mut self) {
        self.talks.clear();
        self.calls.clear();
    }
}

#[derive(Serialize)]
struct Epoch {
    term: u64,
    epoch: Option<u64>,
}

#[cfg(test)]
mod tests;
