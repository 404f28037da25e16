//! Cores that don't sleep while an app stands still, where the kernel lets us ask for it.

use sys::idle::WakeLatency;

#[derive(Debug)]
pub struct Cores(Option<WakeLatency>);

/// Idle cores sleep again once it is dropped.
#[derive(Debug)]
pub struct Awake<'a>(&'a Cores);

impl Cores {
    pub fn new() -> Self {
        let latency = WakeLatency::open();
        Self(latency.inspect_err(|why| tracing::debug!("idle cores can't be kept awake: {why}")).ok())
    }

    /// Wakes them, without waiting until they are.
    pub fn keep_awake(&self) -> Awake<'_> {
        if let Some(latency) = &self.0 {
            // Without it all is only slower.
            let _ = latency.keep_awake();
        }
        Awake(self)
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        if let Some(latency) = &self.0.0 {
            // The wish ends with this process at the latest.
            let _ = latency.let_sleep();
        }
    }
}
