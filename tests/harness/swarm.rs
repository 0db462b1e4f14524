//! A seeder and nodes, each with folders of its own.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::binary;
use crate::process::{Finished, Process};
use crate::tree::make_removable;

/// An image server's data folder, and the commands that work on it.
#[derive(Debug)]
pub struct Publisher {
    data: TempDir,
    _turn: Option<Turn>,
}

/// Swarms that are measured run alone: with others on the same few cores, peers are late and pieces come twice.
static MACHINE: RwLock<()> = RwLock::new(());

thread_local! {
    /// Whether this test has its turn already, by another publisher.
    static HAS_TURN: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug)]
enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Turn {
    fn take(alone: bool) -> Option<Self> {
        let has_turn = HAS_TURN.replace(true);
        (!has_turn).then(|| match alone {
            false => Self::Shared { _guard: MACHINE.read().unwrap_or_else(PoisonError::into_inner) },
            true => Self::Alone { _guard: MACHINE.write().unwrap_or_else(PoisonError::into_inner) },
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HAS_TURN.set(false);
    }
}

/// A seeder that listens. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    pub process: Process,
    /// What a node needs to join; names no image.
    pub ticket: String,
    /// Its peer id.
    pub peer: String,
    /// Where it listens.
    pub address: String,
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Publisher {
    pub fn new() -> Self {
        Self { _turn: Turn::take(false), data: temporary_folder() }
    }

    /// For a test that measures: no other test has a swarm as long as this lives.
    pub fn alone() -> Self {
        Self { _turn: Turn::take(true), data: temporary_folder() }
    }

    /// A `shoal-seeder` command on this data folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("shoal-seeder"));
        command.arg("--data").arg(self.data.path()).args(arguments);
        command
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        Process::start(self.command(arguments)).finish()
    }

    /// Captures a tree and returns the report.
    pub fn capture(&self, source: &Path, name: &str) -> Value {
        let source = source.to_str().expect("test folders have plain names");
        json(&self.run(&["capture", source, name, "--json"]).expect_success().stdout.concat())
    }

    /// Starts to seed on a free port.
    pub fn serve(&self, arguments: &[&str]) -> Server {
        self.serve_at("127.0.0.1:0", arguments)
    }

    /// Starts to seed at this address.
    pub fn serve_at(&self, address: &str, arguments: &[&str]) -> Server {
        Server::start(self.serve_command(address, arguments))
    }

    /// A seeder to be started with [`Server::start`].
    pub fn serve_command(&self, address: &str, arguments: &[&str]) -> Command {
        let fixed = ["serve", "--listen", address, "--json", "-v"];
        self.command(&[&fixed, arguments].concat())
    }
}

impl Server {
    /// Starts a [`Publisher::serve_command`], and waits until it listens.
    pub fn start(command: Command) -> Self {
        let process = Process::start(command);
        let listening = json(&process.stdout_line(|line| line.contains("\"listening\"")));
        let addresses = listening["addresses"].as_array().expect("it listens somewhere");
        Self {
            ticket: text(&listening, "ticket"),
            peer: text(&listening, "peer"),
            address: addresses[0].as_str().expect("addresses are text").to_owned(),
            process,
        }
    }
}

/// A machine: a target folder, and state beside it that outlives its processes.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        make_removable(self.folder.path());
    }
}

/// An install on its way, or serving once it is done. Killed when dropped.
#[derive(Debug)]
pub struct Installing {
    pub process: Process,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// As [`new`](Self::new), below this folder.
    pub fn new_in(folder: &Path) -> Self {
        let node = Self { folder: tempfile::tempdir_in(folder).expect("a temporary folder can be made") };
        std::fs::create_dir(node.target()).expect("the folder is new");
        node
    }

    /// Where the image goes.
    pub fn target(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    /// Where its blocks rest.
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Its state: its key, and what it knows of its trees.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A `shoal-node` command with this node's state.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("shoal-node"));
        command.args(arguments).arg("--data").arg(self.data());
        command
    }

    /// An install into this node's target, with its store.
    pub fn install_command(&self, ticket: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(&["install", ticket, "--listen", "127.0.0.1:0", "--json"]);
        command.arg("--target").arg(self.target()).arg("--store").arg(self.store()).args(arguments);
        command
    }

    /// An update of this node's target, in place: the image decides every path.
    pub fn update_command(&self, ticket: &str, arguments: &[&str]) -> Command {
        let rules = self.folder.path().join("rules");
        std::fs::write(&rules, "managed **\n").expect("the folder is ours");
        let mut command = self.command(&["update", ticket, "--listen", "127.0.0.1:0", "--json"]);
        command.arg("--target").arg(self.target()).arg("--rules").arg(rules).args(arguments);
        command
    }

    /// Updates to `image` and leaves.
    pub fn update(&self, ticket: &str, image: &str) -> Value {
        let command = self.update_command(ticket, &["--image", image, "--seed-for", "0s"]);
        json(&Process::start(command).finish().expect_success().stdout.concat())
    }

    /// A command on this node's target.
    pub fn on_target(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command(arguments);
        command.arg("--target").arg(self.target());
        Process::start(command).finish()
    }

    /// Begins to install `image`, and goes on serving it until it is dropped.
    pub fn install(&self, ticket: &str, image: &str) -> Installing {
        let arguments = ["--image", image, "--seed-for", "1h", "-v"];
        Installing { process: Process::start(self.install_command(ticket, &arguments)) }
    }
}

impl Installing {
    /// Waits until the tree is complete, and returns the report.
    pub fn report(&self) -> Value {
        json(&self.process.stdout_line(|line| line.starts_with('{')))
    }
}

/// A count or a size of a report.
pub fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field} is no number in {report}"))
}

/// A text of a report.
pub fn text(report: &Value, field: &str) -> String {
    report[field].as_str().unwrap_or_else(|| panic!("{field} is no text in {report}")).to_owned()
}

/// A line of JSON.
pub fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))
}

fn temporary_folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}
