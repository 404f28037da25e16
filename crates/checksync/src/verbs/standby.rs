//! `standby`: keep warm copies of apps, and take over.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::attach::{lock_state, runtime};
use crate::arguments::{Format, StandbyArgs};
use crate::config::{StandbySettings, fencing_name};
use crate::exit::{Coded, Exit};
use crate::manager;
use crate::manager::control::{self, Listener, News, Order};
use crate::manager::drill::{self, Trigger};
use crate::manager::ear::Ear;
use crate::manager::heart;
use crate::manager::host::HostFacts;
use crate::manager::places::Places;
use crate::manager::standby::{APPS_MAX, Daemon};
use crate::status::{self, Board, Role, SCHEMA};

/// How long an app that is served here may take to end when the daemon stops.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Listening {
    schema: u32,
    address: String,
}

/// Says where a daemon listens: for whoever gave port 0.
pub fn announce(address: SocketAddr, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let listening = Listening { schema: SCHEMA, address: address.to_string() };
            println!("{}", serde_json::to_string(&listening)?);
        }
        Format::Text => println!("listening on {address}"),
    }
    Ok(())
}

pub fn run(args: StandbyArgs) -> anyhow::Result<ExitCode> {
    let settings = StandbySettings::resolve(args)?;
    let _state = lock_state(settings.shared.state.as_deref())?;
    runtime(settings.network_threads)?.block_on(serve(settings))
}

async fn serve(settings: StandbySettings) -> anyhow::Result<ExitCode> {
    let StandbySettings { listen, promote_hook, link, standbys, store, network_threads: _, drills, shared } =
        settings;
    if let Some(store) = &store {
        // What is wrong with its name is better known now than at a takeover.
        Store::open(&store.location).map_err(|why| Coded::new(Exit::Usage, why))?;
    }
    if !standbys.is_empty() {
        // Later an app may be in the midst of its takeover, which looks at memory that must not be locked.
        heart::lock_memory();
    }
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; does another process?"))
        .map_err(|why| Coded::new(Exit::Failure, why))?;
    let address = listener.local_addr()?;
    let board =
        Board::new(Role::Standby, shared.host(), fencing_name(shared.fencing), Some(address.to_string()));
    let _socket = board.serve(&format!("standby-{}", address.port()))?;
    let daemon = Arc::new(Daemon {
        host: shared.host().to_owned(),
        fencing: shared.fencing,
        arbiter: shared.arbiter,
        tls: shared.tls.clone(),
        shipped: manager::shipped_files(shared.state.as_deref())?,
        state: shared.state,
        promote_hook,
        pki: shared.pki.clone(),
        standbys,
        store,
        link,
        drills,
        facts: HostFacts::read().context("cannot look at this host")?,
        board,
        runtime: tokio::runtime::Handle::current(),
        ear: Ear::open()?,
        apps: Arc::new(Places::new(APPS_MAX)),
    });
    let _orders = take_orders(&daemon, address.port())?;
    let stop = on_stop()?;
    announce(address, shared.format)?;
    let handler = Arc::clone(&daemon) as Arc<dyn wire::Handler>;
    wire::serve(listener, &shared.tls, wire::Limits::default(), handler, async {
        // The task that sends it lives as long as the runtime.
        let _ = stop.await;
    })
    .await;
    tracing::info!("stopping");
    tokio::task::spawn_blocking(move || daemon.stop(GRACE)).await.context("stopping failed")?;
    Ok(ExitCode::SUCCESS)
}

/// What an operator may ask of a standby: drills.
fn take_orders(daemon: &Arc<Daemon>, port: u16) -> anyhow::Result<status::Socket> {
    let daemon = Arc::downgrade(daemon);
    let on_order = move |order, listener: Listener| match (order, daemon.upgrade()) {
        (Order::Drill { app, health, patience_ms }, Some(daemon)) => {
            let patience = Duration::from_millis(patience_ms);
            let listener = Some(listener);
            daemon.drill(&app, drill::Order { health, patience, trigger: Trigger::Asked, listener });
        }
        (Order::SwitchOver { .. } | Order::Pause { .. }, _) => {
            listener.say(News::CalledOff { why: "this is a standby; ask the app's primary".to_owned() });
        }
        (Order::Drill { .. }, None) => {
            listener.say(News::CalledOff { why: "the standby is stopping".to_owned() });
        }
    };
    control::serve(&format!("standby-{port}"), on_order, || {})
}

/// Ready at the first SIGTERM or Ctrl-C. At the second the process ends at once, and its guards see to the rest.
pub fn on_stop() -> anyhow::Result<oneshot::Receiver<()>> {
    let (told, stop) = oneshot::channel();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let mut told = Some(told);
        loop {
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
            match told.take() {
                // The receiver waits, or the daemon is past it already.
                Some(told) => drop(told.send(())),
                None => std::process::exit(Exit::Failure as i32),
            }
        }
    });
    Ok(stop)
}
