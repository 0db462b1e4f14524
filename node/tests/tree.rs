//! Capture → apply → compare, over a tree with one of every kind.

#[cfg(test)]
#[path = "tree/blocks.rs"]
mod blocks;
#[cfg(test)]
#[path = "tree/fixture.rs"]
mod fixture;
#[cfg(test)]
#[path = "tree/snapshot.rs"]
mod snapshot;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blocks::Blocks;
use fixture::{Scratch, is_root, make_tree, noise, set_time, set_xattr};
use rustix::fs::Mode;
use shoal_node::block::EncodedBlock;
use shoal_node::tree::apply::{Apply, ApplyError, ApplyOptions, Aspect};
use shoal_node::tree::capture::{
    BlockSink, BlockSinkError, CaptureError, CaptureOptions, CaptureProgress, Captured, Parent, capture,
};
use shoal_node::tree::exclude::Excludes;
use shoal_node::tree::verify::{DriftKind, VerifyMode, verify};
use shoal_proto::cid::{ChunkId, Cid};
use shoal_proto::image::entry::{Attributes, Content, InodeFlags, Kind, Mtime, Segment};
use shoal_proto::image::layout::Layout;
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::tree::TreeBuilder;
use snapshot::snapshot;

fn options(threads: usize) -> CaptureOptions {
    CaptureOptions { threads, ..CaptureOptions::default() }
}

fn captured(top: &Path, blocks: &Blocks) -> Captured {
    if !is_root() {
        // Nobody else may read it.
        fs::set_permissions(top.join("a/min+1"), fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
    capture(top, &options(2), blocks, &()).expect("the fixture can be read")
}

#[test]
fn every_kind_of_entry_comes_back() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    make_tree(&source);
    let blocks = Blocks::default();
    let captured = captured(&source, &blocks);
    assert_eq!((captured.report.sockets, captured.report.vanished), (1, 0));
    let manifest = blocks.manifest(&captured.root);

    let report = blocks.apply(&manifest, &target).unwrap();
    assert!(report.losses.listed.is_empty(), "{:?}", report.losses);
    let (expected, found) = (snapshot(&source), snapshot(&target));
    for (path, text) in &expected {
        assert_eq!(found.get(path), Some(text), "{}", path.display());
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(captured.report.entries, expected.len() as u64);

    let verified = verify(&manifest, &target, VerifyMode::Full).unwrap();
    assert_eq!(verified.drift, []);
    let blocks_again = Blocks::default();
    let again = capture(&target, &options(1), &blocks_again, &()).unwrap();
    assert_eq!(again.root, captured.root, "the applied tree is the same image");
}

#[test]
fn the_image_does_not_depend_on_threads() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    make_tree(&source);
    let first = captured(&source, &Blocks::default());
    for threads in [1, 3, 8] {
        let other = capture(&source, &options(threads), &Blocks::default(), &()).unwrap();
        assert_eq!(other.root, first.root, "{threads} threads");
    }
}

#[test]
fn directories_that_are_listed_ahead_are_the_same() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    let mut deep = source.clone();
    // Deeper than what is listed ahead, with neighbours on every level.
    for level in 0..70 {
        for neighbour in ["a", "left-out", "z"] {
            let dir = deep.join(format!("{neighbour}-{}", level % 7)).join("inner");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), format!("{neighbour} of level {level}")).unwrap();
        }
        deep.push("m");
        fs::create_dir(&deep).unwrap();
    }
    let excludes = Excludes::new(&["left-out-*".to_owned()]).unwrap();
    let capture = |threads| {
        let options = CaptureOptions { excludes: excludes.clone(), ..options(threads) };
        let report = capture(&source, &options, &Blocks::default(), &()).unwrap().report;
        (report.image, report.entries, report.excluded)
    };
    let alone = capture(1);
    assert_eq!((alone.1, alone.2), (1 + 70 * 7, 70));
    for threads in [2, 3, 8] {
        assert_eq!(capture(threads), alone, "{threads} threads");
    }
}

