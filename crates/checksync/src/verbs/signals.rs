//! Ctrl-C and SIGTERM, as calls: so that a verb which holds something gives it back before it ends.

use std::thread;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// From now on `heard` is called, on a thread of its own, for each of them that comes.
pub fn listen(heard: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot wait for signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => heard(),
                _ = terminate.recv() => heard(),
            }
        }
    };
    let waiting = thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait));
    waiting.map(drop).context("cannot wait for signals")
}
