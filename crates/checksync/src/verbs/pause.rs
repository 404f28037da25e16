//! `pause`: nobody takes over by itself while an operator works on the hosts. It ends by itself.

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::arguments::PauseArgs;
use crate::exit::Exit;
use crate::manager::control::{self, News, Order};

pub fn run(args: PauseArgs) -> anyhow::Result<ExitCode> {
    let path = control::find(args.app.as_deref())?;
    let span =
        if args.end { Default::default() } else { args.span.context("for how long? give --for 2h")? };
    let mut last = None;
    let millis = u64::try_from(span.as_millis())?;
    control::ask(&path, &Order::Pause { millis }, |news| last = Some(news))?;
    match last {
        Some(News::Done) if args.end => println!("takeover is automatic again"),
        Some(News::Done) => {
            println!("nobody takes over by itself for {span:?}; `checksync pause --end` ends that")
        }
        Some(News::CalledOff { why }) => bail!("not paused: {why}"),
        Some(News::Expect { .. } | News::Moved { .. } | News::Drilled { .. }) | None => {
            bail!("the manager has not answered")
        }
    }
    Ok(Exit::Ok.into())
}