#[test]
fn an_apply_replaces_what_a_killed_one_left() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    make_tree(&source);
    let blocks = Blocks::default();
    let captured = captured(&source, &blocks);
    let manifest = blocks.manifest(&captured.root);
    {
        let apply = Apply::create(Arc::clone(&manifest), &target, ApplyOptions::default()).unwrap();
        for index in manifest.content().indexes().take(2) {
            apply.write_piece(index, &blocks.raw(manifest.content().piece(index).cid)).unwrap();
        }
        assert!(matches!(apply.finish(), Err(ApplyError::Incomplete { .. })));
    }
    // Everything of the wrong kind, too.
    for wrong in ["one", "zero", "links/relative", "fifo"] {
        let _ = fs::remove_file(target.join(wrong));
        fs::create_dir_all(target.join(wrong).join("in/the/way")).unwrap();
        fs::write(target.join(wrong).join("in/the/way/file"), b"x").unwrap();
    }
    fs::remove_dir_all(target.join("empty")).unwrap();
    symlink("/etc", target.join("empty")).unwrap();
    fs::write(target.join("a/b/zeros"), vec![1; 4_000_000]).unwrap();
    for _ in 0..2 {
        blocks.apply(&manifest, &target).unwrap();
        assert_eq!(snapshot(&target), snapshot(&source));
        assert_eq!(verify(&manifest, &target, VerifyMode::Full).unwrap().drift, []);
    }
}

#[test]
fn a_recapture_lays_only_what_is_new_first() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    make_tree(&source);
    let blocks = Blocks::default();
    let first = captured(&source, &blocks);
    fs::write(source.join("a/b/new"), noise("new", 2_000_000)).unwrap();
    fs::write(source.join("a-/new twin"), noise("large", 5_000_001)).unwrap();
    let with_parent = CaptureOptions { parent: Some(Parent::from(&first)), ..options(2) };
    let second = capture(&source, &with_parent, &blocks, &()).unwrap();
    let new_blocks = usize::try_from(second.report.new_blocks).unwrap();
    assert!((8..=11).contains(&new_blocks), "2 MB in blocks of up to 256 KiB: {new_blocks}");
    let new: u64 = second
        .manifest
        .content()
        .indexes()
        .take(new_blocks)
        .map(|index| u64::from(second.manifest.content().piece(index).raw_bytes))
        .sum();
    assert_eq!(new, 2_000_000);
    let again = capture(&source, &with_parent, &blocks, &()).unwrap();
    assert_eq!(again.root, second.root);
    let target = scratch.dir("target");
    blocks.apply(&blocks.manifest(&second.root), &target).unwrap();
    assert_eq!(snapshot(&target), snapshot(&source));
}

/// Each in its own way, with times put back where the time is not the difference.
#[cfg(test)]
fn plant_differences(target: &Path) {
    let at = |path: &str| target.join(path);
    let keep_time = |path: &str, change: &dyn Fn(&Path)| {
        let old = fs::symlink_metadata(at(path)).unwrap();
        change(&at(path));
        set_time(&at(path), old.mtime(), old.mtime_nsec());
    };
    keep_time("", &|_| {
        keep_time("content", &|path| {
            let mut bytes = noise("content", 100_000);
            bytes[99_999] ^= 1;
            fs::write(path, bytes).unwrap();
        });
        keep_time("hole", &|path| {
            let mut file = File::options().write(true).open(path).unwrap();
            file.seek(SeekFrom::Start(1 << 29)).unwrap();
            file.write_all(b"x").unwrap();
        });
        keep_time("size", &|path| File::options().write(true).open(path).unwrap().set_len(5).unwrap());
        fs::set_permissions(at("mode"), fs::Permissions::from_mode(0o4755)).unwrap();
        set_time(&at("mtime"), 1, 1);
        set_xattr(&at("xattr"), b"user.new", b"");
        fs::remove_file(at("removed")).unwrap();
        keep_time("link", &|path| {
            fs::remove_file(path).unwrap();
            symlink("y", path).unwrap();
        });
        fs::remove_file(at("type")).unwrap();
        symlink("elsewhere", at("type")).unwrap();
        fs::remove_dir_all(at("gone")).unwrap();
        fs::remove_dir_all(at("kind")).unwrap();
        fs::write(at("kind"), b"").unwrap();
        keep_time("d", &|path| fs::write(path.join("extra"), b"").unwrap());
        fs::create_dir_all(at("more/below")).unwrap();
        keep_time("h2", &|path| {
            let old = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            fs::write(path, old).unwrap();
        });
        keep_time("k1", &|path| {
            fs::remove_file(path).unwrap();
            fs::hard_link(at("j1"), path).unwrap();
        });
    });
}

