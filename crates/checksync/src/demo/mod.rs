//! `checksync demo`: the main job on one machine. Two hosts in network namespaces, a key/value server that
//! knows nothing of us, a client that never stops writing; the host that serves dies; the other goes on.
//!
//! Nothing is played: both managers are this program, started as a user would, with certificates, an arbiter
//! and a promote hook. Whatever way the demo ends, nothing of it is left.

mod app;
mod client;
mod hosts;
mod network;
mod relay;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use crate::arguments::{DemoAppArgs, DemoArgs, Format};
use crate::exit::{Coded, Exit};
use crate::status::{AppReport, TakeoverReport};
use crate::verbs::signals;
use client::{Client, Record, Return};
use hosts::Stage;
use network::Network;
use relay::Relay;
use report::{Figures, Seen};

/// Load before the host dies, and after.
const BEFORE: Duration = Duration::from_millis(2500);
const AFTER: Duration = Duration::from_millis(1000);
/// No step may take longer.
const LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&interrupted);
    signals::listen(move || heard.store(true, Ordering::Relaxed))?;
    let network = Network::new().map_err(needs_root)?;
    let mut demo = Demo { stage: Stage::build(network)?, interrupted, voice: Voice(args.output.format) };
    let played = demo.play();
    played.map(|()| Exit::Ok.into()).map_err(|error| match demo.is_interrupted() {
        true => error,
        false => error.context(demo.stage.logs()),
    })
}

/// The verb behind which the demo's program is.
pub fn serve_app(args: &DemoAppArgs) -> anyhow::Result<ExitCode> {
    app::run(args.listen)?;
    Ok(Exit::Ok.into())
}

fn needs_root(error: anyhow::Error) -> anyhow::Error {
    let forbidden = |why: &io::Error| why.kind() == io::ErrorKind::PermissionDenied;
    if error.chain().filter_map(|why| why.downcast_ref::<io::Error>()).any(forbidden) {
        let text = "the demo makes network namespaces and traces processes; run it as root (sudo)";
        return Coded::new(Exit::Unsupported, error.context(text)).into();
    }
    error
}

struct Demo {
    stage: Stage,
    interrupted: Arc<AtomicBool>,
    voice: Voice,
}

/// What was seen when the host died.
struct Death {
    at_ns: u64,
    before: AppReport,
}

impl Demo {
    fn play(&mut self) -> anyhow::Result<()> {
        self.voice.say("two hosts in network namespaces, and a street with a client\n");
        let relay = Relay::start(&self.stage.network.street, hosts::ON_A, &self.stage.serving());
        let relay = relay.context("cannot start the relay")?;
        self.protect()?;
        let client =
            Client::start(&self.stage.network, relay.address()).context("cannot start the client")?;
        let ended = self.kill_and_go_on(&client);
        // What the client found wrong says more than what we waited for in vain.
        let record = client.finish().context("the client found the server wrong")?;
        let (death, takeover) = ended?;
        self.conclude(&death, &takeover, &record)
    }

    fn protect(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        self.stage.start_standby()?;
        self.wait("the standby listens", |stage| Ok(stage.standby_listens().then_some(())))?;
        self.stage.start_primary()?;
        let report = self.wait("the server is protected", |stage| {
            Ok(stage.primary().filter(|report| report.protected && report.epoch.is_some()))
        })?;
        let took = began.elapsed().as_secs_f64();
        let pid = report.app_pid.unwrap_or_default();
        self.voice.say(&format!("the server runs on host a as process {pid}, protected after {took:.1} s\n"));
        Ok(())
    }

    fn kill_and_go_on(&mut self, client: &Client) -> anyhow::Result<(Death, TakeoverReport)> {
        self.run_for(BEFORE, client)?;
        let before = self.stage.primary().context("host a does not answer")?;
        self.voice.say(&load_text(client.writes(), &before));
        let at_ns = wall_clock_ns();
        let killed = self.stage.kill_a()?;
        self.voice.say(&format!("host a dies: cables pulled, {killed} processes killed\n\n"));
        let takeover = self.wait("host b takes over", |stage| Ok(stage.takeover()))?;
        self.wait("the client is back", |_| give_up_with(client, client.returns() > 0))?;
        self.run_for(AFTER, client)?;
        Ok((Death { at_ns, before }, takeover))
    }

    fn conclude(&self, death: &Death, takeover: &TakeoverReport, record: &Record) -> anyhow::Result<()> {
        let pauses = death.before.pause_us.context("host a took no checkpoint")?;
        let client: &Return = record.returns.first().context("the client never came back")?;
        let seen = Seen { died_at_ns: death.at_ns, pauses, takeover, client };
        let figures = Figures::of(&seen)?;
        match self.voice.0 {
            Format::Json => println!("{}", figures.line()?),
            Format::Text => {
                let after = record.writes - figures.acknowledged_writes;
                print!("{}\n{}", report::timeline(&seen), report::verdict(&figures, after));
            }
        }
        Ok(())
    }

    fn run_for(&mut self, time: Duration, client: &Client) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        self.wait("the client writes", |_| give_up_with(client, Instant::now() >= until))
    }

    /// Probes until there is an answer, as long as all goes well.
    fn wait<T>(
        &mut self,
        what: &str,
        mut probe: impl FnMut(&Stage) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(answer) = probe(&self.stage)? {
                return Ok(answer);
            }
            if self.is_interrupted() {
                bail!("interrupted; nothing of the demo is left");
            }
            self.stage.look_after()?;
            if Instant::now() > deadline {
                bail!("waited {} s in vain until {what}", LIMIT.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// There is nothing to wait for when the client has stopped.
fn give_up_with(client: &Client, done: bool) -> anyhow::Result<Option<()>> {
    if client.gave_up() {
        bail!("the client has given up");
    }
    Ok(done.then_some(()))
}

fn load_text(writes: u64, before: &AppReport) -> String {
    let epochs = before.epoch.unwrap_or_default();
    let pauses = before
        .pause_us
        .map_or(String::new(), |pauses| format!(" of {} µs (p50; p99 {} µs)", pauses.p50, pauses.p99));
    format!("{writes} writes answered, through {epochs} checkpoints with pauses{pauses}\n")
}

fn wall_clock_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// Speaks to people only.
struct Voice(Format);

impl Voice {
    fn say(&self, text: &str) {
        if self.0 == Format::Text {
            let mut out = io::stdout().lock();
            // Whoever closed our output does not want to hear more.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }
}
