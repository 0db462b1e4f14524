//! What is read of an inode and set on it, beside its content.
//!
//! Setting goes in the one order in which no step undoes or forbids another: users' extended attributes, owner, mode,
//! project, ACLs, other extended attributes, file capability, times. An ordinary user may set no attribute of a
//! read-only file, a change of owner drops set-id bits and capabilities, a change of mode overwrites the mask of an ACL,
//! a write drops capabilities. Flags come later still, when nothing below needs to be made or linked any more. What an
//! inode has and should not have, from a default ACL or a security module, goes first of all.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, IFlags, Mode, Statx, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use shoal_proto::image::entry::{
    Attributes, EntryError, InodeFlags, MODE_MASK, Mtime, XATTR_VALUE_BYTES_MAX, Xattr,
};

use super::project;
use super::root::{self, proc_path};

/// The kernel's bound on the list of names.
const XATTR_LIST_BYTES_MAX: usize = 64 << 10;
/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;
const CAPABILITY: &[u8] = b"security.capability";
const USER_PREFIX: &[u8] = b"user.";
const ACL_PREFIX: &[u8] = b"system.posix_acl_";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Names that are another view of what is kept anyway, or that belong to a file system below a container.
const XATTRS_LEFT_OUT: [&[u8]; 2] = [b"trusted.SGI_ACL_", b"trusted.overlay."];

/// An inode that can be reached: by its own descriptor, or by its name where opening it is no option (symbolic links,
/// devices, fifos).
#[derive(Clone, Copy, Debug)]
pub(super) enum Inode<'a> {
    Open(&'a OwnedFd),
    Named(&'a OwnedFd, &'a [u8]),
}

/// Which step of setting failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aspect {
    Owner,
    Mode,
    Xattr,
    Time,
    Flags,
    Project,
    Device,
    /// Of a symbolic link.
    Target,
}

impl Aspect {
    /// As in `cannot set owner of usr/bin/su`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Mode => "mode",
            Self::Xattr => "extended attributes",
            Self::Time => "time",
            Self::Flags => "flags",
            Self::Project => "project",
            Self::Device => "device number",
            Self::Target => "target",
        }
    }
}

/// Why attributes could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    System(#[from] Errno),
    #[error(transparent)]
    Entry(#[from] EntryError),
}

impl Inode<'_> {
    fn list_xattrs(self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::flistxattr(fd, buffer),
            Self::Named(dir, name) => rustix::fs::llistxattr(proc_path(dir, name), buffer),
        }
    }

    fn xattr(self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fgetxattr(fd, name, buffer),
            Self::Named(dir, own) => rustix::fs::lgetxattr(proc_path(dir, own), name, buffer),
        }
    }

    fn remove_xattr(self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Self::Named(dir, own) => rustix::fs::lremovexattr(proc_path(dir, own), name),
        }
    }

    fn stat(self) -> Result<Statx, Errno> {
        match self {
            Self::Open(fd) => root::stat(fd),
            Self::Named(dir, name) => root::stat_in(dir, name),
        }
    }

    fn set_xattr(self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Named(dir, own) => {
                rustix::fs::lsetxattr(proc_path(dir, own), name, value, XattrFlags::empty())
            }
        }
    }
}

