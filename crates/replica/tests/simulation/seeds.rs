//! Histories, one for each seed, and how a failure names its own.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The seed that alone is to be lived through, if one is.
pub fn only() -> Option<u64> {
    std::env::var("CHECKSYNC_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"))
}

/// What comes of the histories of that seed, or of the first `count`.
pub fn histories<W>(count: u64, history: impl Fn(u64) -> W) -> impl Iterator<Item = W> {
    only().map_or(0..count, |seed| seed..seed + 1).map(move |seed| {
        catch_unwind(AssertUnwindSafe(|| history(seed)))
            .unwrap_or_else(|_| panic!("seed {seed}: run it alone with CHECKSYNC_SEED={seed}"))
    })
}

/// The first complaint of one of the first `count`, in which something is broken on purpose.
pub fn complaint<W>(count: u64, history: impl Fn(u64) -> W) -> String {
    let complains = |seed| {
        let panic = catch_unwind(AssertUnwindSafe(|| history(seed))).err()?;
        panic.downcast::<String>().ok().map(|text| *text)
    };
    (0..count).find_map(complains).expect("the simulation is blind")
}
