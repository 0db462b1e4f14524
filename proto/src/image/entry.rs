//! What an entry is: its kind, attributes, time and content, as types that hold nothing a manifest may not say.

use std::fmt;

/// Longest target of a symbolic link.
pub const SYMLINK_TARGET_BYTES_MAX: usize = 4095;
/// Most extended attributes of one inode: more names than the kernel's 64 KiB list could hold.
pub const XATTRS_MAX: usize = 10_000;
/// Longest name of an extended attribute.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value of an extended attribute, the kernel's limit.
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Most bytes of all names and values of one inode.
pub const XATTRS_BYTES_MAX: usize = 1 << 20;
/// Most segments of one file.
pub const SEGMENTS_MAX: usize = 1 << 20;
/// Largest file, holes included.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Largest major and minor number of a device: Linux has 12 and 20 bits for them and drops others without a word.
pub const DEVICE_NUMBERS_MAX: (u32, u32) = (0xfff, 0xf_ffff);
/// Permission, set-id and sticky bits.
pub const MODE_MASK: u32 = 0o7777;
/// `chown` takes this number for "leave it".
const NO_ID: u32 = u32::MAX;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// Inode flags that mean the same on every file system that has them (`chattr` letters S i a d A D C P).
///
/// Others describe how one file system stores a file, so the same tree would get another id elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeFlags(u32);

impl InodeFlags {
    pub const SYNC: Self = Self(0x8);
    pub const IMMUTABLE: Self = Self(0x10);
    pub const APPEND: Self = Self(0x20);
    pub const NO_DUMP: Self = Self(0x40);
    pub const NO_ATIME: Self = Self(0x80);
    pub const DIR_SYNC: Self = Self(0x1_0000);
    pub const NO_COW: Self = Self(0x80_0000);
    /// What is made in such a directory is of the directory's project.
    pub const PROJECT_INHERIT: Self = Self(0x2000_0000);
    pub const NONE: Self = Self(0);
    /// All that an image keeps.
    pub const KEPT: Self = Self(0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x1_0000 | 0x80_0000 | 0x2000_0000);

    /// Takes the flags that an image keeps from `FS_IOC_GETFLAGS`.
    pub const fn kept_of(bits: u32) -> Self {
        Self(bits & Self::KEPT.0)
    }

    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::KEPT.0 == 0 { Some(Self(bits)) } else { None }
    }

    pub const fn bits(self) -> u32 {
        self.0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// An extended attribute. POSIX ACLs, file capabilities and security labels are such.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr {
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

impl fmt::Debug for Xattr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name.escape_ascii(), self.value.escape_ascii())
    }
}

/// What many inodes have in common: permissions, owner, flags, project and extended attributes.
///
/// Comes only from [`Attributes::new`], so it can be written to an image and to a file system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    flags: InodeFlags,
    project: u32,
    xattrs: Box<[Xattr]>,
}

/// Attributes or times that no inode can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("mode {0:o}, which has bits beyond 7777")]
    Mode(u32),
    #[error("owner or group 4294967295, which means none")]
    Owner,
    #[error("project 4294967295, which means none")]
    Project,
    #[error("{0} extended attributes where at most {XATTRS_MAX} are allowed")]
    XattrCount(usize),
    #[error("{0} bytes of extended attributes where at most {XATTRS_BYTES_MAX} are allowed")]
    XattrBytes(usize),
    #[error("an extended attribute with a name of {0} bytes where 1 to {XATTR_NAME_BYTES_MAX} are allowed")]
    XattrName(usize),
    #[error("an extended attribute with a NUL in its name")]
    XattrNul,
    #[error("an extended attribute of {0} bytes where at most {XATTR_VALUE_BYTES_MAX} are allowed")]
    XattrValue(usize),
    #[error("extended attributes that are not sorted, or one twice")]
    XattrOrder,
    #[error("a time with {0} nanoseconds in a second")]
    Nanoseconds(u32),
}

impl Attributes {
    /// `xattrs` must be sorted by name, without a name twice.
    pub fn new(
        mode: u32,
        uid: u32,
        gid: u32,
        flags: InodeFlags,
        xattrs: Vec<Xattr>,
    ) -> Result<Self, EntryError> {
        if mode & !MODE_MASK != 0 {
            return Err(EntryError::Mode(mode));
        }
        if uid == NO_ID || gid == NO_ID {
            return Err(EntryError::Owner);
        }
        if xattrs.len() > XATTRS_MAX {
            return Err(EntryError::XattrCount(xattrs.len()));
        }
        let mut bytes = 0;
        for Xattr { name, value } in &xattrs {
            if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
                return Err(EntryError::XattrName(name.len()));
            }
            if name.contains(&0) {
                return Err(EntryError::XattrNul);
            }
            if value.len() > XATTR_VALUE_BYTES_MAX {
                return Err(EntryError::XattrValue(value.len()));
            }
            bytes += name.len() + value.len();
        }
        if bytes > XATTRS_BYTES_MAX {
            return Err(EntryError::XattrBytes(bytes));
        }
        if !xattrs.is_sorted_by(|one, next| one.name < next.name) {
            return Err(EntryError::XattrOrder);
        }
        Ok(Self { mode, uid, gid, flags, project: 0, xattrs: xattrs.into() })
    }

    /// The same in another project: a number that quotas go by, 0 in a new inode.
    pub fn with_project(self, project: u32) -> Result<Self, EntryError> {
        if project == NO_ID { Err(EntryError::Project) } else { Ok(Self { project, ..self }) }
    }

    /// Permission, set-id and sticky bits; zero in a symbolic link, which has none.
    pub fn mode(&self) -> u32 {
        self.mode
    }

    pub fn uid(&self) -> u32 {
        self.uid
    }

    pub fn gid(&self) -> u32 {
        self.gid
    }

    pub fn flags(&self) -> InodeFlags {
        self.flags
    }

    /// 0 where the file system has no projects, and in what is neither a file nor a directory.
    pub fn project(&self) -> u32 {
        self.project
    }

    /// Sorted by name.
    pub fn xattrs(&self) -> &[Xattr] {
        &self.xattrs
    }
}

