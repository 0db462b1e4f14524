//! A tree that lies in an archive: a tar, or the layers of a container image laid over one another.
//!
//! An archive is read once, in its own order, into an [`Archive`]: every name and inode in memory, the content where it
//! lies. An uncompressed file is left where it is; what comes compressed or through a pipe is kept in a file without a
//! name in the caller's scratch directory until the archive is dropped. Nothing is unpacked, so nothing is lost: owners,
//! devices and capabilities need no rights.
//!
//! What an archive says twice counts as said last, as if it were unpacked; a path through a symbolic link goes where
//! the link leads within the tree; a directory that nobody describes is root's, mode 0755, of 1970.

mod acl;
mod compression;
mod content;
pub(super) mod header;
mod oci;
mod pax;
mod tar;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use shoal_proto::image::entry::{Attributes, EntryError, InodeFlags, Mtime};
use shoal_proto::image::path::{Component, PathError};

use content::Spool;
pub(super) use content::{ArchivedFile, Extent};
pub use oci::is_layout;

/// Symbolic links on the way to one entry: the kernel's bound.
const LINKS_FOLLOWED_MAX: u32 = 40;
/// Of a directory that an archive implies and does not describe.
const IMPLIED_MODE: u32 = 0o755;
/// Longest list of users or groups that is read for an ACL.
const ACCOUNTS_BYTES_MAX: u64 = 16 << 20;
const ROOT: u32 = 0;

/// A tree in an archive, and its content.
#[derive(Debug)]
pub struct Archive {
    inodes: Vec<Inode>,
    /// Of container images; 0 in a tar.
    layer: u32,
    spool: Spool,
}

/// What stands at one or more paths.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) attributes: Attributes,
    pub(super) mtime: Mtime,
    pub(super) node: Node,
}

#[derive(Debug)]
pub(super) enum Node {
    Directory(BTreeMap<Box<[u8]>, Name>),
    File { bytes: u64, extents: Box<[Extent]> },
    Symlink(Box<[u8]>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// An inode's name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) inode: u32,
    /// The last layer that said it.
    layer: u32,
}

/// An archive that cannot be read as a tree.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot keep what {} holds in {}", path.display(), scratch.display())]
    Scratch { path: PathBuf, scratch: PathBuf, source: io::Error },
    #[error("{}: not a tar archive, plain or compressed with gzip, xz or zstd", path.display())]
    Unknown { path: PathBuf },
    #[error("{}: compressed with {what}, which is not supported: unpack it first", path.display())]
    Compression { path: PathBuf, what: &'static str },
    #[error("{}: damaged at byte {at} of the tar: {why}", path.display())]
    Tar { path: PathBuf, at: u64, why: TarError },
    #[error("{}: {}: {why}", path.display(), entry.escape_ascii())]
    Entry { path: PathBuf, entry: Vec<u8>, why: EntryFault },
    #[error("{} changed while it was read", path.display())]
    Changed { path: PathBuf },
    #[error("{}: {why}", path.display())]
    Image { path: PathBuf, why: String },
}

/// What is wrong with the archive as such.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("the checksum of the entry's header does not match")]
    Checksum,
    #[error("it ends in the middle of an entry")]
    Torn,
    #[error("it ends without the two empty blocks that end a tar: is it cut short?")]
    NoEnd,
    #[error("a header field is no number")]
    Number,
    #[error("extended headers of {0} bytes, where at most {max} are read", max = tar::EXTENSION_BYTES_MAX)]
    Extension(u64),
    #[error("an extended header that is no list of records")]
    Records,
    #[error("a map of holes that does not fit the file")]
    Sparse,
}

/// What is wrong with one entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryFault {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Attributes(#[from] EntryError),
    #[error("lies below {}, which is no directory", .0.escape_ascii())]
    NotDirectory(Vec<u8>),
    #[error("lies behind more than {LINKS_FOLLOWED_MAX} symbolic links")]
    Links,
    #[error("a hard link to {}, which is not there", .0.escape_ascii())]
    LinkTarget(Vec<u8>),
    #[error("the top of the tree must be a directory")]
    Root,
    #[error("an entry of type {:?}, which no tree has", char::from(*.0))]
    Kind(u8),
    #[error("{key} is {value:?}, which cannot be understood")]
    Record { key: String, value: String },
}

/// A name in a directory: the directory's inode, and the name.
type Place = (u32, Box<[u8]>);

impl Archive {
    /// Reads a tar, plain or compressed with gzip, xz or zstd, from a file or a pipe. What has to be kept meanwhile
    /// is kept in `scratch`.
    ///
    /// # Errors
    /// When it cannot be read to its end, or holds what no tree has.
    pub fn open_tar(path: &Path, scratch: &Path) -> Result<Self, ArchiveError> {
        let file = File::open(path).map_err(|source| ArchiveError::Read { path: path.to_owned(), source })?;
        let mut archive = Self::new(path, scratch)?;
        tar::read_file(&mut archive, file, path)?;
        Ok(archive)
    }

