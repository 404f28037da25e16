//! Moto: S3 as a simulator, from the Python package index, installed beside our target directory by the first to ask.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::own_address;
use crate::process::Running;
use crate::programs::{apps_build_dir, lock};
use crate::wait::wait_until;

const PACKAGE: &str = "moto[server]==5.2.5";
/// One request at a time: with threads, as `moto_server` has them, it looks at a condition and writes in two steps, and
/// two writers sometimes win.
const SERVE: &str = "
import sys
from werkzeug.serving import run_simple
from moto.server import DomainDispatcherApplication, create_backend_app
run_simple(sys.argv[1], int(sys.argv[2]), DomainDispatcherApplication(create_backend_app), threaded=False)
";

/// Dropping it kills the server; its objects are in its memory.
#[derive(Debug)]
pub struct Moto {
    address: SocketAddr,
    _running: Running,
}

impl Moto {
    /// Starts a server with one bucket.
    #[must_use]
    pub fn start(bucket: &str) -> Self {
        let installed = moto().unwrap_or_else(|why| panic!("{why}"));
        let address = own_address();
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", installed).args(["-c", SERVE]);
        command.args([&address.ip().to_string(), &address.port().to_string()]);
        let running = Running::start(command);
        let limit = Duration::from_secs(30);
        wait_until("moto to listen", limit, || TcpStream::connect(address).is_ok());
        let moto = Self { address, _running: running };
        wait_until("a bucket in moto", limit, || moto.make(bucket));
        moto
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn make(&self, bucket: &str) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(self.address)?;
            let head = format!("PUT /{bucket} HTTP/1.1\r\nHost: {}\r\n", self.address);
            stream.write_all(format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        ask().is_ok_and(|answer| answer.lines().next().is_some_and(|line| line.contains(" 200 ")))
    }
}

/// The directory that Python finds moto in; the reason if it can't be had.
pub fn moto() -> Result<PathBuf, String> {
    let dir = apps_build_dir().join("moto-5.2.5");
    let _lock = lock(&dir);
    let done = dir.join("done");
    if !done.is_file() {
        let mut install = Command::new("python3");
        install.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&dir).arg(PACKAGE);
        let output = install.output().map_err(|why| format!("cannot start python3: {why}"))?;
        if !output.status.success() {
            return Err(format!("cannot install moto: {}", String::from_utf8_lossy(&output.stderr)));
        }
        std::fs::write(&done, "").map_err(|why| format!("cannot write {}: {why}", done.display()))?;
    }
    Ok(dir)
}
