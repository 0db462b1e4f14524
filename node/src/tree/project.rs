//! The project of an inode: a number that quotas of XFS and ext4 go by.
//!
//! The one file of this crate with `unsafe`: `rustix` has no call of its own for these two requests, and an `ioctl` is
//! a promise about its argument that no compiler checks.
#![expect(unsafe_code, reason = "FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR need a raw ioctl")]

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `struct fsxattr` of `linux/fs.h`, 28 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Fsxattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    project: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

const FS_IOC_FSGETXATTR: Opcode = opcode::read::<Fsxattr>(b'X', 31);
const FS_IOC_FSSETXATTR: Opcode = opcode::write::<Fsxattr>(b'X', 32);

/// The project of a file or directory; 0 where the file system has none.
pub(super) fn read(fd: &OwnedFd) -> Result<u32, Errno> {
    match fsxattr(fd) {
        Ok(attributes) => Ok(attributes.project),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Gives a file or directory its project, unless it has it.
pub(super) fn set(fd: &OwnedFd, project: u32) -> Result<(), Errno> {
    let old = match fsxattr(fd) {
        Err(_) if project == 0 => return Ok(()),
        old => old?,
    };
    if old.project == project {
        return Ok(());
    }
    // SAFETY: for this request the kernel reads a `struct fsxattr`, which is what the setter points to.
    unsafe { ioctl(fd, Setter::<FS_IOC_FSSETXATTR, Fsxattr>::new(Fsxattr { project, ..old })) }
}

fn fsxattr(fd: &OwnedFd) -> Result<Fsxattr, Errno> {
    // SAFETY: for this request the kernel writes a `struct fsxattr`, which is what the getter has room for.
    unsafe { ioctl(fd, Getter::<FS_IOC_FSGETXATTR, Fsxattr>::new()) }
}
