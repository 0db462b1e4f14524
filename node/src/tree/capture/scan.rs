//! The first pass: which entries there are, in path order, how large, and which are as the last capture saw them.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use shoal_proto::image::ImagePath;
use shoal_proto::image::path::Component;

use super::super::archive::{Archive, Node};
use super::super::exclude::Excludes;
use super::super::root::{self, Directories, Names};
use super::Unreadables;
use super::ahead::{Ahead, Child, Closing, Listing, Ticket};
use super::reuse::Reuse;

/// `st_blocks` counts in these.
const BLOCK_BYTES: u64 = 512;
/// Threads beyond these would wait for each other.
const HELPERS_MAX: usize = 7;

/// All entries in path order: the order of the manifest.
#[derive(Debug, Default)]
pub(super) struct Scan {
    names: Vec<u8>,
    pub(super) rows: Vec<Row>,
    /// Bytes of files that take room.
    pub(super) data_bytes: u64,
    /// Those of them that are to be read.
    pub(super) read_bytes: u64,
    pub(super) unreadable: Unreadables,
    pub(super) counts: Counts,
}

/// What was left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) sockets: u64,
    pub(super) vanished: u64,
    pub(super) excluded: u64,
    pub(super) mounts: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    name_start: u32,
    name_bytes: u8,
    parent: u32,
    /// The entry of the parent image that it still is, or [`NONE`].
    same: u32,
    pub(super) found: Found,
    /// Bytes to read of a file, roughly.
    pub(super) read_bytes: u64,
}

/// No entry.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Directory,
    File,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    /// Another name of the row with this number.
    HardLink(u32),
}

impl Scan {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds the next row and returns its number; `None` beyond 4 GiB of names or 2^32 entries, where the tree's
    /// builder would refuse it, with an error that says so.
    fn push(&mut self, name: &[u8], parent: u32, found: Found, same: u32, data_bytes: u64) -> Option<u32> {
        let name_start = u32::try_from(self.names.len()).ok()?;
        let number = u32::try_from(self.rows.len()).ok()?;
        let name_bytes = u8::try_from(name.len()).ok()?;
        let read_bytes = if same == NONE { data_bytes } else { 0 };
        self.names.extend_from_slice(name);
        self.rows.push(Row { name_start, name_bytes, parent, same, found, read_bytes });
        self.data_bytes += data_bytes;
        self.read_bytes += read_bytes;
        Some(number)
    }

    /// Adds the next row of a tree of another machine.
    pub(super) fn push_far(&mut self, name: &[u8], parent: u32, found: Found, bytes: u64) -> Option<u32> {
        self.push(name, parent, found, NONE, bytes)
    }

    pub(super) fn name(&self, number: u32) -> &[u8] {
        let row = &self.rows[number as usize];
        &self.names[row.name_start as usize..][..usize::from(row.name_bytes)]
    }

    pub(super) fn parent(&self, number: u32) -> u32 {
        self.rows[number as usize].parent
    }

    /// The entry of the parent image that it still is.
    pub(super) fn same(&self, number: u32) -> Option<u32> {
        Some(self.rows[number as usize].same).filter(|same| *same != NONE)
    }

    pub(super) fn path(&self, number: u32) -> ImagePath {
        let mut numbers = Vec::new();
        let mut at = number;
        while at != 0 {
            numbers.push(at);
            at = self.parent(at);
        }
        let mut path = ImagePath::ROOT;
        for at in numbers.into_iter().rev() {
            if let Ok(name) = Component::new(self.name(at)) {
                path.push(name);
            }
        }
        path
    }
}

impl Names for Scan {
    fn parent_and_name(&self, number: u32) -> (u32, &[u8]) {
        (self.parent(number), self.name(number))
    }
}

/// One directory whose entries are known and not all taken yet, the next one last.
struct Frame {
    number: u32,
    /// The directory that the parent image has at this path.
    old: Option<u32>,
    children: Vec<Child>,
    /// To directories among them that are listed ahead, the next one last.
    tickets: Vec<Ticket>,
    path_bytes: usize,
}

