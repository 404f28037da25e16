//! One round: clients at work, a death at a random instant, a takeover, and what the judge says.

use std::time::{Duration, SystemTime};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use testkit::wait::Deadline;

use super::clients::{Load, Seen, Store, forgiven, judge};
use super::moments::{Hit, LOG_FILTER, Moment};
use super::street::{Pair, SOON, Side};

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// The manager, and the gate and the record with it: they are threads of its own.
    Manager,
    App,
    /// The manager stands still, and goes on when it has long been given up.
    Hang,
    /// The cable is pulled, and all that runs on the host ends.
    Host,
    /// The cable is pulled, and put in again; all runs on.
    Cut,
}

impl Death {
    pub const ALL: [Self; 5] = [Self::Manager, Self::App, Self::Hang, Self::Host, Self::Cut];

    pub fn name(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::App => "app",
            Self::Hang => "hang",
            Self::Host => "host",
            Self::Cut => "cut",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Strong,
    Timeline,
}

/// Random enough for instants, and the same again with the same seed.
#[derive(Debug)]
pub struct Seed(u64);

impl Seed {
    /// Of the environment, or of the clock; printed, to be given again.
    pub fn announce() -> Self {
        let clock = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("CHECKSYNC_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(clock);
        println!("CHECKSYNC_SEED={seed}");
        Self(seed)
    }

    pub fn up_to(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        limit.mul_f64((mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64)
    }
}

/// What a round was like.
#[derive(Debug)]
pub struct Outcome {
    store: Store,
    death: Death,
    /// What was going on when the blow fell.
    pub phases: Vec<&'static str>,
    pub seen: Seen,
    takeover: Value,
    /// Of a round in timeline mode: the verdict without the window that was announced as lost.
    forgiven: Option<Value>,
}

pub fn play(store: Store, mode: Mode, death: Death, aim: Option<Moment>, seed: &mut Seed) -> Outcome {
    const LONGEST: Duration = Duration::from_millis(400);
    let (options, words): (&[&str], &[&str]) = match mode {
        Mode::Strong => (&["--consistency", "strong"], &["--clients", "6", "--keys", "12"]),
        Mode::Timeline => (&[], &["--clients", "6", "--keys", "12", "--reconnect"]),
    };
    let mut hosts = Pair::build();
    hosts.log_filter = Some(LOG_FILTER);
    let mut pair = hosts.protect(options, &store.command_line());
    let mut load = Load::start(&pair.clients, pair.dir.path(), store, words);
    let instant = seed.up_to(LONGEST);
    println!("{} {mode:?}: death of {} after {instant:?}, then {aim:?}", store.name(), death.name());
    let over = Deadline::after(instant).poll(|| load.has_ended().then_some(()));
    assert_eq!(over, None, "the clients ended by themselves");
    let hit = strike(&mut pair, death, aim, seed);
    let takeover = match death {
        Death::Manager | Death::App | Death::Hang | Death::Host => pair.takeover(),
        Death::Cut => after_a_cut(&pair, &load, seed),
    };
    load.wait_for_answers();
    if death == Death::Hang {
        pair.signal(Side::A, Signal::CONT);
        let ended = pair.manager(Side::A).wait(SOON);
        assert!(!ended.success(), "a manager that was superseded says so");
        load.wait_for_answers();
    }
    let phases = hit.phases(&pair.log(Side::A), &pair.log(Side::B));
    let seen = load.finish();
    let forgiven = (mode == Mode::Timeline && !takeover.is_null()).then(|| {
        let at = |name: &str| takeover[name].as_u64().unwrap();
        judge(&forgiven(&seen.history, at("frozen_at_ns")..=at("serving_at_ns")))
    });
    Outcome { store, death, phases, seen, takeover, forgiven }
}

/// Both sides live, and reach the register: it decides who goes on. Clients reach whom they reach, and all when the
/// cable is in again. Answers the takeover, if there was one.
fn after_a_cut(pair: &Pair, load: &Load, seed: &mut Seed) -> Value {
    let apart = Duration::from_millis(100) + seed.up_to(Duration::from_millis(500));
    assert_eq!(Deadline::after(apart).poll(|| None::<()>), None);
    pair.heal(Side::A);
    load.wait_for_answers();
    pair.last_takeover().unwrap_or_default()
}

/// The blow falls at once, or in the next phase that is aimed at; but not while nobody could take over.
pub fn strike(pair: &mut Pair, death: Death, aim: Option<Moment>, seed: &mut Seed) -> Hit {
    const SINCE_ASKED_MAX: Duration = Duration::from_millis(20);
    pair.wait_until_protected();
    Deadline::after(seed.up_to(SINCE_ASKED_MAX)).poll(|| None::<()>);
    let app = (death == Death::App).then(|| pair.app_pid());
    let (primary, standby) = (pair.log(Side::A), pair.log(Side::B));
    // Whom it hits stands still until it has fallen.
    let standing = aim.and_then(|moment| {
        let side = if moment.is_the_standbys() { "run-b" } else { "run-a" };
        moment.await_next(&pair.dir.path().join(side))
    });
    match (death, app) {
        (Death::App, Some(app)) => kill_process(app, Signal::KILL).unwrap(),
        (Death::Hang, _) => pair.signal(Side::A, Signal::STOP),
        (Death::Host | Death::Cut, _) => pair.cut(Side::A),
        (Death::Manager | Death::App, _) => pair.signal(Side::A, Signal::KILL),
    }
    let hit = Hit::now(&primary, &standby);
    drop(standing);
    match death {
        Death::Manager => drop(pair.manager(Side::A).wait(SOON)),
        Death::Host => pair.power_off_a(),
        Death::App | Death::Hang | Death::Cut => (),
    }
    hit
}

impl Outcome {
    /// One line of what is counted.
    pub fn summary(&self) -> Value {
        json!({
            "store": self.store.name(),
            "death": self.death.name(),
            "phases": self.phases,
            "failed": false,
            "linearizable": self.seen.is_linearizable(),
            "lost_writes": self.seen.lost_writes(),
            "lost_outside_window": self.lost_outside_the_window(),
            "mangled": self.seen.mangled(),
            "broken_connections": self.seen.broken_connections(),
            "gap_ms": self.seen.report["gap_ms_max"],
            "restore_us": self.takeover["restore_us"],
        })
    }

    /// Whether timeline consistency would not excuse it: something is missing that was answered before the
    /// announced instant, or what is left is not as if the window had never been.
    fn lost_outside_the_window(&self) -> bool {
        let Some(forgiven) = &self.forgiven else { return self.seen.lost_writes() > 0 };
        let frozen_at = self.takeover["frozen_at_ns"].as_u64().unwrap();
        self.seen.first_lost_at_ns().is_some_and(|first| first < frozen_at)
            || forgiven["linearizable"] != "yes"
    }

    /// What timeline consistency promises.
    #[track_caller]
    pub fn assert_only_the_window_is_lost(&self) {
        assert!(self.seen.mangled() == 0 && !self.lost_outside_the_window(), "{self:#?}");
    }
}
