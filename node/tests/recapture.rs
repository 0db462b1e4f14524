//! Captures on top of a parent: what is inherited, what is taken over unread, and that nothing that changed is missed.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "tree/blocks.rs"]
mod blocks;
#[path = "tree/fixture.rs"]
mod fixture;
#[path = "tree/snapshot.rs"]
mod snapshot;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use blocks::Blocks;
use fixture::{Scratch, is_root, make_tree, noise, set_time, set_xattr};
use rustix::fs::{Gid, IFlags, Uid};
use shoal_node::block::EncodedBlock;
use shoal_node::tree::capture::{
    BlockSink, BlockSinkError, CaptureOptions, CaptureProgress, Captured, Parent, capture,
};
use shoal_node::tree::exclude::Excludes;
use shoal_proto::cid::Cid;
use snapshot::snapshot;

/// A tree that is captured again and again.
struct Bench {
    scratch: Scratch,
    source: PathBuf,
    blocks: Blocks,
}

/// Counts what is read.
#[derive(Default)]
struct Bytes(AtomicU64);

impl CaptureProgress for Bytes {
    fn read(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Bench {
    fn new() -> Self {
        let scratch = Scratch::new();
        let source = scratch.dir("source");
        make_tree(&source);
        if !is_root() {
            fs::set_permissions(source.join("a/min+1"), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let bench = Self { scratch, source, blocks: Blocks::default() };
        bench.wait_for_another_instant();
        bench
    }

    fn record(&self) -> PathBuf {
        self.scratch.0.path().join("record")
    }

    /// File systems count time in steps: goes on when whatever changes now shows another time than what changed last.
    fn wait_for_another_instant(&self) {
        let probe = self.scratch.0.path().join("probe");
        let now = || {
            fs::write(&probe, b"x").unwrap();
            let probe = fs::metadata(&probe).unwrap();
            (probe.ctime(), probe.ctime_nsec())
        };
        let first = now();
        while now() == first {}
    }

    fn options(&self, parent: Option<&Captured>) -> CaptureOptions {
        CaptureOptions {
            parent: parent.map(Parent::from),
            seen: Some(self.record()),
            threads: 2,
            ..CaptureOptions::default()
        }
    }

    /// A capture that nothing followed too soon for the next one to rely on it.
    fn captured(&self, parent: Option<&Captured>) -> Captured {
        let captured = capture(&self.source, &self.options(parent), &self.blocks, &()).unwrap();
        self.settle();
        captured
    }

    /// Makes the record say that its capture began an hour later than it did.
    fn settle(&self) {
        let file = File::options().read(true).write(true).open(self.record()).unwrap();
        let mut header = [0; 92];
        file.read_exact_at(&mut header, 0).unwrap();
        let began = i64::from_le_bytes(header[48..56].try_into().unwrap()) + 3600;
        header[48..56].copy_from_slice(&began.to_le_bytes());
        let crc = crc32c::crc32c(&header[..88]);
        header[88..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&header, 0).unwrap();
        self.wait_for_another_instant();
    }

    /// Without the record.
    fn read_in_full(&self, parent: &Captured) -> Captured {
        let options = CaptureOptions { reuse: false, seen: None, ..self.options(Some(parent)) };
        let captured = capture(&self.source, &options, &self.blocks, &()).unwrap();
        assert_eq!(captured.report.reused, 0);
        captured
    }

    fn block_count(&self) -> usize {
        self.blocks.0.lock().unwrap().len()
    }

    fn assert_holds(&self, captured: &Captured) {
        let target = tempfile::tempdir_in(self.scratch.0.path()).unwrap().keep();
        self.blocks.apply(&self.blocks.manifest(&captured.root), &target).unwrap();
        let (expected, found) = (snapshot(&self.source), snapshot(&target));
        for (path, text) in &expected {
            assert_eq!(found.get(path), Some(text), "{}", path.display());
        }
        assert_eq!(found.len(), expected.len());
    }
}

fn pieces(captured: &Captured) -> Vec<Cid> {
    let content = captured.manifest.content();
    content.indexes().map(|index| content.piece(index).cid).collect()
}

fn hard_links(captured: &Captured) -> u64 {
    use shoal_proto::image::entry::Kind;
    captured.manifest.entries().filter(|entry| matches!(entry.kind(), Kind::HardLink { .. })).count() as u64
}

#[test]
fn an_unchanged_tree_is_the_same_image_and_nothing_is_read() {
    let bench = Bench::new();
    let first = bench.captured(None);
    let blocks = bench.block_count();
    let read = Bytes::default();
    let second = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &read).unwrap();
    assert_eq!(second.root, first.root);
    assert_eq!(second.report.reused, first.report.entries - hard_links(&first));
    assert_eq!((read.0.into_inner(), second.report.new_blocks), (0, 0));
    assert_eq!(second.report.compressed_bytes, first.report.compressed_bytes);
    assert_eq!(bench.block_count(), blocks, "nothing is stored again");
    // The record of a capture that took everything over is as good as the first.
    bench.settle();
    assert_eq!(bench.captured(Some(&second)).report.reused, second.report.reused);
}

#[test]
fn what_changed_as_the_last_capture_began_is_read_again() {
    let bench = Bench::new();
    let first = capture(&bench.source, &bench.options(None), &bench.blocks, &()).unwrap();
    let second = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &()).unwrap();
    assert_eq!((second.report.reused, second.root), (0, first.root), "all of it was made just before");
}

/// Each a change that only the inode's time of change shows, or its number.
fn change_everything(top: &Path) {
    let at = |path: &str| top.join(path);
    let keep_time = |path: &str, change: &dyn Fn(&Path)| {
        let old = fs::symlink_metadata(at(path)).unwrap();
        change(&at(path));
        set_time(&at(path), old.mtime(), old.mtime_nsec());
    };
    keep_time("a", &|a| {
        keep_time("a/min", &|file| {
            let file = File::options().write(true).open(file).unwrap();
            file.write_all_at(b"X", 9).unwrap();
        });
        keep_time("a-/x twin", &|file| {
            let bytes = fs::read(file).unwrap();
            fs::remove_file(file).unwrap();
            fs::write(file, [&bytes[1..], b"z"].concat()).unwrap();
        });
        fs::rename(a.join("-"), a.join("renamed")).unwrap();
    });
    keep_time("links", &|links| {
        let target = fs::read_link(links.join("dangling")).unwrap();
        let other: String = target.to_string_lossy().chars().rev().collect();
        keep_time("links/dangling", &|link| {
            fs::remove_file(link).unwrap();
            symlink(&other, link).unwrap();
        });
        keep_time("links/one", &|link| {
            let bytes = fs::read(link).unwrap();
            fs::remove_file(link).unwrap();
            fs::write(link, bytes).unwrap();
        });
    });
    fs::hard_link(at("a/b/zeros"), at("zz-zeros")).unwrap();
    fs::set_permissions(at("zero"), fs::Permissions::from_mode(0o601)).unwrap();
    fs::set_permissions(at("acl"), fs::Permissions::from_mode(0o700)).unwrap();
    set_time(&at("a/b"), 77, 78);
    let _ = set_xattr(&at("acl/without"), b"user.new", b"1");
    let _ = set_xattr(&at("a-"), b"user.on-a-directory", b"1");
    fs::remove_file(at("hole")).unwrap();
    fs::create_dir(at("hole")).unwrap();
    File::create(at("hole/f")).unwrap().write_all(b"in a file that became a directory").unwrap();
    if is_root() {
        rustix::fs::chown(at("fifo"), Some(Uid::from_raw(1234)), Some(Gid::from_raw(1))).unwrap();
        fixture::add_flags(&at("a/b/zeros"), IFlags::NODUMP);
    }
}

#[test]
fn no_kind_of_change_is_missed() {
    let bench = Bench::new();
    fs::write(bench.source.join("a-/x twin"), b"another inode of the same length").unwrap();
    bench.wait_for_another_instant();
    let first = bench.captured(None);
    change_everything(&bench.source);
    let second = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &()).unwrap();
    assert!(second.report.reused > 10, "{:?}", second.report);
    assert_eq!(second.root, bench.read_in_full(&first).root);
    bench.assert_holds(&second);
}

#[test]
fn each_change_alone_is_found() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("content", |top| {
            File::options().write(true).open(top.join("f")).unwrap().write_all_at(b"X", 1).unwrap()
        }),
        ("mode", |top| fs::set_permissions(top.join("f"), fs::Permissions::from_mode(0o601)).unwrap()),
        ("directory", |top| fs::set_permissions(top.join("d"), fs::Permissions::from_mode(0o701)).unwrap()),
        ("xattr", |top| {
            let _ = set_xattr(&top.join("f"), b"user.x", b"1");
        }),
        ("link", |top| fs::hard_link(top.join("f"), top.join("d/f")).unwrap()),
        ("replaced", |top| {
            fs::write(top.join("new"), noise("new", 1000)).unwrap();
            fs::rename(top.join("new"), top.join("f")).unwrap();
        }),
    ];
    for (name, change) in changes {
        let scratch = Scratch::new();
        let source = scratch.dir("source");
        fs::create_dir(source.join("d")).unwrap();
        fs::write(source.join("f"), noise("f", 1000)).unwrap();
        let bench = Bench { scratch, source, blocks: Blocks::default() };
        set_time(&bench.source.join("f"), 5, 6);
        set_time(&bench.source.join("d"), 5, 6);
        set_time(&bench.source, 5, 6);
        bench.wait_for_another_instant();
        let first = bench.captured(None);
        change(&bench.source);
        set_time(&bench.source.join("f"), 5, 6);
        set_time(&bench.source.join("d"), 5, 6);
        set_time(&bench.source, 5, 6);
        let second = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &()).unwrap();
        assert_eq!(second.root, bench.read_in_full(&first).root, "{name}");
        bench.assert_holds(&second);
    }
}

