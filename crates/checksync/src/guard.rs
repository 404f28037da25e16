//! The guard: the first process of a cell, for as long as the cell lasts; or a process beside one that was attached to.
//!
//! It reaps what the app leaves behind and holds a pipe whose other end only the manager has. When that end
//! closes, the manager is dead, and what follows depends on the last order:
//!
//! | last order | the cell holds | then |
//! |---|---|---|
//! | none | a program that has not begun, or a copy | kill it |
//! | `Live`, `Disarm` | an app that nobody could take over | let it live, and keep its output from filling up |
//! | `Live`, `Disarm` | the same in a gated cell | kill it |
//! | `Arm` | an app whose standby can go on | revoke its permit, kill it, and say so to the standby |
//!
//! What was attached to is not the guard's child, and nobody's but its own output: a guard beside it ends where one
//! in a cell kills what has not begun, or lets it live.
//!
//! A gated cell's output leaves through a device that its manager held, and that is gone now: the app would
//! live on, heard by nobody, with a second one started beside it.
//!
//! The order of the last line is what makes the word true: after the revocation nothing of the app can be
//! heard, however long its sockets take to be torn down. Without a permit (`--fencing none`) the word waits
//! until its processes are gone. A failure of anything after the revocation leaves silence, which the standby
//! takes for what it is once T2 is over.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use engine::cell::Init;
use gate::PermitHandle;
use image::Term;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::pidfd_send_signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use wire::{Client, GuardToken, Silent, TlsFiles};

/// What a guard inherits, by number.
pub const ORDERS: i32 = 10;
pub const PERMIT: i32 = 11;
pub const OUTPUT: i32 = 12;
pub const ERROR: i32 = 13;
/// A pidfd of what was attached to.
pub const PROCESS: i32 = 14;
/// The first of its arguments: whether there is a permit.
pub const WITH_PERMIT: &str = "permit";
pub const WITHOUT_PERMIT: &str = "no-permit";
/// The second: whether the manager itself holds the way out of the cell.
pub const GATED: &str = "gated";
pub const UNGATED: &str = "ungated";

/// One line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// The app runs, and outlives its manager unless its cell is gated.
    Live,
    Arm(Arm),
    /// As `Live`, after `Arm`.
    Disarm,
}

/// What the guard needs in order to be believed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Arm {
    pub app: String,
    pub term: u64,
    pub token: [u8; 32],
    /// The standbys, as numeric addresses: a guard asks no name server.
    pub standbys: Vec<String>,
    pub pki: PathBuf,
    pub host: String,
}

pub fn run(words: &[OsString]) -> anyhow::Result<()> {
    let [permit, way_out, engine @ ..] = words else { bail!("cell-init is not for people") };
    // The engine's thread is real-time, and the app must not inherit that.
    sys::task::set_scheduling(0, &sys::task::SchedulingAttributes::default())?;
    Init::enter(engine).context("cannot set up the cell")?;
    let adopt = sys::spawn::adopt_descriptor;
    let ward = Ward::Cell { gated: way_out == GATED, streams: [adopt(OUTPUT), adopt(ERROR)] };
    keep(Guard::inherit(permit == WITH_PERMIT, ward)?)
}

/// Guards a process outside of any cell.
pub fn run_beside(permit: &OsStr) -> anyhow::Result<()> {
    sys::task::set_scheduling(0, &sys::task::SchedulingAttributes::default())?;
    // What is typed at the manager's terminal is not meant for its guard.
    sys::spawn::new_session()?;
    let ward = Ward::Process(sys::spawn::adopt_descriptor(PROCESS));
    keep(Guard::inherit(permit == WITH_PERMIT, ward)?)
}

fn keep(guard: Guard) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(guard.keep())
}

/// How long the death of the killed is waited for.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// Who is guarded.
enum Ward {
    /// Everybody in the cell whose first process this is.
    Cell {
        gated: bool,
        streams: [OwnedFd; 2],
    },
    Process(OwnedFd),
}

impl Ward {
    fn kill(&self) {
        match self {
            Self::Cell { .. } => kill_everybody(),
            // It fails if it has ended, which is as good.
            Self::Process(pidfd) => drop(pidfd_send_signal(pidfd, rustix::process::Signal::KILL)),
        }
    }

    async fn gone(&self, children: &mut Signal) -> io::Result<()> {
        match self {
            Self::Cell { .. } => all_ended(children).await,
            Self::Process(pidfd) => {
                let pidfd = pidfd.try_clone()?;
                let gone = move || poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE));
                tokio::task::spawn_blocking(gone).await.map_err(io::Error::other)??;
            }
        }
        Ok(())
    }
}

struct Guard {
    orders: Option<OwnedFd>,
    permit: Option<PermitHandle>,
    ward: Ward,
    last: Option<Order>,
    /// Connections that wait for the word, by address.
    lines: Arc<Mutex<BTreeMap<String, Client>>>,
}

impl Guard {
    fn inherit(with_permit: bool, ward: Ward) -> anyhow::Result<Self> {
        let permit = with_permit.then(|| PermitHandle::from_inherited(PERMIT)).transpose()?;
        let guard = Self {
            orders: Some(sys::spawn::adopt_descriptor(ORDERS)),
            permit,
            ward,
            last: None,
            lines: Arc::default(),
        };
        let_go_of_the_standard_streams()?;
        Ok(guard)
    }

