//! What is read of an inode and set on it, beside its content.
//!
//! Setting goes in the one order in which no step undoes another: owner, mode, ACLs, other extended attributes, file
//! capability, times. A change of owner drops set-id bits and capabilities, a change of mode overwrites the mask of an
//! ACL, a write drops capabilities. Flags come later still, when nothing below needs to be made or linked any more.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, IFlags, Mode, Statx, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use shoal_proto::image::entry::{
    Attributes, EntryError, InodeFlags, MODE_MASK, Mtime, XATTR_VALUE_BYTES_MAX, Xattr,
};

use super::root::proc_path;

/// The kernel's bound on the list of names.
const XATTR_LIST_BYTES_MAX: usize = 64 << 10;
const CAPABILITY: &[u8] = b"security.capability";
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
    Device,
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
            Self::Device => "device number",
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
    let mut xattrs = Vec::new();
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if XATTRS_LEFT_OUT.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let mut small = [0; 256];
        let value = match inode.xattr(name, &mut small) {
            Ok(len) => small[..len].into(),
            Err(Errno::RANGE) => {
                let mut large = vec![0; XATTR_VALUE_BYTES_MAX];
                let len = inode.xattr(name, &mut large)?;
                large[..len].into()
            }
            // Removed meanwhile, or a name that the kernel lists and does not give.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(error) => return Err(error),
        };
        xattrs.push(Xattr { name: name.into(), value });
    }
    xattrs.sort_unstable();
    Ok(xattrs)
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
pub(super) fn set_flags(fd: &OwnedFd, flags: InodeFlags) -> Result<(), Errno> {
    let old = match rustix::fs::ioctl_getflags(fd) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if flags.is_empty() => {
            return Ok(());
        }
        other => other?,
    };
    let new = IFlags::from_bits_retain(old.bits() & !InodeFlags::KEPT.bits() | flags.bits());
    if new == old { Ok(()) } else { rustix::fs::ioctl_setflags(fd, new) }
}

/// Lets an inode be changed and removed again.
pub(super) fn unlock(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = read_flags(fd)?;
    let locks = InodeFlags::IMMUTABLE.bits() | InodeFlags::APPEND.bits();
    set_flags(fd, InodeFlags::kept_of(flags.bits() & !locks))
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
    Ok(Attributes::new(mode, stat.stx_uid, stat.stx_gid, read_flags(fd)?, read_xattrs(Inode::Open(fd))?)?)
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
    let (uid, gid) = (Some(Uid::from_raw(attributes.uid())), Some(Gid::from_raw(attributes.gid())));
    let mode = Mode::from_raw_mode(attributes.mode());
    let times = timestamps(mtime);
    let mut check = |aspect, done: Result<(), Errno>| {
        if let Err(error) = done {
            failed(aspect, error);
        }
    };
    match inode {
        Inode::Open(fd) => {
            check(Aspect::Owner, rustix::fs::fchown(fd, uid, gid));
            check(Aspect::Mode, rustix::fs::fchmod(fd, mode));
        }
        Inode::Named(dir, name) => {
            check(Aspect::Owner, rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW));
            if !link {
                // Our own device or fifo of a moment ago, in a directory that nobody else can enter.
                check(Aspect::Mode, rustix::fs::chmodat(dir, name, mode, AtFlags::empty()));
            }
        }
    }
    let rank = |xattr: &&Xattr| (!xattr.name.starts_with(ACL_PREFIX), *xattr.name == *CAPABILITY);
    let mut xattrs: Vec<&Xattr> = attributes.xattrs().iter().collect();
    xattrs.sort_by_key(rank);
    for xattr in xattrs {
        check(Aspect::Xattr, inode.set_xattr(&xattr.name, &xattr.value));
    }
    check(
        Aspect::Time,
        match inode {
            Inode::Open(fd) => rustix::fs::futimens(fd, &times),
            Inode::Named(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        },
    );
}

/// Sets the time of an open file.
pub(super) fn set_time(fd: &OwnedFd, mtime: Mtime) -> Result<(), Errno> {
    rustix::fs::futimens(fd, &timestamps(mtime))
}

fn timestamps(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds(), tv_nsec: mtime.nanoseconds().into() };
    Timestamps { last_access: time, last_modification: time }
}
