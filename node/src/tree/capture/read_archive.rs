//! Entries of a tree that an archive holds.

use rustix::io::Errno;

use super::super::archive::{Archive, ArchivedFile, Node};
use super::super::root;
use super::batch::{Batcher, Body, Outcome};
use super::read::{Cutter, Data, Failure, SayEntry};
use super::scan::{Found, Scan};
use super::seen::Stamp;

const ROOT: u32 = 0;

pub(super) struct ArchiveEntries<'a> {
    archive: &'a Archive,
    scan: &'a Scan,
    /// The directory of the last entry: its row and its inode.
    directory: (u32, u32),
}

impl<'a> ArchiveEntries<'a> {
    pub(super) fn new(archive: &'a Archive, scan: &'a Scan) -> Self {
        Self { archive, scan, directory: (ROOT, ROOT) }
    }

    /// The inode of a row.
    fn inode(&self, row: u32) -> Option<u32> {
        if row == ROOT {
            return Some(ROOT);
        }
        let parent = self.scan.parent(row);
        let directory = match self.directory {
            (known, inode) if known == parent => inode,
            _ => self.inode(parent)?,
        };
        self.archive.find(directory, self.scan.name(row))
    }
}

impl SayEntry for ArchiveEntries<'_> {
    fn say(
        &mut self,
        number: u32,
        found: Found,
        cutter: &mut Cutter<'_>,
        batch: &mut Batcher<'_>,
    ) -> Result<Outcome, Failure> {
        let at = self.inode(number).ok_or(Failure::Vanished)?;
        let inode = self.archive.inode(at);
        let body = match &inode.node {
            Node::Directory(_) => Body::Directory,
            Node::File { bytes, extents } => {
                let file = self.archive.file(*bytes, extents);
                if cutter.content(&file, *bytes, file.is_sparse(), batch)? != *bytes {
                    return Err(Failure::Changed);
                }
                Body::File
            }
            Node::Symlink(target) => Body::Symlink(target.to_vec()),
            &Node::CharDevice(major, minor) => Body::CharDevice(major, minor),
            &Node::BlockDevice(major, minor) => Body::BlockDevice(major, minor),
            Node::Fifo => Body::Fifo,
        };
        if found == Found::Directory {
            self.directory = (number, at);
        } else if number != ROOT {
            let parent = self.scan.parent(number);
            if self.directory.0 != parent
                && let Some(inode) = self.inode(parent)
            {
                self.directory = (parent, inode);
            }
        }
        let (attributes, mtime) = (inode.attributes.clone(), inode.mtime);
        Ok(Outcome::Entry { attributes, mtime, body, stamp: Stamp::NONE, settled: true })
    }
}

impl Data for ArchivedFile<'_> {
    fn next_content(&self, at: u64, size: u64) -> Result<(u64, u64), Errno> {
        let data = |at| Ok(self.next_data(at));
        root::next_content_of(data, |buffer, at| ArchivedFile::read_full(self, buffer, at), at, size)
    }

    fn read_full(&self, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
        ArchivedFile::read_full(self, buffer, at)
    }
}