/// When content last changed: seconds since 1970 (before it: negative) and nanoseconds of the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    seconds: i64,
    nanoseconds: u32,
}

impl Mtime {
    pub fn new(seconds: i64, nanoseconds: u32) -> Result<Self, EntryError> {
        if nanoseconds >= NANOS_PER_SECOND {
            return Err(EntryError::Nanoseconds(nanoseconds));
        }
        Ok(Self { seconds, nanoseconds })
    }

    pub fn seconds(self) -> i64 {
        self.seconds
    }

    pub fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }
}

/// A part of a file: data, or nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Chunks `first .. first + count` of the image, one after another.
    Chunks { first: u32, count: u32 },
    /// Bytes that read as zeros and take no room.
    Hole { bytes: u64 },
}

/// Appends to `segments` so that it stays in its one form: no empty segment, no two that could be one.
pub fn push_segment(segments: &mut Vec<Segment>, next: Segment) {
    match (segments.last_mut(), next) {
        (_, Segment::Hole { bytes: 0 } | Segment::Chunks { count: 0, .. }) => {}
        (Some(Segment::Hole { bytes }), Segment::Hole { bytes: more }) => *bytes = bytes.saturating_add(more),
        (Some(Segment::Chunks { first, count }), Segment::Chunks { first: at, count: more })
            if u64::from(*first) + u64::from(*count) == u64::from(at) =>
        {
            *count += more;
        }
        _ => segments.push(next),
    }
}

/// An entry's place in the manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(u32);

impl EntryIndex {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    pub(crate) const fn new(index: u32) -> Self {
        Self(index)
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for EntryIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}", self.0)
    }
}

/// The segments of a file in their one form, see [`push_segment`].
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// What nearly all files are: one run, most often of one chunk.
    One(Segment),
    Segments(&'a [Segment]),
}

impl Content<'_> {
    pub fn segments(&self) -> &[Segment] {
        match self {
            Self::One(segment) => std::slice::from_ref(segment),
            Self::Segments(segments) => segments,
        }
    }
}

impl PartialEq for Content<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.segments() == other.segments()
    }
}

impl Eq for Content<'_> {}

/// What an entry is, with what only that kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    Directory,
    File(Content<'a>),
    Symlink {
        target: &'a [u8],
    },
    /// Another name of an earlier entry, which is no directory and no hard link itself.
    HardLink {
        to: EntryIndex,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &[u8], value: &[u8]) -> Xattr {
        Xattr { name: name.into(), value: value.into() }
    }

    #[test]
    fn attributes_that_no_inode_has_are_refused() {
        let new = |mode, uid, xattrs| Attributes::new(mode, uid, 0, InodeFlags::NONE, xattrs);
        assert_eq!(new(0o10000, 0, vec![]), Err(EntryError::Mode(0o10000)));
        assert_eq!(new(0, u32::MAX, vec![]), Err(EntryError::Owner));
        assert_eq!(new(0, 0, vec![xattr(b"", b"")]), Err(EntryError::XattrName(0)));
        assert_eq!(new(0, 0, vec![xattr(&[1; 256], b"")]), Err(EntryError::XattrName(256)));
        assert_eq!(new(0, 0, vec![xattr(b"user.\0", b"")]), Err(EntryError::XattrNul));
        assert_eq!(new(0, 0, vec![xattr(b"a", &[0; 65_537])]), Err(EntryError::XattrValue(65_537)));
        assert_eq!(new(0, 0, vec![xattr(b"b", b""), xattr(b"a", b"")]), Err(EntryError::XattrOrder));
        assert_eq!(new(0, 0, vec![xattr(b"a", b"1"), xattr(b"a", b"2")]), Err(EntryError::XattrOrder));
        assert!(new(0o7777, u32::MAX - 1, vec![xattr(b"user.\xff\n", &[0; 65_536])]).is_ok());
        let plain = new(0, 0, vec![]).unwrap();
        assert_eq!(plain.clone().with_project(u32::MAX), Err(EntryError::Project));
        assert_eq!(plain.with_project(7).unwrap().project(), 7);
        assert_eq!(Mtime::new(0, 1_000_000_000), Err(EntryError::Nanoseconds(1_000_000_000)));
    }

    #[test]
    fn segments_have_one_form() {
        let mut segments = Vec::new();
        for next in [
            Segment::Hole { bytes: 0 },
            Segment::Chunks { first: 3, count: 1 },
            Segment::Chunks { first: 4, count: 2 },
            Segment::Chunks { first: 7, count: 1 },
            Segment::Hole { bytes: 5 },
            Segment::Hole { bytes: 6 },
        ] {
            push_segment(&mut segments, next);
        }
        assert_eq!(
            segments,
            [
                Segment::Chunks { first: 3, count: 3 },
                Segment::Chunks { first: 7, count: 1 },
                Segment::Hole { bytes: 11 }
            ]
        );
    }
}
