//! Capture → apply → compare, over a tree with one of every kind, by a comparer that shares no code with either.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags};
use shoal_node::block::EncodedBlock;
use shoal_node::tree::apply::{Apply, ApplyError, ApplyOptions, ApplyReport};
use shoal_node::tree::capture::{BlockSink, BlockSinkError, CaptureError, CaptureOptions, Captured, capture};
use shoal_node::tree::exclude::Excludes;
use shoal_node::tree::verify::{DriftKind, VerifyMode, verify};
use shoal_proto::cid::{ChunkId, Cid};
use shoal_proto::image::entry::{Attributes, Content, InodeFlags, Kind, Mtime, Segment};
use shoal_proto::image::layout::Layout;
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::tree::TreeBuilder;
use shoal_proto::image::{ManifestDecoder, RootRecord};

/// Blocks in memory.
#[derive(Default)]
struct Blocks(Mutex<HashMap<Cid, EncodedBlock>>);

impl BlockSink for Blocks {
    fn put(&self, block: &EncodedBlock) -> Result<(), BlockSinkError> {
        self.0.lock().unwrap().insert(block.cid, block.clone());
        Ok(())
    }
}

impl Blocks {
    fn raw(&self, cid: Cid) -> Vec<u8> {
        self.0.lock().unwrap()[&cid].decode().unwrap()
    }

    /// As a node reads it: from its blocks.
    fn manifest(&self, root: &RootRecord) -> Arc<Manifest> {
        let mut decoder = ManifestDecoder::new(root);
        for index in root.manifest().indexes() {
            decoder.push(&self.raw(root.manifest().piece(index).cid)).unwrap();
        }
        Arc::new(decoder.finish().unwrap())
    }

    fn apply(&self, manifest: &Arc<Manifest>, target: &Path) -> Result<ApplyReport, ApplyError> {
        let apply = Apply::create(Arc::clone(manifest), target, ApplyOptions::default())?;
        // The last piece first, by two threads, and each piece twice.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for index in manifest.content().indexes().rev() {
                        apply.write_piece(index, &self.raw(manifest.content().piece(index).cid)).unwrap();
                    }
                });
            }
        });
        apply.finish()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn noise(name: &str, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut out);
    out
}

fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> bool {
    match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: {} on {}: {error}", name.escape_ascii(), path.display());
            false
        }
    }
}

