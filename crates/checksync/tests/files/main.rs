//! State directories with the real pair: servers that keep files and memory, whose manager is killed at some epoch. Each
//! host has a tree of its own at the same path. After the takeover memory and files agree, by the servers' own checkers;
//! and after a restore out of a store, when all of the pair is gone.

mod drilled;
mod hosts;
mod redis;
mod stored;
#[path = "../world/mod.rs"]
mod world;
mod writers;
