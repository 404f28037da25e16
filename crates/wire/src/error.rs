//! What can go wrong with a peer, by what there is to do about it.

use std::io;
use std::time::Duration;

use crate::message::{PROTOCOL_VERSION, RELEASE, Refusal};

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("cannot reach {address}; is checksync running there, and does a firewall let the port through?")]
    Unreachable {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "certificate refused between here and {address}: {why}; \
         both hosts need the files that one `checksync pki init` made"
    )]
    Certificate { address: String, why: String },
    #[error("{address} does not speak checksync's protocol: {why}; check the address and the port")]
    NotAPeer { address: String, why: String },
    #[error("{peer} and this host do not understand each other: {why}")]
    Version { peer: String, why: String },
    #[error("{peer} refused: {refusal}")]
    Refused { peer: String, refusal: Refusal },
    #[error("{peer} did not {what} within {waited:?}")]
    TimedOut { peer: String, what: &'static str, waited: Duration },
    #[error("message between here and {peer} is too large: {why}")]
    TooLarge { peer: String, why: String },
    #[error("{peer} sent what cannot be understood: {why}; install the same release on both hosts")]
    Malformed { peer: String, why: String },
    #[error("connection to {peer} is lost: {why}")]
    Lost { peer: String, why: String },
}

/// What is wrong with a peer's version, and what to do. `None`: nothing.
pub(crate) fn version_advice(theirs: u32, release: &str) -> Option<(String, String)> {
    (theirs != PROTOCOL_VERSION).then(|| {
        let why = format!(
            "release {release} speaks protocol {theirs}, release {RELEASE} speaks protocol {PROTOCOL_VERSION}"
        );
        (why, "install the same release on both hosts".to_owned())
    })
}

/// An error and all that is behind it, as one line for a log.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}
