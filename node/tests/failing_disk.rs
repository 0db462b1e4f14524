//! The store on a disk that fails now and then: a failed read or write is an error to who asked, takes no other block
//! with it, and what was synced is there once the disk works again. `SHOAL_TEST_SEED=N` runs one history alone.

#![cfg(test)]

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use shoal_node::block::EncodedBlock;
use shoal_node::store::{Access, Error, Options, Store, Witness};

const HISTORIES: u64 = 300;
const OPERATIONS: u32 = 60;
const BLOCKS: usize = 30;
/// What the kernel says of a bad sector, and of a full disk.
const ERRORS: [i32; 2] = [5, 28];

/// Lets some accesses fail, each by the same chance.
#[derive(Debug)]
struct Failing {
    chance: f64,
    rng: Mutex<SmallRng>,
}

impl Witness for Failing {
    fn before(&self, _access: Access<'_>) -> io::Result<()> {
        let mut rng = self.rng.lock().unwrap();
        if rng.random_bool(self.chance) {
            return Err(io::Error::from_raw_os_error(ERRORS[rng.random_range(0..ERRORS.len())]));
        }
        Ok(())
    }
}

fn block(n: usize) -> EncodedBlock {
    let mut raw = vec![0; 200 + n * 70];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut raw);
    EncodedBlock::encode(&raw, 1)
}

fn held(store: &Store) -> BTreeSet<usize> {
    (0..BLOCKS).filter(|n| store.contains(&block(*n).cid)).collect()
}

/// Uses the store while it fails; returns the blocks that it said were durable and that nobody dropped since.
fn live(store: &Store, rng: &mut SmallRng, mut durable: BTreeSet<usize>) -> BTreeSet<usize> {
    let mut sync_failed = false;
    for _ in 0..OPERATIONS {
        let n = rng.random_range(0..BLOCKS);
        match rng.random_range(0..10) {
            0..6 => match store.put(&block(n)) {
                Ok(_) => assert!(store.contains(&block(n).cid)),
                Err(_) => assert!(!store.contains(&block(n).cid)),
            },
            6 | 7 => match store.get(&block(n).cid) {
                Ok(found) => assert!(found.is_none_or(|found| found == block(n))),
                Err(Error::Damaged { .. }) => panic!("a disk that fails to read has damaged nothing"),
                Err(_) => assert!(store.contains(&block(n).cid), "it may be read the next time"),
            },
            8 => match store.sync() {
                Ok(()) => {
                    assert!(!sync_failed, "what the disk holds is unknown by now");
                    durable = held(store);
                }
                Err(Error::SyncFailed { .. } | Error::Io { action: "sync", .. }) => sync_failed = true,
                Err(_) => {}
            },
            _ => {
                durable.retain(|block| block % 3 > 0);
                let kept: BTreeSet<_> = (0..BLOCKS).filter(|n| n % 3 > 0).map(|n| block(n).cid).collect();
                let _ = store.retain(&|cid| kept.contains(cid));
            }
        }
    }
    durable
}

fn history(seed: u64, dir: &Path) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let options = Options { pack_bytes_max: 12_000, commit_bytes: 8_000 };
    let mut durable = BTreeSet::new();
    for _ in 0..3 {
        let chance = [0.01, 0.05, 0.2][rng.random_range(0..3)];
        let disk = Failing { chance, rng: Mutex::new(SmallRng::seed_from_u64(rng.random())) };
        // Opening may fail too, and be tried again.
        if let Ok(store) = Store::open_witnessed(dir, options, Arc::new(disk)) {
            durable = live(&store, &mut rng, durable);
        }
        let store = Store::open_with(dir, options).unwrap();
        for n in 0..BLOCKS {
            match store.get(&block(n).cid).unwrap() {
                Some(found) => assert_eq!(found, block(n)),
                None => assert!(!durable.contains(&n), "block {n} was durable and is lost"),
            }
        }
        store.put(&block(BLOCKS)).unwrap();
        store.sync().unwrap();
    }
}

#[test]
fn a_disk_that_fails_now_and_then_loses_nothing_that_was_synced() {
    let seeds = match std::env::var("SHOAL_TEST_SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).unwrap(),
        Err(_) => 0..HISTORIES,
    };
    let memory = Path::new("/dev/shm");
    for seed in seeds {
        let folder =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let run = std::panic::catch_unwind(|| history(seed, folder.path()));
        if let Err(panic) = run {
            eprintln!("seed {seed} failed: SHOAL_TEST_SEED={seed} runs it alone");
            std::panic::resume_unwind(panic);
        }
    }
}