/// Scans with so many threads.
pub(super) fn scan(
    directories: &Directories,
    excludes: &Excludes,
    reuse: Option<Reuse<'_>>,
    threads: usize,
) -> Scan {
    let ahead = &Ahead::default();
    let helpers = threads.saturating_sub(1).min(HELPERS_MAX);
    let mut scanner = Scanner {
        scan: Scan::default(),
        reuse,
        links: HashMap::new(),
        path: Vec::new(),
        device: Device::default(),
        directories,
        excludes,
        ahead: (helpers > 0).then_some(ahead),
    };
    std::thread::scope(|scope| {
        let closing = Closing(ahead);
        for _ in 0..helpers {
            scope.spawn(|| ahead.help());
        }
        scanner.run();
        drop(closing);
    });
    scanner.scan
}

struct Scanner<'a> {
    scan: Scan,
    reuse: Option<Reuse<'a>>,
    /// The first name of each inode that has several.
    links: HashMap<(u32, u32, u64), u32>,
    /// Of the entry at hand, for patterns.
    path: Vec<u8>,
    device: Device,
    directories: &'a Directories,
    excludes: &'a Excludes,
    ahead: Option<&'a Ahead>,
}

/// Which mount something is on. The mount id tells apart what is bound in from the same file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Device {
    major: u32,
    minor: u32,
    mount: u64,
}

impl Device {
    fn of(stat: &Statx) -> Self {
        Self { major: stat.stx_dev_major, minor: stat.stx_dev_minor, mount: stat.stx_mnt_id }
    }
}

impl Scanner<'_> {
    fn run(&mut self) {
        let top = Arc::clone(self.directories.top());
        let stat = match root::stat(&top) {
            Ok(stat) => stat,
            Err(error) => return self.scan.unreadable.add(ImagePath::ROOT, error.into()),
        };
        self.device = Device::of(&stat);
        let old = self.reuse.as_ref().map(|_| 0);
        self.push(b"", 0, Found::Directory, old, &stat);
        let mut frames: Vec<Frame> = self.enter(0, old, 0, None).into_iter().collect();
        while let Some(frame) = frames.last_mut() {
            let Some((name, stat)) = frame.children.pop() else {
                frames.pop();
                continue;
            };
            let at = frame.children.len();
            let ticket = frame.tickets.pop_if(|ticket| ticket.at == at);
            let (parent, path_bytes) = (frame.number, frame.path_bytes);
            let old = self.reuse.as_mut().and_then(|reuse| reuse.find(frame.old?, &name));
            self.set_path(path_bytes, &name);
            if let Some(directory) = self.child(parent, &name, old, &stat) {
                frames.extend(self.enter(directory, old, frames.len(), ticket));
            }
        }
    }

    /// Learns what is in a directory, which lies so deep.
    fn enter(
        &mut self,
        number: u32,
        old: Option<u32>,
        depth: usize,
        ticket: Option<Ticket>,
    ) -> Option<Frame> {
        let listing = match (self.ahead, ticket) {
            (Some(ahead), Some(ticket)) => ahead.take(&ticket),
            _ => self.list(number),
        };
        match listing {
            Ok(Listing { dir, children, vanished }) => {
                self.scan.counts.vanished += vanished;
                let path_bytes = self.path.len();
                let tickets = match self.ahead {
                    Some(ahead) => {
                        ahead.order(depth, &dir, &children, |child| self.enters(path_bytes, child))
                    }
                    None => Vec::new(),
                };
                Some(Frame { number, old, children, tickets, path_bytes })
            }
            Err(error) => {
                let path = self.scan.path(number);
                self.scan.unreadable.add(path, error.into());
                None
            }
        }
    }

    fn list(&self, number: u32) -> Result<Listing, Errno> {
        let dir = self.directories.open(&self.scan, number)?;
        // A descriptor of its own: others share that one and its position.
        let own = root::open_in(&dir, b".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Listing::of(Arc::new(own))
    }

    /// Whether [`child`](Self::child) will be a directory to enter.
    fn enters(&mut self, path_bytes: usize, (name, stat): &Child) -> bool {
        FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory
            && Device::of(stat) == self.device
            && {
                self.set_path(path_bytes, name);
                !self.excludes.matches(&self.path, true)
            }
    }

    /// Replaces what comes after the directory's own path.
    fn set_path(&mut self, path_bytes: usize, name: &[u8]) {
        self.path.truncate(path_bytes);
        if path_bytes > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }

    /// Takes or leaves one entry; its number when it is a directory to enter.
    fn child(&mut self, parent: u32, name: &[u8], old: Option<u32>, stat: &Statx) -> Option<u32> {
        let file_type = FileType::from_raw_mode(stat.stx_mode.into());
        let directory = file_type == FileType::Directory;
        if self.excludes.matches(&self.path, directory) {
            self.scan.counts.excluded += 1;
            return None;
        }
        let elsewhere = Device::of(stat) != self.device;
        if elsewhere {
            self.scan.counts.mounts += 1;
            if !directory {
                return None;
            }
        }
        let found = match file_type {
            FileType::Directory => Found::Directory,
            FileType::RegularFile => Found::File,
            FileType::Symlink => Found::Symlink,
            FileType::CharacterDevice => Found::CharDevice,
            FileType::BlockDevice => Found::BlockDevice,
            FileType::Fifo => Found::Fifo,
            FileType::Socket | FileType::Unknown => {
                self.scan.counts.sockets += 1;
                return None;
            }
        };
        let mut found = found;
        if !directory && stat.stx_nlink > 1 {
            let next = u32::try_from(self.scan.rows.len()).unwrap_or(u32::MAX);
            let key = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
            let first = *self.links.entry(key).or_insert(next);
            if first != next {
                found = Found::HardLink(first);
            }
        }
        // What is kept of inodes says nothing about those of other file systems.
        let number = self.push(name, parent, found, old.filter(|_| !elsewhere), stat)?;
        (directory && !elsewhere).then_some(number)
    }

    fn push(
        &mut self,
        name: &[u8],
        parent: u32,
        found: Found,
        old: Option<u32>,
        stat: &Statx,
    ) -> Option<u32> {
        let data_bytes = if found == Found::File { data_bytes(stat) } else { 0 };
        let old = old.filter(|_| !matches!(found, Found::HardLink(_)));
        let same = match (&mut self.reuse, old) {
            (Some(reuse), Some(old)) => {
                if reuse.is_same(old, stat) {
                    old
                } else {
                    NONE
                }
            }
            _ => NONE,
        };
        self.scan.push(name, parent, found, same, data_bytes)
    }
}

