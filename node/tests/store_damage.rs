//! What happens to a store when its files are damaged, its process is killed, or its disk is full.
//!
//! The layout of packs and of the checkpoint is restated here, in numbers: a change of the format that would strand
//! existing stores fails these tests.

#![cfg(test)]

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use shoal_node::block::EncodedBlock;
use shoal_node::store::{Error, Options, Store};
use shoal_proto::cid::Cid;

const PACK_HEADER_BYTES: u64 = 16;
const RECORD_HEADER_BYTES: u64 = 53;
const SMALL: Options = Options { pack_bytes_max: 30_000, commit_bytes: u64::MAX };
const LARGER: Options = Options { pack_bytes_max: 60_000, ..SMALL };
/// Blocks of the damaged store; about five packs.
const BLOCKS: u32 = 40;
/// Blocks that it had synced when its process ended.
const SYNCED: u32 = 30;

fn block(n: u32) -> EncodedBlock {
    let mut raw = noise_of(&n.to_le_bytes(), 1000 + (n as usize * 977) % 5000);
    raw.extend_from_slice(&[0; 500]);
    EncodedBlock::encode(&raw, 1)
}

fn noise_of(seed: &[u8], bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(seed).finalize_xof().fill(&mut out);
    out
}

fn noise(bytes: usize) -> Vec<u8> {
    noise_of(b"noise", bytes)
}

/// Where a record lies.
#[derive(Clone, Copy, Debug)]
struct Record {
    pack: u32,
    offset: u64,
    end: u64,
}

/// A store closed without a last sync, and where its records must be.
struct Fixture {
    _folder: tempfile::TempDir,
    dir: PathBuf,
    records: Vec<Record>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("store");
        let store = Store::open_with(&dir, SMALL).unwrap();
        let mut records: Vec<Record> = Vec::new();
        for n in 0..BLOCKS {
            let block = block(n);
            store.put(&block).unwrap();
            let bytes = RECORD_HEADER_BYTES + block.payload.len() as u64;
            let (pack, offset) = match records.last() {
                Some(last) if last.end + bytes <= SMALL.pack_bytes_max => (last.pack, last.end),
                Some(last) => (last.pack + 1, PACK_HEADER_BYTES),
                None => (1, PACK_HEADER_BYTES),
            };
            records.push(Record { pack, offset, end: offset + bytes });
            if n + 1 == SYNCED {
                store.sync().unwrap();
            }
        }
        Self { _folder: folder, dir, records }
    }

    fn open(&self) -> Store {
        Store::open_with(&self.dir, SMALL).unwrap()
    }

    fn pack(&self, number: u32) -> PathBuf {
        self.dir.join(format!("packs/{number:08}.pack"))
    }

    fn index(&self) -> PathBuf {
        self.dir.join("index")
    }

    fn checkpoint(&self) -> PathBuf {
        self.dir.join("CHECKPOINT")
    }

    fn last(&self) -> Record {
        *self.records.last().unwrap()
    }

    fn in_pack(&self, number: u32) -> BTreeSet<u32> {
        (0..BLOCKS).filter(|n| self.records[*n as usize].pack == number).collect()
    }

    fn flip(&self, record: Record, at: u64) {
        let pack = OpenOptions::new().read(true).write(true).open(self.pack(record.pack)).unwrap();
        let mut byte = [0];
        pack.read_exact_at(&mut byte, record.offset + at).unwrap();
        pack.write_all_at(&[byte[0] ^ 0x10], record.offset + at).unwrap();
    }

    fn overwrite(&self, number: u32, offset: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(self.pack(number)).unwrap().write_all_at(bytes, offset).unwrap();
    }

    fn cut(&self, number: u32, end: u64) {
        OpenOptions::new().write(true).open(self.pack(number)).unwrap().set_len(end).unwrap();
    }

    fn append(&self, number: u32, bytes: &[u8]) {
        OpenOptions::new().append(true).open(self.pack(number)).unwrap().write_all(bytes).unwrap();
    }

    /// Rewrites every file of the index.
    fn spoil_index(&self, spoil: impl Fn(&mut Vec<u8>)) {
        let mut folders = vec![self.index()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let mut bytes = fs::read(&path).unwrap();
                spoil(&mut bytes);
                fs::write(&path, bytes).unwrap();
            }
        }
    }
}