#[test]
fn a_record_that_is_damaged_or_of_another_image_costs_a_full_read_and_nothing_else() {
    let bench = Bench::new();
    let first = bench.captured(None);
    let whole = fs::read(bench.record()).unwrap();
    let recaptured = |bytes: &[u8]| {
        fs::write(bench.record(), bytes).unwrap();
        let second = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &()).unwrap();
        assert_eq!(second.root, first.root);
        second.report.reused
    };
    assert!(recaptured(&whole) > 0);
    for at in [0, 20, 50, 60, 80, 90, 92, 100, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        assert_eq!(recaptured(&flipped), 0, "byte {at}");
    }
    for cut in [0, 50, 100, whole.len() - 1] {
        assert_eq!(recaptured(&whole[..cut]), 0, "cut at {cut}");
    }
    // An image whose record was replaced by that of a later one.
    fs::write(bench.source.join("acl/new"), b"new").unwrap();
    bench.captured(Some(&first));
    fs::remove_file(bench.source.join("acl/new")).unwrap();
    let third = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &()).unwrap();
    assert_eq!(third.report.reused, 0);
}

#[test]
fn other_excludes_and_another_way_to_the_tree_are_no_hindrance() {
    let bench = Bench::new();
    let first = bench.captured(None);
    let excludes = Excludes::new(["/links/", "one"]).unwrap();
    let options = CaptureOptions { excludes, ..bench.options(Some(&first)) };
    let second = capture(&bench.source.join("../source"), &options, &bench.blocks, &()).unwrap();
    assert!(second.report.reused > 10);
    let full = CaptureOptions { reuse: false, ..options };
    assert_eq!(second.root, capture(&bench.source, &full, &bench.blocks, &()).unwrap().root);
    bench.settle();
    // What was left out is there again.
    let third = capture(&bench.source, &bench.options(Some(&second)), &bench.blocks, &()).unwrap();
    assert!(third.report.reused > 10);
    bench.assert_holds(&third);
}

