//! The standby: whether it can be reached, and who it is.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use wire::{Client, TlsFiles};

use super::finding::{Area, Finding, cause_and_fix};

const PATIENCE: Duration = Duration::from_secs(3);

/// Connects, and hangs up again. Fails where there is nothing to connect with.
pub fn look(address: &str, pki: &Path, host: Option<&str>) -> anyhow::Result<Finding> {
    let tls = TlsFiles::load(pki, host)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start a runtime")?;
    let began = Instant::now();
    let connected = runtime.block_on(Client::connect(address, &tls, PATIENCE));
    let what = address.to_owned();
    Ok(match connected {
        Ok(client) => {
            let name = &client.peer().name;
            let took = began.elapsed().as_secs_f64() * 1e3;
            Finding::green(Area::Peer, what, format!("{name} answers as {}, in {took:.1} ms", tls.host()))
        }
        Err(error) => {
            let (cause, _) = cause_and_fix(&error);
            Finding::red(Area::Peer, what, cause, fix(&error))
        }
    })
}

fn fix(error: &wire::WireError) -> &'static str {
    use wire::WireError as E;
    match error {
        E::Unreachable { .. } | E::TimedOut { .. } => {
            "start `checksync standby` there, and let its port through every firewall between"
        }
        E::Certificate { .. } => "give both hosts files that one `checksync pki init` made",
        E::NotAPeer { .. } => "check the address and the port",
        E::Version { .. } | E::Malformed { .. } | E::TooLarge { .. } => {
            "install the same release on both hosts"
        }
        E::Refused { .. } | E::Lost { .. } => "see the standby's log",
    }
}
