//! The log: one line per change of state, to the standard error. `RUST_LOG` chooses what is shown; with
//! `epochs=trace` each step of each epoch is.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use crate::arguments::LogFormat;

pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = fmt::layer().with_writer(std::io::stderr);
    let log = match format {
        LogFormat::Text => log.with_target(false).boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    #[cfg(any(debug_assertions, feature = "stands"))]
    registry().with(log.with_filter(filter)).with(crate::stand::layer()).init();
    #[cfg(not(any(debug_assertions, feature = "stands")))]
    registry().with(filter).with(log).init();
}
