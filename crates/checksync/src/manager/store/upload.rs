//! Has the store take one gathered checkpoint after the other, folds, and removes what is not kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use store::{Gathered, Life, Run, Store, StoreError};
use tokio::runtime::Runtime;

use crate::mpsc::{self, Receiver};

use super::contents::stock;
use super::{Shared, StoreSettings};

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const COLLECT_EVERY: Duration = Duration::from_secs(600);
/// So often in a row an object must be missing or damaged before it counts as lost.
const READS_MAX: u32 = 3;
const PAGE_BYTES: u64 = image::PAGE_BYTES;

/// The gatherer's half.
pub(super) struct Uploads {
    queue: mpsc::Sender<Gathered>,
    busy: Arc<AtomicBool>,
    broken: Arc<Mutex<Option<String>>>,
}

impl Uploads {
    pub(super) fn is_free(&self) -> bool {
        !self.busy.load(Ordering::Acquire)
    }

    /// Why nothing can build on what is stored, if that was found since the last question.
    pub(super) fn take_broken(&self) -> Option<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn start(&self, gathered: Gathered) {
        self.busy.store(true, Ordering::Release);
        // An uploader that has ended stays busy, and has said why.
        let _ = self.queue.send(gathered);
    }
}

struct Uploader {
    store: Store,
    app: String,
    life: Life,
    settings: StoreSettings,
    shared: Arc<Shared>,
    run: Option<Run>,
    collected_at: Option<Instant>,
    broken: Arc<Mutex<Option<String>>>,
}

pub(super) fn start(
    store: Store,
    app: String,
    life: Life,
    settings: &StoreSettings,
    shared: Arc<Shared>,
) -> anyhow::Result<Uploads> {
    let (queue, gathered) = mpsc::channel();
    let busy = Arc::new(AtomicBool::new(false));
    // Its own, so that no upload is in the way of heartbeats and epochs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the store's network")?;
    let settings = settings.clone();
    let broken = Arc::new(Mutex::new(None));
    let uploader = Uploader {
        store,
        app,
        life,
        settings,
        shared,
        run: None,
        collected_at: None,
        broken: Arc::clone(&broken),
    };
    let done = Arc::clone(&busy);
    let work = move || uploader.work(&runtime, &gathered, &done);
    thread::Builder::new()
        .name("store-upload".to_owned())
        .spawn(work)
        .context("cannot start a thread for the store")?;
    Ok(Uploads { queue, busy, broken })
}

impl Uploader {
    fn work(mut self, runtime: &Runtime, queue: &Receiver<Gathered>, busy: &AtomicBool) {
        while let Ok(gathered) = queue.recv() {
            if !self.upload_until_done(runtime, &gathered) {
                return;
            }
            drop(gathered);
            busy.store(false, Ordering::Release);
        }
    }

    /// False when there is no more to be done in this life.
    fn upload_until_done(&mut self, runtime: &Runtime, gathered: &Gathered) -> bool {
        let mut backoff = BACKOFF_MIN;
        let mut unread = 0;
        loop {
            match runtime.block_on(self.upload(gathered)) {
                Ok(()) => return true,
                // What it builds on was lost: a full one comes.
                Err(StoreError::Gap { .. } | StoreError::NotFull { .. }) => return true,
                Err(
                    why @ (StoreError::Superseded { .. }
                    | StoreError::OldTerm { .. }
                    | StoreError::Conflict { .. }
                    | StoreError::BadName { .. }),
                ) => {
                    tracing::warn!("no more checkpoints go to the store: {why}");
                    self.say("stopped", Some(why.to_string()));
                    return false;
                }
                // A fold that can't read what it folds: a restore could not either, and nothing more may build on it.
                Err(why @ (StoreError::Missing { .. } | StoreError::Damaged { .. }))
                    if unread + 1 >= READS_MAX =>
                {
                    let why = why.to_string();
                    tracing::warn!("the store waits for the next full sync: {why}");
                    self.run.iter_mut().for_each(Run::distrust);
                    *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
                    self.say("waiting", Some(why));
                    return true;
                }
                Err(why) => {
                    unread +=
                        u32::from(matches!(why, StoreError::Missing { .. } | StoreError::Damaged { .. }));
                    let why = format!("{:#}", anyhow::Error::new(why));
                    tracing::warn!("the store does not take a checkpoint, it is tried again: {why}");
                    self.say("behind", Some(why));
                    thread::sleep(backoff);
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    async fn upload(&mut self, gathered: &Gathered) -> Result<(), StoreError> {
        let term = gathered.id().unwrap_or_default().term;
        if self.run.is_none() {
            self.run = Some(Run::begin(self.store.clone(), &self.app, term, &self.life).await?);
        }
        let run = self.run.as_mut().expect("begun above");
        if run.tip().is_none() || run.tip() != gathered.id() {
            stock(run, gathered, &self.shared).await?;
            let uploaded = run.upload(gathered).await?;
            let mut report = self.shared.report.lock().unwrap_or_else(PoisonError::into_inner);
            let id = gathered.id().unwrap_or_default();
            (report.0.term, report.0.epoch) = (Some(id.term.0), Some(id.epoch.0));
            report.0.checkpoints += 1;
            report.0.bytes_sent += uploaded.bytes_sent;
            report.0.bytes_changed += gathered.pages() * PAGE_BYTES;
            report.1 = Some(gathered.frozen_at_ns());
            tracing::debug!(%id, bytes = uploaded.bytes_sent, shared = uploaded.segments_shared, "stored");
        }
        self.say("following", None);
        self.tidy_up().await
    }

    /// Failing costs the checkpoint nothing, but is a reason to try again.
    async fn tidy_up(&mut self) -> Result<(), StoreError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if run.fold_is_due() {
            let folded = run.fold().await?;
            self.shared.tell(|report| report.bytes_sent += folded.bytes_sent);
        }
        if self.collected_at.is_none_or(|at| at.elapsed() > COLLECT_EVERY) {
            let collected = run.collect(self.settings.keep).await?;
            tracing::debug!(?collected, "the store was tidied up");
            self.collected_at = Some(Instant::now());
        }
        Ok(())
    }

    fn say(&self, state: &str, why_not: Option<String>) {
        self.shared.tell(|report| {
            // A gatherer that lost the chain says so until a full sync.
            if report.state != "waiting" || state != "following" {
                (report.state, report.why_not) = (state.to_owned(), why_not);
            }
        });
    }
}
