//! Standing still at a step of an epoch, for a test that has something die just there. No user's build has it.
//!
//! Every step that the log has a name for (targets `epochs` and `places`) is such a place. Whoever listens on the unix
//! socket `stand/NAME` in the manager's run directory has it stand there, in the thread that comes by, until the
//! connection ends; the log has the step by then.

use std::fmt::{Debug, Write};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// A test that has forgotten us is over.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Stand {
    places: PathBuf,
}

pub fn layer<S>() -> Option<impl Layer<S>>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let run_dir = std::env::var_os("CHECKSYNC_RUN_DIR")?;
    let steps =
        Targets::new().with_target("epochs", LevelFilter::TRACE).with_target("places", LevelFilter::TRACE);
    Some(Stand { places: PathBuf::from(run_dir).join("stand") }.with_filter(steps))
}

impl<S: Subscriber> Layer<S> for Stand {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut name = Name(String::new());
        event.record(&mut name);
        let Ok(mut test) = UnixStream::connect(self.places.join(name.0)) else { return };
        if test.set_read_timeout(Some(PATIENCE)).is_ok() {
            // Whatever it says: it is over.
            let _ = test.read(&mut [0]);
        }
    }
}

/// The words of a step, with hyphens between them.
struct Name(String);

impl Visit for Name {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let mut words = String::new();
            // Into a string it always succeeds.
            let _ = write!(words, "{value:?}");
            self.0 = words.replace(' ', "-");
        }
    }
}
