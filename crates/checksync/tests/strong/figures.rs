//! What strong consistency costs: the same clients at the same servers, protected in different ways and not at all.
//!
//! `cargo xtask eval strong` asks for these, and makes rows of the samples. A sample's id is
//! `SERVER.WAY.CLIENTS.FIGURE`, with `SERVER-1M` for one with so many keys.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::process::Running;
use testkit::programs::go_app;
use testkit::servers::Server;
use testkit::stat::name_and_seconds;
use testkit::wait::Deadline;

use super::STRONG;
use super::clients::{Store, Streams};
use super::rounds::{Death, Seed, strike};
use super::street::{Pair, SERVICE, SOON, Side, add_address, start_on};

/// What is measured, and where it is written.
#[derive(Debug)]
pub struct Figures {
    samples: File,
    /// Only ids that begin like this.
    only: String,
    runs: usize,
    seconds: u32,
}

/// How a server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Native,
    Strong,
    Timeline,
    /// Timeline, and the server asks after each put whether it is committed.
    Sync,
    /// A log that is synced before each answer.
    SyncedLog,
    /// Three nodes with a synced log; gets ask the others.
    Raft,
    /// The same, and gets ask nobody.
    RaftLocalGets,
}

/// A server that runs, and what must live as long.
struct Service {
    pair: Pair,
    /// One that nobody protects.
    _server: Option<Running>,
    port: u16,
}

/// How clients ask.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    clients: u32,
    pipeline: u32,
}

const CROWDS: [Crowd; 3] = [
    Crowd { clients: 1, pipeline: 1 },
    Crowd { clients: 16, pipeline: 1 },
    Crowd { clients: 64, pipeline: 1 },
];
/// Streams have begun then, and have not ended.
const LATEST_DEATH: Duration = Duration::from_millis(700);
const KEYS: u32 = 1000;
const MANY_KEYS: u32 = 1_000_000;
const PIPELINES: Crowd = Crowd { clients: 64, pipeline: 16 };

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Strong => "strong",
            Self::Timeline => "timeline",
            Self::Sync => "sync",
            Self::SyncedLog => "synced-log",
            Self::Raft => "raft",
            Self::RaftLocalGets => "raft-local-gets",
        }
    }

    fn of(store: Store) -> &'static [Self] {
        match store {
            Store::Kv => {
                &[Self::Native, Self::Strong, Self::Timeline, Self::Sync, Self::Raft, Self::RaftLocalGets]
            }
            Store::Redis => &[Self::Native, Self::Strong, Self::Timeline, Self::SyncedLog],
        }
    }
}

impl Crowd {
    fn name(self) -> String {
        match self.pipeline {
            1 => self.clients.to_string(),
            depth => format!("{}x{depth}", self.clients),
        }
    }
}

impl Service {
    /// With so many keys there before, if they are many.
    fn start(store: Store, way: Way, keys: u32) -> Self {
        let mut line = store.command_line();
        if keys == MANY_KEYS {
            line.extend(["--preload".to_owned(), keys.to_string()]);
        }
        match way {
            Way::Strong => Self::protected(STRONG, &line),
            Way::Timeline => Self::protected(&[], &line),
            Way::Sync => Self::protected(&[], &[line, vec!["--sync".to_owned()]].concat()),
            Way::Native | Way::SyncedLog => Self::alone(store, &line, way == Way::SyncedLog),
            Way::Raft => Self::raft(&[]),
            Way::RaftLocalGets => Self::raft(&["--local-gets"]),
        }
    }

    fn protected(options: &[&str], line: &[String]) -> Self {
        let pair = Pair::protecting(options, line);
        pair.wait_until_it_listens();
        Self { pair, _server: None, port: 7000 }
    }

