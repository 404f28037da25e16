//! One module per verb, each with `run(args)`.

pub mod attach;
pub mod cell_enter;
pub mod cell_init;
pub mod check;
pub mod checkpoint;
pub mod checkpoints;
pub mod describe;
pub mod drill;
pub mod inspect;
mod one_shot;
mod outline;
pub mod pause;
pub mod pki;
pub mod restore;
pub mod run;
pub mod signals;
pub mod standby;
pub mod status;
mod stored;
mod subject;
pub mod switchover;
pub mod witness;
