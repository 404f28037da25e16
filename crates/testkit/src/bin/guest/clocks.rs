//! Clocks: neither jumps back, in any thread, by system call or vdso.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::ensure;
use crate::harness::{Context, Guest, Outcome};

pub const GUESTS: &[Guest] = &[Guest::new("clocks", clocks)];

/// No two looks at a clock may be further apart: a jump forward fires every timeout at once.
const GAP_MAX: Duration = Duration::from_secs(30);

fn clocks(context: &mut Context) -> Outcome {
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> =
        [ClockId::Monotonic, ClockId::Boottime, ClockId::MonotonicRaw, ClockId::MonotonicCoarse]
            .into_iter()
            .map(|clock| {
                let over = Arc::clone(&over);
                thread::spawn(move || watch(&over, clock))
            })
            .collect();
    context.ready();
    over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().map_err(|_| "a watcher panicked")??;
    }
    Ok(())
}

fn watch(over: &AtomicBool, clock: ClockId) -> Outcome {
    let mut last = Duration::try_from(clock_gettime(clock))?;
    loop {
        let ends = over.load(Ordering::Relaxed);
        let now = Duration::try_from(clock_gettime(clock))?;
        ensure!(now >= last, "{clock:?} jumped back by {:?}", last - now);
        ensure!(now - last < GAP_MAX, "{clock:?} jumped forward by {:?}", now - last);
        last = now;
        if ends {
            return Ok(());
        }
        thread::yield_now();
    }
}
