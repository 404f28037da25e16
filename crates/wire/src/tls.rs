//! The files of one host, loaded: what it shows to its peers and what it asks of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::pki;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "cannot read {path}; `checksync pki init` makes it, and each host needs ca.crt and its own two files"
    )]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is of no use: {why}; copy it again from where `checksync pki init` made it")]
    Bad { path: PathBuf, why: String },
    #[error("{dir} holds no certificate of a host; make one with `checksync pki init {dir} HOST`")]
    NoHost { dir: PathBuf },
    #[error("{dir} holds the files of several hosts; say which one this is: {}", hosts.join(", "))]
    WhichHost { dir: PathBuf, hosts: Vec<String> },
}

/// A host's certificate and key, and the authority that its peers must show.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    host: String,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    heart: Arc<ClientConfig>,
}

impl TlsFiles {
    /// Loads `ca.crt` and the pair of `host`, or the only pair that there is in `dir`. All is checked here, so
    /// that wrong files are named at the start and not at the first connection.
    pub fn load(dir: &Path, host: Option<&str>) -> Result<Self, TlsError> {
        let host = host.map_or_else(|| only_host(dir), |host| Ok(host.to_owned()))?;
        let (ca, certificate) = (pki::ca_certificate(dir), pki::certificate(dir, &host));
        let files = Files {
            roots: read_roots(&ca)?,
            chain: read_certificates(&certificate)?,
            key: read_key(&pki::key(dir, &host))?,
            key_path: pki::key(dir, &host),
            certificate,
        };
        let client = files.client()?;
        let mut heart = client.clone();
        heart.alpn_protocols.insert(0, HEART.to_vec());
        Ok(Self { host, server: Arc::new(files.server()?), client: Arc::new(client), heart: Arc::new(heart) })
    }

    /// The name of the host whose files these are.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// Of a connection that says in its handshake already that heartbeats are all that it is for.
    pub(crate) fn heart(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.heart)
    }
}

struct Files {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    certificate: PathBuf,
    key_path: PathBuf,
}

/// The name that both sides must choose in the handshake: nobody else's protocol is spoken here.
const HTTP2: &[u8] = b"h2";
/// HTTP/2 as well, for heartbeats alone. A side that does not know it chooses `h2`.
pub(crate) const HEART: &[u8] = b"checksync-heart";

impl Files {
    fn server(&self) -> Result<ServerConfig, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|why| bad(&self.certificate, why))?;
        // Files of two authorities mixed in one directory are refused by their name, not by every peer.
        let (own, between) = self.chain.split_first().expect("read_certificates gives at least one");
        verifier.verify_client_cert(own, between, UnixTime::now()).map_err(|why| {
            bad(&self.certificate, format!("ca.crt beside it does not vouch for it: {why}"))
        })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|why| bad(&self.key_path, why))?;
        config.alpn_protocols = vec![HEART.to_vec(), HTTP2.to_vec()];
        // No resumption: every connection shows its certificate.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn client(&self) -> Result<ClientConfig, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|why| bad(&self.certificate, why))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3")
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|why| bad(&self.key_path, why))?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// For a server that is not of ours: `ca` vouches for its name, and we show `pair` if it asks. What failed comes
/// with the file that is to blame.
pub(crate) fn plain_client(
    ca: &Path,
    pair: Option<(&Path, &Path)>,
) -> Result<ClientConfig, (PathBuf, String)> {
    let blame = |path: &Path, why: String| (path.to_owned(), why);
    let told = |path: &Path, error: TlsError| match error {
        TlsError::Read { source, .. } => blame(path, source.to_string()),
        TlsError::Bad { why, .. } => blame(path, why),
        TlsError::NoHost { .. } | TlsError::WhichHost { .. } => blame(path, error.to_string()),
    };
    let roots = read_roots(ca).map_err(|error| told(ca, error))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = read_certificates(certificate).map_err(|error| told(certificate, error))?;
            let secret = read_key(key).map_err(|error| told(key, error))?;
            builder.with_client_auth_cert(chain, secret).map_err(|why| blame(key, why.to_string()))?
        }
    };
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

/// Has whoever in this process asks for TLS without naming a provider get ours; clients of object stores do.
pub fn prefer_our_tls() {
    // An earlier call has done it.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn only_host(dir: &Path) -> Result<String, TlsError> {
    let mut hosts = pki::hosts(dir).map_err(|source| TlsError::Read { path: dir.to_owned(), source })?;
    match hosts.len() {
        0 => Err(TlsError::NoHost { dir: dir.to_owned() }),
        1 => Ok(hosts.remove(0)),
        _ => Err(TlsError::WhichHost { dir: dir.to_owned(), hosts }),
    }
}

fn read_roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|why| bad(path, why))?;
    }
    Ok(Arc::new(roots))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|why| bad(path, why))?;
    if certificates.is_empty() { Err(bad(path, "there is no certificate in it")) } else { Ok(certificates) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|why| bad(path, why))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn bad(path: &Path, why: impl ToString) -> TlsError {
    TlsError::Bad { path: path.to_owned(), why: why.to_string() }
}
