//! The attributes of one path as text.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, ioctl_getflags, lgetxattr, llistxattr, statx};
use rustix::io::Errno;

use super::ioctl;

/// `chattr` letters that say something about a file and not about how its file system stores it.
const FLAGS: [(u32, char); 8] = [
    (0x8, 'S'),
    (0x10, 'i'),
    (0x20, 'a'),
    (0x40, 'd'),
    (0x80, 'A'),
    (0x1_0000, 'D'),
    (0x80_0000, 'C'),
    (0x2000_0000, 'P'),
];

/// The attributes of one path, always the same ones in the same order.
#[derive(Debug)]
pub(super) struct Inode([(&'static str, String); 10]);

impl Inode {
    pub(super) fn described(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(what, text)| (*what, text.as_str()))
    }

    pub(super) fn read(near: &Path, metadata: &Metadata) -> io::Result<Self> {
        let file_type = metadata.file_type();
        let kind = match () {
            () if file_type.is_file() => "file",
            () if file_type.is_dir() => "folder",
            () if file_type.is_symlink() => "symlink",
            () if file_type.is_fifo() => "fifo",
            () if file_type.is_socket() => "socket",
            () if file_type.is_block_device() => "block device",
            () => "character device",
        };
        let is_device = file_type.is_block_device() || file_type.is_char_device();
        let mut target = String::new();
        if file_type.is_symlink() {
            target = format!("{:?}", fs::read_link(near)?);
        }
        let (mut flags, mut project) = (String::new(), String::new());
        if file_type.is_file() || file_type.is_dir() {
            (flags, project) = flags_and_project(near)?;
        }
        Ok(Self([
            ("type", kind.to_owned()),
            ("mode", format!("{:o}", metadata.mode() & 0o7777)),
            ("owner", format!("{}:{}", metadata.uid(), metadata.gid())),
            ("time", format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec())),
            // A folder's size is its file system's business.
            ("size", if file_type.is_dir() { String::new() } else { metadata.size().to_string() }),
            ("device", if is_device { metadata.rdev().to_string() } else { String::new() }),
            ("target", target),
            ("extended attributes", format!("{:?}", attributes(near)?)),
            ("flags", flags),
            ("project", project),
        ]))
    }
}

/// The mount that a path is on, or what it leads to when it is a mount point.
pub(super) fn mount_of(path: &Path) -> io::Result<u64> {
    Ok(statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn flags_and_project(near: &Path) -> io::Result<(String, String)> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).expect("small numbers");
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(near) {
        Ok(file) => file,
        // An ordinary user may not look; there is nothing to compare.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok((String::new(), String::new()));
        }
        Err(error) => return Err(error),
    };
    let bits = match ioctl_getflags(&file) {
        Ok(flags) => flags.bits(),
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let letters = FLAGS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, letter)| letter).collect();
    let none = [Errno::NOTTY, Errno::OPNOTSUPP].map(|error| Some(error.raw_os_error()));
    let project = match ioctl::project(&file) {
        Ok(project) => project,
        Err(error) if none.contains(&error.raw_os_error()) => 0,
        Err(error) => return Err(error),
    };
    Ok((letters, project.to_string()))
}

fn attributes(near: &Path) -> io::Result<BTreeMap<CString, Vec<u8>>> {
    let mut names = vec![0; 1 << 16];
    let length = match llistxattr(near, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut attributes = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Another view that XFS gives of access control lists.
        if name.starts_with(b"trusted.SGI_ACL_") {
            continue;
        }
        let name = CString::new(name).expect("split at every NUL");
        let mut value = vec![0; 1 << 16];
        let length = lgetxattr(near, &name, &mut value[..])?;
        value.truncate(length);
        attributes.insert(name, value);
    }
    Ok(attributes)
}
