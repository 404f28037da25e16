//! Rules on the text of sources. They look at lines, with comments and string literals taken out where code is
//! meant, and know no more of the language than that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Breach;

/// A file that is longer is two files.
const LINES_MAX: usize = 700;
/// Where `unsafe` may be: the crate that is there for it, and the programs that tests run.
const UNSAFE_IN: [&str; 2] = ["crates/sys/", "crates/testkit/"];
/// Where a thread may sleep, and why that is no synchronisation.
const SLEEP_IN: [(&str, &str); 5] = [
    ("crates/testkit/src/wait.rs", "looks again until a deadline"),
    ("crates/testkit/src/guest.rs", "the pace at which a guest is disturbed"),
    ("crates/gate/tests/permit/guest.rs", "the pace at which a guest speaks"),
    ("crates/checkpoint/tests/process_save.rs", "the interval between captures"),
    ("crates/testkit/src/bin/guest/churn.rs", "a guest that changes things at a pace of its own"),
];
/// The manager's own channel, in the words of std's.
const CHANNEL: &str = "crates/checksync/src/mpsc.rs";
/// Marks of unfinished work; put together here, so that this file does not contain them.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Checks every source below `root`.
pub fn check_tree(root: &Path) -> Result<Vec<Breach>> {
    let mut breaches = Vec::new();
    for part in ["crates", "sdk", "xtask", "apps"] {
        for path in sources(&root.join(part))? {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            breaches.extend(check(&name, &text));
        }
    }
    Ok(breaches)
}

fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if is_source(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

fn is_source(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ["rs", "go", "java", "js", "py", "proto"].iter().any(|known| ending == *known))
}

fn check(name: &str, text: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        breaches.push(Breach::new(name, format!("{lines} lines; more than {LINES_MAX} are two files")));
    }
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{name}:{}", number + 1);
        breaches.extend(check_line(name, line).map(|rule| Breach::new(place(), rule)));
    }
    if name.ends_with(".rs") {
        breaches.extend(bare_allowances(name, text));
    }
    breaches
}

fn check_line(name: &str, line: &str) -> Option<&'static str> {
    if UNFINISHED.iter().any(|mark| has_word(line, mark)) {
        return Some("unfinished work is finished, or an issue");
    }
    if !name.ends_with(".rs") {
        return None;
    }
    let code = code_of(line);
    let is_unsafe = has_word(&code, "unsafe") || code.contains("allow(unsafe_code");
    if is_unsafe && !UNSAFE_IN.iter().any(|part| name.starts_with(part)) {
        return Some("unsafe code lives in crates/sys alone");
    }
    let sleeps = code.contains("thread::sleep") && is_test(name);
    if sleeps && !SLEEP_IN.iter().any(|(allowed, _)| *allowed == name) {
        return Some("a test waits for what it needs with testkit::wait, and sleeps for nothing");
    }
    let spins = code.contains("std::sync") && has_word(&code, "mpsc");
    if spins && name.starts_with("crates/checksync/src/") && name != CHANNEL {
        return Some("std's channel has threads at real-time priority spin: crate::mpsc has them sleep");
    }
    None
}

/// Tests, and what is built for them; not this crate, which waits for other programs.
fn is_test(name: &str) -> bool {
    name.starts_with("crates/")
        && (name.contains("/tests/") || name.contains("/tests.rs") || name.contains("testkit/"))
}

/// The allowances in `text` that give no reason.
fn bare_allowances(name: &str, text: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some((before, attribute)) = split_at_allowance(rest) {
        line += before.matches('\n').count();
        let end = attribute.find(")]").unwrap_or(attribute.len());
        if !attribute[..end].contains("reason") {
            breaches.push(Breach::new(format!("{name}:{line}"), "an allowance gives its reason"));
        }
        line += attribute[..end].matches('\n').count();
        rest = &attribute[end..];
    }
    breaches
}

/// Splits before the next line that begins with an allowance.
fn split_at_allowance(text: &str) -> Option<(&str, &str)> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = line.trim_start();
        if ["#[allow(", "#![allow(", "#[expect(", "#![expect("].iter().any(|open| start.starts_with(open)) {
            return Some(text.split_at(at));
        }
        at += line.len();
    }
    None
}

/// The line without what stands in string literals and behind `//`.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '\'' if chars.peek() == Some(&'"') => drop(chars.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            _ if !quoted => code.push(c),
            _ => (),
        }
    }
    code
}

fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(part_of_word) && !text[at + word.len()..].starts_with(part_of_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(name: &str, text: &str) -> Vec<String> {
        check(name, text).into_iter().map(|breach| breach.to_string()).collect()
    }

    #[test]
    fn unsafe_code_is_found_outside_sys_alone() {
        let code = "fn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(rules("crates/gate/src/a.rs", code).len(), 1);
        assert!(rules("crates/gate/src/a.rs", code)[0].starts_with("crates/gate/src/a.rs:2"));
        assert_eq!(rules("crates/sys/src/a.rs", code), [""; 0]);
        assert_eq!(
            rules("crates/gate/src/a.rs", "// unsafe\nlet a = \"unsafe\";\nlet unsafe_b = 1;\n"),
            [""; 0]
        );
    }

    #[test]
    fn unfinished_work_and_long_files_are_found() {
        let mark = format!("// {}: later\n", UNFINISHED[0]);
        assert_eq!(rules("apps/kv/a.go", &mark).len(), 1);
        assert_eq!(rules("apps/kv/a.go", &"\n".repeat(LINES_MAX)), [""; 0]);
        assert_eq!(rules("apps/kv/a.go", &"\n".repeat(LINES_MAX + 1)).len(), 1);
    }

    #[test]
    fn channels_that_spin_are_found_in_the_manager() {
        for line in ["use std::sync::mpsc;\n", "use std::sync::{Arc, mpsc};\n"] {
            assert_eq!(rules("crates/checksync/src/manager/copy.rs", line).len(), 1);
            assert_eq!(rules(CHANNEL, line), [""; 0]);
            assert_eq!(rules("crates/engine/src/twin.rs", line), [""; 0]);
        }
        assert_eq!(rules("crates/checksync/src/a.rs", "use crate::mpsc;\nuse tokio::sync::mpsc;\n"), [""; 0]);
    }

    #[test]
    fn sleeps_are_found_in_tests() {
        let sleep = "    std::thread::sleep(PAUSE);\n";
        assert_eq!(rules("crates/wire/tests/a.rs", sleep).len(), 1);
        assert_eq!(rules("crates/replica/src/primary/tests.rs", sleep).len(), 1);
        assert_eq!(rules("crates/wire/src/a.rs", sleep), [""; 0]);
        assert_eq!(rules("crates/testkit/src/wait.rs", sleep), [""; 0]);
    }

    #[test]
    fn allowances_without_a_reason_are_found_over_several_lines() {
        let good = "#[allow(\n    dead_code,\n    reason = \"x\"\n)]\n";
        let bad = "#[allow(\n    dead_code,\n)]\n";
        assert_eq!(rules("crates/wire/src/a.rs", good), [""; 0]);
        let found = rules("crates/wire/src/a.rs", &format!("{good}{bad}"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("crates/wire/src/a.rs:5"), "{found:?}");
    }
}
