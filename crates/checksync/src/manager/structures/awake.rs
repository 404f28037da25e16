//! Looking for what comes next instead of sleeping, for a moment after something came.
//!
//! A round trip is made of four waits that last some ten microseconds each. Waking the thread that waits takes as long,
//! and longer where its core had gone to sleep. So after a change the manager looks for a moment, and gives its core
//! away with each look to whoever has work; without changes it sleeps as ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::manager::now;

/// Longer than a short round trip; what takes longer is not worth the looking.
const SPAN: Duration = Duration::from_micros(150);

#[derive(Debug, Default)]
pub struct Awake {
    until_ns: AtomicU64,
    begun: Notify,
}

impl Awake {
    /// Something came.
    pub fn stay(&self) {
        let until_ns = now().0 + SPAN.as_nanos() as u64;
        if self.until_ns.swap(until_ns, Ordering::Relaxed) == 0 {
            self.begun.notify_one();
        }
    }

    fn is_over(&self) -> bool {
        let until_ns = self.until_ns.load(Ordering::Relaxed);
        now().0 >= until_ns
            && self.until_ns.compare_exchange(until_ns, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// For the life of a runtime.
pub async fn stay_awake(awake: Arc<Awake>) {
    loop {
        awake.begun.notified().await;
        while !awake.is_over() {
            std::thread::yield_now();
            // The runtime looks at its sockets in between.
            tokio::task::yield_now().await;
        }
    }
}