#[test]
fn verify_names_each_difference_and_nothing_else() {
    use DriftKind::*;
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    for dir in ["d", "gone", "gone/deep", "kind"] {
        fs::create_dir(source.join(dir)).unwrap();
    }
    for file in [
        "content",
        "size",
        "mode",
        "mtime",
        "xattr",
        "removed",
        "type",
        "kind/x",
        "gone/deep/f",
        "h1",
        "j1",
        "k1",
    ] {
        fs::write(source.join(file), noise(file, 100_000)).unwrap();
    }
    symlink("x", source.join("link")).unwrap();
    for (one, other) in [("h1", "h2"), ("j1", "j2")] {
        fs::hard_link(source.join(one), source.join(other)).unwrap();
    }
    File::create(source.join("hole")).unwrap().set_len(1 << 30).unwrap();
    let blocks = Blocks::default();
    let manifest = blocks.manifest(&capture(&source, &options(2), &blocks, &()).unwrap().root);
    blocks.apply(&manifest, &target).unwrap();
    assert_eq!(verify(&manifest, &target, VerifyMode::Full).unwrap().drift, []);

    plant_differences(&target);
    let found = verify(&manifest, &target, VerifyMode::Full).unwrap();
    let found: Vec<(String, Vec<DriftKind>)> =
        found.drift.into_iter().map(|drift| (drift.path.to_string(), drift.kinds)).collect();
    let mut expected: Vec<(&str, Vec<DriftKind>)> = vec![
        ("content", vec![Content]),
        ("d/extra", vec![Extra]),
        ("gone", vec![Missing]),
        ("gone/deep", vec![Missing]),
        ("gone/deep/f", vec![Missing]),
        ("h2", vec![HardLink]),
        ("hole", vec![Content]),
        ("k1", vec![Content, HardLink]),
        ("kind", vec![Type]),
        ("kind/x", vec![Missing]),
        ("link", vec![LinkTarget]),
        ("mode", vec![Mode]),
        ("more", vec![Extra]),
        ("mtime", vec![Mtime]),
        ("removed", vec![Missing]),
        ("size", vec![Size]),
        ("type", vec![Type]),
    ];
    if set_xattr(&source.join("xattr"), b"user.new", b"") {
        expected.push(("xattr", vec![Xattr]));
    }
    // The time of k1 was set on the inode that it shares now.
    let found = found.iter().map(|(path, kinds)| (path.as_str(), without_shared_time(path, kinds)));
    let found: Vec<_> = found.filter(|(_, kinds)| !kinds.is_empty()).collect();
    assert_eq!(found, expected);
}

fn without_shared_time(path: &str, kinds: &[DriftKind]) -> Vec<DriftKind> {
    let shared = ["j1", "j2", "k1"].contains(&path);
    kinds.iter().copied().filter(|kind| !(shared && *kind == DriftKind::Mtime)).collect()
}

#[test]
fn paths_beyond_path_max_work() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    let mut dir = File::open(&source).unwrap().into();
    let step = "d".repeat(200);
    for _ in 0..30 {
        rustix::fs::mkdirat(&dir, &*step, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &*step, rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
        rustix::fs::symlinkat("x", &dir, "link").unwrap();
    }
    rustix::fs::mkdirat(&dir, "last", Mode::RUSR | Mode::XUSR).unwrap();
    let blocks = Blocks::default();
    let manifest = blocks.manifest(&capture(&source, &options(2), &blocks, &()).unwrap().root);
    assert_eq!(manifest.tree().len(), 62);
    blocks.apply(&manifest, &target).unwrap();
    assert_eq!(verify(&manifest, &target, VerifyMode::Full).unwrap().drift, []);
}