    fn alone(store: Store, line: &[String], logged: bool) -> Self {
        let pair = street();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).current_dir(pair.dir.path());
        if logged {
            command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(pair.dir.path());
        }
        let server = start_on(pair.namespace(Side::A), command);
        let kind = match store {
            Store::Kv => Server::Kv,
            Store::Redis => Server::Redis,
        };
        let _client = pair.clients.within(|| Ok(kind.wait_ready((SERVICE, 7000).into(), SOON))).unwrap();
        Self { pair, _server: Some(server), port: 7000 }
    }

    /// Clients ask the leader, which is on any of three ports.
    fn raft(words: &[&str]) -> Self {
        let pair = street();
        let mut command = Command::new(go_app("raftkv"));
        let listen = [7000, 7001, 7002].map(|port| format!("{SERVICE}:{port}")).join(",");
        command
            .args(["cluster", "--listen", &listen, "--data"])
            .arg(pair.dir.path().join("raft"))
            .args(words);
        let mut server = start_on(pair.namespace(Side::A), command);
        let lines = server.expect_line("ready", SOON);
        let leader = lines.iter().rev().find_map(|line| line.strip_prefix("listening ")).expect("a leader");
        let port = leader.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address");
        Self { pair, _server: Some(server), port }
    }

    fn load(&self, store: Store, keys: u32, crowd: Crowd, seconds: u32) -> Value {
        let mut command = Command::new(go_app("load"));
        command.args(["--target", store.name(), "--address", &format!("{SERVICE}:{}", self.port)]);
        command.args(["--clients", &crowd.clients.to_string(), "--pipeline", &crowd.pipeline.to_string()]);
        command.args(["--seconds", &seconds.to_string(), "--keys", &keys.to_string(), "--timeout", "20s"]);
        command.args((keys == KEYS).then_some("--fill"));
        let mut load = start_on(&self.pair.clients, command);
        let report = load.line(SOON * 2).expect("a load reports at its end");
        load.wait(SOON);
        serde_json::from_str(&report).unwrap()
    }
}

/// The street, the service's address on host a.
fn street() -> Pair {
    let pair = Pair::build();
    pair.namespace(Side::A).within(|| add_address("br0", SERVICE)).unwrap();
    pair
}

impl Figures {
    /// As the environment says.
    pub fn asked_for() -> Self {
        let asked = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let number = |name: &str| asked(name).parse().unwrap_or_else(|_| panic!("{name} is no number"));
        Self {
            samples: File::create(asked("CHECKSYNC_FIGURES_TO")).unwrap(),
            only: asked("CHECKSYNC_FIGURES_ONLY"),
            runs: number("CHECKSYNC_FIGURES_RUNS"),
            seconds: number("CHECKSYNC_FIGURES_SECONDS") as u32,
        }
    }

    pub fn take(&mut self) {
        for store in [Store::Kv, Store::Redis] {
            for &way in Way::of(store) {
                self.requests(store, store.name(), KEYS, way);
            }
        }
        for way in [Way::Native, Way::Strong, Way::Sync] {
            self.requests(Store::Kv, "kv-1M", MANY_KEYS, way);
        }
        self.bulk();
        self.streams();
    }

    /// Whether a figure whose id begins like this is asked for.
    fn wants(&self, id: &str) -> bool {
        id.starts_with(&self.only) || self.only.starts_with(id)
    }

    fn say(&mut self, id: &str, unit: &str, value: f64) {
        if id.starts_with(&self.only) {
            let line = json!({ "id": id, "unit": unit, "value": value });
            writeln!(self.samples, "{line}").unwrap();
        }
    }

