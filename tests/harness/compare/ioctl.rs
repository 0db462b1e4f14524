//! What only an `ioctl` tells: the project of an inode. The one place of the harness that is not checked by the
//! compiler, because every `ioctl` is a promise about its argument.
#![expect(unsafe_code, reason = "rustix has no call of its own for FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR")]

use std::fs::File;
use std::io;

use rustix::ioctl::{Getter, Setter, ioctl, opcode};

/// `struct fsxattr` of linux/fs.h.
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

const GET: u32 = opcode::read::<Fsxattr>(b'X', 31);
const SET: u32 = opcode::write::<Fsxattr>(b'X', 32);

/// The project of an inode.
pub(crate) fn project(file: &File) -> io::Result<u32> {
    Ok(read(file)?.project)
}

/// Gives an inode a project.
pub fn set_project(file: &File, project: u32) -> io::Result<()> {
    let attributes = Fsxattr { project, ..read(file)? };
    // SAFETY: the kernel reads a `struct fsxattr`, which is what the argument is.
    unsafe { ioctl(file, Setter::<SET, Fsxattr>::new(attributes))? };
    Ok(())
}

fn read(file: &File) -> io::Result<Fsxattr> {
    // SAFETY: the kernel writes a `struct fsxattr`, which is what the getter has room for.
    Ok(unsafe { ioctl(file, Getter::<GET, Fsxattr>::new())? })
}
