//! The structures of this process: what is committed, for reading in parallel.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

const SHARDS: usize = 64;

type Shard = HashMap<Box<[u8]>, Arc<[u8]>>;

/// A map in shards, so that a reader seldom meets a writer.
#[derive(Debug)]
pub(super) struct Table {
    hasher: RandomState,
    shards: Vec<RwLock<Shard>>,
}

impl Default for Table {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }
}

impl Table {
    fn shard(&self, key: &[u8]) -> &RwLock<Shard> {
        // The upper bits: a shard's own table takes the lower ones of another hash.
        &self.shards[(self.hasher.hash_one(key) >> 32) as usize % SHARDS]
    }

    fn read(&self, key: &[u8]) -> RwLockReadGuard<'_, Shard> {
        self.shard(key).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, key: &[u8]) -> RwLockWriteGuard<'_, Shard> {
        self.shard(key).write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.read(key).get(key).cloned()
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.read(key).contains_key(key)
    }

    pub(super) fn put(&self, key: Box<[u8]>, value: Arc<[u8]>) {
        // What was there is freed without the lock.
        let _before = self.write(&key).insert(key, value);
    }

    pub(super) fn delete(&self, key: &[u8]) {
        let _before = self.write(key).remove(key);
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// No lock is held while `each` runs: it may change the map.
    pub(super) fn for_each(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        for shard in &self.shards {
            let pairs: Vec<_> = {
                let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
                shard.iter().map(|(key, value)| (key.clone(), Arc::clone(value))).collect()
            };
            pairs.iter().for_each(|(key, value)| each(key, value));
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Cell {
    value: RwLock<Option<Arc<[u8]>>>,
}

impl Cell {
    pub(super) fn load(&self) -> Option<Arc<[u8]>> {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn store(&self, value: Arc<[u8]>) {
        let _before = self.value.write().unwrap_or_else(PoisonError::into_inner).replace(value);
    }
}