/// All extended attributes that an image keeps, sorted by name.
pub(super) fn read_xattrs(inode: Inode<'_>) -> Result<Vec<Xattr>, Errno> {
    let mut xattrs = Vec::new();
    for_each_xattr_name(inode, |name| {
        let mut small = [0; 256];
        let value = match inode.xattr(name, &mut small) {
            Ok(len) => small[..len].into(),
            Err(Errno::RANGE) => {
                let mut large = vec![0; XATTR_VALUE_BYTES_MAX];
                let len = inode.xattr(name, &mut large)?;
                large[..len].into()
            }
            // Removed meanwhile, or a name that the kernel lists and does not give.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(()),
            Err(error) => return Err(error),
        };
        xattrs.push(Xattr { name: name.into(), value });
        Ok(())
    })?;
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// Goes through the names that an image keeps.
fn for_each_xattr_name(
    inode: Inode<'_>,
    mut each: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut small = [0; 512];
    let mut large = Vec::new();
    let list = match inode.list_xattrs(&mut small) {
        Ok(len) => &small[..len],
        Err(Errno::RANGE) => {
            large.resize(XATTR_LIST_BYTES_MAX, 0);
            let len = inode.list_xattrs(&mut large)?;
            &large[..len]
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => &[],
        Err(error) => return Err(error),
    };
    let kept =
        |name: &&[u8]| !name.is_empty() && !XATTRS_LEFT_OUT.iter().any(|prefix| name.starts_with(prefix));
    list.split(|&byte| byte == 0).filter(kept).try_for_each(&mut each)
}

/// The flags that an image keeps; none where the file system has none.
pub(super) fn read_flags(fd: &OwnedFd) -> Result<InodeFlags, Errno> {
    match rustix::fs::ioctl_getflags(fd) {
        Ok(flags) => Ok(InodeFlags::kept_of(flags.bits())),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(InodeFlags::NONE),
        Err(error) => Err(error),
    }
}

/// Gives an inode exactly these flags of those that an image keeps, and leaves its others alone.
///
/// Where that fails, each flag that the file system has is set all the same.
pub(super) fn set_flags(fd: &OwnedFd, flags: InodeFlags) -> Result<(), Errno> {
    let old = match rustix::fs::ioctl_getflags(fd) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if flags.is_empty() => {
            return Ok(());
        }
        other => other?.bits(),
    };
    let others = old & !InodeFlags::KEPT.bits();
    let set = |bits| rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(bits));
    if others | flags.bits() == old {
        return Ok(());
    }
    let failed = match set(others | flags.bits()) {
        Err(error) if !flags.is_empty() => error,
        done => return done,
    };
    let mut bits = others;
    let locks = InodeFlags::IMMUTABLE.bits() | InodeFlags::APPEND.bits();
    // What locks the inode comes last.
    for kept in [flags.bits() & !locks, flags.bits() & locks] {
        for bit in (0..u32::BITS).map(|place| kept & 1 << place).filter(|bit| *bit != 0) {
            if set(bits | bit).is_ok() {
                bits |= bit;
            }
        }
    }
    Err(failed)
}

/// Asks for a new file that is not copied on write: later, when it has content, it is too late.
pub(super) fn set_no_cow(fd: &OwnedFd) {
    if let Ok(old) = rustix::fs::ioctl_getflags(fd) {
        let new = IFlags::from_bits_retain(old.bits() | InodeFlags::NO_COW.bits());
        // A failure shows when all flags are set.
        let _ = rustix::fs::ioctl_setflags(fd, new);
    }
}

/// Lets an inode be changed and removed again.
pub(super) fn unlock(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = read_flags(fd)?;
    let locks = InodeFlags::IMMUTABLE.bits() | InodeFlags::APPEND.bits();
    set_flags(fd, InodeFlags::kept_of(flags.bits() & !locks))
}

/// Lets a directory be changed: by its flags, and by its mode when it is this user's own.
pub(super) fn open_up(fd: &OwnedFd) -> Result<(), Errno> {
    unlock(fd)?;
    let mode = Mode::from_raw_mode(root::stat(fd)?.stx_mode.into());
    if mode.contains(Mode::RWXU) || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    rustix::fs::fchmod(fd, mode | Mode::RWXU)
}

/// Makes a directory ready to be filled: nobody else enters, and nothing made in it inherits anything.
pub(super) fn open_for_filling(fd: &OwnedFd) -> Result<(), Errno> {
    set_flags(fd, InodeFlags::NONE)?;
    rustix::fs::fchmod(fd, Mode::RWXU)?;
    match rustix::fs::fremovexattr(fd, DEFAULT_ACL) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        done => done,
    }
}

/// Attributes of a file or directory that is open.
pub(super) fn read_open(fd: &OwnedFd, stat: &Statx) -> Result<Attributes, ReadError> {
    let mode = u32::from(stat.stx_mode) & MODE_MASK;
    let xattrs = read_xattrs(Inode::Open(fd))?;
    let attributes = Attributes::new(mode, stat.stx_uid, stat.stx_gid, read_flags(fd)?, xattrs)?;
    Ok(attributes.with_project(project::read(fd)?)?)
}

/// Attributes of a symbolic link, device or fifo.
pub(super) fn read_named(dir: &OwnedFd, name: &[u8], stat: &Statx) -> Result<Attributes, ReadError> {
    let link = rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()) == rustix::fs::FileType::Symlink;
    let mode = if link { 0 } else { u32::from(stat.stx_mode) & MODE_MASK };
    let xattrs = read_xattrs(Inode::Named(dir, name))?;
    Ok(Attributes::new(mode, stat.stx_uid, stat.stx_gid, InodeFlags::NONE, xattrs)?)
}

