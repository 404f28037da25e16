//! Lines of code: of each component (thesis, table 4.1), and those that change in a program that is made
//! fault-tolerant (table 5.1). Nothing is run; what is counted is the tree as it lies here.
//!
//! A line counts if it holds more than blanks and a comment. What changes is counted as a shortest edit script has it:
//! lines that are taken away and lines that are put in, of the files that make up the server.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Row;
use crate::workspace::root;

/// The key/value server; the other files of `apps/kv` are its clients, which stay as they are.
const SERVER: [&str; 4] = ["main.go", "server.go", "store.go", "value.go"];
/// The coordinator; the other files of `apps/mapreduce` are its workers and what they count with.
const COORDINATOR: [&str; 3] = ["main.go", "coordinator.go", "words.go"];
/// What a client of `apps/kv` needs to outlive a reset connection: functions of its files.
const RECONNECTS: [(&str, &str); 2] = [("client.go", "connect"), ("worker.go", "reconnect")];
const COMPONENTS: [&str; 3] = ["crates", "sdk", "xtask"];

pub fn rows() -> Result<Vec<Row>> {
    let mut rows = changed()?;
    rows.extend(components()?);
    Ok(rows)
}

fn changed() -> Result<Vec<Row>> {
    let kv = app("kv", Some(&SERVER))?;
    let coordinator = app("mapreduce", Some(&COORDINATOR))?;
    let row = |id: &str, lines: usize| Row::measured(format!("changed.{id}"), "lines", &[lines as f64]);
    let between = |one: &[String], other: &[String]| {
        let (gone, new) = edits(one, other);
        gone + new
    };
    Ok(vec![
        // The very programs that run unprotected: the evaluations start the same files.
        row("server.checksync", 0).thesis(0.0),
        row("client.checksync-strong", 0),
        row("client.checksync-timeline", reconnecting()?),
        row("server.checksync-sync-call", of_sync_call(&kv)),
        row("server.checksync-structure", between(&kv, &app("structkv", None)?)),
        row("server.raft", between(&kv, &raft_port("raftkv")?)),
        row("coordinator.checksync", 0),
        row("coordinator.raft", between(&coordinator, &raft_port("raftmapreduce")?)),
    ])
}

/// A port and what both ports share: each of them had to write it, for the library leaves it to its users.
fn raft_port(name: &str) -> Result<Vec<String>> {
    let mut lines = app(name, None)?;
    lines.extend(app("raftnode", None)?);
    Ok(lines)
}

/// In the server as it is these lines serve its flag `--sync`: a call before a write is answered.
fn of_sync_call(kv: &[String]) -> usize {
    kv.iter().filter(|line| line.contains("commit") || line.contains("checksync")).count()
}

fn reconnecting() -> Result<usize> {
    let mut count = 0;
    for (file, function) in RECONNECTS {
        let text = read(&root().join("apps/kv").join(file))?;
        count += body_of(&text, function).with_context(|| format!("{file} has no {function}"))?;
    }
    Ok(count)
}

/// Lines of a method in Go, from its head to its closing brace.
fn body_of(text: &str, name: &str) -> Option<usize> {
    let head = format!(") {name}(");
    let mut lines = text.lines().skip_while(|line| !(line.starts_with("func (") && line.contains(&head)));
    let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "}").collect();
    (!body.is_empty()).then(|| body.iter().filter(|line| is_code(line)).count() + 1)
}

/// The code of a program of `apps/`, without its tests; of these files only, if any are named.
fn app(name: &str, files: Option<&[&str]>) -> Result<Vec<String>> {
    let dir = root().join("apps").join(name);
    let is_wanted = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let is_named = files.is_none_or(|files| files.contains(&file.as_ref()));
        file.ends_with(".go") && !file.ends_with("_test.go") && is_named
    };
    let mut lines = Vec::new();
    for path in files_in(&dir)?.into_iter().filter(is_wanted) {
        lines.extend(read(&path)?.lines().filter(|line| is_code(line)).map(|line| line.trim().to_owned()));
    }
    Ok(lines)
}

