//! One path against its entry.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use shoal_proto::image::drift::{DriftKind, Drifts};
use shoal_proto::image::entry::{EntryIndex, Kind, MODE_MASK};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::plan::{Group, InodeKey};
use shoal_proto::image::tree::Entry;

use super::super::metadata::{self, Inode, ReadError};
use super::super::project;
use super::super::root;
use super::super::verify::{VerifyError, VerifyMode};
use super::{Surveyor, content, own_name};

/// What a look at a path gave.
pub(super) enum Looked {
    At(Drifts),
    /// It went away meanwhile.
    Gone,
}

impl Surveyor<'_> {
    pub(super) fn look(
        &self,
        dir: &OwnedFd,
        entry: Entry<'_>,
        kind: Kind<'_>,
        stat: &Statx,
    ) -> Result<Looked, VerifyError> {
        match self.compare(dir, entry, kind, stat) {
            Ok(drifts) => Ok(Looked::At(drifts)),
            Err(ReadError::System(Errno::NOENT)) => Ok(Looked::Gone),
            Err(error) => Err(read_failed(entry, error)),
        }
    }

    pub(super) fn look_open(
        &self,
        entry: Entry<'_>,
        fd: &OwnedFd,
        stat: &Statx,
    ) -> Result<Drifts, VerifyError> {
        compare_open(entry, fd, stat).map_err(|error| read_failed(entry, error))
    }

    fn compare(
        &self,
        dir: &OwnedFd,
        entry: Entry<'_>,
        kind: Kind<'_>,
        stat: &Statx,
    ) -> Result<Drifts, ReadError> {
        let name = own_name(entry);
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let mut drifts = Drifts::NONE;
        match (kind, FileType::from_raw_mode(stat.stx_mode.into())) {
            (Kind::Directory, FileType::Directory) => {
                let fd = root::open_directory_in(dir, name)?;
                return compare_open(entry, &fd, stat);
            }
            (Kind::File(content), FileType::RegularFile) => {
                let fd = root::open_in(dir, name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
                drifts = compare_open(entry, &fd, stat)?;
                if stat.stx_size != self.manifest.size(entry) {
                    drifts.insert(DriftKind::Size);
                } else if self.options.mode == VerifyMode::Full
                    && !content::equal(self.manifest, &content, &fd)?
                {
                    drifts.insert(DriftKind::Content);
                }
                return Ok(drifts);
            }
            (Kind::Symlink { target }, FileType::Symlink) => {
                if rustix::fs::readlinkat(dir, name, Vec::new())?.as_bytes() != target {
                    drifts.insert(DriftKind::LinkTarget);
                }
            }
            (Kind::CharDevice { major, minor }, FileType::CharacterDevice)
            | (Kind::BlockDevice { major, minor }, FileType::BlockDevice) => {
                if device != (major, minor) {
                    drifts.insert(DriftKind::Device);
                }
            }
            (Kind::Fifo, FileType::Fifo) => {}
            _ => return Ok(Drifts::of(DriftKind::Type)),
        }
        let mut drifts = drifts.union(compare_stat(entry, stat, matches!(kind, Kind::Symlink { .. }))?);
        if metadata::read_xattrs(Inode::Named(dir, name))? != entry.attributes().xattrs() {
            drifts.insert(DriftKind::Xattr);
        }
        Ok(drifts)
    }
}

fn compare_open(entry: Entry<'_>, fd: &OwnedFd, stat: &Statx) -> Result<Drifts, ReadError> {
    let mut drifts = compare_stat(entry, stat, false)?;
    if metadata::read_xattrs(Inode::Open(fd))? != entry.attributes().xattrs() {
        drifts.insert(DriftKind::Xattr);
    }
    if metadata::read_flags(fd)? != entry.attributes().flags() {
        drifts.insert(DriftKind::Flags);
    }
    if project::read(fd)? != entry.attributes().project() {
        drifts.insert(DriftKind::Project);
    }
    Ok(drifts)
}

fn compare_stat(entry: Entry<'_>, stat: &Statx, link: bool) -> Result<Drifts, ReadError> {
    let attributes = entry.attributes();
    let mut drifts = Drifts::NONE;
    if !link && u32::from(stat.stx_mode) & MODE_MASK != attributes.mode() {
        drifts.insert(DriftKind::Mode);
    }
    if (stat.stx_uid, stat.stx_gid) != (attributes.uid(), attributes.gid()) {
        drifts.insert(DriftKind::Owner);
    }
    if metadata::mtime_of(stat)? != entry.mtime() {
        drifts.insert(DriftKind::Mtime);
    }
    Ok(drifts)
}

fn read_failed(entry: Entry<'_>, error: ReadError) -> VerifyError {
    let source = match error {
        ReadError::System(source) => source,
        // A time or an attribute that no inode should have.
        ReadError::Entry(_) => Errno::INVAL,
    };
    VerifyError::Read { path: entry.path(), source }
}

/// The names of an image that belong to inodes with several.
#[derive(Debug)]
pub(super) struct Linked(HashSet<EntryIndex>);

impl Linked {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let mut names = HashSet::new();
        for entry in manifest.entries() {
            if let Kind::HardLink { to } = entry.kind() {
                names.extend([to, entry.index()]);
            }
        }
        Self(names)
    }

    pub(super) fn contains(&self, entry: EntryIndex) -> bool {
        self.0.contains(&entry)
    }

    /// What the inode is: of a hard link, what it links to.
    pub(super) fn inode_kind<'a>(&self, manifest: &'a Manifest, entry: Entry<'a>) -> Kind<'a> {
        match entry.kind() {
            Kind::HardLink { to } => manifest.entry(to).kind(),
            own => own,
        }
    }

    /// Two names on one file system must share an inode exactly when the image says so; `differs` is told those that do
    /// otherwise. `mount_of` tells file systems apart.
    pub(super) fn compare(
        &self,
        manifest: &Manifest,
        inodes: &[(EntryIndex, InodeKey)],
        mount_of: impl Fn(EntryIndex) -> EntryIndex,
        mut differs: impl FnMut(EntryIndex),
    ) {
        let meant_first = |entry: EntryIndex| match manifest.entry(entry).kind() {
            Kind::HardLink { to } => to,
            _ => entry,
        };
        let mut first_of_inode: HashMap<InodeKey, EntryIndex> = HashMap::new();
        // With the first name gone, the names that are left still belong together.
        let mut inode_of: HashMap<Group, InodeKey> = HashMap::new();
        for &(entry, key) in inodes {
            let first = *first_of_inode.entry(key).or_insert(entry);
            let meant = meant_first(entry);
            let group = (meant, mount_of(entry));
            let same = meant == meant_first(first) && *inode_of.entry(group).or_insert(key) == key;
            if !same {
                differs(entry);
            }
        }
    }
}
