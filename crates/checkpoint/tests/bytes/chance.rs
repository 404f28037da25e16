//! Chance that a seed repeats.

use std::time::{SystemTime, UNIX_EPOCH};

/// Marsaglia's xorshift.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % bound
    }
}

/// The seed of this run, printed: `CHECKSYNC_SEED`, or another one each time.
pub fn seed() -> u64 {
    let seed = match std::env::var("CHECKSYNC_SEED") {
        Ok(seed) => seed.parse().expect("CHECKSYNC_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
            u64::from(now.subsec_nanos())
        }
    };
    println!("CHECKSYNC_SEED={seed}");
    seed
}