/// Does the damage and returns the blocks that it takes.
type Damage = fn(&Fixture) -> BTreeSet<u32>;

const NONE: BTreeSet<u32> = BTreeSet::new();
const LAST: u32 = BLOCKS - 1;

const DAMAGES: &[(&str, Damage)] = &[
    ("nothing", |_| NONE),
    ("torn tail", |store| {
        store.cut(store.last().pack, store.last().end - 1);
        [LAST].into()
    }),
    ("tail cut in a header", |store| {
        store.cut(store.last().pack, store.last().offset + 20);
        [LAST].into()
    }),
    ("tail cut between two records", |store| {
        store.cut(store.last().pack, store.last().offset);
        [LAST].into()
    }),
    ("tail overwritten with zeroes", |store| {
        let zeroes = vec![0; usize::try_from(store.last().end - store.last().offset).unwrap()];
        store.overwrite(store.last().pack, store.last().offset, &zeroes);
        [LAST].into()
    }),
    ("flipped bit in a synced header", |store| {
        store.flip(store.records[5], 10);
        [5].into()
    }),
    ("flipped bit in a synced payload", |store| {
        store.flip(store.records[5], RECORD_HEADER_BYTES + 7);
        [5].into()
    }),
    ("flipped bit in a synced header, index lost", |store| {
        store.flip(store.records[5], 10);
        fs::remove_dir_all(store.index()).unwrap();
        [5].into()
    }),
    ("flipped bit in a synced payload, index and checkpoint lost", |store| {
        store.flip(store.records[5], RECORD_HEADER_BYTES + 7);
        fs::remove_dir_all(store.index()).unwrap();
        fs::remove_file(store.checkpoint()).unwrap();
        [5].into()
    }),
    ("flipped bit in an unsynced header", |store| {
        store.flip(store.records[33], 45);
        [33].into()
    }),
    ("flipped bit in an unsynced payload", |store| {
        store.flip(store.records[33], RECORD_HEADER_BYTES);
        [33].into()
    }),
    ("deleted index", |store| {
        fs::remove_dir_all(store.index()).unwrap();
        NONE
    }),
    ("index is a file", |store| {
        fs::remove_dir_all(store.index()).unwrap();
        fs::write(store.index(), b"not a folder").unwrap();
        NONE
    }),
    ("garbage index files", |store| {
        store.spoil_index(|bytes| *bytes = noise(bytes.len().max(4096)));
        NONE
    }),
    ("empty index files", |store| {
        store.spoil_index(Vec::clear);
        NONE
    }),
    ("index files cut in half", |store| {
        store.spoil_index(|bytes| bytes.truncate(bytes.len() / 2));
        NONE
    }),
    ("flipped bits all over the index", |store| {
        store.spoil_index(|bytes| bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 1));
        NONE
    }),
    ("zeroes in the middle of the index", |store| {
        store.spoil_index(|bytes| {
            let middle = bytes.len() / 3..bytes.len() / 2;
            bytes[middle].fill(0);
        });
        NONE
    }),
    ("missing checkpoint", |store| {
        fs::remove_file(store.checkpoint()).unwrap();
        NONE
    }),
    ("garbage checkpoint", |store| {
        fs::write(store.checkpoint(), noise(48)).unwrap();
        NONE
    }),
    ("stale checkpoint", |store| {
        let stale = fs::read(store.checkpoint()).unwrap();
        store.open().sync().unwrap();
        assert_ne!(fs::read(store.checkpoint()).unwrap(), stale);
        fs::write(store.checkpoint(), stale).unwrap();
        NONE
    }),
    ("checkpoint of before a collection", |store| {
        let stale = fs::read(store.checkpoint()).unwrap();
        let kept: BTreeSet<Cid> = (0..BLOCKS).filter(|n| n % 4 == 0).map(|n| block(n).cid).collect();
        store.open().retain(&|cid| kept.contains(cid)).unwrap();
        fs::write(store.checkpoint(), stale).unwrap();
        (0..BLOCKS).filter(|n| n % 4 != 0).collect()
    }),
    ("checkpoint past the end", |store| {
        store.open().sync().unwrap();
        store.cut(store.last().pack, store.last().offset + 100);
        [LAST].into()
    }),
    ("missing first pack", |store| {
        fs::remove_file(store.pack(1)).unwrap();
        store.in_pack(1)
    }),
    ("missing first pack, index lost", |store| {
        fs::remove_file(store.pack(1)).unwrap();
        fs::remove_dir_all(store.index()).unwrap();
        store.in_pack(1)
    }),
    ("missing last pack, all synced", |store| {
        store.open().sync().unwrap();
        fs::remove_file(store.pack(store.last().pack)).unwrap();
        store.in_pack(store.last().pack)
    }),
    ("all packs missing", |store| {
        fs::remove_dir_all(store.dir.join("packs")).unwrap();
        (0..BLOCKS).collect()
    }),
    ("zero-length first pack", |store| {
        store.cut(1, 0);
        store.in_pack(1)
    }),
    ("zero-length last pack", |store| {
        store.cut(store.last().pack, 0);
        store.in_pack(store.last().pack)
    }),
    ("first pack cut short", |store| {
        store.cut(1, store.records[2].offset + 30);
        store.in_pack(1).into_iter().filter(|n| *n >= 2).collect()
    }),
    ("garbage at the start of a pack", |store| {
        store.overwrite(1, 0, &noise(16));
        NONE
    }),
    ("half of a pack's header is zeroes", |store| {
        store.overwrite(1, 12, &[0; 4]);
        NONE
    }),
    ("trailing garbage", |store| {
        store.append(store.last().pack, &noise(5000));
        NONE
    }),
    ("trailing zeroes", |store| {
        store.append(store.last().pack, &[0; 5000]);
        NONE
    }),
    ("trailing garbage on a full pack, index lost", |store| {
        store.append(1, &noise(5000));
        fs::remove_dir_all(store.index()).unwrap();
        NONE
    }),
    ("a pack not begun", |store| {
        fs::write(store.pack(store.last().pack + 1), b"").unwrap();
        NONE
    }),
    ("files that are no packs", |store| {
        fs::write(store.dir.join("packs/notes.txt"), b"mine").unwrap();
        fs::write(store.dir.join("packs/1.pack"), b"mine").unwrap();
        fs::write(store.dir.join("CHECKPOINT.new"), b"half").unwrap();
        NONE
    }),
];

