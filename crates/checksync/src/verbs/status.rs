//! `status`: what the managers of this host say.

use std::process::ExitCode;

use serde::Serialize;

use crate::arguments::{Format, StatusArgs};
use crate::exit::Exit;
use crate::manager::drill::{DrillReport, Record};
use crate::manager::store::{NamedBy, StoreReport};
use crate::moment;
use crate::status::{self, AppReport, ManagerReport, SCHEMA, StandbyReport};

#[derive(Serialize)]
struct Answer {
    schema: u32,
    /// Every app that has this host as its primary would survive its death, and every copy could take over.
    protected: bool,
    managers: Vec<ManagerReport>,
}

pub fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let mut managers = status::ask_all()?;
    if let Some(app) = &args.app {
        managers.iter_mut().for_each(|manager| manager.apps.retain(|report| report.app == *app));
        managers.retain(|manager| !manager.apps.is_empty());
    }
    let protected = managers.iter().flat_map(|manager| &manager.apps).all(|app| app.protected);
    let exit = match (managers.is_empty(), protected) {
        (true, _) => Exit::NotRunning,
        (false, false) => Exit::Unprotected,
        (false, true) => Exit::Ok,
    };
    match args.output.format {
        Format::Json => {
            let answer = Answer { schema: SCHEMA, protected: protected && !managers.is_empty(), managers };
            println!("{}", serde_json::to_string(&answer)?);
        }
        Format::Text => print_text(&managers),
    }
    Ok(exit.into())
}

fn print_text(managers: &[ManagerReport]) {
    if managers.is_empty() {
        println!("no manager runs on this host");
    }
    for manager in managers {
        if manager.apps.is_empty() {
            let address = manager.address.as_deref().unwrap_or("nowhere");
            println!("standby on {address}: no app yet (fencing: {})", manager.fencing);
        }
        for app in &manager.apps {
            println!("{}", line(app, &manager.fencing));
            if app.standbys.len() > 1 {
                app.standbys.iter().for_each(|standby| println!("  {}", standby_line(standby)));
            }
        }
    }
}

fn line(app: &AppReport, fencing: &str) -> String {
    let mut parts = vec![format!("{}: {}", app.app, app.state.to_uppercase())];
    parts.extend(app.why_not.as_ref().map(|why| format!("({why})")));
    parts.push(format!("as {:?}", app.role).to_lowercase());
    let name = app.term.zip(app.epoch).map(|(term, epoch)| format!("checkpoint {term}/{epoch}"));
    parts.extend(name);
    parts.extend(app.lag_ms.map(|lag| format!("lag {lag} ms")));
    let pauses = app.pause_us.map(|pauses| format!("pause p50 {} µs, p99 {} µs", pauses.p50, pauses.p99));
    parts.extend(pauses);
    parts.extend(app.peer.as_ref().map(|peer| format!("peer {peer}")));
    parts.extend(app.commit_on.as_ref().map(|rule| format!("commit on {rule}")));
    parts.extend(app.store.as_ref().map(store));
    if !app.unreplicated_files.is_empty() {
        parts.push(format!("not replicated: {}", app.unreplicated_files.join(", ")));
    }
    parts.extend(app.drill.as_ref().and_then(drill));
    parts.push(format!("fencing {fencing}"));
    parts.join(", ").replacen(", (", " (", 1)
}

fn standby_line(standby: &StandbyReport) -> String {
    let host = standby.host.as_deref().unwrap_or("?");
    let state = if standby.eligible { "ELIGIBLE" } else { "NOT ELIGIBLE" };
    let mut parts = vec![format!("{host} at {}: {state}", standby.address)];
    parts.extend(standby.why_not.as_ref().map(|why| format!("({why})")));
    let name = standby.term.zip(standby.epoch).map(|(term, epoch)| format!("checkpoint {term}/{epoch}"));
    parts.extend(name);
    parts.extend(standby.lag_ms.map(|lag| format!("lag {lag} ms")));
    parts.extend((standby.in_flight > 0).then(|| format!("{} on their way", standby.in_flight)));
    parts.join(", ").replacen(", (", " (", 1)
}

/// When the last ones were: nothing, if there was none.
fn drill(drills: &DrillReport) -> Option<String> {
    let at = |record: &Record| moment::text(record.began_at_ns);
    let passed = drills.last_success.as_ref().map(|record| format!("drill passed {}", at(record)));
    let failed = drills
        .last_failure
        .as_ref()
        .map(|record| format!("drill FAILED {} ({})", at(record), record.why.as_deref().unwrap_or_default()));
    // What came after is what counts.
    let newer =
        |record: &Record| record.began_at_ns > drills.last_success.as_ref().map_or(0, |it| it.began_at_ns);
    let failed = failed.filter(|_| drills.last_failure.as_ref().is_some_and(newer));
    let running = drills.running.then(|| "drill under way".to_owned());
    let said: Vec<String> = [running, failed, passed].into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(", "))
}

fn store(store: &StoreReport) -> String {
    let newest = match (store.term, store.epoch, store.behind_ms) {
        (Some(term), Some(epoch), Some(behind)) => format!(", has {term}/{epoch}, {behind} ms old"),
        _ => ", has nothing yet".to_owned(),
    };
    let why = store.why_not.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let by = if store.named_by == NamedBy::Primary { " as its primary says" } else { "" };
    let newest = if store.state == "idle" { ", until a takeover".to_owned() } else { newest };
    format!("store {}{by} {}{newest}{why}", store.location, store.state)
}
