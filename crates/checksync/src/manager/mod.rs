//! The managers: what wires the pure machines of `replica` to engine, gate, register and network.
//!
//! Each app has one actor: a thread that owns the machine. Whatever happens comes to it as an input, it
//! steps the machine and does the actions in their order; nothing it does blocks, but for the kernel calls
//! that have to be in force before the next action. The network runs on tokio, heartbeats on threads of
//! their own at both ends.

pub mod app_socket;
pub mod arrived;
pub mod asker;
pub mod candidates;
pub mod cell;
pub mod control;
pub mod copy;
pub mod drill;
pub mod ear;
pub mod fence;
pub mod heart;
pub mod hook;
pub mod host;
pub mod introduction;
pub mod link;
pub mod lock;
pub mod network;
pub mod output;
pub mod places;
pub mod policy;
pub mod primary;
pub mod register;
pub mod sealed;
pub mod signals;
pub mod stages;
pub mod standby;
pub mod store;
pub mod structures;
pub mod survivor;
pub mod ticks;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use engine::Settings;

/// An epoch that is longer goes as a full sync instead: the standby holds one in memory.
const EPOCH_BYTES_MAX: u64 = 1 << 30;
const FREEZE_PATIENCE: Duration = Duration::from_secs(1);

fn engine_settings(app: &str, shadow_bytes: u64) -> Settings {
    Settings {
        app: app.to_owned(),
        shadow_bytes,
        epoch_bytes_max: EPOCH_BYTES_MAX,
        freeze_patience: FREEZE_PATIENCE,
        connections: engine::Connections::Reset,
        barrier: None,
        manager: None,
        state_dirs: Vec::new(),
        shared_dirs: Vec::new(),
        shipped: None,
        in_background: false,
    }
}

/// Where files of apps are kept that this host lacks: with the manager's state, or for its life.
pub fn shipped_files(state: Option<&Path>) -> anyhow::Result<Arc<engine::Cache>> {
    let cache = match state {
        Some(state) => engine::Cache::open(&state.join("shipped")),
        None => engine::Cache::temporary(),
    };
    cache.context("the app's files could not be kept, should they be missing here")
}

/// Now, as the machines and the kernel's permit count.
fn now() -> replica::Nanos {
    replica::Nanos(gate::boot_clock_ns())
}

fn span(nanos: replica::Nanos) -> Duration {
    Duration::from_nanos(nanos.0)
}

/// A number that no earlier life of a manager had.
fn fresh_incarnation() -> u64 {
    wall_clock_ns()
}

fn wall_clock_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// When it was on our clock that the wall clock said this, a moment ago. Ages are counted from there: a wall clock can
/// be set at any time.
fn on_our_clock(wall_ns: u64) -> u64 {
    now().0.saturating_sub(wall_clock_ns().saturating_sub(wall_ns))
}

fn exit_of(exit: engine::AppExit) -> replica::primary::AppExit {
    match exit {
        engine::AppExit::Code(code) => replica::primary::AppExit::Code(code),
        engine::AppExit::Signal(signal) => replica::primary::AppExit::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_the_wall_clock_is_found_on_ours() {
        const AGE_NS: u64 = 5_000_000;
        let before = now().0;
        let found = on_our_clock(wall_clock_ns() - AGE_NS);
        assert!(found + AGE_NS >= before && found + AGE_NS <= now().0, "{found} {before}");
        assert_eq!(on_our_clock(0), 0, "before this host was started");
    }
}
