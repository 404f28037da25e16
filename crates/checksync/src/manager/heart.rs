//! The primary's heartbeats: a thread at real-time priority with a connection of its own, so that neither a
//! page nor a busy processor is ever in front of one.
//!
//! Until a standby has welcomed this manager its beats say `Starting`: a standby answers those only to say
//! that the app is served elsewhere. Lost connections are made anew for as long as the heart beats.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use image::Term;
use replica::Progress;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::thread::CapabilitySet;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};
use wire::{Client, EngineState, Heartbeat, HeartbeatAnswer, TlsFiles, WireError};

use crate::mpsc;

use super::candidates::Candidates;

/// Above the engine's: a frozen app waits for the engine, but a lapsed permit silences it.
const PRIORITY: i32 = 20;

#[derive(Debug)]
pub struct Pulse {
    pub candidates: Arc<Candidates>,
    pub tls: TlsFiles,
    pub app: String,
    pub period: Duration,
}

/// Called with every answer, and the name of who gave it.
pub type OnAnswer = Box<dyn Fn(&str, HeartbeatAnswer) + Send>;

#[derive(Debug)]
pub struct Heart {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    says: Mutex<Says>,
    stopped: AtomicBool,
    /// A standby is there: no pause between attempts is to be waited out.
    hurry: Notify,
}

#[derive(Debug, Default, Clone, Copy)]
struct Says {
    /// None: not yet.
    term: Option<Term>,
    welcomed: bool,
    progress: Progress,
}

impl Heart {
    /// Makes the thread, which does not beat yet. Its memory is locked when this returns.
    ///
    /// N.B. only what is mapped by now is locked: the engine tries out the kernel's write tracking on memory
    /// of its own, and the kernel drops no locked pages.
    pub fn prepare(pulse: Pulse, on_answer: OnAnswer) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seen = Arc::clone(&shared);
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::Builder::new().name("heart".to_owned()).spawn(move || {
            stay_on_time();
            drop::<mpsc::Sender<()>>(ready);
            runtime.block_on(beat_for_life(&pulse, &seen, &on_answer));
        })?;
        // Nothing is ever sent: this ends with the sender.
        let _ = is_ready.recv();
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn begin(&self, term: Term) {
        self.shared.says().term = Some(term);
    }

    /// A standby follows us: from here on beats count, and it waits for the first.
    pub fn welcomed(&self) {
        self.shared.says().welcomed = true;
        self.shared.hurry.notify_one();
    }

    pub fn report(&self, progress: Progress) {
        self.shared.says().progress = progress;
    }

    /// No beat goes out after this returns.
    pub fn stop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic was logged, and silence is what was asked for.
            let _ = thread.join();
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn says(&self) -> MutexGuard<'_, Says> {
        self.says.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

async fn beat_for_life(pulse: &Pulse, shared: &Shared, on_answer: &OnAnswer) {
    const PAUSE_MAX: Duration = Duration::from_millis(500);
    let (mut sequence, mut pause) = (0, pulse.period);
    while !shared.stopped() {
        let beaten = sequence;
        let begun = shared.says().term.is_some();
        if begun && let Err(why) = beat_on_one_connection(pulse, shared, on_answer, &mut sequence).await {
            tracing::debug!("no heartbeats for the moment: {why}");
        }
        // A connection that was lost is made anew at once; one that can't be made must not flood the peer.
        let failed = begun && sequence == beaten;
        pause = if failed { (pause * 2).min(PAUSE_MAX) } else { pulse.period };
        tokio::select! {
            () = sleep(pause) => (),
            () = shared.hurry.notified() => (),
        }
    }
}

/// Returns when the connection is lost, it is another standby's turn, or the heart is stopped.
async fn beat_on_one_connection(
    pulse: &Pulse,
    shared: &Shared,
    on_answer: &OnAnswer,
    sequence: &mut u64,
) -> Result<(), WireError> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let standby = pulse.candidates.current();
    let client = Client::connect_heart(&standby, &pulse.tls, PATIENCE).await?;
    let (beats, mut answers) = client.beat().await?;
    let mut period = interval(pulse.period);
    period.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            answer = answers.recv() => match answer {
                Some(answer) => on_answer(&client.peer().name, answer?),
                None => return Ok(()),
            },
            _ = period.tick() => {
                if shared.stopped() || pulse.candidates.current() != standby {
                    return Ok(());
                }
                *sequence += 1;
                // With no room the standby is stuck: another beat in line would tell it nothing new.
                beats.try_send(heartbeat(pulse, *shared.says(), *sequence))?;
            }
        }
    }
}

fn heartbeat(pulse: &Pulse, says: Says, sequence: u64) -> Heartbeat {
    Heartbeat {
        app: pulse.app.clone(),
        term: says.term.unwrap_or_default(),
        sequence,
        sent_at_ns: gate::boot_clock_ns(),
        newest_captured: says.progress.captured,
        engine: match says {
            Says { welcomed: false, .. } => EngineState::Starting,
            Says { progress: Progress { stalled: true, .. }, .. } => EngineState::Stuck,
            Says { progress: Progress { captured: None, .. }, .. } => EngineState::Syncing,
            Says { progress: Progress { captured: Some(_), .. }, .. } => EngineState::Capturing,
        },
    }
}

/// Real-time priority, and memory that is never swapped out or waited for.
fn stay_on_time() {
    become_prompt();
    lock_memory();
}

pub fn become_prompt() {
    if let Err(why) = sys::task::become_real_time(PRIORITY) {
        tracing::warn!("no real-time priority for heartbeats, a busy host may look dead: {why}");
    }
}

/// Once for the process: whoever starts an engine later is to meet no thread that locks what it tries the kernel out on.
pub fn lock_memory() {
    static LOCKED: Once = Once::new();
    LOCKED.call_once(lock_all);
}

fn lock_all() {
    // Without the capability the limit on locked memory would make allocations fail later.
    let capable =
        rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT;
    if !capable {
        tracing::warn!("memory can't be locked without CAP_IPC_LOCK, a swapping host may look dead");
    } else if let Err(why) = mlockall(flags) {
        tracing::warn!("memory can't be locked, a swapping host may look dead: {why}");
    }
}
