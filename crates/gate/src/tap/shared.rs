//! What the gate's thread and its handles share: reading, marking and sending.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image::CheckpointId;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use sys::tun::HEADER_BYTES;

use super::outlet::{Outlet, Sent, WayOut};
use super::queue::{Chunk, Marked, Spares, Unmarked};
use super::{QUEUE_FRAMES, TapCounters, TapOptions, TapState, Waiting};
use crate::packet::await_readable;
use crate::{GateError, frame};

/// How many frames, and bytes, are read in one go: the barrier waits for that much at most.
const ROUND_FRAMES: usize = 32;
const ROUND_BYTES: usize = 256 << 10;
/// A barrier drains the device, but no flow can keep it busy for ever: what is left counts to the next epoch.
const BARRIER_ROUNDS: usize = 8;
/// A full device does not say when it has room again.
const MOMENT: Duration = Duration::from_micros(50);
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
    way_out: Mutex<WayOut>,
    /// Something waits for room on the way out: the gate's thread sees to it.
    stuck: AtomicBool,
    over: AtomicBool,
    /// For what leaves at once: it must not wait until a release is over.
    side_outlet: Mutex<Outlet>,
    marked: Mutex<Marked>,
    spares: Mutex<Spares>,
    counts: Counts,
    /// When the first unmarked frame came, in nanoseconds since `opened`; zero if there is none.
    waiting_since_ns: AtomicU64,
    waiting_bytes: AtomicUsize,
    crowd: Crowd,
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
    /// A frame was added to those that wait.
    added: bool,
    /// What leaves at once.
    urgent: Chunk,
}

