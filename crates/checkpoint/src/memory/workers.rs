//! The cores that the stopped app leaves idle: a few threads that wait for something to do.
//!
//! Nobody spins here, neither for work nor for a result: the app's own threads make calls for us on the same cores,
//! and would have to wait. That a sleeping core takes long to wake is seen to elsewhere (`engine::awake`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// The wake-ups come without the lock held, so none of them may be relied on alone.
const RECHECK: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Shared {
    queue: Mutex<VecDeque<Job>>,
    woken: Condvar,
    /// A job is done.
    done: Condvar,
    ended: AtomicBool,
}

/// Threads that help the tracer. With none of them, it does all by itself.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Shared {
    /// Waits until no job of `open` is left, and helps with others meanwhile: a job may make more of them.
    fn await_done(&self, open: &AtomicUsize) {
        while open.load(Ordering::Acquire) > 0 {
            let mut queue = lock(&self.queue);
            if let Some(job) = queue.pop_front() {
                drop(queue);
                job();
            } else if open.load(Ordering::Acquire) > 0 {
                drop(self.done.wait_timeout(queue, RECHECK));
            }
        }
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workers({})", self.threads.len())
    }
}

impl Workers {
    /// `helpers` threads beside the caller's own, and as urgent: of a caller at real-time priority, one that is not
    /// would wait behind him while another core is idle.
    pub fn new(helpers: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let urgency = sys::task::real_time_priority();
        let start = |n| {
            let shared = Arc::clone(&shared);
            let named = std::thread::Builder::new().name(format!("copy-{n}"));
            named.spawn(move || {
                if let Some(Err(why)) = urgency.map(sys::task::become_real_time) {
                    tracing::debug!("a helper does not get its priority: {why}");
                }
                work(&shared)
            })
        };
        let threads = (0..helpers).filter_map(|n| start(n).ok()).collect();
        Self { shared, threads }
    }

    /// One for every core but the caller's.
    pub fn for_this_machine() -> Self {
        const MOST: usize = 7;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new((cores - 1).min(MOST))
    }

    /// How many jobs can run at once.
    pub fn width(&self) -> usize {
        self.threads.len() + 1
    }

    /// Starts a job beside what the caller does. Without workers it runs at [`Started::join`].
    pub fn start<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Started<T> {
        let result = Arc::new(Mutex::new(None));
        let open = Arc::new(AtomicUsize::new(1));
        let (place, guard) = (Arc::clone(&result), Done(Arc::clone(&open), Arc::clone(&self.shared)));
        lock(&self.shared.queue).push_back(Box::new(move || {
            let guard = guard;
            let value = job();
            *lock(&place) = Some(value);
            drop(guard);
        }));
        self.shared.woken.notify_all();
        Started { shared: Arc::clone(&self.shared), result, open }
    }

    /// Runs all jobs, the caller helping, and returns their results in no particular order.
    pub fn run<T: Send + 'static>(&self, jobs: Vec<impl FnOnce() -> T + Send + 'static>) -> Vec<T> {
        if jobs.len() < 2 || self.threads.is_empty() {
            return jobs.into_iter().map(|job| job()).collect();
        }
        let results = Arc::new(Mutex::new(Vec::with_capacity(jobs.len())));
        let open = Arc::new(AtomicUsize::new(jobs.len()));
        {
            let mut queue = lock(&self.shared.queue);
            for job in jobs {
                let (results, open) = (Arc::clone(&results), Arc::clone(&open));
                let shared = Arc::clone(&self.shared);
                queue.push_back(Box::new(move || {
                    let guard = Done(open, shared);
                    let result = job();
                    lock(&results).push(result);
                    drop(guard);
                }));
            }
        }
        self.shared.woken.notify_all();
        self.shared.done.notify_all();
        self.shared.await_done(&open);
        let mut results = lock(&results);
        std::mem::take(&mut *results)
    }
}

/// A job that was started.
#[must_use]
pub struct Started<T> {
    shared: Arc<Shared>,
    result: Arc<Mutex<Option<T>>>,
    open: Arc<AtomicUsize>,
}

impl<T> std::fmt::Debug for Started<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Started(done: {})", self.open.load(Ordering::Relaxed) == 0)
    }
}

impl<T> Started<T> {
    /// Its result; the caller helps if nobody has begun it.
    ///
    /// # Panics
    /// If the job did.
    pub fn join(self) -> T {
        self.shared.await_done(&self.open);
        lock(&self.result).take().expect("the job did not end in a panic")
    }
}

/// Counts a job as done, also when it panicked.
struct Done(Arc<AtomicUsize>, Arc<Shared>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
        self.1.done.notify_all();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.woken.notify_all();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    while !shared.ended.load(Ordering::Acquire) {
        match take(shared) {
            Some(job) => job(),
            None => sleep_until_woken(shared),
        }
    }
}

fn sleep_until_woken(shared: &Shared) {
    const RECHECK: Duration = Duration::from_millis(50);
    let queue = lock(&shared.queue);
    let idle = |queue: &mut VecDeque<Job>| queue.is_empty() && !shared.ended.load(Ordering::Acquire);
    drop(shared.woken.wait_timeout_while(queue, RECHECK, idle));
}

fn take(shared: &Shared) -> Option<Job> {
    lock(&shared.queue).pop_front()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_started_job_is_done_with_and_without_workers() {
        for helpers in [0, 2] {
            let workers = Workers::new(helpers);
            assert_eq!(workers.start(|| 7).join(), 7);
        }
    }

    #[test]
    fn every_job_is_done_once() {
        let workers = Workers::new(3);
        for count in [0u64, 1, 2, 50] {
            let mut results = workers.run((0..count).map(|n| move || n).collect());
            results.sort_unstable();
            assert_eq!(results, (0..count).collect::<Vec<_>>());
        }
    }
}
