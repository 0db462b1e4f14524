//! What comes after all content: entries without any, links, flags, directories.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use shoal_proto::image::entry::{EntryIndex, Kind};
use shoal_proto::image::tree::Entry;

use super::super::metadata::{self, Aspect, Inode};
use super::super::root;
use super::crew;
use super::files::chunk_uses;
use super::{Apply, ApplyError, made};

impl Apply {
    pub(super) fn finish_tree(&self) -> Result<(), ApplyError> {
        self.each_entry(|entry| self.make_without_content(entry))?;
        self.each_entry(|entry| match entry.kind() {
            Kind::HardLink { to } => self.make_hard_link(entry, to),
            _ => Ok(()),
        })?;
        // An immutable file takes no further name and an immutable directory no entry: flags come after both.
        self.each_entry(|entry| {
            if !matches!(entry.kind(), Kind::File(_)) || entry.attributes().flags().is_empty() {
                return Ok(());
            }
            let dir = self.parent(entry)?;
            let opened = root::open_in(&dir, name(entry), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
            self.set_flags(entry, &opened.map_err(|error| made(entry.path(), error))?)
        })?;
        // An ordinary user can close a directory to himself: those in it are opened first.
        self.levels.bottom_up(|directory| {
            let entry = self.manifest.entry(directory);
            let dir = self.target.open_directory(&self.manifest, directory)?;
            self.set_metadata(entry, Inode::Open(&dir))?;
            if entry.attributes().flags().is_empty() { Ok(()) } else { self.set_flags(entry, &dir) }
        })
    }

    fn each_entry(
        &self,
        work: impl Fn(Entry<'_>) -> Result<(), ApplyError> + Sync,
    ) -> Result<(), ApplyError> {
        let tree = self.manifest.tree();
        let entry = |at: usize| Some(tree.entry(tree.index(u32::try_from(at).ok()?)?));
        crew::each(tree.len(), |at| entry(at).map_or(Ok(()), &work))
    }

    fn make_without_content(&self, entry: Entry<'_>) -> Result<(), ApplyError> {
        match entry.kind() {
            Kind::Directory | Kind::HardLink { .. } => Ok(()),
            Kind::File(_) if chunk_uses(entry.kind()) > 0 => Ok(()),
            Kind::File(_) => self.make_empty_file(entry),
            Kind::Symlink { target } => self.make_symlink(entry, target),
            Kind::Fifo => self.make_node(entry, FileType::Fifo, (0, 0)),
            Kind::CharDevice { major, minor } => {
                self.make_node(entry, FileType::CharacterDevice, (major, minor))
            }
            Kind::BlockDevice { major, minor } => {
                self.make_node(entry, FileType::BlockDevice, (major, minor))
            }
        }
    }

    fn parent(&self, entry: Entry<'_>) -> Result<std::sync::Arc<OwnedFd>, ApplyError> {
        self.target.open_directory(&self.manifest, entry.parent())
    }

    fn make_empty_file(&self, entry: Entry<'_>) -> Result<(), ApplyError> {
        let dir = self.parent(entry)?;
        let fd = self.create_whole_file(entry, &dir)?;
        self.size_file(entry, &fd)?;
        self.finish_file(entry, &fd)
    }

    /// Makes something that cannot be opened, and sets its metadata by name. Nobody else can enter the directory yet.
    fn make(
        &self,
        entry: Entry<'_>,
        make: impl Fn(&OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), ApplyError> {
        let dir = self.parent(entry)?;
        self.make_in(entry, &dir, make)?;
        self.set_metadata(entry, Inode::Named(&dir, name(entry)))
    }

    fn make_in(
        &self,
        entry: Entry<'_>,
        dir: &OwnedFd,
        make: impl Fn(&OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), ApplyError> {
        let name = name(entry);
        let done = match make(dir, name) {
            Err(Errno::EXIST) => root::remove(dir, name).and_then(|()| make(dir, name)),
            done => done,
        };
        done.map_err(|error| made(entry.path(), error))
    }

    fn make_symlink(&self, entry: Entry<'_>, target: &[u8]) -> Result<(), ApplyError> {
        match self.make(entry, |dir, name| rustix::fs::symlinkat(target, dir, name)) {
            // XFS takes 1023 bytes.
            Err(ApplyError::Make { path, source: source @ (Errno::NAMETOOLONG | Errno::PERM) }) => {
                self.target.fail_or_lose(path, Aspect::Target, source)
            }
            done => done,
        }
    }

    fn make_node(&self, entry: Entry<'_>, file_type: FileType, device: (u32, u32)) -> Result<(), ApplyError> {
        let device = rustix::fs::makedev(device.0, device.1);
        let mode = Mode::RUSR | Mode::WUSR;
        let made = self.make(entry, |dir, name| rustix::fs::mknodat(dir, name, file_type, mode, device));
        match made {
            Err(ApplyError::Make { path, source }) if file_type != FileType::Fifo => {
                self.target.fail_or_lose(path, Aspect::Device, source)
            }
            done => done,
        }
    }

    fn make_hard_link(&self, entry: Entry<'_>, to: EntryIndex) -> Result<(), ApplyError> {
        let inode = self.manifest.entry(to);
        let (dir, inode_dir) = (self.parent(entry)?, self.parent(inode)?);
        let link = |dir: &OwnedFd, own: &[u8]| {
            rustix::fs::linkat(&*inode_dir, name(inode), dir, own, AtFlags::empty())
        };
        match self.make_in(entry, &dir, link) {
            // It could not be made, which is a loss already.
            Err(ApplyError::Make { path, source: Errno::NOENT }) => match inode.kind() {
                Kind::Symlink { .. } => self.target.fail_or_lose(path, Aspect::Target, Errno::NAMETOOLONG),
                Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {
                    self.target.fail_or_lose(path, Aspect::Device, Errno::OPNOTSUPP)
                }
                _ => Err(ApplyError::Make { path, source: Errno::NOENT }),
            },
            done => done,
        }
    }

    fn set_flags(&self, entry: Entry<'_>, fd: &OwnedFd) -> Result<(), ApplyError> {
        match metadata::set_flags(fd, entry.attributes().flags()) {
            Ok(()) => Ok(()),
            Err(error) => self.target.fail_or_lose(entry.path(), Aspect::Flags, error),
        }
    }
}

fn name(entry: Entry<'_>) -> &[u8] {
    entry.name().map_or(&b""[..], |name| name.bytes())
}
