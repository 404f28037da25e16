//! Throughput that a serial client loses, by the interval of checkpoints (thesis, table 5.4), beside programs that save
//! themselves: redis by SAVE and BGSAVE, go-cache by its own snapshots.
//!
//! The real programs, with the standby on this machine's processors, too. In timeline mode the client is on the
//! server's own host, as in the thesis; in strong mode on a third one, since the service has an address of its own.
//! A protected server and an unprotected one stand side by side and are asked in turns, for a fifth of a second each,
//! or for an interval if that is longer: the rate of a lone client was seen to change fivefold within a minute, on nobody's account. So the idle pair goes on
//! checkpointing while the other one is asked. Idle cores are kept awake all the time: a lone client and its server
//! fall asleep between two requests, checkpoints wake the cores up, and protection came out 60 % *faster*; which is no
//! merit of it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sys::idle::WakeLatency;
use tempfile::TempDir;
use testkit::programs::go_app;
use testkit::rights::on_path;
use testkit::wait::Deadline;

use super::asked::{Asked, Asking};
use super::namespace::{Namespace, Owned};
use super::street::{Mode, Protected, SERVICE, Street};
use super::{Row, attempt, managers, quick};

const KEYS: &str = "1000";
/// 72 bytes a pair, as in the thesis; the key has 8.
const VALUE_BYTES: &str = "64";
const ALL_MS: [u64; 9] = [10, 20, 40, 50, 100, 500, 1000, 1500, 2000];
/// Where the thesis has figures.
const THESIS_MS: [u64; 3] = [50, 500, 1000];
const FEW_MS: [u64; 2] = [50, 500];
const FILL_SECONDS: f64 = 0.3;
const WINDOW_SECONDS: f64 = 0.2;
const ON_ALL: &str = "0.0.0.0:7000";
const ON_HOST: &str = "127.0.0.1:7000";
const PATIENCE: Duration = Duration::from_secs(20);
const THESIS_UNPROTECTED: f64 = 18_974.0;
const PAPER: &str = "CheckSync of 2022 (arXiv:2208.02884), a changed Go runtime; interval unknown";
const PAPER_SNAPSHOT: &str = "go-cache's own snapshot as that paper measured it; interval unknown";
const SAVING: &str = "the better of redis' SAVE and BGSAVE at this interval";

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Kv,
    Redis,
    GoCache,
}

/// What keeps its state safe, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Saved {
    Checkpoints(Mode),
    /// A command of redis.
    Command(&'static str),
    OwnSnapshot,
}

/// One series of the table.
struct Way {
    name: &'static str,
    store: Store,
    saved: Saved,
}

const TIMELINE: Way = Way { name: "timeline", store: Store::Kv, saved: Saved::Checkpoints(Mode::Timeline) };
const STRONG: Way = Way { name: "strong", store: Store::Kv, saved: Saved::Checkpoints(Mode::Strong) };
const PEERS: [Way; 3] = [
    Way { name: "redis-save", store: Store::Redis, saved: Saved::Command("SAVE") },
    Way { name: "redis-bgsave", store: Store::Redis, saved: Saved::Command("BGSAVE") },
    Way { name: "go-cache-snapshot", store: Store::GoCache, saved: Saved::OwnSnapshot },
];
const GO_CACHE: Way =
    Way { name: "go-cache-timeline", store: Store::GoCache, saved: Saved::Checkpoints(Mode::Timeline) };
const REDIS: Way =
    Way { name: "redis-timeline", store: Store::Redis, saved: Saved::Checkpoints(Mode::Timeline) };

pub fn rows() -> Result<Vec<Row>> {
    managers::build()?;
    let latency = WakeLatency::open().context("idle cores can't be kept awake")?;
    latency.keep_awake()?;
    let mut rows = Vec::new();
    for way in PEERS.iter().chain([&TIMELINE]) {
        rows.extend(all_of(way, if quick() { &FEW_MS } else { &ALL_MS }));
    }
    for way in [&REDIS, &GO_CACHE] {
        rows.extend(all_of(way, if quick() { &FEW_MS[..1] } else { &THESIS_MS }));
    }
    // It is captured when an answer waits, and at no interval.
    rows.extend(attempt("lost.strong", || rows_of(&STRONG, 50, "lost.strong")));
    rows.push(Row::not_taken("lost.criu-dump", criu()));
    latency.let_sleep()?;
    Ok(beside(rows))
}

fn criu() -> &'static str {
    match on_path("criu") {
        true => {
            "there is a criu on the PATH, but nothing here drives it yet; quoted: its freeze of 5.8 ms at 1k keys"
        }
        false => {
            "no criu (4.1 or newer) on the PATH; quoted instead: its freeze of 5.8 ms at 1k keys is 12 % of 50 ms"
        }
    }
}

fn all_of(way: &Way, intervals_ms: &[u64]) -> Vec<Row> {
    let of = |&ms: &u64| {
        let id = format!("lost.{}-{ms}ms", way.name);
        attempt(&id, || rows_of(way, ms, &id))
    };
    intervals_ms.iter().flat_map(of).collect()
}

