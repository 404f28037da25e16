//! What the gate's thread and its handles share: reading, marking and sending.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image::CheckpointId;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use sys::tun::HEADER_BYTES;

use super::outlet::{Outlet, Sent};
use super::queue::{Chunk, Marked, Spares, Unmarked};
use super::{TapCounters, TapOptions, TapState};
use crate::packet::await_readable;
use crate::{GateError, frame};

/// How many frames, and bytes, are read in one go: the barrier waits for that much at most.
const ROUND_FRAMES: usize = 32;
const ROUND_BYTES: usize = 256 << 10;
/// A barrier drains the device, but no flow can keep it busy for ever: what is left counts to the next epoch.
const BARRIER_ROUNDS: usize = 8;
/// As the tracer's, so that neither waits long for the other.
const PRIORITY: i32 = 10;
/// Later than any epoch.
const LAST: CheckpointId = CheckpointId { term: image::Term(u64::MAX), epoch: image::Epoch(u64::MAX) };

pub struct Shared {
    options: TapOptions,
    tap: OwnedFd,
    wake: OwnedFd,
    opened: Instant,
    state: AtomicU8,
    /// Whoever wants `intake` next waits in here, so that the thread that reads can't take it again and again.
    turnstile: Mutex<()>,
    intake: Mutex<Unmarked>,
    outlet: Mutex<Outlet>,
    /// For what leaves at once: it must not wait until a release is over.
    side_outlet: Mutex<Outlet>,
    marked: Mutex<Marked>,
    spares: Mutex<Spares>,
    counts: Counts,
    /// When the first unmarked frame came, in nanoseconds since `opened`; zero if there is none.
    waiting_since_ns: AtomicU64,
    waiting_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Counts {
    held_frames: AtomicU64,
    held_bytes: AtomicUsize,
    held_bytes_peak: AtomicUsize,
    released: AtomicU64,
    dropped: AtomicU64,
    overflowed: AtomicU64,
    lost: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What a look into the device found.
#[derive(Debug, Default)]
struct Round {
    /// There may be more.
    more: bool,
    /// When the first frame came that waits since the last barrier, if it came in this round.
    first: Option<Instant>,
    /// What leaves at once.
    urgent: Chunk,
}

impl Shared {
    pub fn new(tap: OwnedFd, outlets: [Outlet; 2], options: TapOptions) -> std::io::Result<Self> {
        let mut spares = Spares::default();
        let [outlet, side_outlet] = outlets.map(Mutex::new);
        Ok(Self {
            options,
            tap,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            opened: Instant::now(),
            state: AtomicU8::new(TapState::Closed as u8),
            turnstile: Mutex::new(()),
            intake: Mutex::new(Unmarked::new(&mut spares)),
            outlet,
            side_outlet,
            marked: Mutex::default(),
            spares: Mutex::new(spares),
            counts: Counts::default(),
            waiting_since_ns: AtomicU64::new(0),
            waiting_bytes: AtomicUsize::new(0),
        })
    }

    pub fn state(&self) -> TapState {
        TapState::from_raw(self.state.load(Ordering::SeqCst))
    }

    /// The caller holds `intake`, so that no frame is judged by two states.
    fn set_state(&self, state: TapState) -> Result<(), GateError> {
        let set = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |before| {
            (before != TapState::Discarded as u8).then_some(state as u8)
        });
        set.map(drop).map_err(|_| GateError::Discarded)
    }

    fn still_open(&self) -> Result<(), GateError> {
        if self.state() == TapState::Discarded { Err(GateError::Discarded) } else { Ok(()) }
    }

    fn may_send(&self) -> bool {
        matches!(self.state(), TapState::Holding | TapState::Passing)
    }

    /// The life of the gate's thread, until [`stop`](Self::stop).
    pub fn run(&self) {
        // Without the right it is as fast as the app lets it be.
        let _ = sys::task::become_real_time(PRIORITY);
        loop {
            match await_readable([&self.tap, &self.wake], None) {
                Ok([_, true]) | Err(_) => return,
                Ok([true, false]) => self.look(),
                Ok([false, false]) => (),
            }
        }
    }

    pub fn stop(&self) {
        // A full counter is as loud as a ring.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn look(&self) {
        drop(lock(&self.turnstile));
        let mut intake = lock(&self.intake);
        let round = self.read_round(&mut intake);
        if self.state() == TapState::Passing {
            let outlet = lock(&self.outlet);
            let sent = outlet.send(&intake.last, &|| self.may_send());
            intake.last.clear();
            drop(outlet);
            self.count_sent(sent);
        }
        drop(intake);
        self.send_urgent(&round.urgent);
        if let (Some(since), Some(tell)) = (round.first, &self.options.on_waiting) {
            tell(since);
        }
    }

    fn read_round(&self, intake: &mut Unmarked) -> Round {
        let state = self.state();
        let mut round = Round::default();
        let mut bytes = 0;
        for _ in 0..ROUND_FRAMES {
            if !intake.last.has_room() {
                self.begin_chunk(intake);
            }
            match rustix::io::read(&self.tap, spare_capacity(&mut intake.last.bytes)) {
                Ok(len) => bytes += len,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return round,
                Err(_) => {
                    // Somebody in the cell has removed the device: nothing can leave any more.
                    self.state.store(TapState::Discarded as u8, Ordering::SeqCst);
                    self.stop();
                    return round;
                }
            }
            self.sort(intake, state, &mut round);
            if bytes >= ROUND_BYTES {
                break;
            }
        }
        round.more = true;
        round
    }

    fn begin_chunk(&self, intake: &mut Unmarked) {
        let full = std::mem::replace(&mut intake.last, lock(&self.spares).take());
        self.count_sealed(&full);
        intake.full.push(full);
    }

    /// Decides about the frame that was just read.
    fn sort(&self, intake: &mut Unmarked, state: TapState, round: &mut Round) {
        let last = &mut intake.last;
        let new = &last.bytes[last.start_of_next()..];
        let len = new.len();
        let is_urgent = frame::is_about_neighbours(new.get(HEADER_BYTES..).unwrap_or_default());
        match state {
            TapState::Closed | TapState::Discarded => {
                last.reject();
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
            TapState::Holding | TapState::Passing if is_urgent => {
                round.urgent.append(new);
                last.reject();
            }
            TapState::Passing => last.accept(),
            TapState::Holding if self.has_room_for(len) => {
                last.accept();
                self.count_held(len, &mut round.first);
            }
            TapState::Holding => {
                last.reject();
                self.counts.overflowed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn has_room_for(&self, len: usize) -> bool {
        self.counts.held_bytes.load(Ordering::Relaxed) + len <= self.options.held_bytes_max
    }

    fn count_held(&self, len: usize, first: &mut Option<Instant>) {
        self.counts.held_frames.fetch_add(1, Ordering::Relaxed);
        self.add_held_bytes(len + Chunk::OVERHEAD_BYTES);
        self.waiting_bytes.fetch_add(len, Ordering::Relaxed);
        if self.waiting_since_ns.load(Ordering::Relaxed) == 0 {
            let now = Instant::now();
            *first = Some(now);
            let since = now.duration_since(self.opened).as_nanos().max(1) as u64;
            self.waiting_since_ns.store(since, Ordering::Release);
        }
    }

    /// The chunk's frames are counted already; what it takes beyond them is not.
    fn count_sealed(&self, chunk: &Chunk) {
        self.add_held_bytes(chunk.cost() - chunk.load());
    }

    fn add_held_bytes(&self, bytes: usize) {
        let held = self.counts.held_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.counts.held_bytes_peak.fetch_max(held, Ordering::Relaxed);
    }

    fn count_sent(&self, sent: Sent) {
        self.counts.released.fetch_add(sent.frames, Ordering::Relaxed);
        self.counts.lost.fetch_add(sent.lost, Ordering::Relaxed);
    }

    /// What is unmarked belongs to `epoch` now.
    fn mark(&self, intake: &mut Unmarked, epoch: CheckpointId) {
        if intake.is_empty() {
            return;
        }
        let full = intake.full.len();
        let chunks = intake.seal(&mut lock(&self.spares));
        chunks.iter().skip(full).for_each(|last| self.count_sealed(last));
        lock(&self.marked).push(epoch, chunks);
        self.nothing_waits();
    }

    fn nothing_waits(&self) {
        self.waiting_bytes.store(0, Ordering::Relaxed);
        self.waiting_since_ns.store(0, Ordering::Release);
    }

    fn send_up_to(&self, epoch: CheckpointId) {
        let outlet = lock(&self.outlet);
        while let Some(chunks) = self.next_marked(epoch) {
            for chunk in chunks {
                self.count_sent(outlet.send(&chunk, &|| self.may_send()));
                self.counts.held_frames.fetch_sub(chunk.count() as u64, Ordering::Relaxed);
                self.counts.held_bytes.fetch_sub(chunk.cost(), Ordering::Relaxed);
                lock(&self.spares).give(chunk);
            }
        }
    }

    fn next_marked(&self, epoch: CheckpointId) -> Option<Vec<Chunk>> {
        if self.may_send() { lock(&self.marked).pop(epoch) } else { None }
    }

    fn send_urgent(&self, urgent: &Chunk) {
        if !urgent.is_empty() {
            // Whatever becomes of it, neighbours ask again.
            let _ = lock(&self.side_outlet).send(urgent, &|| self.may_send());
        }
    }

    pub fn hold(&self) -> Result<(), GateError> {
        let _turn = lock(&self.turnstile);
        let _intake = lock(&self.intake);
        self.set_state(TapState::Holding)
    }

    pub fn pass(&self) -> Result<(), GateError> {
        let _turn = lock(&self.turnstile);
        let mut intake = lock(&self.intake);
        self.still_open()?;
        self.mark(&mut intake, LAST);
        self.send_up_to(LAST);
        self.set_state(TapState::Passing)
    }

    pub fn barrier(&self, epoch: CheckpointId) -> Result<(), GateError> {
        let _turn = lock(&self.turnstile);
        let mut intake = lock(&self.intake);
        self.still_open()?;
        if self.state() != TapState::Holding {
            return Ok(());
        }
        let mut urgent = Vec::new();
        for _ in 0..BARRIER_ROUNDS {
            let round = self.read_round(&mut intake);
            urgent.push(round.urgent);
            if !round.more {
                break;
            }
        }
        self.mark(&mut intake, epoch);
        drop(intake);
        urgent.iter().for_each(|urgent| self.send_urgent(urgent));
        Ok(())
    }

    pub fn release(&self, epoch: CheckpointId) -> Result<(), GateError> {
        self.still_open()?;
        self.send_up_to(epoch);
        self.still_open()
    }

    pub fn discard(&self) {
        // First, so that whoever is sending stops.
        self.state.store(TapState::Discarded as u8, Ordering::SeqCst);
        let _turn = lock(&self.turnstile);
        let mut intake = lock(&self.intake);
        let _outlet = lock(&self.outlet);
        let _side_outlet = lock(&self.side_outlet);
        drop(intake.seal(&mut lock(&self.spares)));
        lock(&self.marked).clear();
        let held = self.counts.held_frames.swap(0, Ordering::Relaxed);
        self.counts.dropped.fetch_add(held, Ordering::Relaxed);
        self.counts.held_bytes.store(0, Ordering::Relaxed);
        self.nothing_waits();
    }

    pub fn waiting(&self) -> Option<(Instant, usize)> {
        let since = self.waiting_since_ns.load(Ordering::Acquire);
        let bytes = self.waiting_bytes.load(Ordering::Relaxed);
        (since != 0).then(|| (self.opened + Duration::from_nanos(since), bytes))
    }

    pub fn counters(&self) -> TapCounters {
        let counts = &self.counts;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TapCounters {
            held_frames: count(&counts.held_frames),
            held_bytes: counts.held_bytes.load(Ordering::Relaxed),
            held_bytes_peak: counts.held_bytes_peak.load(Ordering::Relaxed),
            released_frames: count(&counts.released),
            dropped_frames: count(&counts.dropped),
            overflowed_frames: count(&counts.overflowed),
            lost_frames: count(&counts.lost),
        }
    }
}

/// A panic of the caller's callback poisons nothing that the gate needs.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
