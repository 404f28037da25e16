//! Registers: general, vector and floating point, through any number of epochs.
#![allow(unsafe_code, reason = "vector instructions need a call that the CPU was asked about first")]

use std::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_extract_epi64, _mm256_set_epi64x, _mm256_slli_epi64, _mm256_srli_epi64,
    _mm256_xor_si256,
};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::harness::{Context, Guest, Outcome};
use crate::{ensure, ensure_eq, kernel};

pub const GUESTS: &[Guest] =
    &[Guest::new("registers", registers), Guest::new("float-control", float_control)];

/// Long enough that a stop nearly always falls inside a round, short enough to end soon after the go.
const ROUNDS: u64 = 20_000_000;
const THREADS: u64 = 3;

/// Threads hash with general, SSE and AVX registers only, and compare with what the same hash gave before.
fn registers(context: &mut Context) -> Outcome {
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (1..=THREADS)
        .map(|seed| {
            let over = Arc::clone(&over);
            let expected = hash_all(seed);
            thread::spawn(move || hash_until(&over, seed, expected))
        })
        .collect();
    context.ready();
    over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")??;
    }
    Ok(())
}

fn hash_until(over: &AtomicBool, seed: u64, expected: [u64; 3]) -> Outcome {
    loop {
        let last = over.load(Ordering::Relaxed);
        ensure_eq!(format!("hashes of thread {seed}"), hash_all(seed), expected);
        if last {
            return Ok(());
        }
    }
}

fn hash_all(seed: u64) -> [u64; 3] {
    [hash_general(seed), hash_float(seed), hash_vector(seed)]
}

fn hash_general(seed: u64) -> u64 {
    let (mut a, mut b, mut c, mut d) = (seed, !seed, seed << 7, seed << 21);
    for round in 0..black_box(ROUNDS) {
        a = a.wrapping_add(b).rotate_left(13) ^ round;
        b = b.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ a;
        c = c.rotate_right(9).wrapping_add(a);
        d ^= c.wrapping_add(b);
    }
    a ^ b ^ c ^ d
}

fn hash_float(seed: u64) -> u64 {
    let mut x = 1.0 / f64::from(u32::try_from(seed).unwrap_or(1) + 2);
    for _ in 0..black_box(ROUNDS) {
        x = 3.99 * x * (1.0 - x);
    }
    x.to_bits()
}

/// The same result as `hash_vector_avx2` is not promised without AVX2, only the same one in every round.
fn hash_vector(seed: u64) -> u64 {
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2, as was just asked.
        unsafe { hash_vector_avx2(seed) }
    } else {
        hash_general(seed + THREADS)
    }
}

#[target_feature(enable = "avx2")]
fn hash_vector_avx2(seed: u64) -> u64 {
    let seed = seed.cast_signed();
    let mut state: [__m256i; 4] = std::array::from_fn(|lane| {
        _mm256_set_epi64x(seed, seed << 8, seed << 16, (seed << 24) + lane as i64)
    });
    for _ in 0..black_box(ROUNDS) {
        for lane in 0..4 {
            let mixed = _mm256_add_epi64(state[lane], state[(lane + 1) % 4]);
            let rotated = _mm256_xor_si256(_mm256_slli_epi64::<17>(mixed), _mm256_srli_epi64::<47>(mixed));
            state[lane] = _mm256_xor_si256(rotated, state[(lane + 2) % 4]);
        }
    }
    let mixed = state.into_iter().reduce(|a, b| _mm256_xor_si256(a, b)).unwrap_or(state[0]);
    let lanes = [
        _mm256_extract_epi64::<0>(mixed),
        _mm256_extract_epi64::<1>(mixed),
        _mm256_extract_epi64::<2>(mixed),
        _mm256_extract_epi64::<3>(mixed),
    ];
    lanes.into_iter().fold(0, |hash: u64, lane| hash.rotate_left(11) ^ lane.cast_unsigned())
}

/// Rounding modes of SSE and x87, which differ from the default and between threads.
fn float_control(context: &mut Context) -> Outcome {
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (1..=3)
        .map(|rounding| {
            let over = Arc::clone(&over);
            thread::spawn(move || hold_rounding(&over, rounding))
        })
        .collect();
    context.ready();
    over.store(true, Ordering::Relaxed);
    for worker in workers {
        let (found, set_up) = worker.join().map_err(|_| "a worker panicked")?;
        ensure!(found == set_up, "rounding: found {found:x?}, set up {set_up:x?}");
    }
    Ok(())
}

fn hold_rounding(over: &AtomicBool, rounding: u16) -> ((u32, u16), (u32, u16)) {
    let (sse, x87) = kernel::float_control();
    let changed = (sse | u32::from(rounding) << 13, x87 | rounding << 10);
    kernel::set_float_control(changed.0, changed.1);
    while !over.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    let found = kernel::float_control();
    kernel::set_float_control(sse, x87);
    // The lower six bits of both are sticky exceptions.
    ((found.0 & !0x3f, found.1), (changed.0 & !0x3f, changed.1))
}
