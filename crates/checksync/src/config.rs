//! What a manager is to do, from its three sources: a flag beats the environment, which beats the file.
//!
//! Everything that can be wrong with it is found here, before anything is started.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use arbiter::ArbiterSpec;
use gate::NetworkSpec;
use replica::primary::{CommitOn, Consistency, OnCrash, OnStandbyLoss};
use replica::{Fencing, Nanos, Timing};
use serde::Deserialize;
use store::{Location, Retention};
use wire::TlsFiles;

use crate::arguments::{
    ConsistencyArg, FencingArg, Format, OnCrashArg, OnStandbyLossArg, PrimaryArgs, ReplicateArg, SharedArgs,
    StandbyArgs,
};
use crate::duration;
use crate::exit::{Coded, Exit};
use crate::manager::copy::Schedule;
use crate::manager::store::{NamedBy, StoreSettings};

const INTERVAL: Duration = Duration::from_millis(50);
const HEARTBEAT: Duration = Duration::from_millis(20);
const MISSED: u32 = 5;
const GRACE: Duration = Duration::from_secs(10);
const SHADOW_MIB: u64 = 256;
const STORE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a restored app may take to be well, unless somebody says otherwise.
pub const DRILL_PATIENCE: Duration = Duration::from_secs(30);
const DRILL_EVERY_MIN: Duration = Duration::from_secs(1);
/// Threads of a manager's network.
pub const NETWORK_THREADS: usize = 2;
const NETWORK_THREADS_MAX: usize = 64;

/// What primary and standby share.
#[derive(Debug, Clone)]
pub struct Shared {
    pub tls: TlsFiles,
    pub pki: PathBuf,
    pub fencing: Fencing,
    pub arbiter: Option<ArbiterSpec>,
    pub state: Option<PathBuf>,
    pub format: Format,
}

/// What an app begins with on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// Its program, which runs or is started.
    Program,
    /// What a store has kept of it.
    Store,
}

#[derive(Debug)]
pub struct PrimarySettings {
    pub app: String,
    pub standbys: Vec<String>,
    pub commit_on: CommitOn,
    pub interval: Duration,
    pub timing: Timing,
    pub on_crash: OnCrash,
    pub consistency: Consistency,
    /// Structures instead of a process, which needs neither a capture nor a network.
    pub structures: bool,
    pub abandon_standby: bool,
    /// The app's own, instead of the host's.
    pub network: Option<NetworkSpec>,
    pub grace: Duration,
    pub shadow_bytes: u64,
    /// Says whether the app is well, in drills on its standby.
    pub health: Option<String>,
    pub store: Option<StoreSettings>,
    pub state_dirs: Vec<PathBuf>,
    pub shared_dirs: Vec<PathBuf>,
    pub shared: Shared,
}

#[derive(Debug)]
pub struct StandbySettings {
    pub listen: SocketAddr,
    pub promote_hook: Option<OsString>,
    pub link: Option<String>,
    /// Of what is served here after a takeover.
    pub standbys: Vec<String>,
    /// Where its checkpoints go, instead of where its primary says.
    pub store: Option<StoreSettings>,
    pub network_threads: usize,
    pub drills: Schedule,
    pub shared: Shared,
}

/// The file. Its keys are the flags, with underscores.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    pki: Option<PathBuf>,
    host: Option<String>,
    #[serde(deserialize_with = "arbiter")]
    arbiter: Option<ArbiterSpec>,
    fencing: Option<FencingArg>,
    state: Option<PathBuf>,
    listen: Option<SocketAddr>,
    promote_hook: Option<String>,
    network_threads: Option<usize>,
    app: Option<String>,
    standby: Standbys,
    #[serde(deserialize_with = "commit_on")]
    commit_on: Option<CommitOn>,
    #[serde(deserialize_with = "duration::deserialize")]
    interval: Option<Duration>,
    #[serde(deserialize_with = "duration::deserialize")]
    heartbeat: Option<Duration>,
    missed: Option<u32>,
    replicate: Option<ReplicateArg>,
    on_crash: Option<OnCrashArg>,
    consistency: Option<ConsistencyArg>,
    on_standby_loss: Option<OnStandbyLossArg>,
    address: Option<String>,
    link: Option<String>,
    gateway: Option<String>,
    #[serde(deserialize_with = "duration::deserialize")]
    grace: Option<Duration>,
    shadow_mib: Option<u64>,
    state_dir: Vec<PathBuf>,
    shared: Vec<PathBuf>,
    store: Option<String>,
    #[serde(deserialize_with = "duration::deserialize")]
    store_interval: Option<Duration>,
    store_keep: Option<String>,
    health: Option<String>,
    #[serde(deserialize_with = "duration::deserialize")]
    drill_every: Option<Duration>,
}

