//! Keeping idle cores awake: a core that has gone to sleep takes 30 to 60 µs to notice that there is work for it,
//! and a freeze is made of dozens of such wake-ups.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// `PM_QOS_CPU_LATENCY_DEFAULT_VALUE`: no wish.
const NO_WISH: i32 = 2_000_000_000;
const AWAKE: i32 = 0;

/// This process's wish for how long an idle core may take to wake up; the kernel follows the strictest of all
/// that are open, and forgets a wish with its owner. Until one is uttered there is none.
#[derive(Debug)]
pub struct WakeLatency(File);

impl WakeLatency {
    /// Needs root, and a kernel with `CONFIG_CPU_IDLE`.
    pub fn open() -> io::Result<Self> {
        let wish = Self(OpenOptions::new().write(true).open("/dev/cpu_dma_latency")?);
        wish.utter(NO_WISH)?;
        Ok(wish)
    }

    /// Idle cores spin instead of sleeping, until [`Self::let_sleep`].
    pub fn keep_awake(&self) -> io::Result<()> {
        self.utter(AWAKE)
    }

    pub fn let_sleep(&self) -> io::Result<()> {
        self.utter(NO_WISH)
    }

    fn utter(&self, microseconds: i32) -> io::Result<()> {
        self.0.write_all_at(&microseconds.to_ne_bytes(), 0)
    }
}