/// Every block is there whole, or absent; never other bytes. Returns the absent ones.
fn absent(store: &Store) -> BTreeSet<u32> {
    let lacks = |n: &u32| match store.get(&block(*n).cid) {
        Ok(Some(found)) => {
            assert_eq!(found, block(*n));
            false
        }
        Ok(None) | Err(Error::Damaged { .. }) => true,
        Err(error) => panic!("block {n}: {error}"),
    };
    (0..BLOCKS).filter(lacks).collect()
}

#[test]
fn damage_takes_the_blocks_it_touches_and_no_others() {
    for (name, damage) in DAMAGES {
        let fixture = Fixture::new();
        let lost = damage(&fixture);
        let store = fixture.open();
        assert_eq!(absent(&store), lost, "{name}");
        assert_eq!(absent(&store), lost, "{name}, asked again");
        for n in 0..BLOCKS {
            assert_eq!(store.contains(&block(n).cid), !lost.contains(&n), "{name}");
        }
    }
}

#[test]
fn a_damaged_store_takes_the_lost_blocks_again_and_keeps_them() {
    for (name, damage) in DAMAGES {
        for synced in [false, true] {
            let fixture = Fixture::new();
            let lost = damage(&fixture);
            // Packs may grow longer from here on, so that appending anywhere but at the end would show.
            let store = Store::open_with(&fixture.dir, LARGER).unwrap();
            absent(&store);
            for n in 0..BLOCKS {
                assert_eq!(store.put(&block(n)).unwrap(), lost.contains(&n), "{name}: block {n}");
            }
            assert!(store.put(&block(BLOCKS)).unwrap());
            if synced {
                store.sync().unwrap();
            }
            drop(store);
            let store = fixture.open();
            assert_eq!(absent(&store), NONE, "{name}, synced: {synced}");
            assert_eq!(
                store.get(&block(BLOCKS).cid).unwrap(),
                Some(block(BLOCKS)),
                "{name}, synced: {synced}"
            );
            assert!(store.fsck(true).unwrap().damaged.is_empty(), "{name}, synced: {synced}");
        }
    }
}