/// In its place in the file, so that what is wrong with it is said with its line.
fn arbiter<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<ArbiterSpec>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// `commit_on = "any"`, `"all"` or `"2"`.
fn commit_on<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<CommitOn>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// `standby = "b:7400"`, or a list of them.
#[derive(Debug, Default, Clone)]
struct Standbys(Vec<String>);

/// N.B. an untagged enum would not say what was expected.
impl<'de> Deserialize<'de> for Standbys {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;

        impl<'de> serde::de::Visitor<'de> for OneOrSeveral {
            type Value = Standbys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string, or a list of them")
            }

            fn visit_str<E>(self, one: &str) -> Result<Standbys, E> {
                Ok(Standbys(vec![one.to_owned()]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Standbys, A::Error> {
                let mut several = Vec::new();
                while let Some(one) = list.next_element()? {
                    several.push(one);
                }
                Ok(Standbys(several))
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}

impl Standbys {
    /// What the flags say, or this.
    fn unless_given(&self, given: Vec<String>) -> Vec<String> {
        if given.is_empty() { self.0.clone() } else { given }
    }
}

impl PrimarySettings {
    /// What is wrong with them is a mistake of whoever asks.
    pub fn resolve(args: PrimaryArgs, beginning: Beginning) -> Result<Self, Coded> {
        Self::settle(args, beginning).map_err(|why| Coded::new(Exit::Usage, why))
    }

    fn settle(args: PrimaryArgs, beginning: Beginning) -> anyhow::Result<Self> {
        let file = File::load(args.shared.config.as_deref())?;
        let given = GivenStore {
            location: args.store.clone(),
            interval: args.store_interval,
            keep: args.store_keep,
            state: args.shared.state.clone(),
        };
        let store = given.settle(&file)?;
        let app = args.app.or(file.app.clone()).context("no app is named; give --app NAME")?;
        check_name(&app)?;
        let standbys = file.standby.unless_given(args.standby);
        let commit_on = args.commit_on.or(file.commit_on);
        let heartbeat = args.heartbeat.or(file.heartbeat).unwrap_or(HEARTBEAT);
        let missed = args.missed.or(file.missed).unwrap_or(MISSED);
        let interval = args.interval.or(file.interval).unwrap_or(INTERVAL);
        if interval < Duration::from_millis(1) {
            bail!("an interval of {interval:?} is too short; take at least 1ms");
        }
        let given =
            |given: Vec<PathBuf>, file: &Vec<PathBuf>| if given.is_empty() { file.clone() } else { given };
        let state_dirs = state_dirs(given(args.state_dir, &file.state_dir), beginning)?;
        let shared_dirs = given(args.shared_dir, &file.shared);
        let on_crash = args.on_crash.or(file.on_crash).unwrap_or(OnCrashArg::Failover);
        let shadow_mib = args.shadow_mib.or(file.shadow_mib).unwrap_or(SHADOW_MIB);
        let health = args.health.or(file.health.clone());
        let (address, link) = (args.address.or(file.address.clone()), args.link.or(file.link.clone()));
        let gateway = args.gateway.or(file.gateway.clone());
        let network = match (address, link) {
            (Some(address), Some(link)) => Some(network_spec(&address, &link, gateway.as_deref())?),
            (Some(address), None) => bail!("where is {address}? Name the bridge or device with --link"),
            (None, _) => None,
        };
        let structures = args.replicate.or(file.replicate) == Some(ReplicateArg::Structures);
        if structures && network.is_some() {
            bail!(
                "structures move without an address; leave --address out, or give it to the program's own hosts"
            );
        }
        if store.is_some() && structures {
            bail!("a store keeps checkpoints of a process, and structures are none; leave --store out");
        }
        if structures && !state_dirs.is_empty() {
            bail!("a program with structures keeps its files by itself; leave --state-dir out");
        }
        if health.is_some() && structures {
            bail!("a drill restores a process, and structures are none; leave --health out");
        }
        if let (Some(gateway), None) = (&gateway, &network) {
            bail!(
                "the gateway {gateway} would be for nobody: give the app an address (--address, --link), or none"
            );
        }
        let strong = structures || args.consistency.or(file.consistency) == Some(ConsistencyArg::Strong);
        let on_standby_loss = args.on_standby_loss.or(file.on_standby_loss);
        if on_standby_loss.is_some() && !strong {
            bail!(
                "--on-standby-loss says what becomes of answers that wait, and in timeline none wait; give \
                 --consistency strong, or leave it out"
            );
        }
        let on_standby_loss = on_standby_loss.map_or_else(Default::default, Into::into);
        let consistency = match strong {
            true => Consistency::Strong { on_standby_loss },
            false => Consistency::Timeline,
        };
        let grace = args.grace.or(file.grace).unwrap_or(GRACE);
        let shared = Shared::resolve(args.shared, file)?;
        check_strong(consistency, structures || network.is_some(), shared.fencing)?;
        if strong && !structures && on_crash == OnCrashArg::Restart {
            bail!(
                "strong consistency keeps the connections, and a program that is started afresh knows none of them; \
                 give --on-crash failover or stop"
            );
        }
        if commit_on == Some(CommitOn::Store) {
            check_commit_on_store(store.is_some(), &standbys, shared.fencing)?;
        } else if standbys.is_empty() {
            bail!("no standby is named; give --standby HOST:PORT");
        }
        let at_once = structures.then_some("structures have one standby at a time").or_else(|| {
            (shared.fencing != Fencing::Register)
                .then_some("without --arbiter there is one standby at a time")
        });
        check_commit_on(commit_on, &standbys, at_once)?;
        Ok(Self {
            consistency,
            commit_on: commit_on.unwrap_or_default(),
            structures,
            abandon_standby: args.abandon_standby,
            network,
            app,
            standbys,
            interval,
            timing: Timing::new(nanos(heartbeat), missed)?,
            on_crash: on_crash.into(),
            grace,
            shadow_bytes: shadow_mib.saturating_mul(1 << 20),
            health,
            store,
            state_dirs,
            shared_dirs,
            shared,
        })
    }

    /// The addresses where each standby is looked for that is to be kept up to date at the same time. Without a register
    /// nobody could say which of several may take over, and structures have one: then the others are spares.
    pub fn seats(&self) -> Vec<Vec<String>> {
        match self.structures || self.shared.fencing != Fencing::Register {
            true => vec![self.standbys.clone()],
            false => {
                let mut known = BTreeSet::new();
                let once = self.standbys.iter().filter(|address| known.insert(address.as_str()));
                once.map(|address| vec![address.clone()]).collect()
            }
        }
    }

    pub fn is_strong(&self) -> bool {
        matches!(self.consistency, Consistency::Strong { .. })
    }
}

/// What the flags say of a store.
struct GivenStore {
    location: Option<Location>,
    interval: Option<Duration>,
    keep: Option<Retention>,
    state: Option<PathBuf>,
}

impl GivenStore {
    fn settle(self, file: &File) -> anyhow::Result<Option<StoreSettings>> {
        let Self { location, interval, keep, state } = self;
        let from_file = |text: &Option<String>| text.as_ref().map(|text| text.parse()).transpose();
        let location: Option<Location> =
            location.map_or_else(|| from_file(&file.store), |it| Ok(Some(it)))?;
        let kept = file.store_keep.as_ref().map(|text| text.parse()).transpose()?;
        let Some(location) = location else {
            if interval.is_some() || keep.is_some() {
                bail!("no store is named; give --store, or leave --store-interval and --store-keep out");
            }
            return Ok(None);
        };
        Ok(Some(StoreSettings {
            location,
            interval: interval.or(file.store_interval).unwrap_or(STORE_INTERVAL),
            keep: keep.or(kept).unwrap_or_default(),
            spool: state.or(file.state.clone()).unwrap_or_else(std::env::temp_dir),
            named_by: NamedBy::Here,
        }))
    }
}

/// `at_once`: why there is never more than one standby.
fn check_commit_on(
    commit_on: Option<CommitOn>,
    standbys: &[String],
    at_once: Option<&str>,
) -> anyhow::Result<()> {
    let Some(commit_on) = commit_on else { return Ok(()) };
    if let Some(why) = at_once {
        bail!("{why}, so there is nothing to choose; leave --commit-on out");
    }
    let named = standbys.len();
    match commit_on {
        CommitOn::Count(count) if count as usize > named => {
            bail!(
                "--commit-on {count} takes {count} standbys, and {named} are named; name more with --standby"
            )
        }
        CommitOn::Any | CommitOn::All | CommitOn::Count(_) | CommitOn::Store => Ok(()),
    }
}

/// What a store can't commit without.
fn check_commit_on_store(store: bool, standbys: &[String], fencing: Fencing) -> anyhow::Result<()> {
    if !store {
        bail!("--commit-on store has each checkpoint in a store; name it with --store");
    }
    if fencing != Fencing::Register {
        bail!(
            "without an arbiter nobody could say who may go on with the app out of the store; give --arbiter, or leave \
             --commit-on store out"
        );
    }
    if !standbys.is_empty() {
        bail!(
            "--commit-on store has no standbys beside the store yet; leave --standby out, or --commit-on store: then the \
             store follows what the standbys have committed"
        );
    }
    Ok(())
}

/// Directories, each by its own path, none in another. A program finds them there; out of a store they come by themselves.
fn state_dirs(given: Vec<PathBuf>, beginning: Beginning) -> anyhow::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in given {
        let real = match beginning {
            Beginning::Program => fs::canonicalize(&path),
            Beginning::Store => path_to_be(&path),
        };
        let real = real.with_context(|| {
            format!("the state directory {} is not there; make it, or leave --state-dir out", path.display())
        })?;
        let other = real.exists() && !real.is_dir();
        if other || real.parent().is_none() || real.to_str().is_none() {
            bail!("{} can't be a state directory; name a directory below /, in UTF-8", real.display());
        }
        if let Some(other) = found.iter().find(|other| other.starts_with(&real) || real.starts_with(other)) {
            bail!("of the state directories {} and {} one is in the other", other.display(), real.display());
        }
        found.push(real);
    }
    Ok(found)
}

/// The path of what is there, or could be.
fn path_to_be(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(why), Some(parent), Some(name))
            if why.kind() == io::ErrorKind::NotFound && path.is_absolute() =>
        {
            Ok(path_to_be(parent)?.join(name))
        }
        (found, ..) => found,
    }
}

/// What strong consistency can't do without.
fn check_strong(consistency: Consistency, can_hold: bool, fencing: Fencing) -> anyhow::Result<()> {
    match consistency {
        Consistency::Timeline => Ok(()),
        Consistency::Strong { .. } if !can_hold => {
            bail!("strong consistency needs an address that is the app's own; give --address and --link")
        }
        Consistency::Strong { on_standby_loss: OnStandbyLoss::Continue } if fencing != Fencing::Register => {
            bail!(
                "without an arbiter nobody can say that the standby has not taken over, so answers must wait \
                 when it is lost; give --arbiter, or --on-standby-loss stop"
            )
        }
        Consistency::Strong { .. } => Ok(()),
    }
}

/// Where an app is on the network.
pub fn network_spec(address: &str, link: &str, gateway: Option<&str>) -> anyhow::Result<NetworkSpec> {
    let address = address.parse().with_context(|| format!("{address:?} is no address for an app"))?;
    let gateway = gateway.map(|text| text.parse().with_context(|| format!("{text:?} is no gateway")));
    Ok(NetworkSpec::new(address, link, gateway.transpose()?)?)
}

impl StandbySettings {
    /// As for a primary.
    pub fn resolve(args: StandbyArgs) -> Result<Self, Coded> {
        Self::settle(args).map_err(|why| Coded::new(Exit::Usage, why))
    }

