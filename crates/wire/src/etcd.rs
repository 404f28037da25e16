//! A client of etcd that can do two things: read one key, and swap its value.
//!
//! The crate that others use for etcd needs `protoc` on every builder and a second gRPC transport; this is one
//! service of two calls on the transport that is here anyway. One client is one connection to one member of the
//! cluster. It never reconnects or asks twice by itself: what a lost answer means, its user decides. It has no
//! deadline of its own either; dropping a call's future gives the call up, and what it asked for may still happen.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http;
use tonic::{Request, Status};

use crate::client::Calls;
use crate::error::chain;
use crate::etcd_proto as proto;
use crate::etcd_proto::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::etcd_proto::kv_client::KvClient;
use crate::etcd_proto::{request_op, response_op};
use crate::tls;

/// etcd answers a client that asks more often than every five seconds with the end of the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// One variant per reaction: try again or another member; look at the configuration.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    #[error("cannot reach etcd at {endpoint}: {why}")]
    Unreachable { endpoint: String, why: String },
    #[error("etcd at {endpoint} does not do it: {why}")]
    Refused { endpoint: String, why: String },
    #[error("{path} is of no use for connections to etcd: {why}")]
    File { path: PathBuf, why: String },
}

/// What a TLS connection to etcd needs.
#[derive(Clone)]
pub struct EtcdTls(Arc<ClientConfig>);

impl EtcdTls {
    /// `ca`: who vouches for the members. `pair`: our certificate and key, if etcd asks for one.
    pub fn load(ca: &Path, pair: Option<(&Path, &Path)>) -> Result<Self, EtcdError> {
        tls::plain_client(ca, pair)
            .map(|config| Self(Arc::new(config)))
            .map_err(|(path, why)| EtcdError::File { path, why })
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EtcdTls")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdValue {
    pub value: Bytes,
    /// Changes with every write of the key.
    pub mod_revision: i64,
}

/// What a key must be for a swap to win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtcdExpected {
    Absent,
    Value(Vec<u8>),
    ModRevision(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtcdSwap {
    Won,
    /// What the key is instead.
    Lost(Option<EtcdValue>),
}

/// A connection to one member.
#[derive(Clone)]
pub struct EtcdClient {
    endpoint: String,
    calls: Calls,
    scheme: &'static str,
}

impl EtcdClient {
    /// `endpoint` is HOST:PORT.
    pub async fn connect(endpoint: &str, tls: Option<&EtcdTls>) -> Result<Self, EtcdError> {
        let unreachable = |why: &dyn std::error::Error| EtcdError::Unreachable {
            endpoint: endpoint.to_owned(),
            why: why.to_string(),
        };
        let tcp = TcpStream::connect(endpoint).await.map_err(|why| unreachable(&why))?;
        tcp.set_nodelay(true).map_err(|why| unreachable(&why))?;
        let (calls, scheme) = match tls {
            None => (start_http2(tcp, endpoint).await?, "http"),
            Some(EtcdTls(config)) => {
                let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
                let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                    .map_err(|why| unreachable(&why))?;
                let stream = TlsConnector::from(Arc::clone(config)).connect(name, tcp).await;
                (start_http2(stream.map_err(|why| unreachable(&why))?, endpoint).await?, "https")
            }
        };
        Ok(Self { endpoint: endpoint.to_owned(), calls, scheme })
    }

    /// What the cluster agrees that the key is.
    pub async fn get(&self, key: &str) -> Result<Option<EtcdValue>, EtcdError> {
        let request = proto::RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()) };
        let answer = self.kv().range(Request::new(request)).await.map_err(|status| self.error(&status))?;
        Ok(answer.into_inner().kvs.into_iter().next().map(Into::into))
    }

    /// Writes `value` if the key is as expected. After an error it may have been written, or may yet be.
    pub async fn swap(
        &self,
        key: &str,
        expected: EtcdExpected,
        value: Vec<u8>,
    ) -> Result<EtcdSwap, EtcdError> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let (target, union) = match expected {
            EtcdExpected::Absent => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
            EtcdExpected::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.into())),
            EtcdExpected::ModRevision(revision) => (CompareTarget::Mod, TargetUnion::ModRevision(revision)),
        };
        let compare = proto::Compare {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key: key.clone(),
            target_union: Some(union),
        };
        let put =
            request_op::Request::RequestPut(proto::PutRequest { key: key.clone(), value: value.into() });
        let look = request_op::Request::RequestRange(proto::RangeRequest { key });
        let operation = |request| vec![proto::RequestOp { request: Some(request) }];
        let request =
            proto::TxnRequest { compare: vec![compare], success: operation(put), failure: operation(look) };
        let answer = self.kv().txn(Request::new(request)).await.map_err(|status| self.error(&status))?;
        self.outcome(answer.into_inner())
    }

    fn outcome(&self, answer: proto::TxnResponse) -> Result<EtcdSwap, EtcdError> {
        if answer.succeeded {
            return Ok(EtcdSwap::Won);
        }
        match answer.responses.into_iter().next().and_then(|operation| operation.response) {
            Some(response_op::Response::ResponseRange(found)) => {
                Ok(EtcdSwap::Lost(found.kvs.into_iter().next().map(Into::into)))
            }
            None => Err(EtcdError::Refused {
                endpoint: self.endpoint.clone(),
                why: "its answer to a lost swap does not say what the key is".to_owned(),
            }),
        }
    }

    fn kv(&self) -> KvClient<Calls> {
        let origin = format!("{}://{}", self.scheme, self.endpoint);
        let origin = http::Uri::try_from(origin).unwrap_or_else(|_| http::Uri::from_static("http://etcd"));
        KvClient::with_origin(self.calls.clone(), origin)
    }

    fn error(&self, status: &Status) -> EtcdError {
        let endpoint = self.endpoint.clone();
        match std::error::Error::source(status) {
            Some(source) => EtcdError::Unreachable { endpoint, why: chain(source) },
            None => EtcdError::Refused { endpoint, why: status.message().to_owned() },
        }
    }
}

impl fmt::Debug for EtcdClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EtcdClient(to {})", self.endpoint)
    }
}

impl From<proto::KeyValue> for EtcdValue {
    fn from(found: proto::KeyValue) -> Self {
        Self { value: found.value, mod_revision: found.mod_revision }
    }
}

async fn start_http2<S>(stream: S, endpoint: &str) -> Result<Calls, EtcdError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await;
    let (calls, driver) =
        begun.map_err(|why| EtcdError::Unreachable { endpoint: endpoint.to_owned(), why: chain(&why) })?;
    // What ends it, the next call says.
    tokio::spawn(async move { drop(driver.await) });
    Ok(Calls(calls))
}