/// An ACL of version 2: owner rwx, user 1234 rwx, group r-x, mask r-x, others nothing.
fn acl() -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 7_u16, u32::MAX), (2, 7, 1234), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// One of every kind.
fn make_tree(top: &Path) {
    let file = |path: &str, bytes: &[u8]| fs::write(top.join(path), bytes).unwrap();
    for dir in ["a", "a/b", "a-", "links", "empty", "closed", "sgid", "acl"] {
        fs::create_dir(top.join(dir)).unwrap();
    }
    file("zero", b"");
    file("one", b"1");
    file("a/min", &noise("min", 16 << 10));
    file("a/min+1", &noise("min+1", (16 << 10) + 1));
    file("a/b/large", &noise("large", 5_000_001));
    file("a/b/large twin", &noise("large", 5_000_001));
    file("a/b/zeros", &vec![0; 3_000_000]);
    file("a-/x", b"sorts after what is in a");
    for odd in [
        &b"\xff\xfe"[..],
        b"new\nline",
        &[b'n'; 255],
        "é".as_bytes(),
        "e\u{301}".as_bytes(),
        b"-",
        b" ",
        b"\\",
    ] {
        fs::write(top.join("a").join(name(odd)), odd).unwrap();
    }

    let mut sparse = File::create(top.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(1 << 20)).unwrap();
    sparse.write_all(&noise("sparse", 300_000)).unwrap();
    sparse.set_len(5 << 30).unwrap();
    File::create(top.join("hole")).unwrap().set_len(1 << 33).unwrap();

    symlink("one", top.join("links/relative")).unwrap();
    symlink("/nowhere/../x", top.join("links/dangling")).unwrap();
    symlink(name(b"\xfe\n"), top.join("links/odd")).unwrap();
    symlink(OsStr::new(&"t".repeat(4095)), top.join("links/long")).unwrap();
    symlink("../a", top.join("links/to-directory")).unwrap();
    fs::hard_link(top.join("one"), top.join("links/one")).unwrap();
    fs::hard_link(top.join("one"), top.join("zz-one")).unwrap();
    fs::hard_link(top.join("a/b/large"), top.join("a-/large")).unwrap();
    fs::hard_link(top.join("links/odd"), top.join("a/odd-link")).unwrap();
    rustix::fs::mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::hard_link(top.join("fifo"), top.join("zz-fifo")).unwrap();
    drop(UnixListener::bind(top.join("socket")).unwrap());

    set_xattr(&top.join("one"), b"user.odd \xff\n", b"\0\x01value");
    set_xattr(&top.join("a"), b"user.large", &noise("xattr", 3000));
    set_xattr(&top.join("acl"), b"system.posix_acl_default", &acl());
    file("acl/without", b"");
    let _ = rustix::fs::lremovexattr(top.join("acl/without"), "system.posix_acl_access");
    set_xattr(&top.join("a/min"), b"system.posix_acl_access", &acl());
    if is_root() {
        make_what_needs_root(top);
    } else {
        eprintln!("skipped: needs root: owners, devices, capabilities, flags, trusted attributes");
    }
    for (path, mode) in
        [("one", 0o4751), ("a/min+1", 0o0), ("sgid", 0o2775), ("closed", 0o555), ("empty", 0o1777)]
    {
        fs::set_permissions(top.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (path, seconds, nanoseconds) in [
        ("zero", -86_401, 999_999_999),
        ("one", 4_000_000_000, 1),
        ("links/dangling", 5, 6),
        ("fifo", 7, 8),
        ("a/b", 9, 10),
        ("closed", 11, 12),
        (".", 13, 14),
    ] {
        set_time(&top.join(path), seconds, nanoseconds);
    }
    if is_root() {
        lock(top);
    }
}

/// Last of all: nothing can be changed after it.
fn lock(top: &Path) {
    for (path, flags) in [
        ("a/b/large", IFlags::IMMUTABLE),
        ("a-/x", IFlags::APPEND | IFlags::NODUMP),
        ("empty", IFlags::NOATIME),
        ("sgid", IFlags::IMMUTABLE),
    ] {
        add_flags(&top.join(path), flags);
    }
}

fn make_what_needs_root(top: &Path) {
    for (path, kind, device) in [
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
        ("whiteout", FileType::CharacterDevice, 0),
    ] {
        rustix::fs::mknodat(CWD, top.join(path), kind, Mode::RUSR, device).unwrap();
    }
    fs::hard_link(top.join("null"), top.join("zz-null")).unwrap();
    set_xattr(&top.join("null"), b"trusted.x", b"y");
    set_xattr(&top.join("links/odd"), b"trusted.on.link", b"y");
    for (path, uid, gid) in
        [("a/min", 65_535, 65_534), ("links/odd", 4_294_967_294, 1), ("sgid", 0, 50), ("fifo", 3, 4)]
    {
        std::os::unix::fs::lchown(top.join(path), Some(uid), Some(gid)).unwrap();
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&top.join("a/b/large twin"), b"security.capability", &capability);
    set_xattr(&top.join("a-/x"), b"security.selinux", b"system_u:object_r:bin_t:s0\0");
}

fn add_flags(path: &Path, flags: IFlags) {
    let file = File::open(path).unwrap();
    let set =
        rustix::fs::ioctl_getflags(&file).and_then(|old| rustix::fs::ioctl_setflags(&file, old | flags));
    if let Err(error) = set {
        eprintln!("skipped: flags of {}: {error}", path.display());
    }
}

/// A temporary directory that can be removed whatever was made in it.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        let _ = fs::create_dir(&path);
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fn unlock(path: &Path) {
            let Ok(metadata) = fs::symlink_metadata(path) else { return };
            if metadata.is_dir() || metadata.is_file() {
                if metadata.is_dir() {
                    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
                }
                let locks = IFlags::IMMUTABLE | IFlags::APPEND;
                if let Ok(file) = File::open(path)
                    && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
                    && flags.intersects(locks)
                {
                    let _ = rustix::fs::ioctl_setflags(&file, flags - locks);
                    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
                }
            }
            if metadata.is_dir() {
                for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                    unlock(&entry.path());
                }
            }
        }
        unlock(self.0.path());
    }
}