    fn settle(args: StandbyArgs) -> anyhow::Result<Self> {
        let file = File::load(args.shared.config.as_deref())?;
        let listen =
            args.listen.or(file.listen).context("no address to listen on; give --listen HOST:PORT")?;
        let promote_hook = args.promote_hook.or(file.promote_hook.clone().map(Into::into));
        let link = args.link.or(file.link.clone());
        let network_threads = args.network_threads.or(file.network_threads).unwrap_or(NETWORK_THREADS);
        if !(1..=NETWORK_THREADS_MAX).contains(&network_threads) {
            bail!("{network_threads} threads for the network; take 1 to {NETWORK_THREADS_MAX}");
        }
        let standbys = file.standby.unless_given(args.standby);
        let given = GivenStore {
            location: args.store,
            interval: args.store_interval,
            keep: args.store_keep,
            state: args.shared.state.clone(),
        };
        let store = given.settle(&file)?;
        let every = args.drill_every.or(file.drill_every);
        if every.is_some_and(|every| every < DRILL_EVERY_MIN) {
            bail!("drills take time and memory; take at least {DRILL_EVERY_MIN:?} for --drill-every");
        }
        let health = args.health.or(file.health.clone());
        let drills = Schedule { every, health, patience: DRILL_PATIENCE };
        let shared = Shared::resolve(args.shared, file)?;
        Ok(Self { listen, promote_hook, link, standbys, store, network_threads, drills, shared })
    }
}

impl Shared {
    fn resolve(args: SharedArgs, file: File) -> anyhow::Result<Self> {
        let pki = args.pki.or(file.pki);
        let pki =
            pki.context("no certificates; give --pki DIR (`checksync pki init DIR HOST…` makes them)")?;
        let host = args.host.or(file.host);
        // A flag of either kind beats what the file says of both.
        let (arbiter, fencing) = match (args.arbiter, args.fencing) {
            (None, None) => (file.arbiter, file.fencing),
            given => given,
        };
        let fencing = match (&arbiter, fencing) {
            (Some(_), Some(FencingArg::None)) => {
                bail!("`arbiter` and `fencing = \"none\"` exclude each other")
            }
            (Some(_), None) => Fencing::Register,
            (None, Some(FencingArg::None)) => Fencing::None,
            (None, None) => Fencing::Absent,
        };
        let state = args.state.or(file.state);
        let tls = TlsFiles::load(&pki, host.as_deref())?;
        let pki = fs::canonicalize(&pki).with_context(|| format!("cannot find {}", pki.display()))?;
        Ok(Self { tls, pki, fencing, arbiter, state, format: args.output.format })
    }

