//! One seeder, one node: what arrives is what was captured.

use std::fs;
use std::os::unix::fs::MetadataExt;

use harness::{Node, Process, Publisher, Sizes, TreeFixture, number};

use crate::assert_same;

const TREE: Sizes = Sizes { noise_bytes: 5 << 20, small_files: 300 };

#[test]
fn a_node_installs_exactly_what_was_captured() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    let captured = publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let installing = node.install(&server.ticket, "tree");
    let report = installing.report();
    assert_same(&tree.path(), &node.target());
    assert_eq!(report["image"], captured["image"]);
    assert_eq!(report["entries"], captured["entries"]);
    assert_eq!(number(&report, "pieces"), number(&captured, "blocks"));
    assert_eq!(number(&report, "bytes_from_peers"), 0);
}

#[test]
fn a_file_with_holes_keeps_them() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let installing = node.install(&server.ticket, "tree");
    installing.report();
    let allocated = |root: &std::path::Path| fs::metadata(root.join("sparse")).unwrap().blocks() * 512;
    let (source, target) = (allocated(&tree.path()), allocated(&node.target()));
    assert!(target <= source + 128 * 1024, "{target} bytes allocated for {source}");
}

#[test]
fn an_installed_tree_verifies_until_it_drifts() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let arguments = ["--image", "tree", "--seed-for", "0s"];
    Process::start(node.install_command(&server.ticket, &arguments)).finish().expect_success();
    let verify = || {
        let mut command = node.command(&["verify", "--json"]);
        command.arg("--target").arg(node.target());
        Process::start(command).finish()
    };
    verify().expect_success();
    // The size and the time stay: only the bytes tell.
    let path = node.target().join("text again");
    let before = fs::metadata(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let drifted = verify();
    assert_eq!(drifted.status.code(), Some(3));
    assert!(drifted.stdout.concat().contains("text again"), "{:?}", drifted.stdout);
}