fn rows_of(way: &Way, interval_ms: u64, id: &str) -> Result<Vec<Row>> {
    // Of each window a checkpoint is a part.
    let window_seconds = (interval_ms as f64 / 1e3).max(WINDOW_SECONDS);
    let total_seconds = if quick() { 3.0 } else { 30.0 };
    let pairs = (total_seconds / (2.0 * window_seconds)).ceil() as usize;
    let alone = way.alone(&[])?;
    let saved = way.saved_each(&alone, interval_ms)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for number in 0..pairs {
        // Who goes first changes, so that a drift favours neither.
        for is_saved in if number % 2 == 0 { [false, true] } else { [true, false] } {
            match is_saved {
                true => {
                    with.push(way.ask_saved(saved.as_ref().unwrap_or(&alone), interval_ms, window_seconds)?)
                }
                false => without.push(way.ask(&alone, window_seconds)?),
            }
        }
    }
    let rates = |asked: &[Asked]| asked.iter().map(|asked| asked.requests_per_second).collect::<Vec<_>>();
    let (without, gaps) = (rates(&without), with.iter().map(|asked| asked.gap_ms_max).collect::<Vec<_>>());
    let with = rates(&with);
    let lost: Vec<f64> = without.iter().zip(&with).map(|(bare, with)| (1.0 - with / bare) * 100.0).collect();
    let lost =
        Row::measured(id, "%", &lost).thesis(thesis(way.name, interval_ms)).aim(aim(way.name, interval_ms));
    println!("{id}: {:.1} % lost, median of {pairs} pairs", lost.median.unwrap_or_default());
    let unprotected = Row::rate(format!("{id}.without"), "/s", &without);
    Ok(vec![
        lost,
        if way.store == Store::Kv { unprotected.thesis(THESIS_UNPROTECTED) } else { unprotected },
        Row::rate(format!("{id}.with"), "/s", &with),
        Row::measured(format!("{id}.longest-gap"), "ms", &gaps),
    ])
}

/// As for [`super::overhead`], which leaves out what managers, the network and encryption take.
fn aim(way: &str, interval_ms: u64) -> Option<f64> {
    (way == "timeline" && interval_ms == 50).then_some(5.0)
}

/// Table 5.4.
fn thesis(way: &str, interval_ms: u64) -> Option<f64> {
    match (way, interval_ms) {
        ("timeline", 50) => Some(29.0),
        ("timeline", 500 | 1000) => Some(2.0),
        ("redis-save", 50) => Some(82.0),
        ("redis-save", 500) => Some(24.0),
        ("redis-save", 1000) => Some(13.0),
        _ => None,
    }
}

/// Ours beside those that save themselves at the same interval.
fn beside(rows: Vec<Row>) -> Vec<Row> {
    let figure = |id: String| rows.iter().find(|row| row.id == id).and_then(|row| row.median);
    let peer_of = |row: &Row| -> Row {
        let beside = |way: &str, peers: &[&str]| {
            let ms = row.id.strip_prefix("lost.")?.strip_prefix(way)?.strip_prefix('-')?;
            // What a figure is made of stands beside nothing.
            ms.strip_suffix("ms")?;
            peers.iter().filter_map(|peer| figure(format!("lost.{peer}-{ms}"))).reduce(f64::min)
        };
        let row = row.clone();
        if let Some(peer) = beside("timeline", &["redis-save", "redis-bgsave"])
            .or_else(|| beside("redis-timeline", &["redis-save", "redis-bgsave"]))
        {
            return row.peer_here(SAVING, peer);
        }
        match row.id.as_str() {
            "lost.go-cache-timeline-50ms" => row.peer(PAPER, 12.0),
            "lost.go-cache-snapshot-50ms" => row.peer(PAPER_SNAPSHOT, 78.0),
            _ => row,
        }
    };
    rows.iter().map(peer_of).collect()
}

impl Store {
    fn speaks(self) -> &'static str {
        match self {
            Self::Kv | Self::GoCache => "kv",
            Self::Redis => "redis",
        }
    }

    fn command_line(self, dir: &Path) -> Result<Vec<String>> {
        let words = |program: String, words: &[&str]| {
            std::iter::once(program).chain(words.iter().map(ToString::to_string)).collect()
        };
        Ok(match self {
            Self::Kv => words(go_app("kv").display().to_string(), &["serve", "--listen", ON_ALL]),
            Self::GoCache => words(go_app("gocache").display().to_string(), &["--listen", ON_ALL]),
            Self::Redis => {
                ensure!(on_path("redis-server"), "no redis-server on the PATH; cargo xtask ci installs it");
                let dir = dir.to_str().context("a path in UTF-8")?;
                let set = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", dir];
                words(
                    "redis-server".to_owned(),
                    &[&["--bind", "0.0.0.0", "--port", "7000"], &set[..]].concat(),
                )
            }
        })
    }
}

/// A server that answers.
struct Service {
    /// Of an unprotected one; dropped before its host.
    _server: Option<Owned>,
    protected: Option<Protected>,
    street: Option<Street>,
    dir: TempDir,
}

