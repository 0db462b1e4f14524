//! The lab: every tree arrives, the figures are there, and nothing is left behind.

use std::path::Path;
use std::process::Command;

use harness::{Process, Sizes, TreeFixture, binary, is_root, number, skipped};
use serde_json::Value;
use tempfile::TempDir;

const TREE: Sizes = Sizes { noise_bytes: 8 << 20, small_files: 50 };

/// A lab of four nodes whose hosts keep their files in `dir`.
fn lab(tree: &TreeFixture, dir: &TempDir, rate: &str) -> Process {
    let mut command = Command::new(binary("shoal-sim"));
    command.args(["lab", "--nodes", "4", "--json", "--rate", rate]);
    command.arg("--dir").arg(dir.path()).arg(tree.path());
    Process::start(command)
}

/// Namespaces and files of the lab that had this process number.
fn left_behind(pid: u32, dir: &Path) -> Vec<String> {
    let name = format!("shoal-lab-{pid}");
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let files = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let namespaces = listed.lines().filter(|line| line.starts_with(&name)).map(str::to_owned);
    namespaces.chain(files).collect()
}

#[test]
fn four_hosts_get_the_tree_over_shaped_links_and_nothing_stays_behind() {
    if !is_root() {
        return skipped("needs root");
    }
    let (tree, dir) = (TreeFixture::new(TREE), TempDir::new().unwrap());
    let process = lab(&tree, &dir, "400mbit");
    let pid = process.pid();
    let finished = process.finish().expect_success();
    let report: Value = serde_json::from_str(&finished.stdout.concat()).unwrap();
    assert_eq!(report["verified"], true, "{report}");
    let nodes = report["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 4);
    let compressed = number(&report, "compressed_bytes");
    assert!(compressed >= TREE.noise_bytes, "{report}");
    for node in nodes {
        assert_eq!(node["verified"], true, "{node}");
        assert!(number(node, "bytes_from_seeder") + number(node, "bytes_from_peers") >= compressed, "{node}");
    }
    // Nothing is faster than the link, which one whole copy has to cross.
    for least_one in ["last_over_wire", "median_over_wire", "seeder_wire_copies"] {
        assert!(report[least_one].as_f64().unwrap() >= 1.0, "{least_one} in {report}");
    }
    assert_eq!(left_behind(pid, dir.path()), Vec::<String>::new());
}

#[test]
fn an_interrupted_lab_leaves_nothing_behind() {
    if !is_root() {
        return skipped("needs root");
    }
    let (tree, dir) = (TreeFixture::new(TREE), TempDir::new().unwrap());
    // Eleven minutes, were it not interrupted.
    let process = lab(&tree, &dir, "100kbit");
    let pid = process.pid();
    process.stderr_line(|line| line.contains("the nodes begin"));
    assert!(left_behind(pid, dir.path()).len() > 5);
    process.terminate();
    let finished = process.finish();
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.concat().contains("interrupted"), "{finished:?}");
    assert_eq!(left_behind(pid, dir.path()), Vec::<String>::new());
}