    fn requests(&mut self, store: Store, name: &str, keys: u32, way: Way) {
        let prefix = format!("{name}.{}", way.name());
        let crowds = CROWDS.into_iter().chain((store == Store::Redis).then_some(PIPELINES));
        let named = crowds.map(|crowd| (format!("{prefix}.{}", crowd.name()), crowd));
        let wanted: Vec<_> = named.filter(|(id, _)| self.wants(&format!("{id}."))).collect();
        for (id, crowd) in wanted {
            // Anew for each: what it says of its last epochs is then of these clients.
            let service = Service::start(store, way, keys);
            for run in 1..=self.runs {
                let (before, sent) = (Busy::of(&service.pair), bytes_sent(&service.pair));
                let report = service.load(store, keys, crowd, self.seconds);
                let busy = before.until(&Busy::of(&service.pair));
                let sent = bytes_sent(&service.pair) - sent;
                assert_eq!(report["broken_connections"], 0, "{report}");
                let of = |name: &str| report[name].as_f64().unwrap();
                let rate = of("requests_per_second");
                println!("{id}, {run} of {}: {rate:.0}/s, p50 {} us", self.runs, of("p50_us"));
                self.say(&format!("{id}.rate"), "/s", rate);
                self.say(&format!("{id}.p50"), "us", of("p50_us"));
                self.say(&format!("{id}.p99"), "us", of("p99_us"));
                if matches!(way, Way::Strong | Way::Timeline | Way::Sync) {
                    self.say(&format!("{id}.sent-per-put"), "B", sent / of("puts"));
                }
                for (who, seconds) in busy {
                    let percent = 100.0 * seconds / of("seconds");
                    self.say(&format!("{id}.cpu-{who}"), "%", percent);
                }
                self.say_stages(&id, &service.pair);
            }
        }
    }

    /// What an epoch's time was made of.
    fn say_stages(&mut self, id: &str, pair: &Pair) {
        for app in [Side::A, Side::B].into_iter().filter_map(|side| pair.app(side)) {
            for (stage, times) in app["stages_us"].as_object().into_iter().flatten() {
                self.say(&format!("{id}.stage-{stage}"), "us", times["p50"].as_f64().unwrap());
            }
        }
    }

    /// One flow, each way.
    fn bulk(&mut self) {
        for (way, options) in [
            ("native", None),
            ("gate", Some([STRONG, &["--on-standby-loss", "continue"]].concat())),
            ("strong", Some(STRONG.to_vec())),
        ] {
            for direction in ["down", "up"] {
                let id = format!("bulk.{way}.{direction}");
                if self.wants(&format!("{id}.")) {
                    (0..self.runs).for_each(|_| self.flow(&id, direction, way, options.as_deref()));
                }
            }
        }
    }

    /// Streams of bytes across a takeover, each byte checked: a thousand of all kinds, and a few long ones.
    fn streams(&mut self) {
        const MANY: &[&str] =
            &["--connections", "1000", "--bytes", "20000", "--rate", "20000", "--pause", "3s"];
        const ALL_MODES: &[&str] = &["--modes", "down,up,half-down,half-up,idle,zero-window"];
        const LONG: &[&str] = &["--connections", "8", "--bytes", "100000000", "--pause", "0s"];
        const BOTH_WAYS: &[&str] = &["--modes", "down,up"];
        for (name, words) in [("many", [MANY, ALL_MODES].concat()), ("long", [LONG, BOTH_WAYS].concat())] {
            for death in [Death::Manager, Death::Host] {
                let id = format!("streams.{name}.{}", death.name());
                if self.wants(&format!("{id}.")) {
                    (0..self.runs).for_each(|_| self.carried(&id, &words, death));
                }
            }
        }
    }

    fn carried(&mut self, id: &str, words: &[&str], death: Death) {
        let mut seed = Seed::announce();
        let mut pair = Pair::protecting(STRONG, &Streams::serve());
        let mut streams = Streams::start(&pair.clients, pair.dir.path(), words);
        pair.wait_until_accepted();
        let over = Deadline::after(seed.up_to(LATEST_DEATH)).poll(|| (!streams.is_running()).then_some(()));
        assert_eq!(over, None, "the death came too late");
        strike(&mut pair, death, None, &mut seed);
        let takeover = pair.takeover();
        let report = streams.finish(SOON * 3);
        println!("{id}: {} right, {} failed {}", report["verified"], report["failed"], report["failures"]);
        if report["failed"] != 0 {
            println!("{}", pair.logs());
        }
        self.say(&format!("{id}.failed"), "", report["failed"].as_f64().unwrap());
        self.say(&format!("{id}.gap"), "ms", report["gap_ms_max"].as_f64().unwrap());
        self.say(&format!("{id}.restore"), "us", takeover["restore_us"].as_f64().unwrap());
    }

