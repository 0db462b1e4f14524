//! A whole Debian on eight nodes at once, compared by rsync.

use std::path::PathBuf;
use std::process::Command;

use harness::{Installing, Node, Process, Publisher, is_root, number, skipped};

/// Names a debootstrapped tree. `.ci/run` makes one; nothing else does.
const TREE: &str = "SHOAL_TEST_DEBIAN";
const NODES: usize = 8;

#[test]
fn eight_nodes_install_a_debian_that_rsync_cannot_tell_from_its_source() {
    let Some(source) = std::env::var_os(TREE).map(PathBuf::from) else {
        skipped(&format!("set {TREE} to a debootstrapped tree"));
        return;
    };
    if !is_root() {
        skipped("needs root");
        return;
    }
    assert!(source.join("etc/debian_version").exists(), "{} is no Debian", source.display());
    let publisher = Publisher::alone();
    let captured = publisher.capture(&source, "debian");
    let server = publisher.serve(&[]);
    let nodes: Vec<Node> = (0..NODES).map(|_| Node::new()).collect();
    let installing: Vec<Installing> =
        nodes.iter().map(|node| node.install(&server.ticket, "debian")).collect();
    let (mut from_seeder, mut received, mut duplicate) = (0, 0, 0);
    for installing in &installing {
        let report = installing.report();
        from_seeder += number(&report, "bytes_from_seeder");
        received += number(&report, "bytes_from_seeder") + number(&report, "bytes_from_peers");
        duplicate += number(&report, "duplicate_bytes");
    }
    for node in &nodes {
        let mut rsync = Command::new("rsync");
        rsync.args(["-aHAXn", "--delete", "--checksum", "--itemize-changes"]);
        rsync.arg(source.join("")).arg(node.target().join(""));
        let compared = Process::start(rsync).finish().expect_success();
        let changes: Vec<_> = compared.stdout.iter().take(20).collect();
        assert!(changes.is_empty(), "rsync would change {} entries: {changes:#?}", compared.stdout.len());
    }
    let compressed = number(&captured, "compressed_bytes");
    let copies = from_seeder as f64 / compressed as f64;
    println!(
        "{compressed} bytes compressed, {copies:.3} copies from the seeder, {duplicate} bytes of {received} twice"
    );
    assert!(copies <= 1.15, "{copies:.3} copies left the seeder");
    assert!(duplicate * 100 <= received, "{duplicate} of {received} bytes came twice");
}
