//! One seeder, eight nodes: one copy leaves the seeder, and the rest is between the nodes.

use harness::{Installing, Node, Publisher, Sizes, TreeFixture, number};
use serde_json::Value;

use crate::assert_same;

const NODES: usize = 8;
const TREE: Sizes = Sizes { noise_bytes: 96 << 20, small_files: 200 };

fn install_everywhere(ticket: &str, nodes: &[Node]) -> Vec<Installing> {
    nodes.iter().map(|node| node.install(ticket, "tree")).collect()
}

fn sum(reports: &[Value], field: &str) -> u64 {
    reports.iter().map(|report| number(report, field)).sum()
}

#[test]
fn eight_nodes_take_about_one_copy_from_the_seeder_and_waste_nothing() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::alone();
    let captured = publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let nodes: Vec<Node> = (0..NODES).map(|_| Node::new()).collect();
    let installing = install_everywhere(&server.ticket, &nodes);
    let reports: Vec<Value> = installing.iter().map(Installing::report).collect();
    for node in &nodes {
        assert_same(&tree.path(), &node.target());
    }

    let compressed = number(&captured, "compressed_bytes");
    let (from_seeder, from_peers) = (sum(&reports, "bytes_from_seeder"), sum(&reports, "bytes_from_peers"));
    assert!(
        from_seeder * 100 <= compressed * 115,
        "{from_seeder} bytes from the seeder for an image of {compressed}"
    );
    assert!(
        from_seeder + from_peers >= compressed * NODES as u64,
        "the reports count too little: {reports:#?}"
    );
    let duplicate = sum(&reports, "duplicate_bytes");
    println!("{compressed} bytes compressed, {from_seeder} from the seeder, {duplicate} twice");
    assert!(duplicate * 100 <= from_seeder + from_peers, "{duplicate} bytes came twice");

    // The seeder's own count agrees.
    server.process.terminate();
    let left = server.process.stdout_line(|line| line.contains("\"left\""));
    let sent = number(&serde_json::from_str(&left).unwrap(), "sent_bytes");
    assert!(sent * 100 <= compressed * 115, "the seeder sent {sent} bytes for an image of {compressed}");
    server.process.finish().expect_success();
}

#[test]
fn a_seeder_that_leaves_once_everything_is_held_elsewhere_is_not_missed() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&["--exit-when-replicated"]);
    let nodes: Vec<Node> = (0..NODES).map(|_| Node::new()).collect();
    let installing = install_everywhere(&server.ticket, &nodes);
    server.process.finish().expect_success();
    for (node, installing) in nodes.iter().zip(&installing) {
        installing.report();
        assert_same(&tree.path(), &node.target());
    }
}