    async fn keep(mut self) -> anyhow::Result<()> {
        let mut children = signal(SignalKind::child())?;
        let orders = self.orders.take().expect("taken once");
        let mut orders = BufReader::new(pipe::Receiver::from_owned_fd(orders)?).lines();
        while let Some(order) = next_order(&mut orders, &mut children).await? {
            if let Order::Arm(arm) = &order {
                for standby in &arm.standbys {
                    tokio::spawn(open_line(arm.clone(), standby.clone(), Arc::clone(&self.lines)));
                }
            }
            self.last = Some(order);
        }
        match (self.last.take(), &self.ward) {
            (Some(Order::Arm(arm)), _) => self.silence(&arm, children).await,
            (_, Ward::Process(_)) => {}
            (None, _) | (Some(_), Ward::Cell { gated: true, .. }) => kill_everybody(),
            (Some(_), Ward::Cell { gated: false, streams }) => outlive(streams, &mut children).await?,
        }
        Ok(())
    }

    /// The manager is dead, and a standby can go on.
    async fn silence(&self, arm: &Arm, mut children: Signal) {
        match &self.permit {
            Some(permit) => {
                permit.revoke();
                self.ward.kill();
            }
            None => {
                self.ward.kill();
                // A process that does not die speaks no more than one that hangs: the word is given.
                let patience = Duration::try_from(PATIENCE).expect("it is not negative");
                let _ = tokio::time::timeout(patience, self.ward.gone(&mut children)).await;
            }
        }
        // To all at the same time: one that is dead must not keep the others waiting.
        let mut words = JoinSet::new();
        for standby in &arm.standbys {
            let line = self.lines.lock().map_or(None, |mut lines| lines.remove(standby));
            words.spawn(give_the_word(arm.clone(), standby.clone(), line));
        }
        words.join_all().await;
    }
}

/// The manager is dead, and the app is to live: somebody must read what it writes, and reap.
async fn outlive(streams: &[OwnedFd], children: &mut Signal) -> io::Result<()> {
    for stream in streams {
        tokio::spawn(drain(pipe::Receiver::from_owned_fd(stream.try_clone()?)?));
    }
    all_ended(children).await;
    Ok(())
}

async fn all_ended(children: &mut Signal) {
    while reap() {
        children.recv().await;
    }
}

async fn give_the_word(arm: Arm, standby: String, mut line: Option<Client>) {
    const ATTEMPTS_FOR: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + ATTEMPTS_FOR;
    let token = GuardToken::from_bytes(arm.token);
    let word = Silent { app: arm.app.clone(), term: Term(arm.term), token };
    while Instant::now() < deadline {
        let client = match line.take() {
            Some(client) => Some(client),
            None => connect(&arm, &standby).await,
        };
        if let Some(client) = client {
            match client.silent(word.clone()).await {
                // A refusal is an answer, too: the word was of no use to the standby.
                Ok(()) | Err(wire::WireError::Refused { .. }) => return,
                Err(_) => (),
            }
        }
        sleep(PAUSE).await;
    }
}

/// Reaps until there is an order. `None`: the manager is dead.
async fn next_order(
    orders: &mut Lines<BufReader<pipe::Receiver>>,
    children: &mut Signal,
) -> anyhow::Result<Option<Order>> {
    loop {
        tokio::select! {
            line = orders.next_line() => {
                let Some(line) = line? else { return Ok(None) };
                return serde_json::from_str(&line).context("an order can't be read").map(Some);
            }
            _ = children.recv() => drop(reap()),
        }
    }
}

async fn open_line(arm: Arm, standby: String, lines: Arc<Mutex<BTreeMap<String, Client>>>) {
    let client = connect(&arm, &standby).await;
    if let (Ok(mut lines), Some(client)) = (lines.lock(), client) {
        lines.insert(standby, client);
    }
}

async fn connect(arm: &Arm, standby: &str) -> Option<Client> {
    const PATIENCE: Duration = Duration::from_millis(500);
    let tls = TlsFiles::load(&arm.pki, Some(&arm.host)).ok()?;
    Client::connect(standby, &tls, PATIENCE).await.ok()
}

async fn drain(mut stream: pipe::Receiver) {
    // Nobody is there to be told of an error; at the end of the stream there is nothing left to do.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// To every process of the cell but this one.
fn kill_everybody() {
    const ALL: i32 = -1;
    // With nobody there it fails, which is as good.
    let _ = sys::task::kill(ALL, libc::SIGKILL);
}

/// Takes in who has ended. False if nobody is left.
fn reap() -> bool {
    loop {
        match sys::wait::poll(sys::wait::Whom::Any) {
            Ok(Some(_)) => (),
            Ok(None) => return true,
            Err(why) => return why.raw_os_error() != Some(libc::ECHILD),
        }
    }
}

/// They are the app's: while a guard holds them, no reader sees their end.
fn let_go_of_the_standard_streams() -> io::Result<()> {
    let nothing = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    Ok(())
}
