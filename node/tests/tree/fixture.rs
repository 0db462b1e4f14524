//! A tree with one of every kind of entry.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags};

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn noise(name: &str, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut out);
    out
}

pub(crate) fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

pub(crate) fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub(crate) fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> bool {
    match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: {} on {}: {error}", name.escape_ascii(), path.display());
            false
        }
    }
}

/// An ACL of version 2: owner rwx, user 1234 rwx, group r-x, mask r-x, others nothing.
pub(crate) fn acl() -> Vec<u8> {
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
pub(crate) fn make_tree(top: &Path) {
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
pub(crate) fn lock(top: &Path) {
    for (path, flags) in [
        ("a/b/large", IFlags::IMMUTABLE),
        ("a-/x", IFlags::APPEND | IFlags::NODUMP),
        ("empty", IFlags::NOATIME),
        ("sgid", IFlags::IMMUTABLE),
    ] {
        add_flags(&top.join(path), flags);
    }
}

pub(crate) fn make_what_needs_root(top: &Path) {
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

pub(crate) fn add_flags(path: &Path, flags: IFlags) {
    let file = File::open(path).unwrap();
    let set =
        rustix::fs::ioctl_getflags(&file).and_then(|old| rustix::fs::ioctl_setflags(&file, old | flags));
    if let Err(error) = set {
        eprintln!("skipped: flags of {}: {error}", path.display());
    }
}

/// A temporary directory that can be removed whatever was made in it.
pub(crate) struct Scratch(pub(crate) tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        let _ = fs::create_dir(&path);
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        unlock(self.0.path());
    }
}

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
