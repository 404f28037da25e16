//! `--arbiter`: which back-end keeps the register, as text.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Arbiter, FileArbiter};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArbiterSpec {
    /// `file:PATH`: a directory that every manager sees, so for managers on one host.
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("--arbiter {0:?} names no back-end; write file:PATH")]
    NoBackend(String),
    #[error("--arbiter {spec:?}: there is no back-end {backend:?}; there is: file:PATH")]
    UnknownBackend { spec: String, backend: String },
    #[error("--arbiter file:{0}: the path must be absolute, so that every manager means the same")]
    RelativePath(String),
}

impl ArbiterSpec {
    pub fn open(&self) -> Box<dyn Arbiter> {
        match self {
            Self::File(directory) => Box::new(FileArbiter::new(directory)),
        }
    }
}

impl FromStr for ArbiterSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        match spec.split_once(':') {
            Some(("file", path)) if Path::new(path).is_absolute() => Ok(Self::File(path.into())),
            Some(("file", path)) => Err(SpecError::RelativePath(path.to_owned())),
            Some((backend, _)) => {
                Err(SpecError::UnknownBackend { spec: spec.to_owned(), backend: backend.to_owned() })
            }
            None => Err(SpecError::NoBackend(spec.to_owned())),
        }
    }
}

impl fmt::Display for ArbiterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(directory) => write!(f, "file:{}", directory.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_printing_and_parsing() {
        let spec: ArbiterSpec = "file:/run/checksync:1".parse().unwrap();
        assert_eq!(spec, ArbiterSpec::File("/run/checksync:1".into()));
        assert_eq!(spec.to_string().parse(), Ok(spec));
    }

    #[test]
    fn anything_else_is_refused_with_the_way_out() {
        for spec in ["", "/run/x", "file", "file:", "file:run/x", "etcd:http://[::1]:2379", ":/x"] {
            let error = spec.parse::<ArbiterSpec>().unwrap_err().to_string();
            assert!(error.starts_with("--arbiter") && (error.contains("file:")), "{error}");
        }
    }
}