#[test]
fn excluded_paths_are_left_out() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    make_tree(&source);
    if !is_root() {
        fs::set_permissions(source.join("a/min+1"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let excludes = Excludes::new(["/a/b/", "twin*", "/links/*"]).unwrap();
    let captured =
        capture(&source, &CaptureOptions { excludes, ..options(2) }, &Blocks::default(), &()).unwrap();
    let paths: Vec<String> = captured.manifest.entries().map(|entry| entry.path().to_string()).collect();
    assert!(!paths.iter().any(|path| path.starts_with("a/b") || path.starts_with("links/")), "{paths:?}");
    assert!(paths.contains(&"links".to_owned()) && paths.contains(&"a/min".to_owned()));
}

#[test]
fn every_unreadable_path_is_named() {
    if is_root() {
        return eprintln!("skipped: needs an ordinary user");
    }
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    fs::create_dir(source.join("dir")).unwrap();
    for path in ["one", "two", "dir/x"] {
        fs::write(source.join(path), b"x").unwrap();
        fs::set_permissions(source.join(path), fs::Permissions::from_mode(0o0)).unwrap();
    }
    fs::set_permissions(source.join("dir"), fs::Permissions::from_mode(0o0)).unwrap();
    let error = capture(&source, &options(2), &Blocks::default(), &()).unwrap_err();
    let text = error.to_string();
    for path in ["one", "two", "dir"] {
        assert!(text.contains(&format!("cannot read {path}: Permission denied")), "{text}");
    }
}

#[test]
fn a_source_that_is_missing_and_a_sink_that_fails_are_errors() {
    struct Full;
    impl BlockSink for Full {
        fn put(&self, _: &EncodedBlock) -> Result<(), BlockSinkError> {
            Err("no room".into())
        }
    }
    let scratch = Scratch::new();
    let error = capture(&scratch.0.path().join("none"), &options(2), &Full, &()).unwrap_err();
    assert!(matches!(error, CaptureError::Source { .. }));
    let source = scratch.dir("source");
    for file in 0..100 {
        fs::write(source.join(file.to_string()), noise(&file.to_string(), 1_000_000)).unwrap();
    }
    let error = capture(&source, &options(2), &Full, &()).unwrap_err();
    assert!(matches!(error, CaptureError::Sink { .. }), "{error}");
}

#[test]
fn the_same_bytes_are_laid_once_and_written_everywhere() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    for file in 0..8 {
        fs::write(source.join(file.to_string()), noise("same", 1 << 20)).unwrap();
    }
    let blocks = Blocks::default();
    let manifest = blocks.manifest(&capture(&source, &options(2), &blocks, &()).unwrap().root);
    blocks.apply(&manifest, &target).unwrap();
    assert_eq!(snapshot(&target), snapshot(&source));
    assert_eq!(manifest.content().raw_bytes(), 1 << 20);
}

#[test]
fn a_target_without_room_is_refused_with_need_and_have() {
    // Two chunks in turn, until the file is as long as no disk here.
    let mut layout = Layout::new(1 << 20, None);
    for bytes in [b"a", b"b"] {
        layout.place(ChunkId::of(bytes), 256 << 10);
    }
    let laid = layout.finish();
    let mut tree = TreeBuilder::default();
    let attributes = || Attributes::new(0o755, 0, 0, InodeFlags::NONE, vec![]).unwrap();
    tree.push_root(attributes(), Mtime::default()).unwrap();
    let segments: Vec<Segment> = (0..1 << 20).map(|at| Segment::Chunks { first: at & 1, count: 1 }).collect();
    for name in 10..18 {
        let content = Content::Segments(&segments[..]);
        tree.push(0, name.to_string().as_bytes(), attributes(), Mtime::default(), Kind::File(content))
            .unwrap();
    }
    let manifest = Arc::new(Manifest::assemble(tree.finish(), &laid, &[Cid::of(b"ab")]).unwrap());

    let scratch = Scratch::new();
    let target = scratch.dir("target");
    let error = Apply::create(manifest, &target, ApplyOptions::default()).unwrap_err();
    let need = 8_u64 << 38;
    let text = error.to_string();
    assert!(text.starts_with(&format!("{} needs {need} bytes and has ", target.display())), "{text}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "nothing was made");
}

/// Appends to a file each time that some of it was read, so many times.
struct Appender {
    file: PathBuf,
    left: AtomicU32,
}

impl CaptureProgress for Appender {
    fn read(&self, _: u64) {
        let again = |left: u32| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, again).is_ok() {
            let mut file = File::options().append(true).open(&self.file).expect("it was just read");
            file.write_all(b"more").expect("a few bytes fit");
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_read_again_and_then_named() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    let file = source.join("log");
    fs::write(&file, noise("log", 3_000_000)).unwrap();
    let appender = |left| Appender { file: file.clone(), left: AtomicU32::new(left) };

    let blocks = Blocks::default();
    let captured = capture(&source, &options(2), &blocks, &appender(2)).unwrap();
    let target = scratch.dir("target");
    blocks.apply(&blocks.manifest(&captured.root), &target).unwrap();
    assert_eq!(snapshot(&target), snapshot(&source));

    let error = capture(&source, &options(2), &Blocks::default(), &appender(u32::MAX)).unwrap_err();
    assert_eq!(error.to_string(), "cannot read log: changed each time it was read");
}

/// Takes paths away between the scan and the reading.
struct Thief(Vec<PathBuf>);

impl CaptureProgress for Thief {
    fn scanned(&self, _: u64, _: u64) {
        for path in &self.0 {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
        }
    }
}

#[test]
fn what_vanishes_is_left_out_and_counted_unless_another_name_of_it_stays() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    fs::create_dir_all(source.join("dir/below")).unwrap();
    for file in ["file", "stays", "dir/f", "dir/below/f"] {
        fs::write(source.join(file), file).unwrap();
    }
    let thief = Thief(vec![source.join("file"), source.join("dir")]);
    let captured = capture(&source, &options(2), &Blocks::default(), &thief).unwrap();
    let paths: Vec<String> = captured.manifest.entries().map(|entry| entry.path().to_string()).collect();
    assert_eq!(paths, [".", "stays"]);
    assert!(captured.report.vanished >= 2, "{:?}", captured.report);

    fs::hard_link(source.join("stays"), source.join("stays too")).unwrap();
    let thief = Thief(vec![source.join("stays")]);
    let error = capture(&source, &options(2), &Blocks::default(), &thief).unwrap_err();
    assert_eq!(error.to_string(), "cannot read stays too: its first name vanished while it was captured");
}

#[test]
fn a_link_planted_in_the_target_leads_nowhere() {
    let scratch = Scratch::new();
    let (source, target, outside) = (scratch.dir("source"), scratch.dir("target"), scratch.dir("outside"));
    for dir in ["a", "b", "c"] {
        fs::create_dir(source.join(dir)).unwrap();
        fs::write(source.join(dir).join("file"), noise(dir, 100)).unwrap();
        symlink("x", source.join(dir).join("link")).unwrap();
    }
    let blocks = Blocks::default();
    let manifest = blocks.manifest(&capture(&source, &options(1), &blocks, &()).unwrap().root);
    let apply = Apply::create(Arc::clone(&manifest), &target, ApplyOptions::default()).unwrap();
    for dir in ["a", "b", "c"] {
        fs::rename(target.join(dir), target.join(dir).with_extension("moved")).unwrap();
        symlink(&outside, target.join(dir)).unwrap();
    }
    let index = manifest.content().index(0).unwrap();
    let written = apply.write_piece(index, &blocks.raw(manifest.content().piece(index).cid));
    assert!(matches!(written, Err(ApplyError::Make { .. })), "{written:?}");
    assert!(apply.finish().is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let drift = verify(&manifest, &target, VerifyMode::Full).unwrap().drift;
    let of_a: Vec<_> = drift.iter().filter(|drift| drift.path.to_string().starts_with("a")).collect();
    assert_eq!(of_a[0].kinds, [DriftKind::Type]);
    assert_eq!(of_a.len(), 4, "{of_a:?}");
}

/// A directory that its owner may not enter must be finished after what is in it.
#[test]
fn an_ordinary_user_applies_closed_directories() {
    if is_root() {
        return eprintln!("skipped: needs an ordinary user");
    }
    let mut tree = TreeBuilder::default();
    let attributes = |mode| Attributes::new(mode, 0, 0, InodeFlags::NONE, vec![]).unwrap();
    tree.push_root(attributes(0o755), Mtime::default()).unwrap();
    tree.push(0, b"closed", attributes(0), Mtime::default(), Kind::Directory).unwrap();
    tree.push(0, b"inner", attributes(0), Mtime::default(), Kind::Directory).unwrap();
    tree.push(1, b"null", attributes(0o600), Mtime::default(), Kind::CharDevice { major: 1, minor: 3 })
        .unwrap();
    let manifest = Manifest::assemble(tree.finish(), &Layout::new(1 << 20, None).finish(), &[]).unwrap();
    let scratch = Scratch::new();
    let target = scratch.dir("target");
    let report = Blocks::default().apply(&Arc::new(manifest), &target).unwrap();
    assert_eq!(fs::metadata(target.join("closed")).unwrap().mode() & 0o7777, 0);
    let losses: Vec<_> = report.losses.counts.into_iter().collect();
    assert_eq!(losses, [(Aspect::Owner, 3), (Aspect::Device, 1)]);
}