#[test]
fn blocks_that_the_store_lost_are_made_again_from_the_files() {
    let bench = Bench::new();
    let first = bench.captured(None);
    bench.blocks.0.lock().unwrap().remove(&pieces(&first)[1]).unwrap();
    let second = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &()).unwrap();
    assert_eq!(second.report.new_blocks, 1);
    assert!(second.report.reused > 0 && second.report.reused < first.report.entries - hard_links(&first));
    bench.assert_holds(&second);
}

#[test]
fn a_damaged_block_of_the_parent_never_reaches_the_image() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    for file in 0..3 {
        fs::write(source.join(file.to_string()), noise(&file.to_string(), 400_000)).unwrap();
    }
    let bench = Bench { scratch, source, blocks: Blocks::default() };
    bench.wait_for_another_instant();
    let first = bench.captured(None);
    // The last block is not full: a change lays it anew, out of the parent's.
    let last = *pieces(&first).last().unwrap();
    let other = EncodedBlock { cid: last, ..EncodedBlock::encode(b"other", 1) };
    bench.blocks.0.lock().unwrap().insert(last, other).unwrap();
    fs::write(bench.source.join("new"), noise("new", 50_000)).unwrap();
    let second = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &()).unwrap();
    assert_eq!((second.report.new_blocks, second.report.blocks), (1, first.report.blocks));
    assert_eq!(pieces(&second)[1], pieces(&first)[0]);
    bench.assert_holds(&second);
}

