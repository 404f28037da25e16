//! A channel between threads of unlike priority, in the words of `std::sync::mpsc`.
//!
//! N.B. that one has whoever comes upon a half-made entry look again and again, and give its core away in between
//! (`sched_yield`). From a thread at real-time priority nobody takes it who has none: while a sender waited for a core in
//! the middle of its entry, the receiver kept one busy and another sender the other, for the second after which the
//! kernel throttles them; clients stood still. Here whoever has to wait sleeps.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError};

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    has_receiver: bool,
}

#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

/// Without a bound.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), senders: 1, has_receiver: true };
    let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn take(&mut self) -> Result<T, TryRecvError> {
        let nothing = if self.senders == 0 { TryRecvError::Disconnected } else { TryRecvError::Empty };
        self.queue.pop_front().ok_or(nothing)
    }
}

impl<T> Sender<T> {
    /// Gives `value` back if nobody will ever take it.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        let mut state = self.0.lock();
        if !state.has_receiver {
            return Err(SendError(value));
        }
        state.queue.push_back(value);
        drop(state);
        self.0.arrived.notify_one();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders -= 1;
        let was_last = state.senders == 0;
        drop(state);
        if was_last {
            self.0.arrived.notify_one();
        }
    }
}

impl<T> Receiver<T> {
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.0.lock().take()
    }

    pub fn recv(&self) -> Result<T, RecvError> {
        let mut state = self.0.lock();
        loop {
            match state.take() {
                Ok(value) => return Ok(value),
                Err(TryRecvError::Disconnected) => return Err(RecvError),
                Err(TryRecvError::Empty) => {
                    state = self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    pub fn recv_timeout(&self, patience: Duration) -> Result<T, RecvTimeoutError> {
        let deadline = Instant::now().checked_add(patience);
        let mut state = self.0.lock();
        loop {
            match state.take() {
                Ok(value) => return Ok(value),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            let left =
                deadline.map_or(patience, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(RecvTimeoutError::Timeout);
            }
            let waited = self.0.arrived.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Until all senders are gone.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_receiver = false;
        let unheard = std::mem::take(&mut state.queue);
        drop(state);
        // What they hold may be senders of this very channel.
        drop(unheard);
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;

    use super::*;

    #[test]
    fn what_several_send_comes_whole_and_each_ones_in_order() {
        const EACH: u32 = 2_000;
        let (sender, receiver) = channel();
        let threads: Vec<_> = (0..4)
            .map(|who| {
                let sender = sender.clone();
                std::thread::spawn(move || (0..EACH).for_each(|n| sender.send((who, n)).unwrap()))
            })
            .collect();
        drop(sender);
        let mut next = [0; 4];
        for (who, n) in receiver.iter() {
            assert_eq!(n, next[who], "from {who}");
            next[who] += 1;
        }
        assert_eq!(next, [EACH; 4]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn either_end_sees_that_the_other_is_gone() {
        let (sender, receiver) = channel();
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(receiver.recv_timeout(Duration::from_millis(1)), Err(RecvTimeoutError::Timeout));
        sender.clone().send(1).unwrap();
        drop(sender);
        assert_eq!(receiver.recv_timeout(Duration::MAX), Ok(1), "what was sent comes all the same");
        assert_eq!(receiver.recv_timeout(Duration::MAX), Err(RecvTimeoutError::Disconnected));
        assert_eq!((receiver.try_recv(), receiver.recv()), (Err(TryRecvError::Disconnected), Err(RecvError)));
        let (sender, receiver) = channel::<Box<dyn Any + Send>>();
        sender.send(Box::new(sender.clone())).unwrap();
        drop(receiver);
        assert!(sender.send(Box::new(())).is_err());
        assert_eq!(sender.0.lock().senders, 1, "what nobody takes is let go");
    }

    #[test]
    fn who_waits_is_woken_by_what_comes_and_by_the_last_ones_end() {
        let (sender, receiver) = channel();
        let waits = std::thread::spawn(move || (receiver.recv(), receiver.recv()));
        sender.send(7).unwrap();
        drop(sender);
        assert_eq!(waits.join().unwrap(), (Ok(7), Err(RecvError)));
    }
}