    /// Reads a container image: an OCI layout directory, or an archive of one. Of several images the one called
    /// `reference`; its layers are laid over one another and its whiteouts applied.
    ///
    /// # Errors
    /// When a part of it is missing or does not match its digest, when it holds several images and none is named, or
    /// none for this kind of machine.
    pub fn open_oci(path: &Path, reference: Option<&str>, scratch: &Path) -> Result<Self, ArchiveError> {
        let mut archive = Self::new(path, scratch)?;
        oci::read(&mut archive, path, reference)?;
        Ok(archive)
    }

    /// Reads whichever a file is: a tar, or an archive of an OCI layout.
    ///
    /// # Errors
    /// As those two.
    pub fn open(path: &Path, reference: Option<&str>, scratch: &Path) -> Result<Self, ArchiveError> {
        if path.is_dir() {
            return Self::open_oci(path, reference, scratch);
        }
        let archive = Self::open_tar(path, scratch)?;
        if !archive.is_layout() {
            return Ok(archive);
        }
        let mut image = Self::new(path, scratch)?;
        oci::read_archived(&mut image, &archive, path, reference)?;
        Ok(image)
    }

    fn new(path: &Path, scratch: &Path) -> Result<Self, ArchiveError> {
        let mut archive = Self { inodes: Vec::new(), layer: 0, spool: Spool::new(path, scratch) };
        archive.add(implied().map_err(|why| archive.fault(b"", why))?);
        Ok(archive)
    }

    /// Names below the top, those of hard links each.
    pub fn len(&self) -> usize {
        let names = |inode: &Inode| match &inode.node {
            Node::Directory(names) => names.len(),
            _ => 0,
        };
        self.inodes.iter().map(names).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn inode(&self, number: u32) -> &Inode {
        &self.inodes[number as usize]
    }

    /// Names in a directory, by bytes. None in anything else.
    pub(super) fn names(&self, directory: u32) -> impl DoubleEndedIterator<Item = (&[u8], Name)> {
        let names = match &self.inode(directory).node {
            Node::Directory(names) => Some(names),
            _ => None,
        };
        names.into_iter().flatten().map(|(name, at)| (&**name, *at))
    }

    pub(super) fn find(&self, directory: u32, name: &[u8]) -> Option<u32> {
        match &self.inode(directory).node {
            Node::Directory(names) => names.get(name).map(|name| name.inode),
            _ => None,
        }
    }

    pub(super) fn file<'a>(&'a self, bytes: u64, extents: &'a [Extent]) -> ArchivedFile<'a> {
        ArchivedFile::new(&self.spool, bytes, extents)
    }

    /// Whether the files that content was left in are as they were when they were opened.
    pub(super) fn check_unchanged(&self) -> Result<(), ArchiveError> {
        self.spool.check_unchanged()
    }

    fn fault(&self, entry: &[u8], why: impl Into<EntryFault>) -> ArchiveError {
        ArchiveError::Entry { path: self.spool.path().to_owned(), entry: entry.to_owned(), why: why.into() }
    }

    /// Puts an inode at a path, in place of what was there; a directory that was there keeps what is in it.
    fn insert(&mut self, path: &[u8], inode: Inode) -> Result<(), EntryFault> {
        let Some((parent, name)) = self.place(path)? else {
            let (Node::Directory(old), Node::Directory(_)) = (&mut self.inodes[0].node, &inode.node) else {
                return Err(EntryFault::Root);
            };
            let names = std::mem::take(old);
            self.inodes[0] = Inode { node: Node::Directory(names), ..inode };
            return Ok(());
        };
        let old = self.find(parent, &name);
        if let Some(old) = old
            && let Inode { node: Node::Directory(_), attributes, mtime } = &mut self.inodes[old as usize]
            && let Node::Directory(_) = inode.node
        {
            (*attributes, *mtime) = (inode.attributes, inode.mtime);
            self.put(parent, name, old);
            return Ok(());
        }
        let number = self.add(inode);
        self.put(parent, name, number);
        Ok(())
    }

    /// Gives an inode that is no directory another name.
    fn link(&mut self, path: &[u8], to: &[u8]) -> Result<(), EntryFault> {
        let missing = || EntryFault::LinkTarget(to.to_owned());
        let target = self.lookup(to)?.filter(|&at| !matches!(self.inode(at).node, Node::Directory(_)));
        let target = target.ok_or_else(missing)?;
        let (parent, name) = self.place(path)?.ok_or(EntryFault::Root)?;
        self.put(parent, name, target);
        Ok(())
    }

    /// What stands at a path; the last name is not followed.
    fn lookup(&mut self, path: &[u8]) -> Result<Option<u32>, EntryFault> {
        let Some(last) = components(path)?.pop() else { return Ok(Some(ROOT)) };
        let parent = self.walk(path, false)?;
        Ok(parent.and_then(|parent| self.find(parent, &last)))
    }

    /// The directory that a path leads into, and its last name; `None` for the top. Directories on the way are made.
    fn place(&mut self, path: &[u8]) -> Result<Option<Place>, EntryFault> {
        let Some(last) = components(path)?.pop() else { return Ok(None) };
        Ok(self.walk(path, true)?.map(|parent| (parent, last)))
    }

    /// The directory around the last name of a path, behind whatever symbolic links; `None` when it is not there and
    /// not to be made.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<u32>, EntryFault> {
        let mut left: VecDeque<Box<[u8]>> = components(path)?.into();
        left.pop_back();
        let (mut around, mut links) = (vec![ROOT], 0);
        while let Some(name) = left.pop_front() {
            if *name == *b".." {
                // Of a link's target; there is nothing above the top.
                around.truncate((around.len() - 1).max(1));
                continue;
            }
            let dir = *around.last().expect("the top stays");
            let Some(found) = self.find(dir, &name) else {
                if !make {
                    return Ok(None);
                }
                let made = self.add(implied()?);
                self.put(dir, name, made);
                around.push(made);
                continue;
            };
            match &self.inode(found).node {
                Node::Directory(_) => around.push(found),
                Node::Symlink(target) => {
                    links += 1;
                    if links > LINKS_FOLLOWED_MAX {
                        return Err(EntryFault::Links);
                    }
                    if target.starts_with(b"/") {
                        around.truncate(1);
                    }
                    let parts = target.split(|&byte| byte == b'/');
                    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
                    for part in parts.rev() {
                        left.push_front(part.into());
                    }
                }
                _ => return Err(EntryFault::NotDirectory(name.into())),
            }
        }
        Ok(around.last().copied())
    }

