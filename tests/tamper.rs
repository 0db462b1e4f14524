//! A peer with bad blocks harms nobody but itself.

use std::fs;
use std::path::Path;

use harness::{Node, Publisher, Sizes, TreeFixture, number};

use crate::assert_same;

/// The pack format, restated: see `node/src/store/pack.rs`.
const PACK_HEADER_BYTES: usize = 16;
const RECORD_HEADER_BYTES: usize = 53;

/// Changes the payload of every block of a store, and makes each checksum right again: only the hash can tell.
fn falsify_blocks(store: &Path) -> usize {
    let mut falsified = 0;
    for pack in fs::read_dir(store.join("packs")).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let mut record = PACK_HEADER_BYTES;
        while record < bytes.len() {
            let payload_bytes =
                u32::from_le_bytes(bytes[record + 41..record + 45].try_into().unwrap()) as usize;
            let payload = record + RECORD_HEADER_BYTES..record + RECORD_HEADER_BYTES + payload_bytes;
            bytes[payload.start + payload_bytes / 2] ^= 0x40;
            let crc = crc32c::crc32c(&bytes[payload.clone()]);
            bytes[record + 45..record + 49].copy_from_slice(&crc.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[record..record + 49]);
            bytes[record + 49..record + 53].copy_from_slice(&crc.to_le_bytes());
            record = payload.end;
            falsified += 1;
        }
        // In place: the process that serves the blocks has the file open.
        let file = fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    }
    falsified
}

#[test]
fn false_blocks_of_a_serving_peer_are_refused_and_the_peer_is_named() {
    let tree = TreeFixture::new(Sizes { noise_bytes: 24 << 20, small_files: 50 });
    let publisher = Publisher::new();
    let captured = publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let liar = Node::new();
    let serving = liar.install(&server.ticket, "tree");
    serving.report();
    assert!(falsify_blocks(&liar.store()) as u64 > number(&captured, "blocks"));

    let nodes: Vec<Node> = (0..3).map(|_| Node::new()).collect();
    let installing: Vec<_> = nodes.iter().map(|node| node.install(&server.ticket, "tree")).collect();
    for (node, installing) in nodes.iter().zip(&installing) {
        let report = installing.report();
        assert_same(&tree.path(), &node.target());
        // Whoever took a piece from the liar noticed, and says from whom it was.
        if number(&report, "corrupt_bytes") > 0 {
            let line = installing.process.stderr_line(|line| line.contains("corrupt piece"));
            let named = line.split("peer=").nth(1).unwrap_or_default();
            assert!(named.trim_start_matches('"').starts_with("12D3KooW"), "no peer is named in: {line}");
            assert!(!line.contains(&server.peer), "the seeder is blamed: {line}");
        }
    }
    let refused: u64 =
        installing.iter().map(|installing| number(&installing.report(), "corrupt_bytes")).sum();
    assert!(refused > 0, "nobody took a piece from the liar, so nothing was proved");
}
