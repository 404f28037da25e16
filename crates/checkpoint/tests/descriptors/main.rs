//! What a process has open is the same after a save and a rebuild: tested kind by kind, with two processes
//! that make system calls on demand. Needs root, as the manager does.

mod conversations;
mod files;
mod refusals;
mod signals_and_timers;
mod sockets;
mod stage;
mod table;
mod unix_datagrams;