#[test]
fn a_damaged_store_can_be_collected() {
    for (name, damage) in DAMAGES {
        let fixture = Fixture::new();
        let lost = damage(&fixture);
        let store = fixture.open();
        let wanted: BTreeSet<u32> = (0..BLOCKS).filter(|n| n % 3 == 0).collect();
        let kept: BTreeSet<Cid> = wanted.iter().map(|n| block(*n).cid).collect();
        store.retain(&|cid| kept.contains(cid)).unwrap();
        let expected: BTreeSet<u32> =
            (0..BLOCKS).filter(|n| !wanted.contains(n) || lost.contains(n)).collect();
        assert_eq!(absent(&store), expected, "{name}");
        drop(store);
        let store = fixture.open();
        let again = absent(&store);
        assert!(wanted.iter().all(|n| again.contains(n) == lost.contains(n)), "{name}: {again:?}");
        assert!(store.fsck(true).unwrap().damaged.is_empty(), "{name}");
    }
}

#[test]
fn a_damaged_block_is_reported_once_with_its_place() {
    let fixture = Fixture::new();
    let record = fixture.records[5];
    fixture.flip(record, RECORD_HEADER_BYTES + 7);
    let store = fixture.open();
    let error = store.get(&block(5).cid).unwrap_err();
    let pack = fixture.pack(record.pack);
    let text = format!("block {} is damaged in {} at {}", block(5).cid, pack.display(), record.offset);
    assert_eq!(error.to_string(), text);
    assert_eq!(store.get(&block(5).cid).unwrap(), None);
}

#[test]
fn a_torn_copy_before_the_checkpoint_hides_no_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Store::open(folder.path()).unwrap();
    let (store, pack) = (open(), folder.path().join("packs/00000001.pack"));
    store.put(&block(0)).unwrap();
    store.sync().unwrap();
    let torn = fs::metadata(&pack).unwrap().len();
    store.discard(&block(0).cid);
    store.put(&block(0)).unwrap();
    store.put(&block(1)).unwrap();
    drop(store);
    // The power failed: of the second copy, the header arrived.
    let file = OpenOptions::new().write(true).open(&pack).unwrap();
    file.write_all_at(&[0; 100], torn + RECORD_HEADER_BYTES).unwrap();
    open().sync().unwrap();
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    let store = open();
    for n in [0, 1] {
        assert_eq!(store.get(&block(n).cid).unwrap(), Some(block(n)));
    }
}

#[test]
fn a_check_finds_what_only_the_hash_can_tell() {
    let fixture = Fixture::new();
    let record = fixture.records[5];
    let path = fixture.pack(record.pack);
    let mut pack = fs::read(&path).unwrap();
    let at = usize::try_from(record.offset).unwrap();
    let payload = at + 53..usize::try_from(record.end).unwrap();
    pack[payload.start + 400] ^= 1;
    let crc = crc32c::crc32c(&pack[payload]);
    pack[at + 45..at + 49].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&pack[at..at + 49]);
    pack[at + 49..at + 53].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, pack).unwrap();

    let store = fixture.open();
    assert_eq!(store.fsck(false).unwrap().damaged, []);
    assert!(store.get(&block(5).cid).unwrap().unwrap().decode().is_err());
    assert_eq!(store.fsck(true).unwrap().damaged, [block(5).cid]);
    assert!(!store.contains(&block(5).cid));
}

/// Names the store folder to a child process that runs [`child`], and what to do there.
const CHILD_DIR: &str = "STORE_DAMAGE_CHILD_DIR";
const CHILD_FIRST: &str = "STORE_DAMAGE_CHILD_FIRST_BLOCK";

