//! This program as the first process of a cell, as `checksync cell-init` is for managers: it reaps.

use std::ffi::OsString;
use std::process::ExitCode;

use engine::cell::{CellSpec, Init};
use sys::task::SchedulingAttributes;
use sys::wait::Whom;

const VERB: &str = "cell-first-process";

/// How our engines start a cell.
pub fn spec() -> CellSpec {
    let arguments = vec![VERB.into()];
    CellSpec {
        program: "/proc/self/exe".into(),
        arguments,
        inherited: Vec::new(),
        network: None,
        socket: false,
        cgroup: None,
        sealed: false,
    }
}

/// If that is what this process was started for. Call it before anything else. It returns when the cell is empty.
pub fn as_first_process() -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (verb, engine) = arguments.split_first()?;
    if verb != VERB {
        return None;
    }
    // The engine's thread is real-time, and the app must not inherit that.
    let entered =
        sys::task::set_scheduling(0, &SchedulingAttributes::default()).and_then(|()| Init::enter(engine));
    match entered {
        Ok(_) => {
            while sys::wait::wait(Whom::Any).is_ok() {}
            Some(ExitCode::SUCCESS)
        }
        Err(why) => {
            eprintln!("cannot set up a cell: {why}");
            Some(ExitCode::FAILURE)
        }
    }
}
