//! s3s-fs: S3 over a directory, as its crate has it, served from a thread. It takes conditional puts, and looks and
//! writes in two steps: of writers who race, several win.

use std::net::{SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::own_address;

/// Dropping it ends the server, and removes its objects.
#[derive(Debug)]
pub struct S3sFs {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
    _objects: TempDir,
}

impl S3sFs {
    /// Starts a server with one bucket, whose key and secret are `test`.
    #[must_use]
    pub fn start(bucket: &str) -> Self {
        let objects = tempfile::tempdir().expect("the temporary directory is writable");
        std::fs::create_dir(objects.path().join(bucket)).expect("a new directory has room for a bucket");
        let files = s3s_fs::FileSystem::new(objects.path()).expect("a new directory can be served");
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single("test", "test"));
        let service = service.build();
        let listener = TcpListener::bind(own_address()).expect("the address is our own");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (end, ended) = oneshot::channel();
        let serving = thread::spawn(move || serve(listener, &service, ended));
        Self { address, end: Some(end), serving: Some(serving), _objects: objects }
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for S3sFs {
    fn drop(&mut self) {
        drop(self.end.take());
        self.serving.take().map(JoinHandle::join);
    }
}

/// Until `ended` is dropped; connections end with it.
fn serve(listener: TcpListener, service: &S3Service, ended: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads for a server").block_on(async {
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket that listens");
        let accepting = async {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    // A client that goes away is no matter.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            _ = ended => {}
        }
    });
}
