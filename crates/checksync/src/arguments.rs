//! The command line: every verb with its flags.
//!
//! What can also stand in a configuration file is an `Option` here, and [`crate::config`] puts the three
//! sources together: a flag beats the environment, which beats the file.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use arbiter::ArbiterSpec;
use clap::{Args, Parser, Subcommand, ValueEnum};
use image::CheckpointId;
use replica::primary::CommitOn;
use store::{Location, Retention};

use crate::{duration, moment};

#[derive(Debug, Parser)]
#[command(name = "checksync", version, about = "An unmodified server survives the death of its machine")]
pub struct Cli {
    /// How log lines look; they go to the standard error
    #[arg(long, global = true, env = "CHECKSYNC_LOG", value_enum, default_value_t)]
    pub log: LogFormat,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make the certificates of a cluster
    #[command(subcommand)]
    Pki(PkiVerb),
    /// Keep warm copies of apps, and take over when their primaries die
    Standby(StandbyArgs),
    /// Keep the registers of who may serve, on a third host
    Witness(WitnessArgs),
    /// Start a program and protect it
    Run(RunArgs),
    /// Protect a program that runs already
    Attach(AttachArgs),
    /// Save a running process into a directory, once
    Checkpoint(CheckpointArgs),
    /// Set a saved process going again
    Restore(RestoreArgs),
    /// Show what a checkpoint holds
    Inspect(InspectArgs),
    /// List, verify and compare checkpoints of a store
    #[command(subcommand)]
    Checkpoints(CheckpointsVerb),
    /// Show what the managers of this host do
    Status(StatusArgs),
    /// Keep the standby from taking over by itself, for a time
    Pause(PauseArgs),
    /// Move an app of this host to its standby, and lose nothing
    Switchover(SwitchoverArgs),
    /// Try a takeover on the standby's host: restore the copy where nobody hears it, see that it is well, throw it away
    Drill(DrillArgs),
    /// Say whether this host, a process, a standby and a register are fit
    Check(CheckArgs),
    /// Show a takeover on this one machine
    Demo(DemoArgs),
    /// The program that the demo protects
    #[command(hide = true, name = "demo-app")]
    DemoApp(DemoAppArgs),
    /// The first process of a cell
    #[command(hide = true, name = "cell-init")]
    CellInit(CellInitArgs),
    /// The guard of a process that was attached to
    #[command(hide = true)]
    Guard(GuardArgs),
    /// A command in a cell
    #[command(hide = true, name = "cell-enter")]
    CellEnter(CellEnterArgs),
}

#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// How results look; they go to the standard output
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum PkiVerb {
    /// Make an authority, and a pair of files for each host; or pairs for more hosts
    Init(PkiInitArgs),
}

