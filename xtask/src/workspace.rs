//! Where the tree is, where it is built, and cargo with an environment that does not depend on who called us.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace's root")
}

/// Where cargo builds; this very program lies two levels below it.
pub fn target_dir() -> PathBuf {
    let program = env::current_exe().expect("the running program has a path");
    program.ancestors().nth(2).expect("a program lies in target/PROFILE").to_owned()
}

/// Cargo, in the root. What `cargo run` told *us* about this package is taken away again: build scripts that
/// look at it would run anew, and their crates with them.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_about_a_package) {
            cargo.env_remove(name);
        }
    }
    cargo.args(arguments).current_dir(root());
    cargo
}

fn is_about_a_package(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
        .iter()
        .any(|start| name.starts_with(start))
}
