//! What a test needs of its surroundings, said at its top: `needs!(CAP_SYS_PTRACE, "pagemap-scan")`.
//!
//! A test that lacks something skips and says so. Where `CHECKSYNC_TESTS=all` is set, as `cargo xtask ci` sets
//! it, it fails instead: a test that silently skips in CI protects nothing.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::servers::program_of;

/// Returns from the test, aloud, unless all that is named is there: capabilities by their kernel names,
/// anything else as a string: `"pagemap-scan"`, `"go"`, `"debian:redis-server"`.
#[macro_export]
macro_rules! needs {
    ($($need:tt),+ $(,)?) => {
        if !$crate::rights::all_there(&[$(stringify!($need).trim_matches('"')),+]) {
            return $crate::rights::Skipped::skipped();
        }
    };
}

/// What a skipped test returns.
pub trait Skipped {
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Whether every need is met; says which is not, and panics then if no test may be skipped.
#[track_caller]
#[must_use]
pub fn all_there(needs: &[&str]) -> bool {
    let missing: Vec<_> = needs.iter().copied().filter(|need| !is_there(need)).collect();
    if missing.is_empty() {
        return true;
    }
    skip_aloud(&format!("{missing:?}"));
    false
}

/// Says what a test lacks that it skips for; panics if no test may be skipped.
#[track_caller]
pub(crate) fn skip_aloud(missing: &str) {
    let strict = env::var("CHECKSYNC_TESTS").is_ok_and(|tests| tests == "all");
    assert!(!strict, "this test needs {missing}, and CHECKSYNC_TESTS=all lets none be skipped");
    eprintln!("SKIPPED: this test needs {missing}");
}

fn is_there(need: &str) -> bool {
    if let Some(package) = need.strip_prefix("debian:") {
        return debian(package) || program_of(package).is_some_and(on_path);
    }
    match need {
        "pagemap-scan" => kernel_release() >= (6, 7),
        "go" => on_path("go"),
        "root" => rustix::process::geteuid().is_root(),
        _ => match capability_bit(need) {
            Some(bit) => effective_capabilities() >> bit & 1 == 1,
            None => panic!("no test can need {need:?}: it is not known how to look for it"),
        },
    }
}

/// Whether a Debian package is installed. What it has may come from elsewhere.
#[must_use]
pub fn debian(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    query.output().is_ok_and(|done| done.stdout == b"installed")
}

/// Whether a program is on the PATH.
#[must_use]
pub fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The bit of a capability that our tests need, from capability.h.
fn capability_bit(name: &str) -> Option<u32> {
    Some(match name {
        "CAP_KILL" => 5,
        "CAP_SETUID" => 7,
        "CAP_NET_ADMIN" => 12,
        "CAP_NET_RAW" => 13,
        "CAP_SYS_PTRACE" => 19,
        "CAP_SYS_ADMIN" => 21,
        "CAP_SYS_NICE" => 23,
        "CAP_SYS_RESOURCE" => 24,
        "CAP_BPF" => 39,
        "CAP_CHECKPOINT_RESTORE" => 40,
        _ => return None,
    })
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string(Path::new("/proc/self/status")).expect("/proc is mounted");
    let line =
        status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("the kernel reports CapEff");
    u64::from_str_radix(line.trim(), 16).expect("CapEff is hexadecimal")
}

fn kernel_release() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split(['.', '-', '\n']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_met_need_lets_the_test_run() {
        assert!(all_there(&[]));
        assert!(on_path("sh"));
    }

    #[test]
    fn absent_programs_and_packages_are_absent() {
        assert!(!on_path("no-such-program"));
        assert!(!debian("no-such-package"));
    }

    #[test]
    #[should_panic(expected = "CAP_MISSPELT")]
    fn a_misspelt_need_fails_the_test() {
        let _ = all_there(&["CAP_MISSPELT"]);
    }
}
