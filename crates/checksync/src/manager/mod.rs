//! The managers: what wires the pure machines of `replica` to engine, gate, register and network.
//!
//! Each app has one actor: a thread that owns the machine. Whatever happens comes to it as an input, it
//! steps the machine and does the actions in their order; nothing it does blocks, but for the kernel calls
//! that have to be in force before the next action. The network runs on tokio, heartbeats on a thread of
//! their own.

pub mod arrived;
pub mod cell;
pub mod control;
pub mod copy;
pub mod fence;
pub mod heart;
pub mod hook;
pub mod host;
pub mod link;
pub mod lock;
pub mod network;
pub mod output;
pub mod primary;
pub mod register;
pub mod standby;

use std::time::Duration;

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
    }
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

fn exit_of(exit: engine::AppExit) -> replica::primary::AppExit {
    match exit {
        engine::AppExit::Code(code) => replica::primary::AppExit::Code(code),
        engine::AppExit::Signal(signal) => replica::primary::AppExit::Signal(signal),
    }
}
