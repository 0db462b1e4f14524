//! Manifests and targets that somebody made to reach what lies outside: nothing outside a target ever changes.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../../proto/tests/hostile/mutate.rs"]
mod mutate;
#[path = "tree/snapshot.rs"]
mod snapshot;
#[path = "../../proto/tests/hostile/stream.rs"]
mod stream;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{CWD, FileType, Mode};
use shoal_node::block::{DecodeError, EncodedBlock, Encoding};
use shoal_node::tree::apply::{Apply, ApplyError, ApplyOptions, ApplyReport};
use shoal_proto::cid::{ChunkId, Cid};
use shoal_proto::image::Manifest;
use shoal_proto::image::entry::{Attributes, Content, InodeFlags, Kind, Mtime, Segment, Xattr};
use shoal_proto::image::layout::Layout;
use shoal_proto::image::tree::TreeBuilder;
use snapshot::snapshot;
use tempfile::TempDir;

/// A folder with a target and, beside it, what must never change.
struct Jail {
    folder: TempDir,
    before: std::collections::BTreeMap<PathBuf, String>,
}

impl Jail {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir_all(outside.join("folder/deep")).unwrap();
        fs::create_dir(folder.path().join("target")).unwrap();
        for file in ["file", "folder/file", "folder/deep/file"] {
            fs::write(outside.join(file), file).unwrap();
            fs::set_permissions(outside.join(file), fs::Permissions::from_mode(0o640)).unwrap();
        }
        symlink("file", outside.join("link")).unwrap();
        let before = snapshot(&outside);
        Self { folder, before }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    fn assert_untouched(&self, what: &str) {
        assert_eq!(snapshot(&self.outside()), self.before, "{what}");
        let mut names: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["outside", "target"], "{what}");
    }
}

fn apply(manifest: &Arc<Manifest>, target: &Path) -> Result<ApplyReport, ApplyError> {
    let apply = Apply::create(Arc::clone(manifest), target, ApplyOptions { check_room: false })?;
    for index in manifest.content().indexes() {
        apply.write_piece(index, &vec![b'x'; manifest.content().piece(index).raw_bytes as usize])?;
    }
    apply.finish()
}

fn attributes(mode: u32) -> Attributes {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Attributes::new(mode, uid, gid, InodeFlags::NONE, vec![]).unwrap()
}

/// A folder, a file in it, a file, an empty file, a link, a hard link, a fifo.
fn image() -> Arc<Manifest> {
    let mut layout = Layout::new(1 << 20, None);
    layout.place(ChunkId::of(b"x"), 100_000);
    layout.place(ChunkId::of(b"y"), 5);
    let mut tree = TreeBuilder::default();
    let file = |first| Kind::File(Content::One(Segment::Chunks { first, count: 1 }));
    let mut push = |up, name: &[u8], mode, kind: Kind<'_>| {
        tree.push(up, name, attributes(mode), Mtime::default(), kind).unwrap();
    };
    push(0, b"", 0o755, Kind::Directory);
    push(0, b"a", 0o777, Kind::Directory);
    push(0, b"file", 0o666, file(0));
    push(0, b"inner", 0o777, Kind::Directory);
    push(0, b"f", 0o666, file(1));
    push(2, b"b", 0o666, file(1));
    push(0, b"c", 0o666, Kind::File(Content::Segments(&[])));
    push(0, b"d", 0, Kind::Symlink { target: b"../outside" });
    push(0, b"f", 0o666, Kind::Fifo);
    tree.push_hard_link(0, b"g", 2).unwrap();
    tree.push_hard_link(0, b"h", 7).unwrap();
    let laid = layout.finish();
    Arc::new(Manifest::assemble(tree.finish(), &laid, &[Cid::of(b"piece")]).unwrap())
}

/// What stands in the way of one path of the image.
type Plant = (&'static str, fn(&Path, &Jail));

const PLANTS: &[Plant] = &[
    ("a link to a folder outside", |path, jail| symlink(jail.outside().join("folder"), path).unwrap()),
    ("a relative link outside", |path, _| {
        let up = if path.parent().unwrap().ends_with("target") { "../outside" } else { "../../outside" };
        symlink(up, path).unwrap();
    }),
    ("a link to a file outside", |path, jail| symlink(jail.outside().join("file"), path).unwrap()),
    ("a link to nothing outside", |path, jail| symlink(jail.outside().join("new"), path).unwrap()),
    ("a link to itself", |path, _| symlink(path.file_name().unwrap(), path).unwrap()),
    ("a link to the root of the target", |path, jail| symlink(jail.target(), path).unwrap()),
    ("a fifo", |path, _| rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap()),
    ("a socket", |path, _| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
    ("a file", |path, _| fs::write(path, b"was here").unwrap()),
    ("a closed file", |path, _| {
        fs::write(path, b"was here").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }),
    ("an empty folder", |path, _| fs::create_dir(path).unwrap()),
    ("a folder with links outside in it", |path, jail| {
        fs::create_dir_all(path.join("inner")).unwrap();
        for below in ["file", "inner/f", "x"] {
            symlink(jail.outside().join("folder"), path.join(below)).unwrap();
        }
    }),
    ("a closed folder with content", |path, _| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("x"), b"x").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }),
];