/// Goes through a tree that an archive holds.
pub(super) fn scan_archive(archive: &Archive, excludes: &Excludes) -> Scan {
    let mut scan = Scan::default();
    // The first name of each inode.
    let mut first_names: HashMap<u32, u32> = HashMap::new();
    scan.push(b"", 0, Found::Directory, NONE, 0);
    let mut path = Vec::new();
    // Directories around the next entry: row, bytes of the path, and what is in them, the next one last.
    let names_of = |inode| archive.names(inode).rev().collect::<Vec<_>>();
    let mut frames = vec![(0, 0, names_of(0))];
    while let Some((parent, path_bytes, names)) = frames.last_mut() {
        let Some((name, at)) = names.pop() else {
            frames.pop();
            continue;
        };
        path.truncate(*path_bytes);
        if *path_bytes > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let node = &archive.inode(at.inode).node;
        let directory = matches!(node, Node::Directory(_));
        if excludes.matches(&path, directory) {
            scan.counts.excluded += 1;
            continue;
        }
        let next = u32::try_from(scan.rows.len()).unwrap_or(u32::MAX);
        let first = *first_names.entry(at.inode).or_insert(next);
        let mut bytes = 0;
        let found = match node {
            _ if first != next => Found::HardLink(first),
            Node::Directory(_) => Found::Directory,
            Node::File { extents, .. } => {
                bytes = extents.iter().map(|extent| extent.bytes).sum();
                Found::File
            }
            Node::Symlink(_) => Found::Symlink,
            Node::CharDevice(..) => Found::CharDevice,
            Node::BlockDevice(..) => Found::BlockDevice,
            Node::Fifo => Found::Fifo,
        };
        let row = scan.push(name, *parent, found, NONE, bytes);
        if directory && let Some(row) = row {
            frames.push((row, path.len(), names_of(at.inode)));
        }
    }
    scan
}

/// Bytes of a file that take room, roughly.
fn data_bytes(stat: &Statx) -> u64 {
    match stat.stx_blocks {
        // Some file systems keep short content in the inode and count no block for it.
        0 => stat.stx_size.min(BLOCK_BYTES),
        blocks => stat.stx_size.min(blocks.saturating_mul(BLOCK_BYTES)),
    }
}