impl Service {
    fn street(&self) -> &Street {
        let protected = self.protected.as_ref().map(|protected| &protected.street);
        protected.or(self.street.as_ref()).expect("either way it has a street")
    }
}

impl Way {
    fn alone(&self, words: &[&str]) -> Result<Service> {
        let dir = tempfile::tempdir().context("cannot make a directory")?;
        let street = Street::build()?;
        let mut line = self.store.command_line(dir.path())?;
        line.extend(words.iter().map(ToString::to_string));
        let server = street.unprotected(&line)?;
        self.filled(Service { _server: Some(server), protected: None, street: Some(street), dir })
    }

    fn protected(&self, mode: Mode, interval: &str) -> Result<Service> {
        let dir = tempfile::tempdir().context("cannot make a directory")?;
        let line = self.store.command_line(dir.path())?;
        let options = ["--interval", interval];
        let protected = match mode {
            Mode::Timeline => Protected::start_at_its_host(&options, &line)?,
            Mode::Strong => Protected::start(mode, &options, &line)?,
        };
        self.filled(Service { _server: None, protected: Some(protected), street: None, dir })
    }

    /// A server that is saved at an interval, beside the one that stands alone; none if that one is told to.
    fn saved_each(&self, alone: &Service, interval_ms: u64) -> Result<Option<Service>> {
        let interval = format!("{interval_ms}ms");
        match self.saved {
            Saved::Checkpoints(mode) => self.protected(mode, &interval).map(Some),
            Saved::OwnSnapshot => {
                let file = alone.dir.path().join("snapshot").display().to_string();
                self.alone(&["--snapshot", &file, "--every", &interval]).map(Some)
            }
            Saved::Command(_) => Ok(None),
        }
    }

    fn ask_saved(&self, service: &Service, interval_ms: u64, seconds: f64) -> Result<Asked> {
        let Saved::Command(command) = self.saved else { return self.ask(service, seconds) };
        // Somebody on the server's host has it save itself, again and again.
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let saving = scope.spawn(|| {
                service.street().a.enter()?;
                save_again_and_again(command, Duration::from_millis(interval_ms), &is_over)
            });
            let asked = self.ask(service, seconds);
            is_over.store(true, Ordering::Relaxed);
            let saved = saving.join().expect("whoever saves does not panic")?;
            ensure!(saved > 0, "redis never saved itself");
            asked
        })
    }

    /// Where its client is, and how it calls the server.
    fn client<'a>(&self, service: &'a Service) -> (&'a Namespace, &'static str) {
        match self.saved {
            Saved::Checkpoints(Mode::Strong) => (&service.street().clients, SERVICE),
            _ => (&service.street().a, ON_HOST),
        }
    }

    fn filled(&self, service: Service) -> Result<Service> {
        let (place, address) = self.client(&service);
        let words = ["--keys", KEYS, "--value-bytes", VALUE_BYTES, "--fill"];
        let fill = || Asking::start(place, address, self.store.speaks(), FILL_SECONDS, &words)?.report();
        // It may not listen yet.
        Deadline::after(PATIENCE)
            .poll(|| fill().ok())
            .with_context(|| format!("no {:?} answers", self.store))?;
        Ok(service)
    }

    fn ask(&self, service: &Service, seconds: f64) -> Result<Asked> {
        let (place, address) = self.client(service);
        let words = ["--keys", KEYS, "--value-bytes", VALUE_BYTES, "--ratio", "90/10"];
        Asking::start(place, address, self.store.speaks(), seconds, &words)?.report()?.unbroken()
    }
}

/// How often it was done. A save that is still under way is not asked for again.
fn save_again_and_again(command: &str, interval: Duration, is_over: &AtomicBool) -> Result<u64> {
    let stream = TcpStream::connect(ON_HOST).context("cannot connect to redis")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut orders, mut answers) = (stream.try_clone()?, BufReader::new(stream));
    let mut saved = 0;
    while !is_over.load(Ordering::Relaxed) {
        let next = Instant::now() + interval;
        orders.write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        match line.as_bytes().first() {
            Some(b'+') => saved += 1,
            Some(b'-') if line.contains("in progress") => (),
            _ => bail!("redis says to {command}: {line:?}"),
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_stands_beside_the_better_of_those_at_its_interval() {
        let row = |id: &str, lost: f64| Row::measured(id, "%", &[lost]);
        let rows = beside(vec![
            row("lost.redis-save-50ms", 80.0),
            row("lost.redis-bgsave-50ms", 60.0),
            row("lost.redis-save-500ms", 20.0),
            row("lost.timeline-50ms", 5.0),
            row("lost.redis-save-50ms.with", 5.0),
            row("lost.timeline-50ms.with", 5.0),
            row("lost.timeline-500ms", 1.0),
            row("lost.go-cache-timeline-50ms", 9.0),
        ]);
        let peers: Vec<_> = rows.iter().map(|row| row.peer).collect();
        assert_eq!(peers, [None, None, None, Some(60.0), None, None, Some(20.0), Some(12.0)]);
        assert!(rows[3].peer_measured && !rows[7].peer_measured);
    }
}
