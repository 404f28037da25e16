//! What a replicated structure costs, in process: threads that read and write one map, nine reads to a write.
//!
//! Run it with `checksync run --replicate structures … -- structure_bench MODE KEYS THREADS SECONDS`. It waits for a
//! line on its standard input, so that whoever starts it can wait until it is protected, and prints one of JSON.
//!
//! - `map`: each write returns when the standby has the change.
//! - `window`: each thread has up to 64 writes on their way, and waits for the oldest.
//! - `whole`: each write encodes the whole map and stores it as one value, as the thesis does.
//! - `local`: the same threads on a map that nobody replicates.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use checksync_sdk::{Commit, Map, StructureError, Structures, Value};

const USAGE: &str = "usage: structure_bench map|window|whole|local KEYS THREADS SECONDS";
const VALUE_BYTES: usize = 64;
const WINDOW: usize = 64;
/// One of so many requests is a write.
const WRITE_EVERY: u64 = 10;

type Pairs = HashMap<Vec<u8>, Vec<u8>>;

/// What the threads read and write.
enum Target {
    Map(Map),
    Window(Map),
    Whole { pairs: RwLock<Pairs>, value: Value, one_at_a_time: Mutex<()> },
    Local(Vec<RwLock<Pairs>>),
}

#[derive(Default)]
struct Count {
    reads: u64,
    writes: u64,
    write_us: Vec<f32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, keys, threads, seconds] = arguments.as_slice() else { return Err(USAGE.into()) };
    let (keys, threads, seconds): (u64, u64, f64) = (keys.parse()?, threads.parse()?, seconds.parse()?);
    let target = Arc::new(Target::new(mode, keys)?);
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|number| {
            let (target, stop) = (Arc::clone(&target), Arc::clone(&stop));
            thread::spawn(move || work(&target, keys, number, &stop))
        })
        .collect();
    thread::sleep(Duration::from_secs_f64(seconds));
    stop.store(true, Ordering::Relaxed);
    let mut all = Count::default();
    for worker in workers {
        let one = worker.join().map_err(|_| "a thread panicked")??;
        all.reads += one.reads;
        all.writes += one.writes;
        all.write_us.extend(one.write_us);
    }
    let rate = (all.reads + all.writes) as f64 / begun.elapsed().as_secs_f64();
    all.write_us.sort_by(f32::total_cmp);
    let quantile = |share: f64| {
        let last = all.write_us.len().saturating_sub(1) as f64;
        all.write_us.get((last * share) as usize).copied().unwrap_or_default()
    };
    println!(
        "{{\"mode\":\"{mode}\",\"keys\":{keys},\"threads\":{threads},\"per_second\":{rate:.0},\"writes\":{},\
         \"write_us_p50\":{:.1},\"write_us_p99\":{:.1}}}",
        all.writes,
        quantile(0.5),
        quantile(0.99)
    );
    Ok(())
}

fn key(number: u64) -> Vec<u8> {
    format!("{number:08}").into_bytes()
}

fn some_pairs(keys: u64) -> Pairs {
    (0..keys).map(|number| (key(number), vec![b'.'; VALUE_BYTES])).collect()
}

impl Target {
    fn new(mode: &str, keys: u64) -> Result<Self, Box<dyn Error>> {
        const SHARDS: usize = 64;
        match mode {
            "map" | "window" => {
                let map = Structures::open()?.map("pairs")?;
                let mut last = None;
                for number in 0..keys {
                    last = Some(map.start_put(key(number), [b'.'; VALUE_BYTES])?);
                }
                last.map_or(Ok(()), Commit::wait)?;
                Ok(if mode == "map" { Self::Map(map) } else { Self::Window(map) })
            }
            "whole" => {
                let value = Structures::open()?.value("pairs")?;
                let (pairs, one_at_a_time) = (RwLock::new(some_pairs(keys)), Mutex::new(()));
                Ok(Self::Whole { pairs, value, one_at_a_time })
            }
            "local" => {
                let shards: Vec<_> = (0..SHARDS).map(|_| RwLock::new(Pairs::new())).collect();
                for (key, value) in some_pairs(keys) {
                    shard(&shards, &key).write().unwrap_or_else(PoisonError::into_inner).insert(key, value);
                }
                Ok(Self::Local(shards))
            }
            _ => Err(USAGE.into()),
        }
    }

    fn read(&self, key: &[u8]) -> Result<bool, StructureError> {
        match self {
            Self::Map(map) | Self::Window(map) => Ok(map.get(key)?.is_some()),
            Self::Whole { pairs, .. } => {
                Ok(pairs.read().unwrap_or_else(PoisonError::into_inner).contains_key(key))
            }
            Self::Local(shards) => {
                let shard = shard(shards, key).read().unwrap_or_else(PoisonError::into_inner);
                Ok(shard.get(key).cloned().is_some())
            }
        }
    }

    fn write(
        &self,
        key: &[u8],
        bytes: &[u8],
        on_their_way: &mut VecDeque<Commit>,
    ) -> Result<(), StructureError> {
        match self {
            Self::Map(map) => map.put(key, bytes),
            Self::Window(map) => {
                on_their_way.push_back(map.start_put(key, bytes)?);
                let oldest = if on_their_way.len() > WINDOW { on_their_way.pop_front() } else { None };
                oldest.map_or(Ok(()), Commit::wait)
            }
            Self::Whole { pairs, value, one_at_a_time } => {
                let _one = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
                let mut whole = Vec::new();
                {
                    let mut pairs = pairs.write().unwrap_or_else(PoisonError::into_inner);
                    pairs.insert(key.to_vec(), bytes.to_vec());
                    for (key, value) in &*pairs {
                        for part in [key, value] {
                            whole.extend_from_slice(&(part.len() as u32).to_le_bytes());
                            whole.extend_from_slice(part);
                        }
                    }
                }
                value.store(&whole)
            }
            Self::Local(shards) => {
                let mut shard = shard(shards, key).write().unwrap_or_else(PoisonError::into_inner);
                shard.insert(key.to_vec(), bytes.to_vec());
                Ok(())
            }
        }
    }
}

fn shard<'a>(shards: &'a [RwLock<Pairs>], key: &[u8]) -> &'a RwLock<Pairs> {
    let hash = key.iter().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    &shards[hash % shards.len()]
}

fn work(target: &Target, keys: u64, number: u64, stop: &AtomicBool) -> Result<Count, StructureError> {
    let (mut count, mut on_their_way) = (Count::default(), VecDeque::new());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number + 1);
    let bytes = [b'x'; VALUE_BYTES];
    for request in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // Xorshift: good enough to spread over the keys, and next to free.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let key = key(random % keys);
        if request % WRITE_EVERY == 0 {
            let begun = Instant::now();
            target.write(&key, &bytes, &mut on_their_way)?;
            count.writes += 1;
            count.write_us.push(begun.elapsed().as_secs_f32() * 1e6);
        } else {
            assert!(target.read(&key)?, "a key of the beginning is there");
            count.reads += 1;
        }
    }
    on_their_way.into_iter().try_for_each(Commit::wait)?;
    Ok(count)
}
