//! The log: one line per change of state, to the standard error. `RUST_LOG` chooses what is shown; with
//! `epochs=trace` each step of each epoch is.

use tracing_subscriber::EnvFilter;

use crate::arguments::LogFormat;

pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