impl Shared {
    pub fn new(tap: OwnedFd, outlets: [Outlet; 2], options: TapOptions) -> std::io::Result<Self> {
        let mut spares = Spares::default();
        let [outlet, side_outlet] = outlets;
        let state = AtomicU8::new(options.at_first as u8);
        Ok(Self {
            options,
            tap,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            opened: Instant::now(),
            state,
            turnstile: Mutex::new(()),
            intake: Mutex::new(Unmarked::new(&mut spares)),
            way_out: Mutex::new(WayOut::new(outlet)),
            stuck: AtomicBool::new(false),
            over: AtomicBool::new(false),
            side_outlet: Mutex::new(side_outlet),
            marked: Mutex::default(),
            spares: Mutex::new(spares),
            counts: Counts::default(),
            waiting_since_ns: AtomicU64::new(0),
            waiting_bytes: AtomicUsize::new(0),
            crowd: Crowd::default(),
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
        while !self.over.load(Ordering::SeqCst) {
            let patience = self.stuck.load(Ordering::SeqCst).then_some(MOMENT);
            let Ok([spoken, woken]) = await_readable([&self.tap, &self.wake], patience) else { return };
            if woken {
                // It may have been heard already.
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            }
            if spoken {
                self.look();
            }
            if self.stuck.load(Ordering::SeqCst) {
                self.send_on(&mut lock(&self.way_out));
            }
        }
    }

    pub fn stop(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        // A full counter is as loud as a ring.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn look(&self) {
        drop(lock(&self.turnstile));
        let mut intake = lock(&self.intake);
        let round = self.read_round(&mut intake);
        if self.state() == TapState::Passing {
            self.pass_on(&mut intake.last);
        }
        drop(intake);
        self.send_urgent(&round.urgent);
        if round.added {
            self.tell(round.first.is_some());
        }
    }

    fn tell(&self, first: bool) {
        let Some(tell) = &self.options.on_waiting else { return };
        let all = self.crowd.completes(self.counts.held_frames.load(Ordering::Relaxed));
        // A barrier may have come first; then there is nothing to tell.
        if let Some((since, _)) = self.waiting().filter(|_| first || all) {
            tell(Waiting { since, all });
        }
    }

    /// Sends what was just read, behind all that waits for room.
    fn pass_on(&self, last: &mut Chunk) {
        let mut way_out = lock(&self.way_out);
        let mut sent = way_out.send_last(last, &|| self.may_send());
        if sent.left > 0 {
            let mut rest = Chunk::default();
            last.frames().skip(last.count() - sent.left).for_each(|frame| rest.append(frame));
            if self.has_room_for(rest.cost()) {
                self.counts.held_frames.fetch_add(rest.count() as u64, Ordering::Relaxed);
                self.add_held_bytes(rest.cost());
                way_out.add([rest]);
                self.set_stuck(true);
            } else {
                sent.lost += sent.left as u64;
            }
        }
        last.clear();
        drop(way_out);
        self.count_sent(sent);
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
                round.added = true;
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
        self.crowd.counted(self.counts.held_frames.load(Ordering::Relaxed));
    }

    fn nothing_waits(&self) {
        self.waiting_bytes.store(0, Ordering::Relaxed);
        self.waiting_since_ns.store(0, Ordering::Release);
    }

    /// Puts what `epoch` covers on the way out.
    fn let_go(&self, epoch: CheckpointId, way_out: &mut WayOut) {
        while let Some(chunks) = lock(&self.marked).pop(epoch) {
            way_out.add(chunks);
        }
    }

    /// Sends what there is room for. The rest is left to the gate's thread, so that nobody else waits for a device.
    fn send_on(&self, way_out: &mut WayOut) {
        let sent = way_out.send(&|| self.may_send(), |chunk| {
            self.counts.held_bytes.fetch_sub(chunk.cost(), Ordering::Relaxed);
            lock(&self.spares).give(chunk);
        });
        self.counts.held_frames.fetch_sub(sent.frames + sent.lost, Ordering::Relaxed);
        self.count_sent(sent);
        self.set_stuck(sent.left > 0 && self.may_send());
    }

    /// The caller holds `way_out`.
    fn set_stuck(&self, stuck: bool) {
        if !self.stuck.swap(stuck, Ordering::SeqCst) && stuck {
            self.wake();
        }
    }

    fn send_urgent(&self, urgent: &Chunk) {
        if !urgent.is_empty() {
            // Whatever becomes of it, neighbours ask again.
            let _ = lock(&self.side_outlet).send(urgent, 0, &|| self.may_send());
        }
    }

    pub fn hold(&self) -> Result<(), GateError> {
        let _turn = lock(&self.turnstile);
        let _intake = lock(&self.intake);
        self.set_state(TapState::Holding)
    }

    pub fn pass(&self) -> Result<(), GateError> {
        let turn = lock(&self.turnstile);
        let mut intake = lock(&self.intake);
        self.still_open()?;
        self.mark(&mut intake, LAST);
        let mut way_out = lock(&self.way_out);
        self.let_go(LAST, &mut way_out);
        self.set_state(TapState::Passing)?;
        // What comes from now on lines up behind.
        drop((intake, turn));
        self.send_on(&mut way_out);
        Ok(())
    }

    pub fn barrier(&self, epoch: CheckpointId) -> Result<(), GateError> {
        self.still_open()?;
        if self.state() != TapState::Holding {
            return Ok(());
        }
        let _turn = lock(&self.turnstile);
        let mut intake = lock(&self.intake);
        self.still_open()?;
        if self.state() != TapState::Holding {
            return Ok(());
        }
        let urgent = self.drain(&mut intake, BARRIER_ROUNDS);
        self.mark(&mut intake, epoch);
        drop(intake);
        urgent.iter().for_each(|urgent| self.send_urgent(urgent));
        Ok(())
    }

    /// Reads what is in the device, in so many rounds at most. What is urgent in it is the caller's to send.
    fn drain(&self, intake: &mut Unmarked, rounds_max: usize) -> Vec<Chunk> {
        let mut urgent = Vec::new();
        for _ in 0..rounds_max {
            let round = self.read_round(intake);
            urgent.push(round.urgent);
            if !round.more {
                break;
            }
        }
        urgent
    }

    pub fn release(&self, epoch: CheckpointId) -> Result<(), GateError> {
        self.still_open()?;
        let mut way_out = lock(&self.way_out);
        self.let_go(epoch, &mut way_out);
        self.send_on(&mut way_out);
        drop(way_out);
        self.crowd.released();
        self.still_open()
    }

    pub fn discard(&self) {
        // First, so that whoever is sending stops.
        self.state.store(TapState::Discarded as u8, Ordering::SeqCst);
        let _turn = lock(&self.turnstile);
        let mut intake = lock(&self.intake);
        let mut way_out = lock(&self.way_out);
        let _side_outlet = lock(&self.side_outlet);
        way_out.clear();
        self.set_stuck(false);
        self.throw_away(&mut intake, &way_out);
    }

    pub fn forget(&self) -> Result<(), GateError> {
        let _turn = lock(&self.turnstile);
        let mut intake = lock(&self.intake);
        self.still_open()?;
        if self.state() == TapState::Holding {
            // Each round takes one frame at least, unless the device is empty.
            let urgent = self.drain(&mut intake, QUEUE_FRAMES as usize);
            self.throw_away(&mut intake, &lock(&self.way_out));
            drop(intake);
            urgent.iter().for_each(|urgent| self.send_urgent(urgent));
        }
        Ok(())
    }

    /// What waits for a barrier or a release; not what has been let go.
    fn throw_away(&self, intake: &mut Unmarked, way_out: &WayOut) {
        drop(intake.seal(&mut lock(&self.spares)));
        lock(&self.marked).clear();
        let left = way_out.count() as u64;
        let held = self.counts.held_frames.swap(left, Ordering::Relaxed);
        self.counts.dropped.fetch_add(held - left, Ordering::Relaxed);
        self.counts.held_bytes.store(way_out.cost(), Ordering::Relaxed);
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

/// How many frames wait at a time when everybody who can be answered has been: clients that wait for an answer before
/// they ask again make an epoch of this many, and whoever waits longer for more waits in vain.
#[derive(Debug, Default)]
struct Crowd {
    frames: AtomicU64,
    /// Since the last barrier or release, it was.
    complete: AtomicBool,
}

impl Crowd {
    /// So many are held at a barrier, of this epoch and of those on their way. More is believed at once, and less
    /// by and by.
    fn counted(&self, held: u64) {
        let before = self.frames.load(Ordering::Relaxed);
        let frames = if held > before { held } else { (before * 3 + held) / 4 };
        self.frames.store(frames, Ordering::Relaxed);
        self.complete.store(false, Ordering::Relaxed);
    }

    /// Those who have their answers now will be back.
    fn released(&self) {
        self.complete.store(false, Ordering::Relaxed);
    }

    /// True once between two barriers or releases.
    fn completes(&self, held: u64) -> bool {
        held >= self.frames.load(Ordering::Relaxed) && !self.complete.swap(true, Ordering::Relaxed)
    }
}

/// A panic of the caller's callback poisons nothing that the gate needs.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_complete_once_as_many_wait_as_waited_together_before() {
        let crowd = Crowd::default();
        assert!(crowd.completes(1), "nobody else is known");
        assert!(!crowd.completes(2), "told already");
        crowd.counted(4);
        assert!(!crowd.completes(3) && crowd.completes(4));
        crowd.released();
        assert!(!crowd.completes(3) && crowd.completes(5));
    }

    #[test]
    fn who_stays_away_is_waited_for_a_few_times_and_then_no_more() {
        let crowd = Crowd::default();
        crowd.counted(64);
        let barriers = (0..).take_while(|_| !crowd.completes(1)).inspect(|_| crowd.counted(1)).count();
        assert!((2..20).contains(&barriers), "{barriers} barriers");
    }
}
