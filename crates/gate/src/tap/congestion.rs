//! Who decides how fast connections send whose output waits.
//!
//! BBR goes by how fast and how soon the peer acknowledges. Output that waits for its epoch and then leaves at once looks
//! to it like a slow link: one flow from an app made 0.24 Gb/s here, where Reno and CUBIC, which go by what is lost, made
//! 1.1 to 1.6. So connections in the cell do not begin with it. An app that asks for it by `TCP_CONGESTION` gets it.

use std::fs;
use std::io;

const SETTING: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
/// The kernel lets a namespace choose what the host has allowed to everybody; the last always is.
const BY_LOSS: [&str; 2] = ["cubic", "reno"];

/// For the namespace of this thread. Where /proc/sys is read-only, connections are as slow as said.
pub(super) fn go_by_loss() {
    match fs::read_to_string(SETTING).and_then(|now| replace(now.trim())) {
        Ok(None) => (),
        Ok(Some(by_loss)) => {
            tracing::info!("the app's connections begin with {by_loss}, not BBR: output waits")
        }
        Err(why) => tracing::warn!("one flow from the app will be slow, if it goes by BBR: {SETTING}: {why}"),
    }
}

fn replace(now: &str) -> io::Result<Option<&'static str>> {
    if !now.starts_with("bbr") {
        return Ok(None);
    }
    let mut refused = io::ErrorKind::NotFound.into();
    for by_loss in BY_LOSS {
        match fs::write(SETTING, by_loss) {
            Ok(()) => return Ok(Some(by_loss)),
            Err(why) => refused = why,
        }
    }
    Err(refused)
}
