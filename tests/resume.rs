//! An install killed half-way goes on where it was.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use harness::{DEADLINE, Node, Publisher, Sizes, TreeFixture, number};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use shoal_node::store::Store;

use crate::assert_same;

const TREE: Sizes = Sizes { noise_bytes: 192 << 20, small_files: 50 };

/// Tells when the files of a folder have grown to a size.
struct Growth {
    folder: PathBuf,
    /// A message for every change of the folder's files.
    changes: Receiver<()>,
}

impl Growth {
    fn watch(folder: &Path) -> Self {
        let watch: OwnedFd = inotify::init(CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, folder, WatchFlags::MODIFY | WatchFlags::CREATE).unwrap();
        let (sender, changes) = channel();
        std::thread::spawn(move || {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(watch, &mut buffer);
            while events.next().is_ok() && sender.send(()).is_ok() {}
        });
        Self { folder: folder.to_owned(), changes }
    }

    fn wait_for(&self, bytes: u64) {
        let grown = || {
            let files = std::fs::read_dir(&self.folder).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>() >= bytes
        };
        while !grown() {
            self.changes.recv_timeout(DEADLINE).expect("the folder grows");
        }
    }
}

#[test]
fn a_node_killed_half_way_fetches_no_piece_again_that_it_had_verified() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    let captured = publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    drop(Store::open(&node.store()).unwrap());
    let growth = Growth::watch(&node.store().join("packs"));

    let installing = node.install(&server.ticket, "tree");
    growth.wait_for(number(&captured, "compressed_bytes") / 2);
    installing.process.kill();
    let held = Store::open(&node.store()).unwrap().stats().unwrap();
    assert!(
        held.payload_bytes < number(&captured, "compressed_bytes"),
        "it was killed too late to prove anything"
    );

    let installing = node.install(&server.ticket, "tree");
    let report = installing.report();
    assert_same(&tree.path(), &node.target());
    installing.process.kill();
    let all = Store::open(&node.store()).unwrap().stats().unwrap();
    let fetched = number(&report, "bytes_from_seeder") + number(&report, "bytes_from_peers");
    assert_eq!(fetched, all.payload_bytes - held.payload_bytes, "{report}");
    assert_eq!(
        number(&report, "pieces_fetched") + number(&report, "pieces_resumed"),
        number(&captured, "blocks")
    );
    // Its store holds blocks of the manifest too.
    let content_held = held.blocks - (all.blocks - number(&captured, "blocks"));
    assert_eq!(number(&report, "pieces_resumed"), content_held);
}

#[test]
fn a_node_killed_again_and_again_ends_with_the_same_tree() {
    let tree = TreeFixture::new(Sizes { noise_bytes: 48 << 20, small_files: 300 });
    let publisher = Publisher::new();
    let captured = publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    drop(Store::open(&node.store()).unwrap());
    for tenths in [1, 3, 5, 7, 9] {
        let growth = Growth::watch(&node.store().join("packs"));
        let installing = node.install(&server.ticket, "tree");
        growth.wait_for(number(&captured, "compressed_bytes") * tenths / 10);
        installing.process.kill();
    }
    let installing = node.install(&server.ticket, "tree");
    installing.report();
    assert_same(&tree.path(), &node.target());
}
