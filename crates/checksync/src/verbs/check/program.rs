//! A program that is to be protected, as it lies on the disk; it is not started.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::finding::{Area, Finding};
use super::go;

/// A script may name another script, so many times.
const SCRIPTS_MAX: usize = 4;
const EXECUTABLE: u32 = 0o111;
const SET_ID: u32 = 0o6000;

pub fn look(command: &OsStr) -> Vec<Finding> {
    let name = command.to_string_lossy().into_owned();
    let mut findings = Vec::new();
    let mut program = find(command);
    for _ in 0..=SCRIPTS_MAX {
        let Some(path) = program else {
            let fix = "name a program that exists, or one that is in a directory of PATH";
            findings.push(Finding::red(Area::Process, name, "there is no such program", fix));
            return findings;
        };
        let interpreter;
        (interpreter, program) = match kind(&path) {
            Ok(Kind::Script(interpreter)) => (true, find(interpreter.as_os_str())),
            kind => {
                findings.push(finding(&path, kind));
                (false, None)
            }
        };
        if !interpreter {
            return findings;
        }
        let text = "a script; the program that it names is what is protected";
        findings.push(Finding::green(Area::Process, path.display().to_string(), text));
    }
    findings
}

/// As the shell would.
fn find(command: &OsStr) -> Option<PathBuf> {
    let usable = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & EXECUTABLE != 0)
    };
    if command.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(command)).filter(|path| usable(path));
    }
    let directories = env::var_os("PATH")?;
    env::split_paths(&directories).map(|directory| directory.join(command)).find(|path| usable(path))
}

enum Kind {
    Script(PathBuf),
    Program {
        interpreter: Option<String>,
        go: Option<String>,
        set_id: bool,
    },
    /// Built for another kind of machine.
    Foreign,
    Unknown,
}

fn kind(path: &Path) -> io::Result<Kind> {
    let file = File::open(path)?;
    let mut start = Vec::new();
    (&file).take(HEADER_BYTES as u64).read_to_end(&mut start)?;
    if start.starts_with(b"#!") {
        let mut line = String::new();
        BufReader::new(File::open(path)?.take(256)).read_line(&mut line)?;
        let interpreter = line[2..].split_whitespace().next().unwrap_or_default();
        return Ok(Kind::Script(interpreter.into()));
    }
    if !start.starts_with(b"\x7fELF") || start.len() < HEADER_BYTES {
        return Ok(Kind::Unknown);
    }
    const CLASS_64_LITTLE: [u8; 2] = [2, 1];
    const X86_64: u16 = 62;
    if start[4..6] != CLASS_64_LITTLE || half(&start, 18) != X86_64 {
        return Ok(Kind::Foreign);
    }
    let set_id = file.metadata()?.permissions().mode() & SET_ID != 0;
    Ok(Kind::Program { interpreter: interpreter(&file, &start)?, go: go::version(&file)?, set_id })
}

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const INTERPRETER: u32 = 3;
const PATH_BYTES_MAX: u64 = 4096;

/// What loads a dynamically linked program; a static one has none.
fn interpreter(file: &File, header: &[u8]) -> io::Result<Option<String>> {
    let (table, count) = (word(header, 32), half(header, 56));
    for n in 0..u64::from(count) {
        let mut segment = [0; SEGMENT_BYTES];
        let at = table.checked_add(n * SEGMENT_BYTES as u64).ok_or(io::ErrorKind::InvalidData)?;
        file.read_exact_at(&mut segment, at)?;
        if u32::from_le_bytes(segment[..4].try_into().expect("four bytes")) == INTERPRETER {
            let mut path = vec![0; word(&segment, 32).min(PATH_BYTES_MAX) as usize];
            file.read_exact_at(&mut path, word(&segment, 8))?;
            return Ok(Some(String::from_utf8_lossy(&path).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn finding(path: &Path, kind: io::Result<Kind>) -> Finding {
    let what = path.display().to_string();
    let red = |cause: String, fix| Finding::red(Area::Process, what.clone(), cause, fix);
    match kind {
        Ok(Kind::Program { set_id: true, .. }) => Finding::yellow(
            Area::Process,
            what,
            "it changes its user when it starts (set-user-id or set-group-id), which a traced program does not",
            "start it as the user that it needs",
        ),
        Ok(Kind::Program { interpreter, go, set_id: false }) => {
            let linked = interpreter.map_or("statically linked".to_owned(), |by| format!("linked by {by}"));
            let go = go.map_or(String::new(), |version| format!(", built by {version}"));
            Finding::green(Area::Process, what, format!("an x86-64 program, {linked}{go}"))
        }
        Ok(Kind::Foreign) => {
            red("it is built for another kind of machine".to_owned(), "build it for x86-64 Linux")
        }
        Ok(Kind::Script(_) | Kind::Unknown) => {
            red("it is neither a program nor a script".to_owned(), "name an ELF program or a script with #!")
        }
        Err(why) => red(format!("it cannot be read: {why}"), "make it readable for checksync"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::check::finding::Level;

    #[test]
    fn programs_are_found_like_the_shell_finds_them() {
        assert_eq!(look(OsStr::new("sh"))[0].level, Level::Green);
        assert_eq!(look(OsStr::new("/nowhere/at/all"))[0].level, Level::Red);
        assert_eq!(look(OsStr::new("/etc"))[0].level, Level::Red, "a directory is no program");
    }

    #[test]
    fn scripts_lead_to_what_runs_them() {
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            look(path.as_os_str())
        };
        let findings = script("good", "#!/bin/sh -e\n");
        assert_eq!(findings.len(), 2);
        assert!(findings[1].found.contains("x86-64 program"), "{findings:?}");
        assert_eq!(script("lost", "#!/nowhere\n").last().unwrap().level, Level::Red);
        assert_eq!(script("text", "hello").last().unwrap().level, Level::Red);
    }
}
