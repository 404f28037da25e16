//! A running process: stopped once, read like for a checkpoint, and let go. It runs on whatever was found.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use checkpoint::descriptors::{self, Cache, Saved, Subject};
use checkpoint::memory::{self, Tracker, self_test};
use checkpoint::process::{self, CellNumbers, ProcessCache};
use image::layout::Layout;
use image::process::Process;
use tracee::{Frozen, TraceError, Tree};

use super::finding::{Area, Finding};
use crate::verbs::describe::{self, Fate};

const PATIENCE: Duration = Duration::from_secs(2);
const SPACE: u32 = 0;

/// `covered` are the directories that hold what it writes, on every host.
pub fn look(pid: i32, covered: &[PathBuf]) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(children(pid));
    if let Err(error) = read(pid, covered, &mut findings) {
        findings.push(refused("process", &error));
    }
    findings
}

fn green(what: &str, found: impl Into<String>) -> Finding {
    Finding::green(Area::Process, what, found)
}

fn refused(what: &str, error: &dyn Error) -> Finding {
    Finding::red_by(Area::Process, what, error)
}

/// A lasting child is not carried, and whether it will last can't be seen.
fn children(pid: i32) -> Option<Finding> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let children: String =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    let children: Vec<&str> = children.split_whitespace().collect();
    (!children.is_empty()).then(|| {
        let cause = format!("it has child processes ({}), which are not captured", children.join(", "));
        Finding::red(
            Area::Process,
            "children",
            cause,
            "run it without child processes; transient ones only pause the protection",
        )
    })
}

fn read(pid: i32, covered: &[PathBuf], findings: &mut Vec<Finding>) -> Result<(), TraceError> {
    let mut tree = Tree::seize(pid)?;
    let mut frozen = tree.freeze(PATIENCE)?;
    findings.extend(threads(&mut frozen, pid));
    findings.extend(open_files(&frozen, pid, covered));
    findings.extend(mappings(&mut frozen, pid));
    let stood = frozen.thaw();
    findings.push(green(
        "pause",
        format!("it stood still for {:.1} ms to be looked at", stood.as_secs_f64() * 1e3),
    ));
    tree.release()
}

fn threads(frozen: &mut Frozen<'_>, pid: i32) -> Vec<Finding> {
    match process::save(frozen, pid, &mut CellNumbers::new(), &mut ProcessCache::new()) {
        Ok((process, _)) => {
            vec![green("threads", format!("{} protected{}", process.threads.len(), kind(&process)))]
        }
        Err(error) => vec![refused("threads", &error)],
    }
}

fn kind(process: &Process) -> &'static str {
    if process.attributes.go { ", of Go's runtime" } else { "" }
}

fn open_files(frozen: &Frozen<'_>, pid: i32, covered: &[PathBuf]) -> Vec<Finding> {
    let subject = Subject {
        manager: None,
        pid,
        pidfd: frozen.pidfd(pid),
        cell_pid: pid,
        pids: &HashMap::from([(pid, pid)]),
        stdio: &engine::output_pipes(pid),
        cgroup_mount: Path::new("/sys/fs/cgroup"),
        objects: &HashSet::new(),
        connections: descriptors::Connections::Reset,
    };
    let mut cache = match Cache::new() {
        Ok(cache) => cache,
        Err(error) => return vec![refused("descriptors", &error)],
    };
    match descriptors::save(&subject, &mut cache) {
        Ok(saved) => fates(&saved).into_iter().chain(written(&saved, covered)).collect(),
        Err(error) => vec![refused("descriptors", &error)],
    }
}

/// Memory that is replicated, of files that are not.
fn written(saved: &Saved, covered: &[PathBuf]) -> Option<Finding> {
    let covered: Vec<&Path> = covered.iter().map(PathBuf::as_path).collect();
    let paths = engine::written_outside(&saved.files, &covered);
    (!paths.is_empty()).then(|| {
        let cause = format!("open for writing, and not replicated: {}", paths.join(", "));
        let fix = "name their directory with --state-dir, or with --shared if all hosts have it";
        Finding::yellow(Area::Process, "files", cause, fix)
    })
}

/// One line per fate, with how many there are of each kind.
fn fates(saved: &Saved) -> Vec<Finding> {
    let mut kinds: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for descriptor in &saved.descriptors {
        let Some(file) = saved.files.get(descriptor.file as usize) else { continue };
        let (kind, _, fate) = describe::open_file(file);
        *kinds.entry(fate.text()).or_default().entry(kind).or_default() += 1;
    }
    let line = |fate: Fate, meaning: &str| {
        let kinds = kinds.get(fate.text())?;
        let list: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        Some(green(
            "descriptors",
            format!("{} {meaning}: {}", kinds.values().sum::<usize>(), list.join(", ")),
        ))
    };
    [
        line(Fate::Protected, "protected"),
        line(Fate::Reopened, "reopened by their paths, which the standby needs too"),
        line(Fate::Reset, "reset at a takeover, and their clients reconnect"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn mappings(frozen: &mut Frozen<'_>, pid: i32) -> Vec<Finding> {
    // What is wrong with the kernel is a line of the host's.
    let Ok(kernel) = self_test::run() else { return Vec::new() };
    let begun = Tracker::new(frozen, pid, SPACE, kernel, memory::workers())
        .and_then(|mut tracker| tracker.begin(frozen));
    match begun {
        Ok(Some(layout)) => vec![mapped(&layout)],
        Ok(None) => Vec::new(),
        Err(error) => vec![refused("mappings", &error)],
    }
}

fn mapped(layout: &Layout) -> Finding {
    let bytes = layout.mappings.iter().map(|mapping| mapping.range.len_bytes()).sum();
    let (count, objects) = (layout.mappings.len(), layout.objects.len());
    let shared = if objects == 0 { String::new() } else { format!(", {objects} of them shared objects") };
    green("mappings", format!("{count} protected, {}{shared}", describe::bytes(bytes)))
}
