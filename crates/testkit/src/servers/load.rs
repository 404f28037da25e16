//! A load that outlives failovers, and judges each: is what the server holds a valid prefix?
//!
//! One thread moves keys on, one after the other, so that its acknowledged writes are a sequence. When its
//! connection breaks it reconnects and reads every key before it writes again. Whatever was acknowledged and is
//! gone is lost; the caller knows when the last committed epoch was frozen, and so which losses are allowed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use super::{Client, Server};
use crate::wait::Deadline;

const KEYS: usize = 64;
/// How long a server may be away.
const RECONNECT: Duration = Duration::from_secs(60);

/// A running load. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<io::Result<Judgement>>>,
}

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    acknowledged: AtomicU64,
    reconnected: AtomicU64,
}

/// What a load saw.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub acknowledged: u64,
    pub connections_lost: u64,
    /// Acknowledged writes that were gone after a connection had been lost.
    pub lost: Vec<Lost>,
    /// What no failover excuses: values that were never written, or a hole in the sequence.
    pub wrong: Vec<String>,
}

/// An acknowledged write that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub key: usize,
    pub acknowledged: SystemTime,
}

impl Judgement {
    /// What makes this no valid prefix, if the last committed epoch was frozen at `frozen`.
    #[must_use]
    pub fn violations(&self, frozen: SystemTime) -> Vec<String> {
        let early = self.lost.iter().filter(|lost| lost.acknowledged < frozen);
        let early = early.map(|lost| format!("a write to key {} from before the freeze is lost", lost.key));
        self.wrong.iter().cloned().chain(early).collect()
    }
}

