//! Azurite: Azure's blobs as Microsoft simulates them, from npm, installed beside our target directory by the first to
//! ask.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::own_address;
use crate::process::Running;
use crate::programs::{apps_build_dir, lock};
use crate::wait::wait_until;

/// Without what it would send telemetry by, and without the databases that it can keep its lists in: two thirds of the
/// packages.
const PACKAGE: &str = r#"{
  "private": true,
  "dependencies": { "azurite": "3.35.0" },
  "overrides": {
    "applicationinsights": "file:./nothing",
    "tedious": "file:./nothing",
    "mysql2": "file:./nothing"
  }
}"#;
const NOTHING: &str = r#"{ "name": "nothing", "version": "1.0.0", "main": "index.js" }"#;

/// Makes a container; Azure has every request signed.
const MAKE: &str = "
const [host, port, account, key, container] = process.argv.slice(1);
const path = `/${account}/${container}`;
const headers = { 'x-ms-date': new Date().toUTCString(), 'x-ms-version': '2021-12-02', 'content-length': 0 };
const signed = `PUT${'\\n'.repeat(12)}x-ms-date:${headers['x-ms-date']}\\nx-ms-version:${headers['x-ms-version']}\\n`
    + `/${account}${path}\\nrestype:container`;
const hmac = require('crypto').createHmac('sha256', Buffer.from(key, 'base64')).update(signed).digest('base64');
headers.authorization = `SharedKey ${account}:${hmac}`;
const request = { host, port, method: 'PUT', path: `${path}?restype=container`, headers };
require('http').request(request, answer => process.exit(answer.statusCode == 201 ? 0 : 1)).end();
";

/// Dropping it kills the server; its objects are in its memory.
#[derive(Debug)]
pub struct Azurite {
    address: SocketAddr,
    _running: Running,
}

impl Azurite {
    /// The one account that it has; its key is no secret.
    pub const ACCOUNT: &str = "devstoreaccount1";
    pub const KEY: &str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// Starts a server with one container.
    #[must_use]
    pub fn start(container: &str) -> Self {
        let installed = azurite().unwrap_or_else(|why| panic!("{why}"));
        let address = own_address();
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let mut command = Command::new("node");
        command.arg(installed.join("node_modules/azurite/dist/src/blob/main.js"));
        command.args(["--blobHost", &host, "--blobPort", &port]);
        // Our client asks in a version of the protocol that is newer than those it lists.
        command.args(["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]);
        let running = Running::start(command);
        let limit = Duration::from_secs(30);
        wait_until("Azurite to listen", limit, || TcpStream::connect(address).is_ok());
        let mut make = Command::new("node");
        make.args(["-e", MAKE, &host, &port, Self::ACCOUNT, Self::KEY, container]);
        let made = make.status().expect("node has just started Azurite");
        assert!(made.success(), "Azurite makes no container {container}");
        Self { address, _running: running }
    }

    /// What clients are told.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}/{}", self.address, Self::ACCOUNT)
    }
}

/// The directory that Azurite is installed in; the reason if it can't be had.
pub fn azurite() -> Result<PathBuf, String> {
    let dir = apps_build_dir().join("azurite-3.35.0");
    let _lock = lock(&dir);
    let done = dir.join("done");
    if !done.is_file() {
        let nothing = dir.join("nothing");
        std::fs::create_dir_all(&nothing)
            .map_err(|why| format!("cannot make {}: {why}", nothing.display()))?;
        let files = [
            (dir.join("package.json"), PACKAGE),
            (nothing.join("package.json"), NOTHING),
            (nothing.join("index.js"), ""),
        ];
        for (path, text) in files {
            std::fs::write(&path, text).map_err(|why| format!("cannot write {}: {why}", path.display()))?;
        }
        let mut install = Command::new("npm");
        install
            .args(["install", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund"])
            .current_dir(&dir);
        let output = install.output().map_err(|why| format!("cannot start npm: {why}"))?;
        if !output.status.success() {
            return Err(format!("cannot install Azurite: {}", String::from_utf8_lossy(&output.stderr)));
        }
        std::fs::write(&done, "").map_err(|why| format!("cannot write {}: {why}", done.display()))?;
    }
    Ok(dir)
}
