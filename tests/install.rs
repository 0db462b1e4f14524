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
fn a_dry_run_says_what_there_is_and_writes_nothing() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    let captured = publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let command = node.install_command(&server.ticket, &["--image", "tree", "--dry-run"]);
    let plan = Process::start(command).finish().expect_success().stdout.concat();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["image"], captured["image"]);
    assert_eq!(number(&plan, "pieces"), number(&captured, "blocks"));
    assert_eq!(fs::read_dir(node.target()).unwrap().count(), 0);
    // It is no beginning either: another image may be installed.
    publisher.capture(&tree.path(), "other");
    node.install(&server.ticket, "other").report();
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

#[test]
fn an_install_that_is_done_is_done_again_at_once() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let install = |more: &[&str]| {
        let arguments = [&["--image", "tree", "--seed-for", "0s"], more].concat();
        Process::start(node.install_command(&server.ticket, &arguments)).finish()
    };
    install(&[]).expect_success();
    let before = fs::metadata(node.target().join("text again")).unwrap().ino();
    let again = install(&[]).expect_success();
    assert!(again.stdout.concat().contains("already_installed"), "{:?}", again.stdout);
    assert_eq!(fs::metadata(node.target().join("text again")).unwrap().ino(), before);

    fs::write(tree.path().join("new"), "new").unwrap();
    publisher.capture(&tree.path(), "tree");
    let other = install(&[]);
    assert_eq!(other.status.code(), Some(1));
    assert!(other.stderr.concat().contains("--force replaces it"), "{:?}", other.stderr);
    fs::write(node.target().join("stray"), "goes").unwrap();
    install(&["--force"]).expect_success();
    assert_same(&tree.path(), &node.target());
}

#[test]
fn force_empties_nothing_before_the_image_is_known() {
    let publisher = Publisher::new();
    let server = publisher.serve(&[]);
    let node = Node::new();
    fs::write(node.target().join("precious"), "stays").unwrap();
    let arguments = ["--image", "none", "--force", "--seed-for", "0s"];
    let refused = Process::start(node.install_command(&server.ticket, &arguments)).finish();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(fs::read(node.target().join("precious")).unwrap(), b"stays");
}

#[test]
fn an_image_captured_while_the_seeder_serves_is_offered_at_once() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    let server = publisher.serve(&[]);
    publisher.capture(&tree.path(), "late");
    let node = Node::new();
    node.install(&server.ticket, "late").report();
    assert_same(&tree.path(), &node.target());
}

#[test]
fn a_damaged_block_of_the_seeder_is_found_and_stored_anew_by_the_next_capture() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::alone();
    publisher.capture(&tree.path(), "tree");
    publisher.run(&["fsck", "--json"]).expect_success();
    let pack = publisher.data().join("store/packs/00000001.pack");
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let found = publisher.run(&["fsck", "--json"]);
    assert_eq!(found.status.code(), Some(3));
    publisher.capture(&tree.path(), "tree");
    publisher.run(&["fsck", "--json"]).expect_success();
    let server = publisher.serve(&[]);
    let node = Node::new();
    node.install(&server.ticket, "tree").report();
    assert_same(&tree.path(), &node.target());
}