    /// Takes away what lower layers have at a path.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), EntryFault> {
        let Some(last) = components(path)?.pop() else { return Err(EntryFault::Root) };
        if let Some(parent) = self.walk(path, false)? {
            self.prune(parent, &last);
        }
        Ok(())
    }

    /// Takes away what lower layers have in a directory.
    fn opaque(&mut self, directory: &[u8]) -> Result<(), EntryFault> {
        // With one more name, the directory is what the walk ends at.
        let inside = [directory, b"/x"].concat();
        if let Some(dir) = self.walk(&inside, false)? {
            let names: Vec<Box<[u8]>> = self.names(dir).map(|(name, _)| name.into()).collect();
            for name in names {
                self.prune(dir, &name);
            }
        }
        Ok(())
    }

    /// Takes away a name that lower layers said, and below it all that they said.
    fn prune(&mut self, parent: u32, name: &[u8]) {
        // Each directory is met before and after what is in it.
        let mut todo = vec![(parent, Box::<[u8]>::from(name), false)];
        while let Some((parent, name, emptied)) = todo.pop() {
            let Node::Directory(names) = &self.inode(parent).node else { continue };
            let Some(&Name { inode, layer }) = names.get(&name) else { continue };
            if !emptied && let Node::Directory(inner) = &self.inode(inode).node {
                let inner: Vec<_> = inner.keys().map(|below| (inode, below.clone(), false)).collect();
                todo.push((parent, name, true));
                todo.extend(inner);
                continue;
            }
            let empty = self.names(inode).next().is_none();
            if layer < self.layer
                && empty
                && let Node::Directory(names) = &mut self.inodes[parent as usize].node
            {
                names.remove(&name);
            }
        }
    }

    /// The number of a user or a group, by the tree's own lists.
    fn id_of(&self, user: bool, name: &str) -> Option<u32> {
        let etc = self.find(ROOT, b"etc")?;
        let list = self.find(etc, if user { b"passwd" } else { b"group" })?;
        let Node::File { bytes, extents } = &self.inode(list).node else { return None };
        let text = self.file(*bytes, extents).read_all(ACCOUNTS_BYTES_MAX).ok()?;
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines().map(|line| line.split(':'));
        lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
    }

    fn add(&mut self, inode: Inode) -> u32 {
        self.inodes.push(inode);
        u32::try_from(self.inodes.len() - 1).expect("fewer inodes than bytes of memory over a hundred")
    }

    fn put(&mut self, parent: u32, name: Box<[u8]>, inode: u32) {
        let layer = self.layer;
        if let Node::Directory(names) = &mut self.inodes[parent as usize].node {
            names.insert(name, Name { inode, layer });
        }
    }
}

/// The names of a path in an archive. Slashes in front, doubled or at the end and dots say nothing.
fn components(path: &[u8]) -> Result<Vec<Box<[u8]>>, PathError> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| Component::new(part).map(|name| name.bytes().into())).collect()
}

fn implied() -> Result<Inode, EntryFault> {
    Ok(Inode {
        attributes: Attributes::new(IMPLIED_MODE, 0, 0, InodeFlags::NONE, Vec::new())?,
        mtime: Mtime::default(),
        node: Node::Directory(BTreeMap::new()),
    })
}