/// Not a test of its own: what the child processes of the tests below run.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let first: u32 = std::env::var(CHILD_FIRST).unwrap().parse().unwrap();
    let options = Options { pack_bytes_max: 200_000, commit_bytes: 50_000 };
    let mut out = std::io::stdout();
    match Store::open_with(Path::new(&dir), options) {
        Ok(store) => {
            for n in first.. {
                store.put(&block(n)).unwrap();
                writeln!(out, "\nput {n}").unwrap();
                if n % 50 == 49 {
                    // Every other one becomes dead weight, so that packs are rewritten under the blade.
                    for dead in (n - 49..=n).step_by(2) {
                        store.discard(&block(dead).cid);
                        store.put(&block(dead)).unwrap();
                    }
                    store.retain(&|_| true).unwrap();
                }
            }
        }
        Err(error) => writeln!(out, "\nrefused {error}").unwrap(),
    }
}

fn spawn_child(dir: &Path, first: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD_DIR, dir)
        .env(CHILD_FIRST, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_process_loses_no_put_that_returned() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = 0;
    for round in 0..20 {
        let mut child = spawn_child(folder.path(), first);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut put = Vec::new();
        let mut read_put = |put: &mut Vec<u32>| {
            let line = lines.next()?.unwrap();
            put.extend(line.strip_prefix("put ").map(|n| n.parse::<u32>().unwrap()));
            Some(())
        };
        while put.len() < 3 + round * 7 {
            read_put(&mut put).expect("the child goes on until it is killed");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while read_put(&mut put).is_some() {}
        let store = Store::open(folder.path()).unwrap();
        let last = *put.last().unwrap();
        for n in 0..=last {
            let found = store.get(&block(n).cid).unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!(found, Some(block(n)), "round {round}: block {n} of {last}");
        }
        first = last + 1;
    }
}

#[test]
fn a_second_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let child = spawn_child(folder.path(), 0).wait_with_output().unwrap();
    let said = String::from_utf8(child.stdout).unwrap();
    let expected = format!("refused store {} is in use by another process", folder.path().display());
    assert!(said.lines().any(|line| line == expected), "{said}");
    drop(store);
}

/// A file system of a few megabytes of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` when this process may not mount.
    fn new(megabytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(folder.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        mounted.then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_disk_fails_the_put_and_nothing_else() {
    let Some(disk) = SmallDisk::new(8) else {
        println!("skipped: needs root");
        return;
    };
    let dir = disk.0.path().join("store");
    let large = |n: u8| EncodedBlock::encode(&noise_of(&[n], 300_000), 1);
    let assert_holds = |store: &Store, held: u8| {
        (0..held).for_each(|n| assert_eq!(store.get(&large(n).cid).unwrap(), Some(large(n))));
    };
    let store = Store::open(&dir).unwrap();
    let mut held = 0;
    let error = loop {
        match store.put(&large(held)) {
            Ok(new) => assert!(new),
            Err(error) => break error,
        }
        held += 1;
    };
    let Error::Write { cid, pack, source, .. } = &error else { panic!("{error}") };
    assert_eq!((*cid, pack), (large(held).cid, &dir.join("packs/00000001.pack")));
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);

    // What is there stays; what is not is refused again; whether a sync finds room for its few bytes is open.
    fs::write(disk.0.path().join("filler"), noise(8 << 20)).unwrap_err();
    assert!(store.put(&large(held)).is_err());
    let _ = store.sync();
    assert_holds(&store, held);
    drop(store);
    let store = Store::open(&dir).unwrap();
    assert_holds(&store, held);

    // Once there is room, it is used.
    fs::remove_file(disk.0.path().join("filler")).unwrap();
    assert_eq!(store.retain(&|_| false).unwrap().dropped_blocks, u64::from(held));
    (0..held).for_each(|n| assert!(store.put(&large(n)).unwrap()));
    store.sync().unwrap();
    drop(store);
    assert_holds(&Store::open(&dir).unwrap(), held);
}