    pub fn host(&self) -> &str {
        self.tls.host()
    }
}

impl File {
    fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read the configuration {}, which --config or CHECKSYNC_CONFIG names",
                path.display()
            )
        })?;
        let what = || format!("{} is no configuration for release {}", path.display(), wire::RELEASE);
        toml::from_str(&text).with_context(what)
    }
}

impl From<OnCrashArg> for OnCrash {
    fn from(arg: OnCrashArg) -> Self {
        match arg {
            OnCrashArg::Failover => Self::Failover,
            OnCrashArg::Restart => Self::Restart,
            OnCrashArg::Stop => Self::Stop,
        }
    }
}

impl From<OnStandbyLossArg> for OnStandbyLoss {
    fn from(arg: OnStandbyLossArg) -> Self {
        match arg {
            OnStandbyLossArg::Continue => Self::Continue,
            OnStandbyLossArg::Stop => Self::Stop,
        }
    }
}

/// A name that can be part of a file's and a cgroup's.
pub fn check_name(app: &str) -> anyhow::Result<()> {
    const LEN_MAX: usize = 100;
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if app.is_empty() || app.starts_with('.') || app.len() > LEN_MAX || !app.chars().all(fits) {
        bail!("{app:?} can't name an app: use letters, digits, '.', '_' and '-', not '.' first, at most 100");
    }
    Ok(())
}

