//! A tree with one of every kind of file, the same whenever it is made.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};
use tempfile::TempDir;

use crate::{is_root, skipped};

/// How much there is of what comes in any number.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes that do not compress, all in one file.
    pub noise_bytes: u64,
    /// Files of up to 8 KiB of text, spread over folders.
    pub small_files: u32,
}

/// The tree, in a temporary folder.
///
/// It holds every kind of file and attribute that a plain user can make, and those of root too when root makes it:
/// devices, other owners, capabilities, files that nobody may read.
#[derive(Debug)]
pub struct TreeFixture {
    folder: TempDir,
}

impl TreeFixture {
    /// # Panics
    /// When something cannot be made that this user should be able to make.
    pub fn new(sizes: Sizes) -> Self {
        Self::new_in(&std::env::temp_dir(), sizes)
    }

    /// As [`new`](Self::new), below this folder.
    ///
    /// # Panics
    /// When something cannot be made that this user should be able to make.
    pub fn new_in(folder: &Path, sizes: Sizes) -> Self {
        let fixture = Self { folder: tempfile::tempdir_in(folder).expect("a temporary folder can be made") };
        let root = fixture.path();
        let made = fs::create_dir(&root).and_then(|()| fill(&root, sizes));
        made.unwrap_or_else(|error| panic!("cannot make the tree {}: {error}", root.display()));
        fixture
    }

    /// Its root.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("tree")
    }
}

impl Drop for TreeFixture {
    fn drop(&mut self) {
        make_removable(self.folder.path());
    }
}

/// Lets an ordinary user remove folders that he may not write to.
pub(crate) fn make_removable(path: &Path) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    if !metadata.is_dir() {
        return;
    }
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        make_removable(&entry.path());
    }
}

/// Bytes without pattern, the same for the same seed (xorshift).
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.word().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

fn fill(root: &Path, sizes: Sizes) -> io::Result<()> {
    make_files(root, sizes)?;
    make_names(&root.join("names"))?;
    make_links(root)?;
    make_modes(&root.join("modes"))?;
    make_attributes(&root.join("attributes"))?;
    if is_root() {
        make_what_root_may(&root.join("root"))?;
    }
    // Making an entry changes its folder's time: times come last.
    set_times(root)
}

fn make_files(root: &Path, sizes: Sizes) -> io::Result<()> {
    let text = b"The image server only seeds; the nodes do the rest.\n";
    fs::write(root.join("empty"), b"")?;
    fs::write(root.join("one byte"), b"1")?;
    fs::create_dir(root.join("empty folder"))?;

    let mut noise = Noise::new(1);
    let mut file = BufWriter::new(File::create(root.join("noise"))?);
    let mut left = sizes.noise_bytes;
    while left > 0 {
        let part = left.min(1 << 20);
        file.write_all(&noise.bytes(usize::try_from(part).expect("at most a megabyte")))?;
        left -= part;
    }
    file.flush()?;

    fs::write(root.join("text"), text.repeat(60_000))?;
    // The same bytes again: a dedup that joins files would show.
    fs::write(root.join("text again"), text.repeat(60_000))?;
    fs::write(root.join("zeroes"), vec![0; 300_000])?;

    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(64 << 20)?;
    sparse.write_all_at(b"in the middle", 20 << 20)?;
    sparse.write_all_at(&text.repeat(3000), 40 << 20)?;

    for n in 0..sizes.small_files {
        let folder = root.join(format!("small/{}/{}", n % 7, n % 11));
        fs::create_dir_all(&folder)?;
        let length = usize::try_from(noise.word() % 8192).expect("below 8192");
        let content: Vec<u8> = [&n.to_le_bytes()[..], &text.repeat(length / text.len())].concat();
        fs::write(folder.join(format!("{n}.txt")), content)?;
    }
    Ok(())
}

fn make_names(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    let long = [b'n'; 255];
    let names: [&[u8]; 10] = [
        b"a space",
        b" leading and trailing ",
        b"new\nline",
        b"-rf",
        b"*",
        b"back\\slash \"quoted\"",
        b"...",
        "fjörð — 魚群".as_bytes(),
        b"not \xff\xfe unicode",
        &long,
    ];
    for name in names {
        fs::write(folder.join(OsStr::from_bytes(name)), name)?;
    }
    // Sorting by components and sorting by bytes differ here.
    for name in ["a/inner", "a.b", "a-b", "ab"] {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("below the folder"))?;
        fs::write(path, name)?;
    }
    let mut deep = folder.to_owned();
    for level in 0..40 {
        deep.push(format!("level {level} of a deep path"));
    }
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("bottom"), b"deep")
}

