//! The key/value server of the thesis and its client: `apps/kv`, 72-byte pairs, 90 % get and 10 % put.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use testkit::programs::go_app;
use testkit::servers::own_address;

use super::side::Side;

const KEY_BYTES: &str = "8";
const VALUE_BYTES: &str = "64";

/// The arguments of a server.
pub fn serve(listen: &str, keys: u64) -> Vec<String> {
    let preload = keys.to_string();
    let words = ["serve", "--listen", listen, "--preload", &preload];
    let words = words.into_iter().chain(["--key-bytes", KEY_BYTES, "--value-bytes", VALUE_BYTES]);
    words.map(str::to_owned).collect()
}

/// Makes the server print a line for each of its collections.
pub const TRACED: &str = "GODEBUG=gctrace=1";

/// A server in a cell, filled and ready.
pub fn start(keys: u64) -> Result<(SocketAddr, Side)> {
    start_with(keys, &[], 0)
}

/// The same, with these variables, and with so many threads besides those that it needs.
pub fn start_with(keys: u64, variables: &[&str], threads: u32) -> Result<(SocketAddr, Side)> {
    let address = own_address();
    let program = go_app("kv").display().to_string();
    let mut words = serve(&address.to_string(), keys);
    words.extend(["--threads".to_owned(), threads.to_string()]);
    let words = variables.iter().copied().chain([program.as_str()]).chain(words.iter().map(String::as_str));
    let side = Side::primary("/usr/bin/env", &words.collect::<Vec<_>>())?;
    side.wait_for_line("ready").with_context(|| format!("no server with {keys} keys"))?;
    Ok((address, side))
}

/// A serial client that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    child: Child,
    output: ChildStdout,
}

/// What we read of a client's report.
#[derive(Debug, Deserialize)]
struct LoadReport {
    ops_per_second: f64,
    corrupt: u64,
    connections_lost: u64,
}

impl Load {
    /// Returns once it has its first answer. Without `seconds` it runs until it is dropped.
    pub fn start(address: SocketAddr, keys: u64, seconds: Option<f64>) -> Result<Self> {
        let mut command = Command::new(go_app("kv"));
        command.args(["load", "--clients", "1", "--read-percent", "90", "--addr", &address.to_string()]);
        command.args(["--keys", &keys.to_string(), "--key-bytes", KEY_BYTES, "--value-bytes", VALUE_BYTES]);
        command.args(["--seconds", &seconds.unwrap_or(0.0).to_string()]);
        // The default is shorter than what a busy machine keeps a server waiting.
        command.args(["--timeout", "5s"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start a client")?;
        let (output, error) = (child.stdout.take(), child.stderr.take());
        let load = Self { child, output: output.context("stdout is piped")? };
        let mut line = String::new();
        BufReader::new(error.context("stderr is piped")?).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the client says: {line}");
        Ok(load)
    }

    /// Waits for the end of its time. Answers requests per second.
    pub fn throughput(mut self) -> Result<f64> {
        let mut text = String::new();
        // It ends by itself: it has its seconds, and gives a server up that does not answer.
        self.output.read_to_string(&mut text)?;
        let report: LoadReport = serde_json::from_str(&text).context("the client's report")?;
        ensure!(report.corrupt == 0 && report.connections_lost == 0, "the client lost something: {text}");
        Ok(report.ops_per_second)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It fails only if it ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection of its own; whether it was answered.
pub fn answers(address: SocketAddr, patience: Duration) -> bool {
    let asked = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET nothing\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line == "NONE\n")
    };
    asked().unwrap_or(false)
}