/// Every path with all that should come back, sockets left out.
fn snapshot(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut paths = vec![PathBuf::new()];
    let mut described = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    while let Some(path) = paths.pop() {
        let full = if path.as_os_str().is_empty() { top.to_owned() } else { top.join(&path) };
        let metadata = fs::symlink_metadata(&full).unwrap();
        let file_type = FileType::from_raw_mode(metadata.mode());
        if file_type == FileType::Socket {
            continue;
        }
        if metadata.is_dir() {
            paths.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else {
            inodes.entry(metadata.ino()).or_default().push(path.clone());
        }
        described.insert(path, describe(&full, &metadata, file_type));
    }
    for mut group in inodes.into_values() {
        group.sort();
        for path in &group {
            described.get_mut(path).unwrap().push_str(&format!(" names {group:?}"));
        }
    }
    described
}

fn describe(path: &Path, metadata: &fs::Metadata, file_type: FileType) -> String {
    let mut text = format!(
        "{file_type:?} {:o} {}:{} {}.{:09}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    match file_type {
        FileType::Symlink => text += &format!(" -> {:?}", fs::read_link(path).unwrap()),
        FileType::CharacterDevice | FileType::BlockDevice => {
            text += &format!(" device {:x}", metadata.rdev())
        }
        FileType::RegularFile => {
            text += &format!(" size {}", metadata.size());
            if metadata.size() < 1 << 24 {
                let unreadable = |error: std::io::Error| error.to_string().into_bytes();
                text += &format!(" {}", blake3::hash(&fs::read(path).unwrap_or_else(unreadable)));
            } else {
                text += &format!(" data below {}", metadata.blocks() < 1 << 11);
            }
        }
        _ => {}
    }
    let mut list = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let mut names: Vec<&[u8]> =
        list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        text += &format!(" {}={}", name.escape_ascii(), value[..len].escape_ascii());
    }
    if matches!(file_type, FileType::Directory | FileType::RegularFile)
        && let Ok(file) = File::open(path)
        && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
    {
        let kept = IFlags::IMMUTABLE | IFlags::APPEND | IFlags::NODUMP | IFlags::NOATIME;
        text += &format!(" flags {:?}", flags & kept);
    }
    text
}

fn options(threads: usize) -> CaptureOptions {
    CaptureOptions { threads, ..CaptureOptions::default() }
}

fn captured(top: &Path, blocks: &Blocks) -> Captured {
    if !is_root() {
        // Nobody else may read it.
        fs::set_permissions(top.join("a/min+1"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    capture(top, &options(2), blocks, &()).unwrap()
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
    let first = captured(&source, &Blocks::default());
    fs::write(source.join("a/b/new"), noise("new", 2_000_000)).unwrap();
    fs::write(source.join("a-/new twin"), noise("large", 5_000_001)).unwrap();
    let with_parent = CaptureOptions { parent: Some(first.manifest), ..options(2) };
    let blocks = Blocks::default();
    let second = capture(&source, &with_parent, &blocks, &()).unwrap();
    assert_eq!(second.report.new_blocks, 2);
    let new: u64 = second
        .manifest
        .content()
        .indexes()
        .take(2)
        .map(|index| u64::from(second.manifest.content().piece(index).raw_bytes))
        .sum();
    assert_eq!(new, 2_000_000);
    let again = capture(&source, &with_parent, &Blocks::default(), &()).unwrap();
    assert_eq!(again.root, second.root);
    let target = scratch.dir("target");
    blocks.apply(&blocks.manifest(&second.root), &target).unwrap();
    assert_eq!(snapshot(&target), snapshot(&source));
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
    let found: Vec<_> =
        found.iter().map(|(path, kinds)| (path.as_str(), without_shared_time(path, kinds))).collect();
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
        fs::set_permissions(source.join(path), fs::Permissions::from_mode(0)).unwrap();
    }
    fs::set_permissions(source.join("dir"), fs::Permissions::from_mode(0)).unwrap();
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
