//! `--arbiter`: which back-end keeps the register, as text.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use store::{Location, LocationError};
use wire::TlsFiles;

use crate::{Arbiter, ArbiterError, EtcdArbiter, FileArbiter, ObjectArbiter, WitnessArbiter};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArbiterSpec {
    /// `file:PATH`: a directory that every manager sees, so for managers on one host.
    File(PathBuf),
    Etcd(EtcdSpec),
    /// `witness:HOST:PORT`: a `checksync witness` with certificates of the same authority.
    Witness(String),
    /// `s3://BUCKET[/PREFIX]` or `az://CONTAINER[/PREFIX]`, whose conditional puts are probed first.
    Bucket(Location),
}

/// `etcd://HOST:PORT[,HOST:PORT…]/PREFIX[?ca=FILE[&cert=FILE&key=FILE]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSpec {
    pub endpoints: Vec<String>,
    /// With the slash in front, without one at the end.
    pub prefix: String,
    /// None: without TLS.
    pub files: Option<EtcdFiles>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdFiles {
    pub ca: PathBuf,
    /// Our certificate and its key.
    pub pair: Option<(PathBuf, PathBuf)>,
}

const FORMS: &str = "witness:HOST:PORT, etcd://HOST:PORT[,HOST:PORT…]/PREFIX[?ca=FILE[&cert=FILE&key=FILE]], \
                     s3://BUCKET[/PREFIX], az://CONTAINER[/PREFIX] or file:PATH";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("--arbiter {0:?} names no back-end; write {FORMS}")]
    NoBackend(String),
    #[error("--arbiter {spec:?}: there is no back-end {backend:?}; write {FORMS}")]
    UnknownBackend { spec: String, backend: String },
    #[error("--arbiter file:{0}: the path must be absolute, so that every manager means the same")]
    RelativePath(String),
    #[error("--arbiter {spec:?}: {why}; write {FORMS}")]
    Malformed { spec: String, why: String },
}

impl ArbiterSpec {
    /// Nothing is asked or connected yet; what is wrong with the register's files is found here.
    /// `tls`: our own certificates, for a witness.
    pub fn open(&self, tls: &TlsFiles) -> Result<Box<dyn Arbiter>, ArbiterError> {
        Ok(match self {
            Self::File(directory) => Box::new(FileArbiter::new(directory)),
            Self::Etcd(spec) => Box::new(EtcdArbiter::new(spec)?),
            Self::Witness(address) => Box::new(WitnessArbiter::new(address, tls)?),
            Self::Bucket(location) => Box::new(ObjectArbiter::open(location)?),
        })
    }
}

impl FromStr for ArbiterSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        match spec.split_once(':') {
            Some(("file", path)) if Path::new(path).is_absolute() => Ok(Self::File(path.into())),
            Some(("file", path)) => Err(SpecError::RelativePath(path.to_owned())),
            Some(("etcd", rest)) => parse_etcd(rest)
                .map(Self::Etcd)
                .map_err(|why| SpecError::Malformed { spec: spec.to_owned(), why }),
            Some(("witness", address)) if is_endpoint(address) => Ok(Self::Witness(address.to_owned())),
            Some(("witness", address)) => Err(SpecError::Malformed {
                spec: spec.to_owned(),
                why: format!("{address:?} is not HOST:PORT"),
            }),
            Some(("s3" | "az", _)) => spec.parse().map(Self::Bucket).map_err(|why: LocationError| {
                SpecError::Malformed { spec: spec.to_owned(), why: why.to_string() }
            }),
            Some((backend, _)) => {
                Err(SpecError::UnknownBackend { spec: spec.to_owned(), backend: backend.to_owned() })
            }
            None => Err(SpecError::NoBackend(spec.to_owned())),
        }
    }
}

