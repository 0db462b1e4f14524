use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;

use proptest::prelude::*;

use super::*;

const SMALL: Options = Options { pack_bytes_max: 4000, commit_bytes: 3000 };

/// Block number `n`: its own bytes, a length of its own, compressible or not.
fn block(n: u16) -> EncodedBlock {
    let mut raw = vec![0; 1 + usize::from(n) * 37 % 1500];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut raw);
    if n.is_multiple_of(2) {
        raw.extend_from_slice(&[0; 300]);
    }
    EncodedBlock::encode(&raw, 1)
}

fn open(dir: &Path) -> Store {
    Store::open_with(dir, SMALL).unwrap()
}

#[test]
fn a_block_is_put_once_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.get(&block(1).cid).unwrap(), None);
    assert!(store.put(&block(1)).unwrap());
    assert!(!store.put(&block(1)).unwrap());
    assert!(store.contains(&block(1).cid) && !store.contains(&block(2).cid));
    assert_eq!(store.get(&block(1).cid).unwrap(), Some(block(1)));
    assert!(store.discard(&block(1).cid) && !store.discard(&block(1).cid));
    assert_eq!(store.get(&block(1).cid).unwrap(), None);
    assert!(store.put(&block(1)).unwrap());
}

#[test]
fn a_second_opener_is_told_which_store_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = Store::open(dir.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("store {} is in use by another process", dir.path().display()));
    drop(store);
    open(dir.path());
}

#[test]
fn the_folder_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/store");
    open(&path).put(&block(1)).unwrap();
    for (name, mode) in [("", 0o700), ("packs", 0o700), ("packs/00000001.pack", 0o600)] {
        let found = std::fs::metadata(path.join(name)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
}

#[test]
fn a_pack_of_another_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).put(&block(1)).unwrap();
    let path = dir.path().join("packs/00000001.pack");
    let mut pack = std::fs::read(&path).unwrap();
    pack[14] = b'2';
    std::fs::write(&path, &pack).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(Error::OtherVersion { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), pack);
}

#[test]
fn a_put_that_fills_the_group_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut largest = 0;
    for n in 0..50 {
        store.put(&block(n)).unwrap();
        largest = largest.max(store.stats().unwrap().unsynced_bytes);
    }
    assert!(largest < SMALL.commit_bytes, "{largest} bytes were left unsynced");
    let index = store.committer().index.as_ref().unwrap().iter().count();
    assert!((40..=50).contains(&index), "{index} of 50 blocks are indexed");
}

#[test]
fn an_opening_reads_the_index_and_walks_only_what_lies_behind_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (0..20).for_each(|n| assert!(store.put(&block(n)).unwrap()));
    store.sync().unwrap();
    store.put(&block(20)).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.blocks().changes.len(), 1);
    assert_eq!(store.stats().unwrap().blocks, 21);
}

#[test]
fn an_index_ahead_of_the_checkpoint_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("CHECKPOINT");
    let store = open(dir.path());
    (0..20).for_each(|n| assert!(store.put(&block(n)).unwrap()));
    store.sync().unwrap();
    let earlier = std::fs::read(&checkpoint).unwrap();
    store.put(&block(20)).unwrap();
    store.sync().unwrap();
    drop(store);
    std::fs::write(&checkpoint, earlier).unwrap();
    let store = open(dir.path());
    assert_eq!(store.blocks().changes.len(), 1);
    assert_eq!(store.stats().unwrap().blocks, 21);
}

