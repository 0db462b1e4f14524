//! Finding the binaries under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names a folder with the binaries to test, instead of those of the profile under test.
const BIN_DIR: &str = "SHOAL_TEST_BIN_DIR";

/// The path of `shoal-node` or `shoal-seeder`.
///
/// They are built first, once in a test run: cargo builds no binary of another package for a test, and a stale one
/// would be worse than none.
///
/// # Panics
/// When they cannot be built.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(find_folder).join(name);
    assert!(path.is_file(), "there is no {}", path.display());
    path
}

fn find_folder() -> PathBuf {
    if let Some(folder) = env::var_os(BIN_DIR) {
        return PathBuf::from(folder).canonicalize().expect("the folder with the binaries exists");
    }
    // TARGET/PROFILE/deps/this-executable
    let executable = env::current_exe().expect("a process knows its executable");
    let folder = executable.ancestors().nth(2).expect("a test executable lies in deps");
    build(folder);
    folder.to_owned()
}

fn build(folder: &Path) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("{} names no profile", folder.display()),
    };
    let target = folder.parent().expect("a profile's folder lies in the target folder");
    let mut cargo = Command::new(env!("CARGO"));
    // Of the whole workspace, as `cargo test --workspace` built them: another choice may mean other features.
    cargo.args(["build", "--quiet", "--workspace", "--bins", "--profile", profile]);
    cargo.arg("--target-dir").arg(target).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot run {cargo:?}: {error}"));
    assert!(status.success(), "cannot build the binaries under test");
}
