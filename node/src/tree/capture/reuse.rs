//! Which entries are as the capture of the parent image saw them, so that they need not be opened.

use rustix::fs::{FileType, Statx};
use shoal_proto::image::entry::{EntryIndex, Kind, MODE_MASK, Segment};
use shoal_proto::image::layout::ParentPieces;
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::tree::Entry;

use super::super::metadata;
use super::seen::{Seen, Stamp};

/// Finds entries of the parent image, asked in path order.
#[derive(Debug)]
pub(super) struct Reuse<'a> {
    pieces: &'a ParentPieces,
    seen: Seen,
    /// The first entry of the parent that no question was about yet.
    next: u32,
}

impl<'a> Reuse<'a> {
    pub(super) fn new(pieces: &'a ParentPieces, seen: Seen) -> Self {
        Self { pieces, seen, next: 1 }
    }

    fn manifest(&self) -> &'a Manifest {
        self.pieces.manifest()
    }

    /// What the parent has as `name` in its directory `old`.
    pub(super) fn find(&mut self, old: u32, name: &[u8]) -> Option<u32> {
        let tree = self.manifest().tree();
        loop {
            let entry = tree.entry(tree.index(self.next)?);
            let parent = entry.parent().get();
            let own = entry.name().map_or(&b""[..], |name| name.bytes());
            // A number below: that directory has ended. Above: in a directory that is gone.
            if parent < old || parent == old && own > name {
                return None;
            }
            self.next += 1;
            if parent == old && own == name {
                return Some(entry.index().get());
            }
        }
    }

    /// Whether the inode is the one that entry `old` was made from, unchanged, and all its chunks can be had.
    ///
    /// Every change of an inode, of its content or its attributes, changes its time of change, which nobody can set.
    /// What the system says here anyway is compared as well.
    pub(super) fn is_same(&mut self, old: u32, stat: &Statx) -> bool {
        if self.seen.stamp(old) != Some(Stamp::of(stat)) {
            return false;
        }
        let Some(entry) = inode_of(self.manifest(), old) else { return false };
        let attributes = entry.attributes();
        let symlink = matches!(entry.kind(), Kind::Symlink { .. });
        metadata::mtime_of(stat).is_ok_and(|mtime| mtime == entry.mtime())
            && (attributes.uid(), attributes.gid()) == (stat.stx_uid, stat.stx_gid)
            && (symlink || attributes.mode() == u32::from(stat.stx_mode) & MODE_MASK)
            && self.is_same_kind(entry, stat)
    }

    fn is_same_kind(&self, entry: Entry<'_>, stat: &Statx) -> bool {
        let device = |major, minor| (major, minor) == (stat.stx_rdev_major, stat.stx_rdev_minor);
        match (entry.kind(), FileType::from_raw_mode(stat.stx_mode.into())) {
            (Kind::Directory, FileType::Directory) | (Kind::Fifo, FileType::Fifo) => true,
            (Kind::Symlink { target }, FileType::Symlink) => target.len() as u64 == stat.stx_size,
            (Kind::CharDevice { major, minor }, FileType::CharacterDevice)
            | (Kind::BlockDevice { major, minor }, FileType::BlockDevice) => device(major, minor),
            (Kind::File(content), FileType::RegularFile) => {
                self.manifest().size(entry) == stat.stx_size
                    && content.segments().iter().all(|segment| match *segment {
                        Segment::Chunks { first, count } => self.pieces.holds(first..first + count),
                        Segment::Hole { .. } => true,
                    })
            }
            _ => false,
        }
    }
}

/// The inode of an entry: the one that a hard link names.
pub(super) fn inode_of(manifest: &Manifest, entry: u32) -> Option<Entry<'_>> {
    let at = |index: EntryIndex| manifest.entry(index);
    let entry = at(manifest.tree().index(entry)?);
    Some(match entry.kind() {
        Kind::HardLink { to } => at(to),
        _ => entry,
    })
}
