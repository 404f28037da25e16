//! Clients of the server that remember what was acknowledged, and say whether it is there.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use testkit::wait::{wait_for, wait_until};

use crate::world::SOON;

/// One connection to the server.
pub struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: &str) -> Self {
        let stream = wait_for("the server", SOON, || TcpStream::connect(address).ok());
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        Self { stream, lines }
    }

    /// The answer, or nothing from a server that is gone.
    pub fn ask(&mut self, request: &str) -> Option<String> {
        self.send(request).ok()?;
        self.answer()
    }

    pub fn send(&mut self, request: &str) -> std::io::Result<()> {
        self.stream.write_all(format!("{request}\n").as_bytes())
    }

    pub fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(len) if len > 0 => Some(line.trim_end().to_owned()),
            _ => None,
        }
    }
}

/// Threads that write until the server fails, each to keys of its own.
pub struct Writers {
    threads: Vec<JoinHandle<Written>>,
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

/// What is known of the server's pairs: for each key the newest number that was acknowledged, and that was sent.
#[derive(Default)]
pub struct Written {
    keys: HashMap<String, (u64, u64)>,
    pub acknowledged: u64,
    pub last_answer: Option<String>,
}

const KEYS_EACH: u64 = 50;

impl Writers {
    pub fn start(address: String, count: usize) -> Self {
        /// What earlier writers have left says nothing of these.
        static ROUND: AtomicUsize = AtomicUsize::new(0);
        let round = ROUND.fetch_add(1, Ordering::Relaxed);
        let (acknowledged, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..count).map(|writer| {
            let (address, acknowledged, stop) =
                (address.clone(), Arc::clone(&acknowledged), Arc::clone(&stop));
            let prefix = format!("{round}-{writer}");
            std::thread::spawn(move || write(&prefix, &address, &acknowledged, &stop))
        });
        Self { threads: threads.collect(), acknowledged, stop }
    }

    pub fn wait_for(&self, count: usize) {
        wait_until("acknowledged writes", SOON, || self.acknowledged.load(Ordering::Relaxed) >= count);
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until nothing was acknowledged for a while.
    pub fn wait_until_stuck(&self) {
        const WHILE: Duration = Duration::from_millis(500);
        let (mut known, mut since) = (self.acknowledged(), Instant::now());
        wait_until("writes to wait", SOON, || {
            if known != self.acknowledged() {
                (known, since) = (self.acknowledged(), Instant::now());
            }
            since.elapsed() >= WHILE
        });
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until the server has failed them all, or they were stopped.
    pub fn finish(self) -> Written {
        let mut all = Written::default();
        for thread in self.threads {
            let one = thread.join().unwrap();
            all.keys.extend(one.keys);
            all.acknowledged += one.acknowledged;
            all.last_answer = all.last_answer.or(one.last_answer);
        }
        all
    }
}

fn write(prefix: &str, address: &str, acknowledged: &AtomicUsize, stop: &AtomicBool) -> Written {
    let (mut client, mut written) = (Client::connect(address), Written::default());
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{prefix}-{}", number % KEYS_EACH);
        let known = written.keys.entry(key.clone()).or_default();
        known.1 = number;
        match client.ask(&format!("PUT {key} {}", value(&key, number))) {
            Some(answer) if answer == "OK" => known.0 = number,
            last => {
                written.last_answer = last;
                break;
            }
        }
        written.acknowledged += 1;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    written
}

/// A value that proves itself: half of one, or a mixture of two, is none.
fn value(key: &str, number: u64) -> String {
    format!("{number}:{}", format!("{key}/{number};").repeat(10))
}

impl Written {
    /// Every key has the newest value that was acknowledged, or the one that was being written.
    pub fn check(&self, client: &mut Client) {
        assert!(!self.keys.is_empty());
        for (key, (acknowledged, sent)) in &self.keys {
            let answer = client.ask(&format!("GET {key}")).expect("the server answers");
            let held = answer.strip_prefix("VALUE ");
            let number = held.map_or(0, |held| held.split(':').next().unwrap().parse().unwrap());
            assert!(
                (*acknowledged..=*sent).contains(&number),
                "{key} has write {number}; {acknowledged} was acknowledged, and {sent} sent"
            );
            assert!(held.is_none_or(|held| held == value(key, number)), "{key} has half a value: {answer}");
        }
    }
}
