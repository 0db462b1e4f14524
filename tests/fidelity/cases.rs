//! The table: everything that a tree can have, one case each.

mod attributes;
mod content;
mod flags;
mod links;
mod names;
mod xattrs;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use harness::FileSystem;
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags, ioctl_getflags,
    ioctl_setflags, lsetxattr, mknodat, utimensat,
};

use FileSystem::{Btrfs, Ext4, Tmpfs, Xfs};

/// Something that a tree can have.
#[derive(Clone, Copy)]
pub(super) struct Case {
    /// The folder that it is made in, too.
    pub(super) name: &'static str,
    /// What can hold it. It is made there, and comes back there without loss.
    pub(super) holds: &'static [FileSystem],
    pub(super) build: fn(&At) -> io::Result<()>,
    /// What differs, and is reported, where it is not held: paths below its folder and attributes.
    pub(super) lost: &'static [(&'static str, &'static str)],
}

const EVERYWHERE: &[FileSystem] = &FileSystem::ALL;
const MISSING: &str = "only in the first";

/// A case that every file system holds.
const fn case(name: &'static str, build: fn(&At) -> io::Result<()>) -> Case {
    Case { name, holds: EVERYWHERE, build, lost: &[] }
}

pub(super) fn all() -> Vec<Case> {
    let groups = [attributes::CASES, content::CASES, flags::CASES, links::CASES, names::CASES, xattrs::CASES];
    groups.concat()
}

/// Gives an empty target all that it could hand on to what is made in it, and that an image does not say.
pub(super) fn dress(target: &Path, kind: FileSystem) -> io::Result<()> {
    lchown(target, Some(99), Some(98))?;
    chmod(target, 0o2777)?;
    xattr(target, b"user.stray", b"goes")?;
    xattr(target, b"trusted.stray", b"goes")?;
    for name in [xattrs::ACCESS, xattrs::DEFAULT] {
        xattr(target, name, &xattrs::acl([7, 7, 7, 7, 7, 7]))?;
    }
    let mut flags = IFlags::NODUMP | IFlags::NOATIME;
    match kind {
        Ext4 => flags |= IFlags::SYNC | IFlags::DIRSYNC,
        Xfs => {
            flags |= IFlags::SYNC | flags::PROJECT_INHERIT;
            harness::set_project(&File::open(target)?, 77)?;
        }
        Btrfs => flags |= IFlags::DIRSYNC | IFlags::NOCOW,
        Tmpfs => {}
    }
    flag(target, flags)
}

/// Where a case is made.
pub(super) struct At {
    /// The root of the tree.
    pub(super) root: PathBuf,
    /// The case's own folder.
    pub(super) folder: PathBuf,
    /// A folder on the same file system that is not captured.
    pub(super) outside: PathBuf,
}

impl At {
    fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.folder.join(name.as_ref())
    }

    fn file(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, bytes)?;
        Ok(path)
    }

    fn folder(&self, name: impl AsRef<OsStr>) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// A new file with this mode and owner.
    fn owned(&self, name: &str, mode: u32, uid: u32, gid: u32) -> io::Result<PathBuf> {
        let path = self.file(name, name.as_bytes())?;
        lchown(&path, Some(uid), Some(gid))?;
        chmod(&path, mode)?;
        Ok(path)
    }
}

fn bytes(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn time(path: &Path, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Ok(utimensat(
        CWD,
        path,
        &Timestamps { last_access: time, last_modification: time },
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn xattr(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(lsetxattr(path, name, value, XattrFlags::CREATE)?)
}

fn node(path: &Path, kind: FileType, device: Dev) -> io::Result<()> {
    Ok(mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, device)?)
}

fn flag(path: &Path, flags: IFlags) -> io::Result<()> {
    let file = File::open(path)?;
    Ok(ioctl_setflags(&file, ioctl_getflags(&file)? | flags)?)
}
