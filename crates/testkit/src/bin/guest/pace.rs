//! Work at a steady rate of written pages, for figures of what checkpoints cost it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Context, Guest, Outcome, say};
use crate::mapping::{Mapping, PAGE};

/// `pace MIB PAGES`: so much memory, and so many pages of it written in a second, at random. Prints `work COUNT` each
/// tenth of a second: the pieces of work that got done in it.
pub const GUESTS: &[Guest] = &[Guest::new("pace", pace)];

const TOLD_EVERY: Duration = Duration::from_millis(100);

fn pace(context: &mut Context) -> Outcome {
    let bytes = usize::try_from(context.number(0, 64) << 20)?;
    let pages_per_second = context.number(1, 1000);
    let heap = Mapping::anonymous(bytes)?;
    heap.fill(1);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| work_until(&over, &heap, pages_per_second));
        context.ready();
        over.store(true, Ordering::Relaxed);
    });
    Ok(())
}

fn work_until(over: &AtomicBool, heap: &Mapping, pages_per_second: u64) {
    let began = Instant::now();
    let (mut written, mut told, mut done) = (0, began, 0_u64);
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let pages = heap.range().len() / PAGE;
    while !over.load(Ordering::Relaxed) {
        chance = piece(chance);
        done += 1;
        let now = Instant::now();
        let due = now.duration_since(began).as_micros() * u128::from(pages_per_second) / 1_000_000;
        while written < due {
            chance = chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let page = (chance >> 33) as usize % pages;
            heap.set(page * PAGE + (chance as usize & 0xff8), chance.to_le_bytes()[7]);
            written += 1;
        }
        if now - told >= TOLD_EVERY {
            say(&format!("work {done}"));
            (told, done) = (now, 0);
        }
    }
}

/// Some microseconds of arithmetic.
fn piece(seed: u64) -> u64 {
    (0..4000).fold(seed, |value, n| std::hint::black_box(value.rotate_left(7) ^ n))
}
