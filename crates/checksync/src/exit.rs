//! The exit codes, which scripts rely on: they never change their meaning.

use std::process::ExitCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Failure = 1,
    Usage = 2,
    Unprotected = 3,
    NotRunning = 4,
    Fenced = 5,
    Unsupported = 6,
    Unreachable = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error for which a script wants to see more than "failed".
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct Coded {
    exit: Exit,
    error: anyhow::Error,
}

impl Coded {
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }
}

/// The code that goes with an error.
pub fn of(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<Coded>().map_or(Exit::Failure, |coded| coded.exit)
}
