//! Guest programs: one small program per kernel resource, in one binary.
//!
//! `guest NAME [--go PATH] [ARGUMENT…]` sets one thing up, prints `ready`, waits, checks itself, prints `pass` or
//! `fail: why`, and exits with 0 or 1. It waits until the file PATH exists, or for SIGUSR1. A guest whose trap
//! needs an epoch between two operations waits several times: it prints `ready`, `ready 1`, …, and waits for
//! PATH.1, PATH.2, … (or one SIGUSR1 each) and last for PATH. `guest list` prints each name and its steps.
//!
//! Everything unsafe is in `kernel`, `mapping` and `window`; the guests themselves read as what they claim.

mod blocking;
mod churn;
mod clocks;
mod descriptors;
mod harness;
mod identity;
mod kernel;
mod mapping;
mod memory;
mod pace;
mod registers;
mod scale;
mod signals;
mod sockets;
mod streams;
mod threads;
mod timers;
mod traps;
mod waits;
mod window;

use std::env;
use std::process::ExitCode;

use harness::{Context, Guest};

/// Every guest, by the resource it holds.
fn guests() -> Vec<Guest> {
    [
        registers::GUESTS,
        threads::GUESTS,
        signals::GUESTS,
        identity::GUESTS,
        timers::GUESTS,
        clocks::GUESTS,
        waits::GUESTS,
        blocking::GUESTS,
        streams::GUESTS,
        descriptors::GUESTS,
        sockets::GUESTS,
        memory::GUESTS,
        scale::GUESTS,
        traps::GUESTS,
    ]
    .concat()
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "list".to_owned());
    if name == "list" {
        for guest in guests() {
            println!("{} {}", guest.name, guest.steps);
        }
        return ExitCode::SUCCESS;
    }
    // Not listed: they have nothing to check, so they prove nothing to who can't compare their memory.
    let unlisted = [churn::GUESTS, pace::GUESTS].concat();
    let Some(guest) = guests().into_iter().chain(unlisted).find(|guest| guest.name == name) else {
        eprintln!("there is no guest {name}; `guest list` prints them");
        return ExitCode::from(2);
    };
    run(guest, arguments.collect())
}

fn run(guest: Guest, arguments: Vec<String>) -> ExitCode {
    match (guest.check)(&mut Context::new(arguments)) {
        Ok(()) => {
            harness::say("pass");
            ExitCode::SUCCESS
        }
        Err(why) => {
            harness::say(&format!("fail: {why}"));
            ExitCode::FAILURE
        }
    }
}