#[test]
fn what_is_planted_in_a_target_is_replaced_and_never_followed() {
    let image = image();
    let clean = Jail::new();
    apply(&image, &clean.target()).unwrap();
    let expected = snapshot(&clean.target());
    for (what, plant) in PLANTS {
        for path in ["a", "a/file", "a/inner", "a/inner/f", "b", "c", "d", "f", "g", "h"] {
            let jail = Jail::new();
            let planted = jail.target().join(path);
            fs::create_dir_all(planted.parent().unwrap()).unwrap();
            plant(&planted, &jail);
            let name = format!("{what} at {path}");
            apply(&image, &jail.target()).unwrap_or_else(|error| panic!("{name}: {error}: {error:?}"));
            jail.assert_untouched(&name);
            let found = snapshot(&jail.target());
            // What else was in the target stays.
            for (path, text) in &expected {
                assert_eq!(found.get(path), Some(text), "{name}: {}", path.display());
            }
        }
    }
}

#[test]
fn another_name_of_a_file_outside_keeps_its_bytes_and_attributes() {
    let jail = Jail::new();
    fs::create_dir(jail.target().join("a")).unwrap();
    for path in ["a/file", "b", "c", "g"] {
        fs::hard_link(jail.outside().join("file"), jail.target().join(path)).unwrap();
    }
    apply(&image(), &jail.target()).unwrap();
    jail.assert_untouched("hard links");
    assert_eq!(fs::metadata(jail.outside().join("file")).unwrap().nlink(), 1);
}

/// A tree that is swapped for a link while it is written, at every step.
#[test]
fn a_link_that_appears_between_two_steps_is_not_followed() {
    let image = image();
    for path in ["a", "a/inner"] {
        for step in 0..=image.content().len() {
            let jail = Jail::new();
            let apply = Apply::create(Arc::clone(&image), &jail.target(), ApplyOptions::default()).unwrap();
            let mut done = Ok(());
            for (at, index) in image.content().indexes().enumerate() {
                if at == step {
                    swap(&jail, path);
                }
                let raw = vec![b'x'; image.content().piece(index).raw_bytes as usize];
                done = done.and_then(|()| apply.write_piece(index, &raw));
            }
            if step == image.content().len() {
                swap(&jail, path);
            }
            // Refused, or written where the folder is now; never outside.
            let _ = done.and_then(|()| apply.finish().map(drop));
            jail.assert_untouched(&format!("{path} swapped at step {step}"));
        }
    }
}

fn swap(jail: &Jail, path: &str) {
    fs::rename(jail.target().join(path), jail.target().join("moved")).unwrap();
    symlink(jail.outside().join("folder"), jail.target().join(path)).unwrap();
}

/// Unmounts when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(point: PathBuf) -> Self {
        assert!(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&point).status().unwrap().success());
        Self(point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(&self.0).status().is_ok_and(|status| status.success()));
    }
}

#[test]
fn what_is_mounted_where_the_image_has_a_file_is_not_emptied() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: needs root");
    }
    for path in ["b", "c", "d", "f", "g"] {
        let jail = Jail::new();
        let point = jail.target().join(path);
        fs::create_dir_all(point.join("below")).unwrap();
        let mounted = Mounted::new(point.join("below"));
        fs::write(point.join("below/precious"), b"stays").unwrap();
        let error = apply(&image(), &jail.target()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot make {path}"));
        assert!(matches!(error, ApplyError::Make { source: rustix::io::Errno::BUSY, .. }), "{error:?}");
        assert_eq!(fs::read(point.join("below/precious")).unwrap(), b"stays");
        drop(mounted);
        apply(&image(), &jail.target()).unwrap();
        jail.assert_untouched(path);
    }
    // Where the image has a folder, it goes into what is mounted.
    let jail = Jail::new();
    fs::create_dir(jail.target().join("a")).unwrap();
    let _mounted = Mounted::new(jail.target().join("a"));
    let error = apply(&image(), &jail.target()).unwrap_err();
    // A hard link from there to elsewhere cannot be.
    assert!(matches!(error, ApplyError::Make { source: rustix::io::Errno::XDEV, .. }), "{error:?}");
    assert_eq!(fs::metadata(jail.target().join("a/file")).unwrap().len(), 100_000);
}

