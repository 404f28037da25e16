//! Who a certificate says that the peer is.

use std::fmt;
use std::net::SocketAddr;

use rustls::pki_types::CertificateDer;

/// Every certificate carries this name, and it is the one that is verified: a host's address may then change,
/// and a standby may be reached by any of its addresses.
pub(crate) const CLUSTER_NAME: &str = "checksync.peer";
/// Marks the name of the host among the alternative names of a certificate, whether it is a name or an address.
pub(crate) const HOST_URI: &str = "checksync:host:";

/// A peer whose certificate was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The host that the certificate was made for.
    pub name: String,
    pub address: SocketAddr,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.address)
    }
}

impl PeerIdentity {
    /// Reads the name out of a verified chain. `None`: it is not one of the certificates that we make.
    pub(crate) fn read(chain: Option<&[CertificateDer<'_>]>, address: SocketAddr) -> Option<Self> {
        let certificate = webpki::EndEntityCert::try_from(chain?.first()?).ok()?;
        let name = certificate.valid_uri_names().find_map(|uri| uri.strip_prefix(HOST_URI))?;
        Some(Self { name: name.to_owned(), address })
    }
}