    fn flow(&mut self, id: &str, direction: &str, way: &str, options: Option<&[&str]>) {
        let bytes = if way == "strong" { "200000000" } else { "1000000000" };
        let (pair, _server) = match options {
            Some(options) if way == "strong" => (Pair::protecting(options, &Streams::serve()), None),
            // Without a standby all passes through the gate, and nothing is captured.
            Some(options) => {
                let mut pair = Pair::build();
                pair.start_primary(options, &Streams::serve());
                pair.wait_until_it_listens();
                (pair, None)
            }
            None => {
                let pair = street();
                let line = Streams::serve();
                let mut command = Command::new(&line[0]);
                command.args(&line[1..]);
                let mut server = start_on(pair.namespace(Side::A), command);
                server.expect_line("ready", SOON);
                (pair, Some(server))
            }
        };
        let words = ["--connections", "1", "--modes", direction, "--bytes", bytes, "--pause", "0s"];
        let report = Streams::start(&pair.clients, pair.dir.path(), &words).finish(SOON * 2);
        assert_eq!(report["failed"], 0, "{report}");
        let rate = report["bytes_per_second"].as_f64().unwrap() * 8.0 / 1e9;
        println!("{id}: {rate:.2} Gb/s");
        self.say(&format!("{id}.rate"), "Gb/s", rate);
        self.say(&format!("{id}.gap"), "ms", report["gap_ms_max"].as_f64().unwrap());
        self.say_stages(id, &pair);
    }
}

/// What host a has sent so far, answers to clients included.
fn bytes_sent(pair: &Pair) -> f64 {
    const SENT: usize = 8;
    let counters = || fs::read_to_string("/proc/thread-self/net/dev");
    let counters = pair.namespace(Side::A).within(counters).unwrap();
    let line = counters.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("its device");
    line.split_whitespace().nth(SENT).and_then(|bytes| bytes.parse().ok()).expect("a counter")
}

/// Seconds that processors worked for each part, so far.
#[derive(Debug, Default)]
struct Busy(BTreeMap<&'static str, f64>);

impl Busy {
    fn of(pair: &Pair) -> Self {
        let mut busy = Self::default();
        for (side, whole) in [(Side::A, "manager"), (Side::B, "standby")] {
            let Some(pid) = pair.manager_pid(side) else { continue };
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                busy.add(&task.path().join("stat").display().to_string(), |name| match (side, name) {
                    (Side::A, "gate" | "recorder" | "recorded") => "gate",
                    (Side::A, name) if name == "engine" || name.starts_with("copy-") => "engine",
                    (Side::A | Side::B, _) => whole,
                });
            }
            let app = pair.app(side).and_then(|app| app["app_pid"].as_i64());
            if let Some(pid) = app.filter(|_| side == Side::A) {
                busy.add(&format!("/proc/{pid}/stat"), |_| "app");
            }
        }
        busy
    }

    fn add(&mut self, stat: &str, whose: impl Fn(&str) -> &'static str) {
        // It may have ended meanwhile.
        let text = fs::read_to_string(stat).unwrap_or_default();
        let Some((name, seconds)) = name_and_seconds(&text) else { return };
        *self.0.entry(whose(name)).or_default() += seconds;
    }

    fn until(&self, later: &Self) -> Vec<(&'static str, f64)> {
        let since = |(who, seconds): (&&'static str, &f64)| (*who, seconds - self.0.get(who).unwrap_or(&0.0));
        later.0.iter().map(since).collect()
    }
}