#[test]
fn mutated_manifests_that_can_be_read_write_nothing_outside() {
    let mut applied = 0;
    for seed in 0..1000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut stream = mutate::valid(&mut rng);
        for _ in 0..rng.random_range(1..3) {
            mutate::mutate(&mut stream.bytes, &mut rng);
        }
        let Ok(manifest) = stream::decode(&stream, 64) else { continue };
        let jail = Jail::new();
        // One of its names may be a link to the outside already.
        let names: Vec<PathBuf> = manifest
            .entries()
            .skip(1)
            .map(|entry| jail.target().join(to_path(entry.path().bytes())))
            .collect();
        let planted = &names[rng.random_range(0..names.len())];
        fs::create_dir_all(planted.parent().unwrap()).unwrap();
        symlink(jail.outside().join("folder"), planted).unwrap();
        // A file may be too large for this file system, or an owner not ours to give.
        applied += u32::from(apply(&Arc::new(manifest), &jail.target()).is_ok());
        jail.assert_untouched(&format!("seed {seed}"));
    }
    assert!(applied > 20, "hardly any could be applied: {applied}");
}

fn to_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Attributes that no kernel takes, and set-id bits of an owner that cannot be given.
#[test]
fn attributes_that_cannot_be_set_are_losses() {
    let mut tree = TreeBuilder::default();
    let plain = attributes(0o755);
    tree.push_root(plain.clone(), Mtime::default()).unwrap();
    let odd = ["nonsense", "system.nonsense", "user.", "x".repeat(255).as_str()]
        .map(|name| Xattr { name: name.as_bytes().into(), value: [].into() });
    for (number, xattr) in odd.into_iter().enumerate() {
        let attributes =
            Attributes::new(0o644, plain.uid(), plain.gid(), InodeFlags::NONE, vec![xattr]).unwrap();
        let name = number.to_string();
        tree.push(0, name.as_bytes(), attributes, Mtime::default(), Kind::File(Content::Segments(&[])))
            .unwrap();
    }
    let manifest = Manifest::assemble(tree.finish(), &Layout::new(1 << 20, None).finish(), &[]).unwrap();
    let jail = Jail::new();
    let report = apply(&Arc::new(manifest), &jail.target()).unwrap();
    assert_eq!(report.losses.listed.len(), 4, "{:?}", report.losses);
}

#[test]
fn an_ordinary_user_makes_no_set_id_file_of_his_own_for_another() {
    if rustix::process::geteuid().is_root() {
        return println!("skipped: needs an ordinary user");
    }
    let mut tree = TreeBuilder::default();
    tree.push_root(attributes(0o755), Mtime::default()).unwrap();
    let of_root = Attributes::new(0o4755, 0, 0, InodeFlags::NONE, vec![]).unwrap();
    tree.push(0, b"su", of_root, Mtime::default(), Kind::File(Content::Segments(&[]))).unwrap();
    let manifest = Manifest::assemble(tree.finish(), &Layout::new(1 << 20, None).finish(), &[]).unwrap();
    let jail = Jail::new();
    apply(&Arc::new(manifest), &jail.target()).unwrap();
    assert_eq!(fs::metadata(jail.target().join("su")).unwrap().mode() & 0o7777, 0o755);
}

/// A few kilobytes of zstd that say a gigabyte.
#[test]
fn a_block_that_grows_beyond_its_listed_length_is_refused() {
    let raw = vec![0; 9 << 20];
    let bomb = EncodedBlock::encode(&raw, 3);
    assert!(bomb.payload.len() < 4096 && bomb.encoding == Encoding::Zstd);
    for listed in [1, 4096, (9 << 20) - 1] {
        let lie = EncodedBlock { raw_bytes: listed, payload: bomb.payload.clone(), ..bomb };
        let mut buffer = Vec::new();
        let error = lie.decode_into(&mut buffer).unwrap_err();
        assert!(!matches!(error, DecodeError::Hash { .. }), "{error}");
        assert!(buffer.capacity() <= 2 * listed as usize, "{} bytes for {listed}", buffer.capacity());
    }
    assert!(matches!(
        EncodedBlock { raw_bytes: 1 << 30, ..bomb.clone() }.decode(),
        Err(DecodeError::TooLarge { .. })
    ));
}
