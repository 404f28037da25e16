//! The standby's side of the heart: a thread at real-time priority that hears beats and answers them. A permit
//! lapses, or a primary is taken for dead, where an answer is late; so neither pages nor a busy processor are in front.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;

use super::heart;

#[derive(Debug)]
pub struct Ear {
    handle: Handle,
    over: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Ear {
    pub fn open() -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
        let (handle, over) = (runtime.handle().clone(), Arc::<Notify>::default());
        let told = Arc::clone(&over);
        let thread = thread::Builder::new().name("ear".to_owned()).spawn(move || {
            heart::become_prompt();
            runtime.block_on(told.notified());
        });
        Ok(Self { handle, over, thread: Some(thread.context("no heartbeats can be heard")?) })
    }

    pub fn runtime(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.over.notify_one();
        // The last to know of us may be what is heard here: then it ends with this thread.
        let other = |thread: &JoinHandle<()>| thread.thread().id() != thread::current().id();
        if let Some(thread) = self.thread.take().filter(other) {
            // A panic was logged, and nothing is heard any more.
            let _ = thread.join();
        }
    }
}