/// How many lines are taken away and put in: all that the longest common part leaves.
fn edits(from: &[String], to: &[String]) -> (usize, usize) {
    let mut common = vec![0; to.len() + 1];
    for line in from {
        let mut before = 0;
        for (number, other) in to.iter().enumerate() {
            let above = common[number + 1];
            common[number + 1] = if line == other { before + 1 } else { above.max(common[number]) };
            before = above;
        }
    }
    let common = common.last().copied().unwrap_or(0);
    (from.len() - common, to.len() - common)
}

fn components() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for place in COMPONENTS {
        let dir = root().join(place);
        let parts = if place == "xtask" { vec![dir] } else { directories_in(&dir)? };
        for part in parts {
            let name = part.strip_prefix(root()).context("it lies in the tree")?.display().to_string();
            let (code, tests) = lines_of(&part)?;
            rows.push(Row::measured(format!("code.{name}"), "lines", &[code as f64]));
            rows.push(Row::measured(format!("code.{name}.tests"), "lines", &[tests as f64]));
        }
    }
    Ok(rows)
}

/// Of code, and of tests.
fn lines_of(part: &Path) -> Result<(usize, usize)> {
    let (mut code, mut tests) = (0, 0);
    for path in files_in(part)? {
        let name = path.to_string_lossy();
        if !name.ends_with(".rs") && !name.ends_with(".go") {
            continue;
        }
        let text = read(&path)?;
        let is_test = name.contains("/tests/") || name.ends_with("_test.go");
        let (before, after) = if is_test { ("", text.as_str()) } else { split_at_tests(&text) };
        let count = |text: &str| text.lines().filter(|line| is_code(line)).count();
        code += count(before);
        tests += count(after);
    }
    Ok((code, tests))
}

/// A module of tests is the last thing in its file.
fn split_at_tests(text: &str) -> (&str, &str) {
    text.find("#[cfg(test)]\nmod ").map_or((text, ""), |at| text.split_at(at))
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Sorted, and without what is built.
fn entries_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| name != "target"));
    paths.sort();
    Ok(paths)
}

fn directories_in(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries_of(dir)?.into_iter().filter(|path| path.is_dir()).collect())
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries_of(dir)? {
        if path.is_dir() { found.extend(files_in(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn edits_are_what_the_common_part_leaves() {
        assert_eq!(edits(&lines("a b c d"), &lines("a x c d e")), (1, 2));
        assert_eq!(edits(&lines("a b"), &lines("a b")), (0, 0));
        assert_eq!(edits(&[], &lines("a b")), (0, 2));
    }

    #[test]
    fn a_method_is_counted_from_its_head_to_its_brace() {
        let text = "func (c *client) other() {\n}\n\nfunc (c *client) connect(x int) error {\n\t// why\n\tif x {\n\t}\n\n\treturn nil\n}\n";
        assert_eq!(body_of(text, "connect"), Some(5));
        assert_eq!(body_of(text, "gone"), None);
    }

    #[test]
    fn comments_and_tests_are_not_code() {
        let (before, after) = split_at_tests("fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n");
        assert_eq!((before.lines().filter(|line| is_code(line)).count(), after.lines().count()), (1, 3));
        assert!(!is_code("  // words") && !is_code("") && is_code("x := 1 // words"));
    }

    #[test]
    fn the_tree_has_what_is_counted() {
        let rows = rows().expect("a whole tree");
        let of = |id: &str| rows.iter().find(|row| row.id == id).and_then(|row| row.median).expect("counted");
        assert!(of("changed.server.raft") > 500.0 && of("changed.coordinator.raft") > 300.0);
        assert!(of("changed.client.checksync-timeline") > 5.0);
        assert!(of("code.crates/engine") > 500.0 && of("code.crates/replica.tests") > 100.0);
    }
}
