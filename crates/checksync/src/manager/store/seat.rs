//! `--commit-on store`: the store's seat among those who have to hold each epoch.
//!
//! What a standby's session is to its page stream a *session* is here: it begins when the store takes checkpoints, and the
//! first of each is a full one. What was said for a session that is over counts for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use engine::FrameSink;
use image::{CheckpointId, Incarnation, Member, Term};
use replica::Nanos;
use store::{Life, Location};

use crate::mpsc;

use super::commit::{self, Word};
use super::{QUEUE_BYTES_MAX, Shared, StoreSettings, StoreStatus, prepare};

/// What a member's name begins with that is a store.
const STORE: &str = "store ";
const FULL_POLL: Duration = Duration::from_millis(2);

/// A store, as the register names it: with the run of this life of a manager.
pub fn member(location: &Location, incarnation: Incarnation) -> Member {
    Member { name: format!("{STORE}{location}"), incarnation }
}

/// N.B. a host is called as its certificate says, which has no space in it.
pub fn is_store(member: &Member) -> bool {
    member.name.starts_with(STORE)
}

/// What the actor hears of the store.
#[derive(Debug)]
pub enum StoreNews {
    /// It takes checkpoints.
    Ready {
        session: u64,
    },
    /// This one is there, and nobody had begun to restore from the store when it was.
    Stored {
        session: u64,
        id: CheckpointId,
    },
    /// At a look that was sent then, nobody had begun to restore.
    Looked {
        sent_at: Nanos,
    },
    Lost {
        session: u64,
        why: String,
    },
    /// There is no session, for this reason.
    Trouble {
        why: String,
    },
}

/// The actor's half.
#[derive(Debug)]
pub struct StoreSeat {
    pub member: Member,
    pub trouble: Option<String>,
    session: Option<u64>,
    words: mpsc::Sender<Word>,
    let_go: Arc<AtomicU64>,
    shared: Arc<Shared>,
}

impl StoreSeat {
    /// Nothing is asked of the store before [`StoreSeat::begin`].
    pub fn start(
        settings: &StoreSettings,
        app: &str,
        life: Life,
        news: impl Fn(StoreNews) + Send + Clone + 'static,
    ) -> anyhow::Result<Self> {
        let (store, shared) = prepare(settings)?;
        let member = member(&settings.location, Incarnation(life.incarnation));
        let let_go = Arc::new(AtomicU64::new(0));
        let (words, said) = mpsc::channel();
        let (known, over) = (Arc::clone(&shared), Arc::clone(&let_go));
        commit::start(store, settings, app, life, commit::Ends { said, let_go: over, shared: known, news })?;
        Ok(Self { member, trouble: None, session: None, words, let_go, shared })
    }

    pub fn status(&self) -> StoreStatus {
        StoreStatus(Arc::clone(&self.shared))
    }

    /// The app's process.
    pub fn app_is(&self, pid: i32) {
        self.shared.pid.store(pid, Ordering::Release);
    }

    /// The term is ours.
    pub fn begin(&self, term: Term) {
        self.say(Word::Begin(term));
    }

    pub fn open(&mut self, session: u64) {
        (self.session, self.trouble) = (Some(session), None);
    }

    pub fn is_open(&self) -> bool {
        self.session.is_some()
    }

    pub fn has(&self, session: u64) -> bool {
        self.session == Some(session)
    }

    /// The session is over, whatever is under way.
    pub fn let_go(&mut self) {
        if let Some(session) = self.session.take() {
            self.let_go.fetch_max(session, Ordering::AcqRel);
            self.say(Word::LetGo);
        }
    }

    /// A full sync begins: its frames go to `sink`, and to the store.
    pub fn full(&self, mut sink: FrameSink) -> FrameSink {
        let Some(session) = self.session else { return sink };
        self.say(Word::Full(session));
        let (words, shared, let_go) =
            (self.words.clone(), Arc::clone(&self.shared), Arc::clone(&self.let_go));
        Box::new(move |frame| {
            let others = sink(frame.clone());
            let takes = || let_go.load(Ordering::Acquire) < session;
            while takes() && shared.queued_bytes.load(Ordering::Acquire) > QUEUE_BYTES_MAX {
                thread::sleep(FULL_POLL);
            }
            if takes() {
                shared.queued_bytes.fetch_add(frame.len() as u64, Ordering::AcqRel);
                // A thread that has ended has said why.
                let _ = words.send(Word::Frame(session, frame));
            }
            others || takes()
        })
    }

    /// It is to be stored: of a full sync what the sink was given, of another epoch these frames.
    pub fn send(&self, frames: Option<Vec<Bytes>>) {
        let Some(session) = self.session else { return };
        match frames {
            None => self.say(Word::Whole(session)),
            Some(frames) => {
                let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
                self.shared.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
                self.say(Word::Epoch(session, frames));
            }
        }
    }

    fn say(&self, word: Word) {
        // A thread that has ended has said why.
        let _ = self.words.send(word);
    }
}