impl Load {
    /// Starts to load the server. The first connection is made here.
    pub fn start(server: &Server, address: SocketAddr) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Writer::new(server.clone(), address, Arc::clone(&shared))?;
        Ok(Self { shared, worker: Some(thread::spawn(move || writer.run())) })
    }

    /// Acknowledged writes so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// How often a lost connection was made anew, and what was lost was looked at.
    #[must_use]
    pub fn reconnected(&self) -> u64 {
        self.shared.reconnected.load(Ordering::Relaxed)
    }

    /// Stops, reads everything a last time, and judges. An error if no server was found for long.
    pub fn stop(mut self) -> io::Result<Judgement> {
        self.shared.over.store(true, Ordering::Relaxed);
        let worker = self.worker.take().expect("a load is stopped once");
        worker.join().expect("a load does not panic")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

/// A write that was acknowledged since the last look.
#[derive(Debug, Clone, Copy)]
struct Write {
    order: u64,
    value: u64,
    acknowledged: SystemTime,
}

/// What is known of every key since the last look at all of them.
#[derive(Debug)]
struct Ledger {
    writes: Vec<Vec<Write>>,
    /// Where each key stood at the last look.
    base: Vec<u64>,
    /// The key of an unanswered write, and the value that it would have given.
    in_doubt: Option<(usize, u64)>,
    judgement: Judgement,
}

impl Ledger {
    fn new(base: Vec<u64>) -> Self {
        let writes = vec![Vec::new(); base.len()];
        Self { writes, base, in_doubt: None, judgement: Judgement::default() }
    }

    /// Where the key stands if everything that was acknowledged is there.
    fn newest(&self, key: usize) -> u64 {
        self.writes[key].last().map_or(self.base[key], |write| write.value)
    }

    fn acknowledge(&mut self, key: usize, order: u64, value: u64) {
        self.in_doubt = None;
        self.writes[key].push(Write { order, value, acknowledged: SystemTime::now() });
        self.judgement.acknowledged += 1;
    }

    /// Judges all writes since the last look by where each key was `found`, and begins anew from there.
    fn look(&mut self, found: Vec<u64>) {
        let (mut lost_first, mut kept_last) = (u64::MAX, 0);
        for (key, &found) in found.iter().enumerate() {
            if !self.is_possible(key, found) {
                self.judgement.wrong.push(format!("key {key} holds {found}, which was never written"));
            }
            for write in &self.writes[key] {
                if write.value > found {
                    lost_first = lost_first.min(write.order);
                    self.judgement.lost.push(Lost { key, acknowledged: write.acknowledged });
                } else {
                    kept_last = kept_last.max(write.order);
                }
            }
        }
        if lost_first < kept_last {
            self.judgement
                .wrong
                .push(format!("write {lost_first} is lost, but the later {kept_last} is there"));
        }
        *self = Self { judgement: std::mem::take(&mut self.judgement), ..Self::new(found) };
    }

    fn is_possible(&self, key: usize, found: u64) -> bool {
        found == self.base[key]
            || self.in_doubt == Some((key, found))
            || self.writes[key].iter().any(|write| write.value == found)
    }
}

#[derive(Debug)]
struct Writer {
    server: Server,
    address: SocketAddr,
    shared: Arc<Shared>,
    client: Client,
    sequence: u64,
    ledger: Ledger,
}

impl Writer {
    fn new(server: Server, address: SocketAddr, shared: Arc<Shared>) -> io::Result<Self> {
        let mut client = Client::connect(&server, address)?;
        let base: io::Result<Vec<_>> = (0..KEYS).map(|key| Ok(client.read(key)?.unwrap_or(0))).collect();
        let base = base?;
        // Above whatever an earlier load has left there.
        let sequence = base.iter().copied().max().unwrap_or(0);
        Ok(Self { server, address, shared, client, sequence, ledger: Ledger::new(base) })
    }

    fn run(mut self) -> io::Result<Judgement> {
        while !self.shared.over.load(Ordering::Relaxed) {
            if self.write().is_err() {
                self.reconnect()?;
            }
        }
        if self.look().is_err() {
            self.reconnect()?;
        }
        Ok(self.ledger.judgement)
    }

    fn write(&mut self) -> io::Result<()> {
        self.sequence += 1;
        let key = usize::try_from(self.sequence).unwrap_or(0) % KEYS;
        let expected = if self.client.counts() { self.ledger.newest(key) + 1 } else { self.sequence };
        self.ledger.in_doubt = Some((key, expected));
        let value = self.client.advance(key, self.sequence)?;
        self.ledger.acknowledge(key, self.sequence, value);
        self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn reconnect(&mut self) -> io::Result<()> {
        self.ledger.judgement.connections_lost += 1;
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        Deadline::after(RECONNECT)
            .poll(|| {
                let connected = Client::connect(&self.server, self.address).and_then(|client| {
                    self.client = client;
                    self.look()
                });
                connected.map_err(|error| last = error).ok()
            })
            .ok_or(last)?;
        self.shared.reconnected.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Reads every key and judges by it. Nothing is judged if a read fails, or if the server keeps nothing.
    fn look(&mut self) -> io::Result<()> {
        let found: io::Result<Option<Vec<u64>>> = (0..KEYS).map(|key| self.client.read(key)).collect();
        if let Some(found) = found? {
            self.ledger.look(found);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two keys, on which writes 1 to 4 were acknowledged in turn.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(vec![0, 0]);
        for order in 1..=4 {
            ledger.acknowledge(usize::from(order % 2 == 0), order, order);
        }
        ledger
    }

    #[test]
    fn losing_the_newest_writes_is_a_valid_prefix() {
        let mut ledger = ledger();
        ledger.look(vec![1, 2]);
        assert_eq!(ledger.judgement.lost.len(), 2);
        assert_eq!(ledger.judgement.violations(SystemTime::UNIX_EPOCH), Vec::<String>::new());
        assert_eq!(ledger.judgement.violations(SystemTime::now()).len(), 2);
    }

    #[test]
    fn losing_a_write_before_one_that_is_kept_is_wrong() {
        let mut ledger = ledger();
        ledger.look(vec![1, 4]);
        assert_eq!(ledger.judgement.wrong, ["write 3 is lost, but the later 4 is there"]);
    }

    #[test]
    fn a_value_that_nobody_wrote_is_wrong_unless_it_is_the_one_in_doubt() {
        let mut known = ledger();
        known.look(vec![5, 4]);
        assert_eq!(known.judgement.wrong, ["key 0 holds 5, which was never written"]);
        let mut doubtful = ledger();
        doubtful.in_doubt = Some((0, 5));
        doubtful.look(vec![5, 4]);
        assert!(doubtful.judgement.wrong.is_empty());
    }
}
