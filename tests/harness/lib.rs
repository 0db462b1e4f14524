//! What the tests of the whole stand on: the real binaries as processes, a tree with one of every kind of file, and a
//! comparison of two trees that shares no code with Shoal.
//!
//! Everything happens below temporary folders and on the loopback interface. A process that a test starts ends with
//! the test, however the test ends. Tests wait for events, with [`DEADLINE`]; they sleep nowhere, but to choose
//! the moment of a kill, and measure no time.

mod binaries;
mod compare;
mod disk;
mod process;
mod swarm;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use binaries::binary;
pub use compare::{Difference, compare, differences, set_project};
pub use disk::{Disk, FileSystem};
pub use process::{Finished, Process};
pub use swarm::{Installing, Node, Publisher, Server, json, number, text};
pub use tree::{Noise, Sizes, TreeFixture};

/// After this long without the event that a test waits for, something hangs. Far beyond what a busy machine needs.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A folder in memory where there is one, for tests of what a killed process leaves: that asks nothing of a disk.
pub fn memory_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Says that a test, or a part of one, did not run.
pub fn skipped(reason: &str) {
    println!("skipped: {reason}");
}

/// The inode and the time of its last change of each path below `top`: equal only while nothing was touched.
///
/// # Panics
/// When the tree cannot be read.
pub fn inodes(top: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).expect("the tree can be read");
        if metadata.is_dir() {
            let listed = fs::read_dir(&path).expect("the tree can be read");
            waiting.extend(listed.map(|entry| entry.expect("the tree can be read").path()));
        }
        found.insert(path, (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()));
    }
    found
}
