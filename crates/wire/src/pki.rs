//! The certificates of a cluster, in one directory:
//!
//! ```text
//! ca.crt  ca.key        the authority; the key stays where it was made
//! HOST.crt  HOST.key    one pair per host, which takes it along with ca.crt
//! ```
//!
//! Whoever holds a pair can run code as root on every host of the cluster, because that is what replicating a
//! process means. Keys have mode 0600. No file is ever overwritten; a failure removes what it had made.
//!
//! Certificates do not expire: a pair must not stop failing over on a day that nobody has in mind. To shut a
//! host out, make a new directory.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::identity::{CLUSTER_NAME, HOST_URI};

const AUTHORITY: &str = "ca";

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{path} exists already and is not overwritten; remove it, or use another directory")]
    Exists { path: PathBuf },
    #[error("{dir} holds only one of ca.crt and ca.key; put the other beside it, or use another directory")]
    HalfAuthority { dir: PathBuf },
    #[error("{host:?} can't name a host: {why}; give the names or addresses of the hosts")]
    Host { host: String, why: String },
    #[error("cannot make certificates without hosts; name each host of the cluster")]
    NoHosts,
    #[error("{path} is of no use: {why}; use the one that made ca.crt")]
    Key { path: PathBuf, why: String },
    #[error("cannot {what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What [`init`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Whether the authority is new; otherwise the one that was there has vouched for the hosts.
    pub new_authority: bool,
    pub files: Vec<PathBuf>,
}

/// Makes the authority of a cluster and a pair of files for each host. In a directory that has an authority it
/// makes pairs for more hosts. After an error there is in `dir` what was there before.
pub fn init(dir: &Path, hosts: &[String]) -> Result<Made, PkiError> {
    if hosts.is_empty() {
        return Err(PkiError::NoHosts);
    }
    let known = (ca_certificate(dir).exists(), ca_key(dir).exists());
    let mut files = Vec::new();
    let authority_key = match known {
        (true, true) => load_key(&ca_key(dir))?,
        (false, false) => new_key(),
        _ => return Err(PkiError::HalfAuthority { dir: dir.to_owned() }),
    };
    let new_authority = !known.0;
    if new_authority {
        let certificate = authority().self_signed(&authority_key).expect("our own parameters are valid");
        files.push((ca_certificate(dir), certificate.pem(), CERTIFICATE_MODE));
        files.push((ca_key(dir), authority_key.serialize_pem(), KEY_MODE));
    }
    let issuer = Issuer::new(authority(), authority_key);
    for host in hosts {
        files.extend(pair(dir, host, &issuer)?);
    }
    write_all(dir, &files)?;
    Ok(Made { new_authority, files: files.into_iter().map(|(path, _, _)| path).collect() })
}

/// The hosts whose pair is in `dir`, sorted.
pub fn hosts(dir: &Path) -> io::Result<Vec<String>> {
    let mut hosts = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let host = name.to_str().and_then(|name| name.strip_suffix(".crt"));
        hosts.extend(host.filter(|host| *host != AUTHORITY && key(dir, host).exists()).map(str::to_owned));
    }
    hosts.sort();
    Ok(hosts)
}

pub(crate) fn ca_certificate(dir: &Path) -> PathBuf {
    certificate(dir, AUTHORITY)
}

fn ca_key(dir: &Path) -> PathBuf {
    key(dir, AUTHORITY)
}

pub(crate) fn certificate(dir: &Path, host: &str) -> PathBuf {
    dir.join(format!("{host}.crt"))
}

pub(crate) fn key(dir: &Path, host: &str) -> PathBuf {
    dir.join(format!("{host}.key"))
}

type NewFile = (PathBuf, String, u32);

const CERTIFICATE_MODE: u32 = 0o644;
const KEY_MODE: u32 = 0o600;

/// The same for every cluster but for its key, so that the key alone is enough to vouch for more hosts.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "CheckSync authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn pair(dir: &Path, host: &str, issuer: &Issuer<'_, KeyPair>) -> Result<[NewFile; 2], PkiError> {
    let host_key = new_key();
    let certificate_of_host =
        host_params(host)?.signed_by(&host_key, issuer).expect("parameters that were checked are valid");
    Ok([
        (certificate(dir, host), certificate_of_host.pem(), CERTIFICATE_MODE),
        (key(dir, host), host_key.serialize_pem(), KEY_MODE),
    ])
}

fn host_params(host: &str) -> Result<CertificateParams, PkiError> {
    let refuse = |why: String| PkiError::Host { host: host.to_owned(), why };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let address = host.parse::<IpAddr>().ok();
    if host == AUTHORITY || host == CLUSTER_NAME {
        return Err(refuse("this name is taken".to_owned()));
    }
    if address.is_none() && (host.is_empty() || host.starts_with(['.', '-']) || !host.chars().all(fits)) {
        return Err(refuse("it is neither a name nor an address".to_owned()));
    }
    let text = |text: String| text.try_into().map_err(|why: rcgen::Error| refuse(why.to_string()));
    let own = match address {
        Some(address) => SanType::IpAddress(address),
        None => SanType::DnsName(text(host.to_owned())?),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, host);
    params.subject_alt_names = vec![
        own,
        SanType::DnsName(text(CLUSTER_NAME.to_owned())?),
        SanType::URI(text(format!("{HOST_URI}{host}"))?),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("making a key needs nothing but random bytes")
}

fn load_key(path: &Path) -> Result<KeyPair, PkiError> {
    let text = fs::read_to_string(path).map_err(|source| file("read", path, source))?;
    KeyPair::from_pem(&text).map_err(|why| PkiError::Key { path: path.to_owned(), why: why.to_string() })
}

fn write_all(dir: &Path, files: &[NewFile]) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| file("make", dir, source))?;
    for (done, (path, text, mode)) in files.iter().enumerate() {
        if let Err(why) = write_new(path, text, *mode) {
            for (path, _, _) in &files[..done] {
                // What can't be removed is named by the next attempt, which refuses to overwrite it.
                let _ = fs::remove_file(path);
            }
            return Err(why);
        }
    }
    Ok(())
}

/// Writes a file that was not there before, or leaves none.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let mut new = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Ok(new) => new,
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
            return Err(PkiError::Exists { path: path.to_owned() });
        }
        Err(source) => return Err(file("make", path, source)),
    };
    new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).map_err(|source| {
        let _ = fs::remove_file(path);
        file("write", path, source)
    })
}

fn file(what: &'static str, path: &Path, source: io::Error) -> PkiError {
    PkiError::File { what, path: path.to_owned(), source }
}
