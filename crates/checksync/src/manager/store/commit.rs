//! Has the store take each epoch as soon as the one before is there, and says when it is.
//!
//! What comes while an upload runs goes on top of each other, and is uploaded as one. An epoch counts as stored only when
//! a look after its manifest was written finds no later run (`store::Run::upload`): whoever restores begins a run first and
//! lists what is there then, so either he finds the epoch or we find him.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use image::{CheckpointId, Frame, Term};
use store::{Basis, GatherError, Gathered, Life, Run, Store, StoreError};
use tokio::runtime::Runtime;

use crate::mpsc::{Receiver, RecvTimeoutError, TryRecvError};

use super::contents::stock;
use super::pulse::Pulse;
use super::{Shared, StoreNews, StoreSettings};

/// So long an upload is tried again before the store counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(100);
/// From a lost session to the next attempt.
const PAUSE: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_millis(500);
const LET_GO_POLL: Duration = Duration::from_millis(50);
const COLLECT_EVERY: Duration = Duration::from_secs(60);
const PAGE_BYTES: u64 = image::PAGE_BYTES;

/// With the number of the session that it is said for.
#[derive(Debug)]
pub(super) enum Word {
    Begin(Term),
    /// A full sync begins.
    Full(u64),
    Frame(u64, Bytes),
    /// All frames of the full sync were given, and it is to be stored.
    Whole(u64),
    Epoch(u64, Vec<Bytes>),
    /// Only to be heard: the number is in `Ends::let_go`.
    LetGo,
}

/// What connects the thread with the actor's half.
pub(super) struct Ends<N> {
    pub said: Receiver<Word>,
    /// Sessions up to this one are over.
    pub let_go: Arc<AtomicU64>,
    pub shared: Arc<Shared>,
    pub news: N,
}

/// How a session ended.
enum Over {
    /// The actor is gone.
    Ended,
    LetGo,
    Lost(String),
    /// No session follows.
    Stopped(String),
}

struct Committer<N> {
    store: Store,
    settings: StoreSettings,
    app: String,
    life: Life,
    runtime: Runtime,
    ends: Ends<N>,
    run: Option<Run>,
    pulse: Option<Pulse>,
    session: u64,
    /// A full sync that is not whole.
    full: Option<Gathered>,
    /// To be stored, in this order.
    waiting: VecDeque<Gathered>,
    /// What the next epoch goes on top of if nothing waits.
    tip: Option<(CheckpointId, Basis)>,
    folded_at: Instant,
    collected_at: Option<Instant>,
}

pub(super) fn start<N: Fn(StoreNews) + Send + Clone + 'static>(
    store: Store,
    settings: &StoreSettings,
    app: &str,
    life: Life,
    ends: Ends<N>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let committer = Committer {
        store,
        settings: settings.clone(),
        app: app.to_owned(),
        life,
        runtime: runtime.context("cannot start the store's network")?,
        ends,
        run: None,
        pulse: None,
        session: 0,
        full: None,
        waiting: VecDeque::new(),
        tip: None,
        folded_at: Instant::now(),
        collected_at: None,
    };
    let spawned = thread::Builder::new().name("store-commit".to_owned()).spawn(move || committer.work());
    spawned.context("cannot start a thread for the store").map(drop)
}