#[test]
fn a_failing_index_is_made_again_by_the_next_commit() {
    #[derive(Debug)]
    struct Failing;
    impl BlockIndex for Failing {
        fn write(&self, _: &[Change]) -> Result<(), TableError> {
            Err(TableError::Checksum { dir: PathBuf::new() })
        }
        fn iter(&self) -> Box<dyn Iterator<Item = Result<(Cid, Place), TableError>> + '_> {
            Box::new(std::iter::empty())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put(&block(1)).unwrap();
    store.committer().index = Some(Box::new(Failing));
    store.sync().unwrap();
    assert!(store.committer().index.is_none());
    store.put(&block(2)).unwrap();
    store.sync().unwrap();
    assert_eq!(store.committer().index.as_ref().unwrap().iter().count(), 2);
}

#[test]
fn many_threads_put_read_and_commit_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let start = Barrier::new(8);
    let new: u64 = std::thread::scope(|scope| {
        let threads = (0..8_u16).map(|thread| {
            let (store, start) = (&store, &start);
            scope.spawn(move || {
                start.wait();
                let mut new = 0;
                // Each block is put by two threads.
                for n in (thread / 2 * 50)..(thread / 2 * 50 + 50) {
                    new += u64::from(store.put(&block(n)).unwrap());
                    assert_eq!(store.get(&block(n).cid).unwrap(), Some(block(n)));
                    if n % 20 == 0 {
                        store.sync().unwrap();
                    }
                }
                new
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(new, 200);
    drop(store);
    let store = open(dir.path());
    (0..200).for_each(|n| assert_eq!(store.get(&block(n).cid).unwrap(), Some(block(n))));
}

#[test]
fn a_collection_gives_the_space_of_dropped_blocks_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    (0..100).for_each(|n| assert!(store.put(&block(n)).unwrap()));
    let before = store.stats().unwrap();
    let kept: BTreeSet<Cid> = (0..100).filter(|n| n % 5 == 0).map(|n| block(n).cid).collect();
    let reclaimed = store.retain(&|cid| kept.contains(cid)).unwrap();
    let after = store.stats().unwrap();
    assert_eq!((reclaimed.dropped_blocks, after.blocks), (80, 20));
    let shrank = before.pack_bytes - after.pack_bytes;
    let headers = after.packs * RECORDS_START;
    assert!((shrank..=shrank + headers).contains(&reclaimed.freed_bytes), "{reclaimed:?} of {shrank}");
    assert!(after.pack_bytes <= 2 * (after.payload_bytes + 20 * 53) + headers, "{after:?}");
    let untouched = store.retain(&|_| true).unwrap();
    assert_eq!(untouched, Reclaimed::default());
    let none = store.retain(&|_| false).unwrap();
    assert_eq!((none.dropped_blocks, store.stats().unwrap().pack_bytes), (20, 0));
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.stats().unwrap(), Stats::default());
    assert!(store.put(&block(1)).unwrap());
}

#[derive(Clone, Debug)]
enum Op {
    Put(u16),
    Discard(u16),
    Retain { divisor: u16 },
    Sync,
    Reopen,
    LoseIndex,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (0_u16..60).prop_map(Op::Put),
        2 => (0_u16..60).prop_map(Op::Discard),
        1 => (1_u16..5).prop_map(|divisor| Op::Retain { divisor }),
        2 => Just(Op::Sync),
        2 => Just(Op::Reopen),
        1 => Just(Op::LoseIndex),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Against a map: what was put and not dropped is there, what was never put is not. What was dropped may come
    /// back by opening the store again, whole.
    #[test]
    fn any_operations_leave_what_a_map_would_hold(ops in prop::collection::vec(op(), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let blocks: BTreeMap<u16, EncodedBlock> = (0..60).map(|n| (n, block(n))).collect();
        let mut held = BTreeSet::new();
        let mut dropped = BTreeSet::new();
        for op in ops {
            match op {
                Op::Put(n) => prop_assert_eq!(store.put(&blocks[&n]).unwrap(), held.insert(n)),
                Op::Discard(n) => {
                    prop_assert_eq!(store.discard(&blocks[&n].cid), held.remove(&n));
                    dropped.insert(n);
                }
                Op::Retain { divisor } => {
                    let kept: BTreeSet<Cid> =
                        held.iter().filter(|n| **n % divisor == 0).map(|n| blocks[n].cid).collect();
                    let reclaimed = store.retain(&|cid| kept.contains(cid)).unwrap();
                    prop_assert_eq!(reclaimed.dropped_blocks, (held.len() - kept.len()) as u64);
                    dropped.extend(held.iter().filter(|n| **n % divisor != 0));
                    held.retain(|n| n % divisor == 0);
                }
                Op::Sync => store.sync().unwrap(),
                Op::Reopen | Op::LoseIndex => {
                    drop(store);
                    if matches!(op, Op::LoseIndex) {
                        std::fs::remove_dir_all(dir.path().join("index")).unwrap();
                    }
                    store = open(dir.path());
                    held.extend(dropped.iter().filter(|n| store.contains(&blocks[n].cid)));
                }
            }
            for (n, block) in &blocks {
                let expected = held.contains(n).then_some(block);
                let found = store.get(&block.cid).unwrap();
                prop_assert_eq!(found.as_ref(), expected, "block {}", n);
            }
        }
        prop_assert_eq!(store.stats().unwrap().blocks, held.len() as u64);
        prop_assert!(store.fsck(true).unwrap().damaged.is_empty());
    }
}
