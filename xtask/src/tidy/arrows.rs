//! The arrows between crates, as cargo knows them, against those that ARCHITECTURE.md allows; and the libraries
//! that only one crate may see.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Breach;
use super::map::Map;
use crate::workspace::cargo;

/// A library, and the crates that may use it at run time: what the others deliberately know nothing of.
const CONFINED: &[(&str, &[&str])] = &[
    ("anyhow", &["checksync", "xtask"]),
    ("clap", &["checksync", "xtask"]),
    ("prost", &["wire"]),
    ("tonic", &["wire"]),
    ("rustls", &["wire"]),
    ("object_store", &["store", "arbiter"]),
    ("reqwest", &["store"]),
    ("tokio", &["wire", "arbiter", "checksync", "testkit"]),
    ("libc", &["sys", "tracee", "checkpoint", "engine", "gate", "testkit", "checksync"]),
    (
        "rustix",
        &[
            "sys",
            "tracee",
            "checkpoint",
            "engine",
            "files",
            "gate",
            "arbiter",
            "testkit",
            "checksync",
            "xtask",
        ],
    ),
];
/// The helpers of the tests, which only tests and this program may use.
const TESTKIT: &str = "testkit";

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Clone, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing.
    kind: Option<String>,
}

/// The workspace's packages.
pub fn packages() -> Result<Vec<Package>> {
    let mut metadata = cargo(&["metadata", "--no-deps", "--locked", "--format-version", "1"]);
    let told = metadata.stderr(Stdio::inherit()).output().context("cannot start cargo metadata")?;
    ensure!(told.status.success(), "cargo metadata: {}", told.status);
    let metadata: Metadata =
        serde_json::from_slice(&told.stdout).context("cargo metadata speaks otherwise")?;
    Ok(metadata.packages)
}

pub fn check(map: &Map, packages: &[Package]) -> Vec<Breach> {
    let mut breaches: Vec<_> = packages.iter().flat_map(|package| check_package(map, package)).collect();
    let known = |name: &String| packages.iter().any(|package| short(&package.name) == name);
    let gone = map.keys().filter(|name| !known(name));
    breaches.extend(
        gone.map(|name| Breach::new("ARCHITECTURE.md", format!("its map names {name}, which is no crate"))),
    );
    breaches
}

fn check_package(map: &Map, package: &Package) -> Vec<Breach> {
    let name = short(&package.name);
    let Some(uses) = map.get(name) else {
        return vec![Breach::new("ARCHITECTURE.md", format!("its map lacks a row for the crate {name}"))];
    };
    let place = format!("the crate {name}");
    let mut breaches = Vec::new();
    for dependency in package.dependencies.iter().filter(|dependency| dependency.kind.is_none()) {
        let used = short(&dependency.name);
        let ours = dependency.name == used_name(used);
        if ours && used == TESTKIT && name != "xtask" {
            breaches.push(Breach::new(&place, "uses testkit outside its tests"));
        } else if ours && !uses.allows(used) {
            breaches.push(Breach::new(
                &place,
                format!("uses {used}, which the map of ARCHITECTURE.md does not allow"),
            ));
        } else if !may_see(name, &dependency.name) {
            breaches.push(Breach::new(&place, format!("uses {used}, of which it is to know nothing")));
        }
    }
    breaches
}

fn may_see(name: &str, library: &str) -> bool {
    CONFINED.iter().all(|(confined, users)| *confined != library || users.contains(&name))
}

/// Our crates are called `checksync-NAME` among packages, and `NAME` in code and in the map.
fn short(package: &str) -> &str {
    package.strip_prefix("checksync-").unwrap_or(package)
}

fn used_name(short: &str) -> String {
    format!("checksync-{short}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::map;

    const MAP: &str = "| `low` | a | nothing |\n| `high` | b | `low` |\n| `testkit` | c | nothing |\n";

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependency = |&(name, kind): &(&str, Option<&str>)| Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
        };
        Package { name: name.to_owned(), dependencies: dependencies.iter().map(dependency).collect() }
    }

    fn breaches(packages: &[Package]) -> Vec<String> {
        check(&map::parse(MAP), packages).iter().map(ToString::to_string).collect()
    }

    fn tree(high: &[(&str, Option<&str>)], low: &[(&str, Option<&str>)]) -> Vec<Package> {
        vec![
            package("checksync-high", high),
            package("checksync-low", low),
            package("checksync-testkit", &[]),
        ]
    }

    #[test]
    fn arrows_that_the_map_has_are_fine() {
        let tests_may = ("checksync-testkit", Some("dev"));
        assert_eq!(breaches(&tree(&[("checksync-low", None), tests_may], &[("bytes", None)])), [""; 0]);
    }

    #[test]
    fn an_arrow_up_and_a_confined_library_are_breaches() {
        let up =
            breaches(&tree(&[], &[("checksync-high", None), ("tokio", None), ("checksync-testkit", None)]));
        assert_eq!(up.len(), 3, "{up:?}");
        assert!(up[0].contains("low") && up[0].contains("uses high") && up[1].contains("tokio"), "{up:?}");
    }

    #[test]
    fn a_crate_without_a_row_and_a_row_without_a_crate_are_breaches() {
        let all =
            [package("checksync-new", &[]), package("checksync-low", &[]), package("checksync-testkit", &[])];
        let found = breaches(&all);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("new") && found[1].contains("high"), "{found:?}");
    }
}