#[derive(Debug, Args)]
pub struct PkiInitArgs {
    /// Where the files go
    pub dir: PathBuf,
    /// Names or addresses of the hosts
    #[arg(required = true)]
    pub hosts: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

/// What a primary and a standby both need.
#[derive(Debug, Clone, Args)]
pub struct SharedArgs {
    /// The directory with ca.crt and this host's certificate and key
    #[arg(long, env = "CHECKSYNC_PKI")]
    pub pki: Option<PathBuf>,
    /// Which host of the directory this is, if it holds several
    #[arg(long, env = "CHECKSYNC_HOST")]
    pub host: Option<String>,
    /// What decides who may serve: witness:HOST:PORT, where `checksync witness` runs;
    /// etcd://HOST:PORT[,HOST:PORT…]/PREFIX, with ?ca=FILE[&cert=FILE&key=FILE] for TLS; s3://BUCKET[/PREFIX] or
    /// az://CONTAINER[/PREFIX], if its conditional puts pass a probe; or file:DIR, for managers on one host
    #[arg(long, env = "CHECKSYNC_ARBITER", conflicts_with = "fencing")]
    pub arbiter: Option<ArbiterSpec>,
    /// `none`: take over on silence without an arbiter; a cut-off primary and its standby may then both serve
    #[arg(long, env = "CHECKSYNC_FENCING", value_enum)]
    pub fencing: Option<FencingArg>,
    /// Where logs and the lock of this manager are kept
    #[arg(long, env = "CHECKSYNC_STATE")]
    pub state: Option<PathBuf>,
    /// A file with what is not said here
    #[arg(long, env = "CHECKSYNC_CONFIG")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FencingArg {
    None,
}

#[derive(Debug, Args)]
pub struct StandbyArgs {
    /// The address to listen on; port 0 takes any, and says which
    #[arg(long, env = "CHECKSYNC_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// A command that is run when an app is served from here
    #[arg(long, env = "CHECKSYNC_PROMOTE_HOOK")]
    pub promote_hook: Option<OsString>,
    /// Threads of the network: with one, replicated structures wait least; with more, many apps at once do
    /// [default: 2]
    #[arg(long, env = "CHECKSYNC_NETWORK_THREADS")]
    pub network_threads: Option<usize>,
    /// The bridge or device where the apps' addresses are [default: called as on the primary]
    #[arg(long, env = "CHECKSYNC_LINK")]
    pub link: Option<String>,
    /// HOST:PORT of who is to be a standby of an app that is served from here, as the others of the group listen;
    /// several as for `run`. Without any, an app stays unprotected after a takeover
    #[arg(long, env = "CHECKSYNC_STANDBY", value_delimiter = ',')]
    pub standby: Vec<String>,
    /// Where the checkpoints of an app go that is served from here: file:PATH, s3://BUCKET[/PREFIX] or
    /// az://CONTAINER[/PREFIX] [default: where its primary has them go, with the credentials of this host]
    #[arg(long, env = "CHECKSYNC_STORE")]
    pub store: Option<Location>,
    /// From one checkpoint in that store to the next [default: 10s]
    #[arg(long, env = "CHECKSYNC_STORE_INTERVAL", value_parser = duration::parse)]
    pub store_interval: Option<Duration>,
    /// Which checkpoints that store keeps [default: last=24,hourly=48,daily=14]
    #[arg(long, env = "CHECKSYNC_STORE_KEEP")]
    pub store_keep: Option<Retention>,
    /// Hold a drill of each app so often: 24h [default: only when asked for]
    #[arg(long, env = "CHECKSYNC_DRILL_EVERY", value_parser = duration::parse)]
    pub drill_every: Option<Duration>,
    /// A command that says by its exit code whether an app is well, in drills [default: what its primary says]
    #[arg(long, env = "CHECKSYNC_HEALTH")]
    pub health: Option<String>,
    #[command(flatten)]
    pub shared: SharedArgs,
}

#[derive(Debug, Args)]
pub struct WitnessArgs {
    /// The address to listen on; port 0 takes any, and says which
    #[arg(long, env = "CHECKSYNC_LISTEN")]
    pub listen: SocketAddr,
    /// The directory with ca.crt and this host's certificate and key
    #[arg(long, env = "CHECKSYNC_PKI")]
    pub pki: PathBuf,
    /// Which host of the directory this is, if it holds several
    #[arg(long, env = "CHECKSYNC_HOST")]
    pub host: Option<String>,
    /// Where the registers are kept, on a disk that survives a crash
    #[arg(long, env = "CHECKSYNC_STATE")]
    pub state: PathBuf,
    #[command(flatten)]
    pub output: Output,
}

/// What `run` and `attach` share.
#[derive(Debug, Clone, Args)]
pub struct PrimaryArgs {
    /// The app's name, on both hosts
    #[arg(long, env = "CHECKSYNC_APP")]
    pub app: Option<String>,
    /// HOST:PORT of a standby; give it once for each. All of them keep a copy, at the same time; without --arbiter, and
    /// with structures, one at a time does, and the others are spares
    #[arg(long, env = "CHECKSYNC_STANDBY", value_delimiter = ',')]
    pub standby: Vec<String>,
    /// How many of several standbys have to hold a checkpoint before what it covers is safe: `all`, and then any one
    /// that is left takes over alone; `any`, which is soonest, and then a takeover waits for the word of all; or a
    /// number, and a takeover waits for so many that one of them holds the newest. `store`: the store that --store names
    /// has to hold it, without any standby; `run --from-store` goes on from there [default: all]
    #[arg(long, env = "CHECKSYNC_COMMIT_ON")]
    pub commit_on: Option<CommitOn>,
    /// `structures`: no process is captured; the program keeps its state in maps and values of the SDK, and every
    /// change is on the standby before it returns; needs no root [default: process]
    #[arg(long, env = "CHECKSYNC_REPLICATE", value_enum)]
    pub replicate: Option<ReplicateArg>,
    /// From one checkpoint to the next [default: 50ms]
    #[arg(long, env = "CHECKSYNC_INTERVAL", value_parser = duration::parse)]
    pub interval: Option<Duration>,
    /// From one heartbeat to the next [default: 20ms]
    #[arg(long, env = "CHECKSYNC_HEARTBEAT", value_parser = duration::parse)]
    pub heartbeat: Option<Duration>,
    /// So many heartbeats must be missed in a row [default: 5]
    #[arg(long, env = "CHECKSYNC_MISSED")]
    pub missed: Option<u32>,
    /// `strong`: hold each answer back until the state behind it is on the standby, and keep connections at a
    /// takeover; needs --address [default: timeline]
    #[arg(long, env = "CHECKSYNC_CONSISTENCY", value_enum)]
    pub consistency: Option<ConsistencyArg>,
    /// What becomes of answers that no standby can cover [default: continue]
    #[arg(long, env = "CHECKSYNC_ON_STANDBY_LOSS", value_enum)]
    pub on_standby_loss: Option<OnStandbyLossArg>,
    /// Start although the standby of an earlier run may hold what clients were answered: that is lost
    #[arg(long)]
    pub abandon_standby: bool,
    /// The app's own address, which moves with it: 10.0.0.9/24
    #[arg(long, env = "CHECKSYNC_ADDRESS")]
    pub address: Option<String>,
    /// The bridge or device where that address is
    #[arg(long, env = "CHECKSYNC_LINK")]
    pub link: Option<String>,
    /// Who forwards what the app sends to other networks
    #[arg(long, env = "CHECKSYNC_GATEWAY")]
    pub gateway: Option<String>,
    /// What follows when the app dies by a signal [default: failover]
    #[arg(long, env = "CHECKSYNC_ON_CRASH", value_enum)]
    pub on_crash: Option<OnCrashArg>,
    /// How long the app may take to end after SIGTERM [default: 10s]
    #[arg(long, env = "CHECKSYNC_GRACE", value_parser = duration::parse)]
    pub grace: Option<Duration>,
    /// Memory for earlier versions of hot pages, in MiB; 0 sends pages whole [default: 256]
    #[arg(long, env = "CHECKSYNC_SHADOW_MIB")]
    pub shadow_mib: Option<u64>,
    /// What the app writes below this directory is replicated with its memory, and is at the same path after a takeover;
    /// several can be named
    #[arg(long, env = "CHECKSYNC_STATE_DIR", value_delimiter = ',')]
    pub state_dir: Vec<PathBuf>,
    /// What is below this directory is the same on all hosts, without our doing
    #[arg(long = "shared", env = "CHECKSYNC_SHARED", value_delimiter = ',')]
    pub shared_dir: Vec<PathBuf>,
    /// A command that says by its exit code whether the app is well: for drills on its standby, inside the sealed cell
    #[arg(long, env = "CHECKSYNC_HEALTH")]
    pub health: Option<String>,
    /// Where checkpoints outlive both hosts: file:PATH, s3://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]
    #[arg(long, env = "CHECKSYNC_STORE")]
    pub store: Option<Location>,
    /// From one checkpoint in the store to the next; with --commit-on store, where each goes there, from one folding of
    /// what is there to the next [default: 10s]
    #[arg(long, env = "CHECKSYNC_STORE_INTERVAL", value_parser = duration::parse)]
    pub store_interval: Option<Duration>,
    /// Which checkpoints the store keeps [default: last=24,hourly=48,daily=14]
    #[arg(long, env = "CHECKSYNC_STORE_KEEP")]
    pub store_keep: Option<Retention>,
    #[command(flatten)]
    pub shared: SharedArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicateArg {
    Process,
    Structures,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCrashArg {
    Failover,
    Restart,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsistencyArg {
    Timeline,
    Strong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStandbyLossArg {
    Continue,
    Stop,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub primary: PrimaryArgs,
    /// Take the app over out of the store where `--commit-on store` has kept it, and go on with it; with the options that
    /// it was run with
    #[arg(long, conflicts_with = "command")]
    pub from_store: bool,
    /// With --from-store: take it away from a primary that is seen to be alive
    #[arg(long, requires = "from_store")]
    pub from_living: bool,
    /// The program and its arguments
    #[arg(last = true, required_unless_present = "from_store")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The process to protect
    pub pid: i32,
    #[command(flatten)]
    pub primary: PrimaryArgs,
}

#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// The process to save
    pub pid: i32,
    /// The directory to make
    #[arg(long)]
    pub to: PathBuf,
    /// Let the process run on; otherwise it ends
    #[arg(long)]
    pub leave_running: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The directory that `checkpoint` made; with --store and --detach, one for the logs
    #[arg(required_unless_present = "store")]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub from: FromStoreArgs,
    /// Where nobody hears it: in a network of its own that leads nowhere, and whatever it writes to files goes with it
    #[arg(long)]
    pub sealed: bool,
    /// Return once the process runs, instead of waiting for its end
    #[arg(long)]
    pub detach: bool,
    /// Write the process's number here
    #[arg(long)]
    pub pidfile: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The directory that `checkpoint` made
    #[arg(required_unless_present = "store", conflicts_with = "store")]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub from: FromStoreArgs,
    #[command(flatten)]
    pub output: Output,
}

/// A checkpoint of a store; the newest, if nothing else is said.
#[derive(Debug, Clone, Args)]
pub struct FromStoreArgs {
    /// Take it from here: file:PATH, s3://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]
    #[arg(long, env = "CHECKSYNC_STORE", requires = "app")]
    pub store: Option<Location>,
    /// The app's name
    #[arg(long, env = "CHECKSYNC_APP")]
    pub app: Option<String>,
    /// The newest checkpoint
    #[arg(long, conflicts_with_all = ["epoch", "at"])]
    pub latest: bool,
    /// This checkpoint: TERM.EPOCH
    #[arg(long, value_parser = moment::parse_checkpoint, conflicts_with = "at")]
    pub epoch: Option<CheckpointId>,
    /// The newest one from before then: 2026-01-31T12:00:00Z, or a span like 10m, counted back from now
    #[arg(long, value_parser = moment::parse)]
    pub at: Option<moment::Moment>,
}

#[derive(Debug, Subcommand)]
pub enum CheckpointsVerb {
    /// List what can be restored
    List(StoreArgs),
    /// Read everything that a restore would read
    Verify(StoreArgs),
    /// Show what changed from one checkpoint to another: mappings, pages, threads and descriptors
    Diff(DiffArgs),
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Of the store: TERM.EPOCH, `latest`, or a moment or span as for `restore --at`; or a directory that `checkpoint`
    /// made
    pub from: PathBuf,
    /// The same, of the later one
    pub to: PathBuf,
    /// file:PATH, s3://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]
    #[arg(long, env = "CHECKSYNC_STORE", requires = "app")]
    pub store: Option<Location>,
    /// The app's name
    #[arg(long, env = "CHECKSYNC_APP")]
    pub app: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct StoreArgs {
    /// file:PATH, s3://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]
    #[arg(long, env = "CHECKSYNC_STORE")]
    pub store: Location,
    /// The app's name
    #[arg(long, env = "CHECKSYNC_APP")]
    pub app: String,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show this app only
    #[arg(long)]
    pub app: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The app, if several are served here
    #[arg(long)]
    pub app: Option<String>,
    /// For so long; then takeover is automatic again
    #[arg(long = "for", value_parser = duration::parse, conflicts_with = "end")]
    pub span: Option<Duration>,
    /// End it now
    #[arg(long)]
    pub end: bool,
}

#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// The app, if several are served here
    #[arg(long)]
    pub app: Option<String>,
    /// To this one of its standbys [default: the one that holds the newest checkpoint]
    #[arg(long)]
    pub to: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct DrillArgs {
    /// The app, if several are kept here
    #[arg(long)]
    pub app: Option<String>,
    /// A command that says by its exit code whether the app is well; it is run in the cell of the restored app, again
    /// and again [default: what the standby or the primary was told; without any, the app has to live for a second]
    #[arg(long)]
    pub health: Option<String>,
    /// How long the restored app may take to be well
    #[arg(long, value_parser = duration::parse, default_value = "30s")]
    pub patience: Duration,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Look at this running process
    #[arg(long, conflicts_with = "command")]
    pub pid: Option<i32>,
    /// For `--pid`: what is to be replicated with it, as for `run`; files that it writes elsewhere are named
    #[arg(long, env = "CHECKSYNC_STATE_DIR", value_delimiter = ',')]
    pub state_dir: Vec<PathBuf>,
    /// For `--pid`: what is the same on all hosts
    #[arg(long = "shared", env = "CHECKSYNC_SHARED", value_delimiter = ',')]
    pub shared_dir: Vec<PathBuf>,
    /// Look whether the standby at HOST:PORT answers
    #[arg(long, requires = "pki")]
    pub standby: Option<String>,
    /// Look whether this register answers, and swaps as it must
    #[arg(long, env = "CHECKSYNC_ARBITER", requires = "pki")]
    pub arbiter: Option<ArbiterSpec>,
    /// For `--standby` and `--arbiter`: the directory with ca.crt and this host's certificate and key
    #[arg(long, env = "CHECKSYNC_PKI")]
    pub pki: Option<PathBuf>,
    /// For `--standby` and `--arbiter`: which host of the directory this is
    #[arg(long, env = "CHECKSYNC_HOST")]
    pub host: Option<String>,
    #[command(flatten)]
    pub output: Output,
    /// Look at this program, without starting it
    #[arg(last = true)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct DemoAppArgs {
    /// The address to listen on
    pub listen: SocketAddr,
}

#[derive(Debug, Args)]
pub struct CellEnterArgs {
    /// A process of the cell
    pub pid: i32,
    /// For a shell
    pub command: OsString,
}

#[derive(Debug, Args)]
pub struct GuardArgs {
    /// What the manager says
    pub word: OsString,
}

#[derive(Debug, Args)]
pub struct CellInitArgs {
    /// What the engine and the manager say to each other
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}
