//! One step of a run: a name, a limit, and something to do. It prints its name before and its time after.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::processes::{self, Descendant};

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(50);
/// What a test started and gave up has this long to go by itself.
const FAREWELL: Duration = Duration::from_secs(5);
/// A killed process is gone after this, or hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Does `work`, and prints what and how long.
pub fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("── {name}");
    let begun = Instant::now();
    let outcome = work();
    let took = begun.elapsed();
    match &outcome {
        Ok(()) => println!("── {name}: done in {:.1} s\n", took.as_secs_f64()),
        Err(_) => println!("── {name}: FAILED after {:.1} s\n", took.as_secs_f64()),
    }
    outcome.with_context(|| format!("step {name:?} failed"))
}

/// Runs `command` to success. After `limit` it is killed with all that it started, and the error names what
/// was still running.
pub fn run(command: &mut Command, limit: Duration) -> Result<()> {
    let shown = show(command);
    println!("$ {shown}");
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {shown}"))?;
    match wait(&mut child, limit)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{shown}: {status}"),
        None => bail!("{shown}: not done after {} s, so it was killed; {}", limit.as_secs(), end_all()),
    }
}

/// The same for a command that may leave no process behind: tests.
pub fn run_clean(command: &mut Command, limit: Duration) -> Result<()> {
    run(command, limit)?;
    let end = Instant::now() + FAREWELL;
    loop {
        processes::reap();
        let left = processes::descendants();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            processes::kill_all(KILL_LIMIT);
            bail!("it left processes behind: {}", list(&left));
        }
        thread::sleep(POLL);
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(POLL);
    }
    Ok(None)
}

fn end_all() -> String {
    let running = list(&processes::descendants());
    let left = processes::kill_all(KILL_LIMIT);
    let stuck =
        if left.is_empty() { String::new() } else { format!("; could not be killed: {}", list(&left)) };
    format!("still running were: {running}{stuck}")
}

fn list(processes: &[Descendant]) -> String {
    let lines: Vec<_> =
        processes.iter().map(|process| format!("\n  {} {}", process.pid, process.command_line)).collect();
    lines.concat()
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failing_command_fails_by_name() {
        let _alone = processes::alone();
        assert!(run(&mut shell("true"), LIMIT).is_ok());
        let why = run(&mut shell("exit 3"), LIMIT).unwrap_err().to_string();
        assert!(why.contains("sh -c exit 3") && why.contains('3'), "{why}");
    }

    #[test]
    fn a_hung_command_is_killed_with_what_it_started_in_sessions_of_its_own() {
        let _alone = processes::alone();
        processes::adopt_orphans().expect("every process may");
        let begun = Instant::now();
        let hung = &mut shell("setsid sleep 1001 & sleep 1002");
        let why = run(hung, Duration::from_millis(300)).unwrap_err().to_string();
        assert!(begun.elapsed() < LIMIT && why.contains("sleep 1001") && why.contains("sleep 1002"), "{why}");
        assert_eq!(processes::descendants(), []);
    }

    #[test]
    fn a_test_that_leaves_a_process_behind_fails() {
        let _alone = processes::alone();
        processes::adopt_orphans().expect("every process may");
        let why = run_clean(&mut shell("setsid sleep 1003 >/dev/null &"), LIMIT).unwrap_err().to_string();
        assert!(why.contains("left processes behind") && why.contains("sleep 1003"), "{why}");
        assert_eq!(processes::descendants(), []);
        assert!(run_clean(&mut shell("sleep 0.1 &"), LIMIT).is_ok());
    }

    #[test]
    fn a_failing_step_names_itself() {
        let why = step("weigh", || bail!("too heavy")).unwrap_err();
        assert_eq!(format!("{why:#}"), "step \"weigh\" failed: too heavy");
    }
}
