//! A node's memory does not grow with the image.

use harness::{Node, Publisher, Sizes, TreeFixture, number, skipped};

use crate::assert_same;

const PEAK_RSS_BYTES_MAX: u64 = 200_000_000;
/// How large a tree to install; `.ci/run` asks for a gigabyte.
const TREE_MB: &str = "SHOAL_TEST_TREE_MB";
const TREE_MB_DEFAULT: u64 = 128;

#[test]
fn a_node_installing_a_large_tree_stays_below_200_megabytes() {
    let megabytes = match std::env::var(TREE_MB) {
        Ok(text) => text.parse().expect("a number of megabytes"),
        Err(_) => {
            skipped(&format!("the full gigabyte: set {TREE_MB}=1000 for it"));
            TREE_MB_DEFAULT
        }
    };
    let tree = TreeFixture::new(Sizes { noise_bytes: megabytes * 1_000_000, small_files: 2000 });
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let nodes = [Node::new(), Node::new()];
    let installing = nodes.each_ref().map(|node| node.install(&server.ticket, "tree"));
    for (node, installing) in nodes.iter().zip(&installing) {
        let report = installing.report();
        // What the system says, not only what the node says of itself. It has served its peer by now, too.
        let peak = installing.process.peak_rss_bytes();
        println!("{megabytes} MB: peak of {peak} bytes, {} by its own account", report["peak_rss_bytes"]);
        assert!(peak <= PEAK_RSS_BYTES_MAX, "{peak} bytes at the peak");
        assert!(number(&report, "peak_rss_bytes") <= peak);
        assert_same(&tree.path(), &node.target());
    }
}