impl<N: Fn(StoreNews) + Send + Clone + 'static> Committer<N> {
    fn work(mut self) {
        let Ok(Word::Begin(term)) = self.ends.said.recv() else { return };
        loop {
            let over = match self.open(term) {
                Ok(()) => {
                    self.session += 1;
                    self.say("following", None);
                    (self.ends.news)(StoreNews::Ready { session: self.session });
                    self.serve()
                }
                Err(over) => over,
            };
            self.forget();
            match over {
                Over::Ended => return,
                Over::LetGo => self.say("behind", Some("it was let go for taking nothing".to_owned())),
                Over::Lost(why) => {
                    tracing::warn!("the store is lost: {why}");
                    self.say("behind", Some(why.clone()));
                    self.lose(why);
                }
                Over::Stopped(why) => {
                    tracing::warn!("no more checkpoints go to the store: {why}");
                    self.say("stopped", Some(why.clone()));
                    return self.lose(why);
                }
            }
            if !self.rest() {
                return;
            }
        }
    }

    fn lose(&self, why: String) {
        (self.ends.news)(StoreNews::Lost { session: self.session, why: why.clone() });
        (self.ends.news)(StoreNews::Trouble { why });
    }

    /// A pause. False if the actor is gone.
    fn rest(&mut self) -> bool {
        let until = Instant::now() + PAUSE;
        loop {
            match self.ends.said.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(word) => self.count_off(&word),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn forget(&mut self) {
        (self.full, self.tip) = (None, None);
        self.waiting.clear();
    }

    /// Has a run, which nobody has closed.
    fn open(&mut self, term: Term) -> Result<(), Over> {
        let begun = match &self.run {
            Some(run) => self.runtime.block_on(run.look_for_later()),
            None => {
                let beginning = Run::begin(self.store.clone(), &self.app, term, &self.life);
                self.runtime.block_on(beginning).map(|run| self.run = Some(run))
            }
        };
        begun.map_err(over)?;
        if let (None, Some(run)) = (&self.pulse, &self.run) {
            let news = self.ends.news.clone();
            let pulse = Pulse::start(&self.settings.location, &self.app, run.name(), news);
            self.pulse = Some(pulse.map_err(|why| Over::Lost(format!("{why:#}")))?);
        }
        Ok(())
    }

    fn serve(&mut self) -> Over {
        loop {
            if self.is_let_go() {
                return Over::LetGo;
            }
            let word = match self.waiting.is_empty() {
                true => self.ends.said.recv_timeout(IDLE),
                false => self.ends.said.try_recv().map_err(|why| match why {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                }),
            };
            match word {
                Ok(word) => {
                    self.count_off(&word);
                    if let Err(why) = self.take(word) {
                        return Over::Lost(format!("{:#}", anyhow::Error::new(why)));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Over::Ended,
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(next) = self.waiting.pop_front() {
                        self.tip = next.id().map(|id| (id, next.basis()));
                        if let Err(over) = self.have_stored(&next) {
                            return over;
                        }
                    }
                    if let Err(over) = self.tidy_up() {
                        return over;
                    }
                }
            }
        }
    }

    fn is_let_go(&self) -> bool {
        self.ends.let_go.load(Ordering::Acquire) >= self.session
    }

    fn count_off(&self, word: &Word) {
        let bytes = match word {
            Word::Frame(_, frame) => frame.len() as u64,
            Word::Epoch(_, frames) => frames.iter().map(|frame| frame.len() as u64).sum(),
            Word::Begin(_) | Word::Full(_) | Word::Whole(_) | Word::LetGo => 0,
        };
        self.ends.shared.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn take(&mut self, word: Word) -> Result<(), GatherError> {
        let ours = self.session;
        match word {
            Word::Full(session) if session == ours => {
                self.full = Some(Gathered::full(&self.settings.spool)?);
            }
            Word::Frame(session, frame) if session == ours => {
                if let Some(full) = &mut self.full {
                    full.take(&Frame::parse(frame)?)?;
                }
            }
            Word::Whole(session) if session == ours => {
                let Some(full) = self.full.take() else { return Ok(()) };
                self.tip = full.id().map(|id| (id, full.basis()));
                // Nothing that waits is worth more than this.
                self.waiting.clear();
                self.waiting.push_back(full);
            }
            Word::Epoch(session, frames) if session == ours => self.gather(frames)?,
            // Of a session that is over.
            Word::Full(_) | Word::Frame(..) | Word::Whole(_) | Word::Epoch(..) => {}
            Word::Begin(_) | Word::LetGo => {}
        }
        Ok(())
    }

    fn gather(&mut self, frames: Vec<Bytes>) -> Result<(), GatherError> {
        let Some((tip, basis)) = &self.tip else { return Ok(()) };
        match self.waiting.back() {
            None => self.waiting.push_back(Gathered::since(*tip, basis.clone(), &self.settings.spool)?),
            Some(last) if last.is_sealed() => {
                let id = last.id().unwrap_or_default();
                let next = Gathered::since(id, last.basis(), &self.settings.spool)?;
                self.waiting.push_back(next);
            }
            Some(_) => {}
        }
        let gathered = self.waiting.back_mut().expect("pushed above");
        for frame in frames {
            gathered.take(&Frame::parse(frame)?)?;
        }
        Ok(())
    }

    /// Until it is there.
    fn have_stored(&mut self, gathered: &Gathered) -> Result<(), Over> {
        let began = Instant::now();
        let id = gathered.id().unwrap_or_default();
        let bytes_sent = loop {
            let (let_go, session) = (Arc::clone(&self.ends.let_go), self.session);
            let Some(run) = &mut self.run else { return Ok(()) };
            let shared = &self.ends.shared;
            let stored = self.runtime.block_on(async {
                let storing = async {
                    stock(run, gathered, shared).await?;
                    run.upload(gathered).await
                };
                tokio::select! {
                    stored = storing => Some(stored),
                    () = until_let_go(&let_go, session) => None,
                }
            });
            match stored.ok_or(Over::LetGo)?.map_err(|why| (is_final(&why), why)) {
                Ok(uploaded) => break uploaded.bytes_sent,
                Err((false, why)) if began.elapsed() < PATIENCE => {
                    tracing::debug!(%id, "the store does not take it, it is tried again: {why}");
                    thread::sleep(AGAIN);
                }
                Err((_, why)) => return Err(over(why)),
            }
        };
        {
            let mut report =
                self.ends.shared.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (report.0.term, report.0.epoch) = (Some(id.term.0), Some(id.epoch.0));
            report.0.checkpoints += 1;
            report.0.bytes_sent += bytes_sent;
            report.0.bytes_changed += gathered.pages() * PAGE_BYTES;
            report.1 = Some(gathered.frozen_at_ns());
        }
        (self.ends.news)(StoreNews::Stored { session: self.session, id });
        Ok(())
    }

    /// Clients wait meanwhile: seldom, and so that a restore does not have to read much.
    fn tidy_up(&mut self) -> Result<(), Over> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if run.fold_is_due() && self.folded_at.elapsed() > self.settings.interval {
            self.folded_at = Instant::now();
            let folded = self.runtime.block_on(run.fold());
            match folded {
                Ok(folded) => self.ends.shared.tell(|report| report.bytes_sent += folded.bytes_sent),
                // What it builds on can't be read, so a restore could not either: a full one is to follow.
                Err(why @ (StoreError::Missing { .. } | StoreError::Damaged { .. })) => {
                    run.distrust();
                    return Err(over(why));
                }
                Err(why) => tracing::debug!("not folded, it is tried again: {why}"),
            }
        }
        if self.collected_at.is_none_or(|at| at.elapsed() > COLLECT_EVERY) {
            self.collected_at = Some(Instant::now());
            if let Err(why) = self.runtime.block_on(run.collect(self.settings.keep)) {
                tracing::debug!("the store was not tidied up, it is tried again: {why}");
            }
        }
        Ok(())
    }

    fn say(&self, state: &str, why_not: Option<String>) {
        self.ends.shared.tell(|report| (report.state, report.why_not) = (state.to_owned(), why_not));
    }
}

async fn until_let_go(let_go: &AtomicU64, session: u64) {
    while let_go.load(Ordering::Acquire) < session {
        tokio::time::sleep(LET_GO_POLL).await;
    }
}

/// Trying again is of no use.
fn is_final(why: &StoreError) -> bool {
    use StoreError::{BadName, Conflict, OldTerm, Superseded};
    matches!(why, Superseded { .. } | OldTerm { .. } | Conflict { .. } | BadName { .. })
}

fn over(why: StoreError) -> Over {
    let stops = is_final(&why);
    let why = format!("{:#}", anyhow::Error::new(why));
    if stops { Over::Stopped(why) } else { Over::Lost(why) }
}
