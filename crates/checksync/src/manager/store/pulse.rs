//! Looks whether anybody has begun to restore from the store: what heartbeats are to a standby.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use store::{Location, RunName, Store, StoreError};

use super::StoreNews;
use crate::manager::now;

const EVERY: Duration = Duration::from_millis(500);

/// Ends as soon as this is dropped, and its last look is over.
#[derive(Debug)]
pub(super) struct Pulse {
    _alive: Arc<()>,
}

impl Pulse {
    pub(super) fn start(
        location: &Location,
        app: &str,
        run: RunName,
        news: impl Fn(StoreNews) + Send + 'static,
    ) -> anyhow::Result<Self> {
        // Connections are those of one runtime.
        let store = Store::open(location)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let alive = Arc::new(());
        let (lives, app) = (Arc::downgrade(&alive), app.to_owned());
        let look = move || {
            while Weak::strong_count(&lives) > 0 {
                let sent_at = now();
                match runtime.block_on(store.look_for_later(&app, run)) {
                    Ok(()) => news(StoreNews::Looked { sent_at }),
                    Err(why @ StoreError::Superseded { .. }) => {
                        return news(StoreNews::Lost { session: u64::MAX, why: why.to_string() });
                    }
                    Err(why) => tracing::debug!("the store does not answer: {why}"),
                }
                thread::sleep(EVERY);
            }
        };
        thread::Builder::new().name("store-pulse".to_owned()).spawn(look).context("cannot start a thread")?;
        Ok(Self { _alive: alive })
    }
}
