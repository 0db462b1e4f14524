//! What a cluster file says of a machine is what the machine becomes, whichever command brings it there.

mod confidential;
mod golden_debian;
mod modes;
mod precedence;
mod scripts;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Node, Process, Publisher, Server, json};
use serde_json::Value;
use tempfile::TempDir;

/// A cluster file with its folders, an image tree, and a seeder.
struct Site {
    folder: TempDir,
    publisher: Publisher,
}

impl Site {
    fn new() -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap(), publisher: Publisher::new() };
        fs::create_dir_all(site.path("overrides")).unwrap();
        site
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Writes a file and the folders around it.
    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn script(&self, path: &str, content: &str) {
        self.write(&format!("scripts/{path}"), format!("#!/bin/sh\n{content}"));
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    /// Captures the tree in `image` and publishes the cluster file.
    fn prepare(&self, cluster: &str) {
        self.publisher.capture(&self.path("image"), "image");
        self.write("cluster.toml", cluster);
        self.publish_again();
    }

    /// As [`prepare`](Self::prepare), and serves.
    fn publish(&self, cluster: &str) -> Server {
        self.prepare(cluster);
        self.publisher.serve(&[])
    }

    fn publish_again(&self) -> Value {
        let file = self.path("cluster.toml");
        let finished = self.publisher.run(&["cluster", "publish", file.to_str().unwrap(), "--json"]);
        json(&finished.expect_success().stdout.concat())
    }

    fn explain(&self, arguments: &[&str]) -> Value {
        let arguments = [&["cluster", "explain"], arguments, &["--json"]].concat();
        json(&self.publisher.run(&arguments).expect_success().stdout.concat())
    }
}

/// `install` or `update` of a node as a host, which leaves at once.
fn command(node: &Node, verb: &str, ticket: &str, host: &str, arguments: &[&str]) -> Command {
    let mut command = node.command(&[verb, ticket, "--host", host, "--listen", "127.0.0.1:0", "--json"]);
    command.arg("--target").arg(node.target()).args(["--seed-for", "0s"]).args(arguments);
    command
}

fn run(node: &Node, verb: &str, ticket: &str, host: &str, arguments: &[&str]) -> Value {
    let finished = Process::start(command(node, verb, ticket, host, arguments)).finish();
    json(&finished.expect_success().stdout.concat())
}

/// What a command says that fails.
fn refusal(command: Command) -> String {
    let finished = Process::start(command).finish();
    assert!(!finished.status.success(), "{:?}", finished.stdout);
    finished.stderr.join("\n")
}

/// Longer content, and what is no text, is told by its digest.
const TEXT_BYTES_MAX: usize = 4096;

/// Every path below `top` with what it is: its mode and its content, or where it leads.
fn tree(top: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            let what = if metadata.is_dir() {
                waiting.push(path.clone());
                format!("directory {mode:o}")
            } else if metadata.is_symlink() {
                format!("link {}", fs::read_link(&path).unwrap().display())
            } else if !metadata.is_file() {
                format!("{:?} {mode:o} {:x}", metadata.file_type(), metadata.rdev())
            } else {
                let content = fs::read(&path).unwrap();
                match String::from_utf8(content) {
                    Ok(text) if text.len() <= TEXT_BYTES_MAX => format!("file {mode:o} {text}"),
                    Ok(text) => format!("file {mode:o} {}", blake3::hash(text.as_bytes())),
                    Err(other) => format!("file {mode:o} {}", blake3::hash(other.as_bytes())),
                }
            };
            found.insert(path.strip_prefix(top).unwrap().to_str().unwrap().to_owned(), what);
        }
    }
    found
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn link(target: &str, path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(target, path).unwrap();
}