pub fn nanos(span: Duration) -> Nanos {
    Nanos(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

/// How each side names its fencing to the other: both must say the same.
pub fn fencing_name(fencing: Fencing) -> &'static str {
    match fencing {
        Fencing::Register => "arbiter",
        Fencing::None => "none",
        Fencing::Absent => "absent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_sets_what_flags_set() {
        let file: File = toml::from_str("app = \"kv\"\ninterval = \"5ms\"\non_crash = \"stop\"").unwrap();
        assert_eq!(file.app.as_deref(), Some("kv"));
        assert_eq!(file.interval, Some(Duration::from_millis(5)));
        assert_eq!(file.on_crash, Some(OnCrashArg::Stop));
    }

    #[test]
    fn standbys_are_one_or_several_and_flags_beat_the_file() {
        for (text, wanted) in [
            ("", &[][..]),
            ("standby = \"b:1\"", &["b:1"]),
            ("standby = [\"b:1\", \"c:1\"]", &["b:1", "c:1"]),
        ] {
            let file: File = toml::from_str(text).unwrap();
            assert_eq!(file.standby.unless_given(Vec::new()), wanted, "{text}");
            assert_eq!(file.standby.unless_given(vec!["d:1".to_owned()]), ["d:1"], "{text}");
        }
    }

    #[test]
    fn a_misspelt_key_or_span_is_refused_by_its_name() {
        for (text, named) in [("intervall = \"5ms\"", "intervall"), ("interval = \"5\"", "\"5\"")] {
            let why = toml::from_str::<File>(text).unwrap_err().to_string();
            assert!(why.contains(named), "{why}");
        }
    }

    #[test]
    fn names_that_leave_a_directory_are_refused() {
        for name in ["", "..", ".x", "a/b", "a b", &"x".repeat(101)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("kv-1.0_b").is_ok());
    }
}