fn parse_etcd(rest: &str) -> Result<EtcdSpec, String> {
    let rest = rest.strip_prefix("//").ok_or("two slashes follow `etcd:`")?;
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (hosts, prefix) = rest.split_once('/').ok_or("a slash and a prefix follow the hosts")?;
    let prefix = prefix.trim_matches('/');
    if prefix.is_empty() || prefix.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("{prefix:?} is no prefix"));
    }
    let endpoints: Vec<String> = hosts.split(',').map(str::to_owned).collect();
    if let Some(wrong) = endpoints.iter().find(|endpoint| !is_endpoint(endpoint)) {
        return Err(format!("{wrong:?} is not HOST:PORT"));
    }
    let files = query.map(parse_files).transpose()?;
    Ok(EtcdSpec { endpoints, prefix: format!("/{prefix}"), files })
}

fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
    let plain = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c));
    !host.is_empty() && bare && plain && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn parse_files(query: &str) -> Result<EtcdFiles, String> {
    let (mut ca, mut certificate, mut key) = (None, None, None);
    for part in query.split('&') {
        let (name, path) = part.split_once('=').ok_or_else(|| format!("{part:?} is not NAME=FILE"))?;
        let place = match name {
            "ca" => &mut ca,
            "cert" => &mut certificate,
            "key" => &mut key,
            _ => return Err(format!("there is no {name:?}; there are ca, cert and key")),
        };
        if !Path::new(path).is_absolute() {
            return Err(format!("the path of {name} must be absolute"));
        }
        *place = Some(PathBuf::from(path));
    }
    let ca = ca.ok_or("TLS needs ca=FILE, the authority of etcd's members")?;
    match (certificate, key) {
        (None, None) => Ok(EtcdFiles { ca, pair: None }),
        (Some(certificate), Some(key)) => Ok(EtcdFiles { ca, pair: Some((certificate, key)) }),
        (Some(_), None) | (None, Some(_)) => Err("cert and key come together".to_owned()),
    }
}

impl fmt::Display for ArbiterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(directory) => write!(f, "file:{}", directory.display()),
            Self::Etcd(spec) => spec.fmt(f),
            Self::Witness(address) => write!(f, "witness:{address}"),
            Self::Bucket(location) => location.fmt(f),
        }
    }
}

impl fmt::Display for EtcdSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}{}", self.endpoints.join(","), self.prefix)?;
        let Some(EtcdFiles { ca, pair }) = &self.files else { return Ok(()) };
        write!(f, "?ca={}", ca.display())?;
        let Some((certificate, key)) = pair else { return Ok(()) };
        write!(f, "&cert={}&key={}", certificate.display(), key.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_printing_and_parsing() {
        for text in [
            "file:/run/checksync:1",
            "witness:c.example:7401",
            "etcd://a:2379/checksync",
            "s3://bucket/registers",
            "az://box",
            "etcd://10.0.0.1:2379,b.example:2379,[::1]:2379/a/b",
            "etcd://a:1/p?ca=/etc/ca.crt",
            "etcd://a:1/p?ca=/etc/ca.crt&cert=/etc/c.crt&key=/etc/c.key",
        ] {
            assert_eq!(text.parse::<ArbiterSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_way_out() {
        for spec in [
            "",
            "/run/x",
            "file",
            "file:",
            "file:run/x",
            "consul:http://[::1]:2379",
            ":/x",
            "witness:c",
            "s3:bucket",
            "az://",
            "etcd:a:1/x",
            "etcd://a:1",
            "etcd://a:1/",
            "etcd://a/x",
            "etcd://a:0/x",
            "etcd://a:1,/x",
            "etcd://::1:2379/x",
            "etcd://a:1/x?ca=ca.crt",
            "etcd://a:1/x?cert=/c&key=/k",
            "etcd://a:1/x?ca=/a&cert=/c",
            "etcd://a:1/x?tls",
        ] {
            let error = spec.parse::<ArbiterSpec>().unwrap_err().to_string();
            assert!(error.starts_with("--arbiter") && (error.contains("file:")), "{error}");
        }
    }
}