/// A store that gives other bytes than it took.
struct Liar<'a>(&'a Blocks);

impl BlockSink for Liar<'_> {
    fn put(&self, block: &EncodedBlock) -> Result<(), BlockSinkError> {
        self.0.put(block)
    }

    fn held(&self, cid: &Cid) -> Option<u64> {
        self.0.held(cid)
    }

    fn raw(&self, cid: &Cid) -> Option<Vec<u8>> {
        let mut raw = BlockSink::raw(self.0, cid)?;
        raw[0] ^= 1;
        Some(raw)
    }
}

#[test]
fn bytes_that_are_not_the_chunks_they_stand_for_are_not_laid() {
    let bench = Bench::new();
    let first = bench.captured(None);
    fs::remove_file(bench.source.join("a/min")).unwrap();
    let liar = Liar(&bench.blocks);
    let second = capture(&bench.source, &bench.options(Some(&first)), &liar, &()).unwrap();
    assert!(second.report.new_blocks > 0, "laid of files");
    bench.assert_holds(&second);
}

#[test]
fn a_small_change_stores_a_few_blocks_only() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    for file in 0..40 {
        fs::write(source.join(file.to_string()), noise(&file.to_string(), 125_000)).unwrap();
    }
    let bench = Bench { scratch, source, blocks: Blocks::default() };
    let first = bench.captured(None);
    fs::write(bench.source.join("7"), noise("other", 100_000)).unwrap();
    let blocks = bench.block_count();
    let second = bench.captured(Some(&first));
    let inherited = pieces(&second).iter().filter(|cid| pieces(&first).contains(cid)).count();
    assert_eq!((second.report.new_blocks, inherited >= pieces(&first).len() - 3), (1, true));
    // The new block, those that the change broke, one end of a region, and the manifest.
    assert!(bench.block_count() - blocks <= 6, "{} blocks", bench.block_count() - blocks);
    assert_eq!(second.root, bench.read_in_full(&first).root);
    bench.assert_holds(&second);
}

/// Adds to a file whenever something is read.
struct Appender(PathBuf);

impl CaptureProgress for Appender {
    fn read(&self, _: u64) {
        File::options().append(true).open(&self.0).unwrap().write_all(b"more").unwrap();
    }
}

#[test]
fn a_file_that_never_rests_is_taken_as_it_was_read_last_where_that_is_allowed() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    fs::write(source.join("log"), noise("log", 3_000_000)).unwrap();
    fs::write(source.join("still"), b"still").unwrap();
    let bench = Bench { scratch, source, blocks: Blocks::default() };
    let options = CaptureOptions { allow_changed: true, ..bench.options(None) };
    let appender = Appender(bench.source.join("log"));
    let first = capture(&bench.source, &options, &bench.blocks, &appender).unwrap();
    assert_eq!((first.report.changed, &first.report.changed_paths[..]), (1, &["log".to_owned()][..]));
    // A prefix of what is there now, as long as its entry says.
    let target = bench.scratch.dir("target");
    bench.blocks.apply(&bench.blocks.manifest(&first.root), &target).unwrap();
    let (found, now) = (fs::read(target.join("log")).unwrap(), fs::read(bench.source.join("log")).unwrap());
    assert!(found.len() >= 3_000_000 && now.starts_with(&found));
    // However old it is, the next capture reads it.
    bench.settle();
    let read = Bytes::default();
    let second = capture(&bench.source, &bench.options(Some(&first)), &bench.blocks, &read).unwrap();
    assert_eq!(read.0.into_inner(), now.len() as u64);
    assert_eq!(second.report.changed, 0);
    bench.assert_holds(&second);
}
