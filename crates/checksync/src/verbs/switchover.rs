//! `switchover`: move an app to its standby, and lose nothing. Ctrl-C calls it off until the standby was told.

use std::process::ExitCode;

use crate::arguments::{Format, SwitchoverArgs};
use crate::exit::Exit;
use crate::manager::control::{self, News, Order};

pub fn run(args: SwitchoverArgs) -> anyhow::Result<ExitCode> {
    let path = control::find(args.app.as_deref())?;
    let format = args.output.format;
    let mut exit = Exit::Failure;
    let mut told = false;
    control::ask(&path, &Order::SwitchOver { to: args.to }, |news| {
        match format {
            Format::Text => println!("{}", text(&news)),
            Format::Json => println!("{}", serde_json::to_string(&news).expect("news are plain data")),
        }
        told |= !matches!(news, News::Expect { .. });
        if matches!(news, News::Moved { .. }) {
            exit = Exit::Ok;
        }
    })?;
    if !told {
        anyhow::bail!("the manager has not said what became of it; ask `checksync status` on both hosts");
    }
    Ok(exit.into())
}

fn text(news: &News) -> String {
    match news {
        News::Expect { checkpoint_us } => {
            let checkpoint =
                checkpoint_us.map_or("a checkpoint".to_owned(), |us| format!("a checkpoint ({us} µs)"));
            format!(
                "clients will wait for {checkpoint}, a swap of the register and the restoring: some 10 ms"
            )
        }
        News::Done | News::Drilled { .. } => "done".to_owned(),
        News::CalledOff { why } => format!("called off: {why}; the app goes on where it was"),
        News::Moved { to, pause_us } => {
            format!("moved to {to}, with a pause of {:.1} ms", *pause_us as f64 / 1e3)
        }
    }
}
