//! `drill`: try a takeover where nobody sees it. Ctrl-C calls it off.

use std::process::ExitCode;

use anyhow::{anyhow, bail};

use crate::arguments::{DrillArgs, Format};
use crate::exit::{Coded, Exit};
use crate::manager::control::{self, News, Order};
use crate::manager::drill::{Outcome, Record};
use crate::status::{self, ManagerReport, Role};

pub fn run(args: DrillArgs) -> anyhow::Result<ExitCode> {
    let (standby, app) = find(&status::ask_all()?, args.app.as_deref())?;
    let patience_ms = u64::try_from(args.patience.as_millis())?;
    let order = Order::Drill { app: app.clone(), health: args.health, patience_ms };
    let mut told = None;
    control::ask(&status::run_dir()?.join(format!("{standby}.ctl")), &order, |news| told = Some(news))?;
    match told {
        Some(News::Drilled { record }) => {
            match args.output.format {
                Format::Text => println!("{}", text(&record)),
                Format::Json => println!("{}", serde_json::to_string(&record)?),
            }
            Ok(if record.outcome == Outcome::Passed { Exit::Ok } else { Exit::Failure }.into())
        }
        Some(News::CalledOff { why }) => bail!("no drill of {app}: {why}"),
        Some(News::Expect { .. } | News::Done | News::Moved { .. }) | None => {
            bail!("the standby has not said what became of it; see its log")
        }
    }
}

/// The socket of the daemon that keeps the app's copy, and the app's name.
fn find(managers: &[ManagerReport], app: Option<&str>) -> anyhow::Result<(String, String)> {
    let standbys = managers.iter().filter(|manager| manager.role == Role::Standby);
    let kept: Vec<(&str, &str)> = standbys
        .flat_map(|manager| {
            let address = manager.address.as_deref().unwrap_or_default();
            let port = address.rsplit(':').next().unwrap_or_default();
            manager.apps.iter().map(move |report| (port, report.app.as_str()))
        })
        .filter(|(_, name)| app.is_none_or(|app| app == *name))
        .collect();
    let nobody = |why: String| Err(Coded::new(Exit::NotRunning, anyhow!(why)).into());
    match (&kept[..], app) {
        ([(port, name)], _) => Ok((format!("standby-{port}"), (*name).to_owned())),
        ([], Some(app)) => {
            nobody(format!("no standby on this host keeps {app}; ask on the host of its standby"))
        }
        ([], None) => nobody("no standby on this host keeps an app; ask on the host of a standby".to_owned()),
        (_, None) => bail!("several apps are kept here; say which with --app NAME"),
        (_, Some(app)) => {
            bail!("several standbys on this host keep {app}; a drill needs to know which: stop one")
        }
    }
}

pub fn text(record: &Record) -> String {
    let name = record.term.zip(record.epoch).map(|(term, epoch)| format!(" of checkpoint {term}/{epoch}"));
    let mut parts = vec![format!(
        "drill{}: {}",
        name.unwrap_or_default(),
        match record.outcome {
            Outcome::Passed => "PASSED",
            Outcome::Failed => "FAILED",
            Outcome::Aborted => "ABORTED",
            Outcome::Refused => "REFUSED",
        }
    )];
    let span = |us: u64| format!("{:.1} ms", us as f64 / 1e3);
    parts.extend(record.copy_us.map(|us| format!("copied in {}", span(us))));
    parts.extend(record.restore_us.map(|us| format!("restored in {}", span(us))));
    parts.extend(record.healthy_us.map(|us| format!("healthy after {} more", span(us))));
    if record.outcome == Outcome::Passed && record.health.is_none() {
        parts.push("no health command was given, so all that is known is that it lives".to_owned());
    }
    parts.extend(record.why.clone());
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standby(port: u16, apps: &[&str]) -> ManagerReport {
        let reports = apps.iter().map(
            |app| serde_json::json!({"app": app, "role": "standby", "state": "following", "protected": true}),
        );
        serde_json::from_value(serde_json::json!({
            "schema": 1, "role": "standby", "host": "b", "pid": 1, "address": format!("127.0.0.1:{port}"),
            "fencing": "none", "apps": reports.collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    #[test]
    fn the_daemon_that_keeps_the_app_is_found_and_doubt_is_named() {
        let (one, two) = (standby(1, &["a"]), standby(2, &["b", "c"]));
        let both = [one, two];
        assert_eq!(find(&both, Some("c")).unwrap(), ("standby-2".to_owned(), "c".to_owned()));
        assert_eq!(find(&both[..1], None).unwrap(), ("standby-1".to_owned(), "a".to_owned()));
        for (app, named) in [(Some("x"), "no standby on this host keeps x"), (None, "--app NAME")] {
            let why = find(&both, app).unwrap_err().to_string();
            assert!(why.contains(named), "{why}");
        }
    }
}
