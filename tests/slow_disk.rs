//! A node whose disk is slow: it holds up nobody, and does not pile up in memory what it cannot write.
//!
//! Its disk is a file system on a loop device whose writes the kernel slows (cgroup v1's blkio, which slows a device
//! for everyone; version 2 slows none for the root group), mounted so that each write waits for the device.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use harness::{Disk, FileSystem, Installing, Node, Process, Publisher, Sizes, TreeFixture, is_root, skipped};
use serde_json::Value;

use crate::assert_same;

/// What a node with any disk keeps to, whatever the image's size; the image alone is more.
const PEAK_RSS_BYTES_MAX: u64 = 150_000_000;
const TREE: Sizes = Sizes { noise_bytes: 192 << 20, small_files: 20 };
const NODES: usize = 5;
/// What each peer sends at most: far below what the machine can, so that the limit decides how long it takes.
const RATE: &str = "20MB/s";
/// A piece is written twice, to the store and to the tree: to fetch all at this rate takes eight times as long.
const SLOW_BYTES_PER_S: u64 = 5_000_000;
const THROTTLE: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device";
/// How much longer the other nodes may take beside a slow one: waiting for its disk would take them eight times as
/// long, and a busy machine a little longer.
const SLOWER_MAX: f64 = 1.5;

/// A device whose writes are slowed until this is dropped.
struct Slowed {
    device: String,
}

impl Slowed {
    /// The device that the file system at `point` lies on.
    fn new(point: &Path) -> Self {
        let number = fs::metadata(point).unwrap().dev();
        let slowed = Self { device: format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)) };
        slowed.limit(SLOW_BYTES_PER_S);
        slowed
    }

    fn limit(&self, bytes_per_s: u64) {
        fs::write(THROTTLE, format!("{} {bytes_per_s}", self.device)).unwrap();
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        // Zero is no limit.
        self.limit(0);
    }
}

/// Begins to install on all nodes at once.
fn install(nodes: &[Node], ticket: &str) -> Vec<Installing> {
    let arguments = ["--image", "tree", "--seed-for", "1h", "--limit-up", RATE];
    let start = |node: &Node| Process::start(node.install_command(ticket, &arguments));
    nodes.iter().map(|node| Installing { process: start(node) }).collect()
}

/// Waits for all of them.
fn median_s(installing: &[Installing]) -> f64 {
    let elapsed_s = |report: Value| report["elapsed_s"].as_f64().unwrap();
    let mut all: Vec<f64> = installing.iter().map(|installing| elapsed_s(installing.report())).collect();
    all.sort_by(f64::total_cmp);
    f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2])
}

#[test]
fn a_slow_disk_slows_its_own_node_alone_and_fills_no_memory() {
    if !is_root() || !Path::new(THROTTLE).exists() {
        return skipped("needs root and the blkio controller of cgroup v1");
    }
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::alone();
    publisher.capture(&tree.path(), "tree");
    let all_fast_s = {
        let server = publisher.serve(&["--limit-up", RATE]);
        let nodes: [Node; NODES] = Default::default();
        median_s(&install(&nodes, &server.ticket)[1..])
    };

    let server = publisher.serve(&["--limit-up", RATE]);
    let nodes: [Node; NODES] = Default::default();
    let folder = nodes[0].target().parent().unwrap().to_owned();
    let Some(disk) = Disk::at(FileSystem::Ext4, &folder) else { return };
    let remounted = Command::new("mount").args(["-o", "remount,sync"]).arg(disk.path()).status().unwrap();
    assert!(remounted.success());
    fs::create_dir(nodes[0].target()).unwrap();
    let slowed = Slowed::new(disk.path());
    let installing = install(&nodes, &server.ticket);
    let (slow, fast) = installing.split_first().unwrap();
    let one_slow_s = median_s(fast);

    // The disk is slow indeed: all the others are done, and this one has nothing to report yet.
    assert_eq!(slow.process.stdout(), [""; 0]);
    let peak = slow.process.peak_rss_bytes();
    let slower = one_slow_s / all_fast_s;
    println!(
        "peak of {peak} bytes; the others took {one_slow_s:.2} s, {all_fast_s:.2} s without it: {slower:.2} times"
    );
    assert!(peak <= PEAK_RSS_BYTES_MAX, "{peak} bytes at the peak");
    assert!(slower <= SLOWER_MAX, "{slower} times");
    // What it lacks comes as soon as the disk is as fast as any.
    slowed.limit(0);
    slow.report();
    for node in &nodes {
        assert_same(&tree.path(), &node.target());
    }
    let peak = slow.process.peak_rss_bytes();
    assert!(peak <= PEAK_RSS_BYTES_MAX, "{peak} bytes at the peak");
}