fn make_links(root: &Path) -> io::Result<()> {
    let folder = root.join("links");
    fs::create_dir(&folder)?;
    symlink("../text", folder.join("relative"))?;
    symlink("/nowhere/at/all", folder.join("dangling"))?;
    symlink(".", folder.join("loop"))?;
    symlink(OsStr::from_bytes(&[b'x'; 1000]), folder.join("long target"))?;
    symlink(OsStr::from_bytes(b"not \xff unicode\n"), folder.join("odd target"))?;
    fs::write(folder.join("first of two"), b"two names")?;
    fs::hard_link(folder.join("first of two"), folder.join("second of two"))?;
    fs::write(folder.join("same bytes, other file"), b"two names")?;
    fs::create_dir(root.join("zz"))?;
    fs::write(folder.join("first of three"), vec![3; 100_000])?;
    fs::hard_link(folder.join("first of three"), root.join("zz/second of three"))?;
    fs::hard_link(folder.join("first of three"), root.join("a third, before the others"))?;
    fs::hard_link(folder.join("relative"), folder.join("relative, twice"))?;
    node(&folder.join("fifo"), FileType::Fifo, 0o640, 0)?;
    fs::hard_link(folder.join("fifo"), folder.join("fifo, twice"))
}

fn make_modes(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    for mode in [0o400, 0o444, 0o600, 0o644, 0o666, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644] {
        let path = folder.join(format!("file {mode:04o}"));
        fs::write(&path, format!("{mode:o}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    for mode in [0o500, 0o555, 0o700, 0o711, 0o1777, 0o2775, 0o3770] {
        let path = folder.join(format!("folder {mode:04o}"));
        fs::create_dir(&path)?;
        fs::write(path.join("inside"), b"inside")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn make_attributes(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    let file = folder.join("file");
    fs::write(&file, b"with attributes")?;
    if attribute(&file, "user.shoal.note", b"a value \x00 with a NUL").is_err() {
        skipped("this file system keeps no extended attributes");
        return Ok(());
    }
    attribute(&file, "user.empty", b"")?;
    attribute(&file, "user.long", &Noise::new(7).bytes(2000))?;
    fs::hard_link(&file, folder.join("file, twice"))?;
    let inner = folder.join("folder");
    fs::create_dir(&inner)?;
    attribute(&inner, "user.on a folder", b"yes")?;
    let shared = folder.join("shared");
    fs::write(&shared, b"others may read this")?;
    let (owner, user, group, mask, other) = (1, 2, 4, 0x10, 0x20);
    let entries = [(owner, 6, !0), (user, 4, 1234), (group, 0, !0), (mask, 4, !0), (other, 0, !0)];
    if attribute(&shared, "system.posix_acl_access", &acl(&entries)).is_err() {
        skipped("this file system keeps no access control lists");
        return Ok(());
    }
    // A file made in this folder inherits a list; one whose list was taken away must come back without.
    attribute(&inner, "system.posix_acl_default", &acl(&entries))?;
    fs::write(inner.join("heir"), b"inherited")?;
    fs::write(inner.join("disinherited"), b"not inherited")?;
    rustix::fs::lremovexattr(inner.join("disinherited"), "system.posix_acl_access")?;
    Ok(())
}

fn make_what_root_may(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    let theirs = folder.join("of others");
    fs::write(&theirs, b"not root's")?;
    lchown(&theirs, Some(12_345), Some(54_321))?;
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o6755))?;
    symlink("anywhere", folder.join("link of others"))?;
    lchown(folder.join("link of others"), Some(4_000_000_000), Some(70_000))?;
    let capable = folder.join("capable");
    fs::write(&capable, b"#!/bin/true\n")?;
    lchown(&capable, Some(1), Some(1))?;
    fs::set_permissions(&capable, fs::Permissions::from_mode(0o755))?;
    // cap_net_raw, permitted and effective: what ping carries.
    let revision_2 = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    attribute(&capable, "security.capability", &revision_2)?;
    attribute(&theirs, "trusted.shoal", b"root's eyes only")?;
    symlink("x", folder.join("link with attribute"))?;
    attribute(&folder.join("link with attribute"), "trusted.shoal", b"on a link")?;
    fs::write(folder.join("mode 0000"), b"nobody's")?;
    fs::set_permissions(folder.join("mode 0000"), fs::Permissions::from_mode(0o000))?;
    node(&folder.join("null"), FileType::CharacterDevice, 0o666, makedev(1, 3))?;
    fs::hard_link(folder.join("null"), folder.join("null, twice"))?;
    node(&folder.join("disk"), FileType::BlockDevice, 0o660, makedev(259, 7))?;
    node(&folder.join("whiteout"), FileType::CharacterDevice, 0o000, makedev(0, 0))
}

/// An access control list as Linux keeps it: version 2, then (tag, permissions, id) each.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn attribute(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(lsetxattr(path, name, value, XattrFlags::empty())?)
}

fn node(path: &Path, kind: FileType, mode: u32, device: Dev) -> io::Result<()> {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Gives every entry a time of its own, folders after what is in them; before 1970 and after 2038 too.
fn set_times(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        let mut entries: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(path)? {
            entries.push(entry?.path());
        }
        entries.sort_unstable();
        for entry in entries {
            set_times(&entry)?;
        }
    }
    let name = path.file_name().unwrap_or_default().as_bytes();
    let seed = name
        .iter()
        .fold(name.len() as u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut noise = Noise::new(seed);
    let seconds = i64::try_from(noise.word() % 3_000_000_000).expect("below 2^32") - 300_000_000;
    let nanoseconds = i64::try_from(noise.word() % 1_000_000_000).expect("below 2^30");
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
