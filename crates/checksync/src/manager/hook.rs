//! The promote hook: the operator's command, run when an app is served from here.

use std::ffi::OsString;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use image::CheckpointId;

const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Runs `command` beside the app. Its failure is said aloud and undoes nothing: the app serves.
pub fn promoted(command: &OsString, app: &str, id: CheckpointId) {
    let mut shell = Command::new("sh");
    sys::spawn::with_open_signals(&mut shell);
    shell.arg("-c").arg(command).stdin(Stdio::null());
    shell.env("CHECKSYNC_APP", app).env("CHECKSYNC_ROLE", "primary");
    shell.env("CHECKSYNC_TERM", id.term.to_string()).env("CHECKSYNC_EPOCH", id.epoch.to_string());
    let app = app.to_owned();
    match shell.spawn() {
        Ok(child) => {
            let watched = thread::Builder::new().name("hook".to_owned()).spawn(move || watch(child, &app));
            if let Err(why) = watched {
                tracing::error!("nobody watches the promote hook: {why}");
            }
        }
        Err(why) => {
            tracing::error!(app, "cannot start the promote hook: {why}; clients may not find the app")
        }
    }
}

fn watch(mut child: Child, app: &str) {
    const POLL: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + TIME_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return tracing::info!(app, "promote hook has run"),
            Ok(Some(status)) => {
                return tracing::error!(app, "promote hook failed: {status}; clients may not find the app");
            }
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
            Ok(None) => {
                tracing::error!(app, "promote hook took longer than {TIME_LIMIT:?} and is killed");
                // It is ours, and not reaped yet.
                let _ = child.kill().and_then(|()| child.wait());
                return;
            }
            Err(why) => return tracing::error!(app, "cannot wait for the promote hook: {why}"),
        }
    }
}