pub(super) fn mtime_of(stat: &Statx) -> Result<Mtime, EntryError> {
    Mtime::new(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec)
}

/// Sets all but flags, in the safe order. Goes on after a failure: `failed` is told each.
pub(super) fn set(
    inode: Inode<'_>,
    attributes: &Attributes,
    mtime: Mtime,
    link: bool,
    mut failed: impl FnMut(Aspect, Errno),
) {
    let users = |xattr: &&Xattr| xattr.name.starts_with(USER_PREFIX);
    remove_other_xattrs(inode, attributes.xattrs(), |error| failed(Aspect::Xattr, error));
    for xattr in attributes.xattrs().iter().filter(users) {
        if let Err(error) = inode.set_xattr(&xattr.name, &xattr.value) {
            failed(Aspect::Xattr, error);
        }
    }
    let (uid, gid) = (Some(Uid::from_raw(attributes.uid())), Some(Gid::from_raw(attributes.gid())));
    // A change to what is there already would still go through the file system's journal.
    let stat = inode.stat().ok();
    let owned = stat.is_some_and(|stat| (stat.stx_uid, stat.stx_gid) == (attributes.uid(), attributes.gid()));
    let owner = match inode {
        _ if owned => Ok(()),
        Inode::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        Inode::Named(dir, name) => rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
    };
    let mut mode = attributes.mode();
    if let Err(error) = owner {
        failed(Aspect::Owner, error);
        // Whoever runs it would become whoever installed it.
        if mode & SET_ID != 0 {
            mode &= !SET_ID;
            failed(Aspect::Mode, error);
        }
    }
    let mut check = |aspect, done: Result<(), Errno>| {
        if let Err(error) = done {
            failed(aspect, error);
        }
    };
    let moded = owned && stat.is_some_and(|stat| u32::from(stat.stx_mode) & MODE_MASK == mode);
    let mode = Mode::from_raw_mode(mode);
    match inode {
        Inode::Open(fd) => {
            if !moded {
                check(Aspect::Mode, rustix::fs::fchmod(fd, mode));
            }
            check(Aspect::Project, project::set(fd, attributes.project()));
        }
        // Our own device or fifo of a moment ago, in a directory that nobody else can enter.
        Inode::Named(dir, name) if !link && !moded => {
            check(Aspect::Mode, rustix::fs::chmodat(dir, name, mode, AtFlags::empty()));
        }
        Inode::Named(..) => {}
    }
    let rank = |xattr: &&Xattr| (!xattr.name.starts_with(ACL_PREFIX), *xattr.name == *CAPABILITY);
    let mut others: Vec<&Xattr> = attributes.xattrs().iter().filter(|xattr| !users(xattr)).collect();
    others.sort_by_key(rank);
    for xattr in others {
        check(Aspect::Xattr, inode.set_xattr(&xattr.name, &xattr.value));
    }
    check(Aspect::Time, set_time(inode, mtime));
}

/// Takes away all that an image keeps and that is not among `xattrs`.
fn remove_other_xattrs(inode: Inode<'_>, xattrs: &[Xattr], mut failed: impl FnMut(Errno)) {
    let listed = for_each_xattr_name(inode, |name| {
        if xattrs.binary_search_by(|xattr| (*xattr.name).cmp(name)).is_err() {
            match inode.remove_xattr(name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => failed(error),
            }
        }
        Ok(())
    });
    if let Err(error) = listed {
        failed(error);
    }
}

/// A time that the file system cannot hold is cut silently, so it is looked at again where that may be.
pub(super) fn set_time(inode: Inode<'_>, mtime: Mtime) -> Result<(), Errno> {
    let time = Timespec { tv_sec: mtime.seconds(), tv_nsec: mtime.nanoseconds().into() };
    let times = Timestamps { last_access: time, last_modification: time };
    match inode {
        Inode::Open(fd) => rustix::fs::futimens(fd, &times)?,
        Inode::Named(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?,
    }
    let held_by_all = i32::try_from(mtime.seconds()).is_ok() && mtime.nanoseconds() == 0;
    if held_by_all || mtime_of(&inode.stat()?) == Ok(mtime) { Ok(()) } else { Err(Errno::OVERFLOW) }
}
