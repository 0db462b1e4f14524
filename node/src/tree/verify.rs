//! Where a tree and an image differ.
//!
//! Directories are compared by several threads, each one directory at a time: what it lists against what the manifest
//! has in it. Regular files are read chunk by chunk in [`VerifyMode::Full`]; without that, a change that kept size and
//! time goes unseen. Nothing is changed, and no symbolic link is followed.

mod content;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use shoal_proto::image::ImagePath;
use shoal_proto::image::entry::{EntryIndex, Kind, MODE_MASK};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::path::Component;
use shoal_proto::image::tree::Entry;

use super::metadata::{self, Inode, ReadError};
use super::project;
use super::root::{self, Directories};

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyMode {
    /// Everything but content.
    Metadata,
    /// Content too.
    Full,
}

/// One way in which a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    Missing,
    /// In the tree and not in the image; what is in such a directory is not listed.
    Extra,
    Type,
    Size,
    Content,
    Mode,
    Owner,
    Mtime,
    /// ACLs and capabilities among them.
    Xattr,
    Flags,
    Project,
    LinkTarget,
    Device,
    /// It shares its inode with other names than the image says.
    HardLink,
}

/// A path that is not as the image has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    #[serde(serialize_with = "as_text")]
    pub path: ImagePath,
    /// Sorted, none twice.
    pub kinds: Vec<DriftKind>,
}

impl Drift {
    /// The kinds as `--json` spells them.
    pub fn names(&self) -> Vec<String> {
        self.kinds
            .iter()
            .filter_map(|kind| Some(serde_json::to_value(kind).ok()?.as_str()?.to_owned()))
            .collect()
    }
}

fn as_text<S: serde::Serializer>(path: &ImagePath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

/// What was compared and what differs, in path order.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    pub entries: u64,
    pub drift: Vec<Drift>,
    pub elapsed_s: f64,
}

impl VerifyReport {
    /// Without differences of some kinds, for a target that is known to lack them.
    #[must_use]
    pub fn without(mut self, kinds: &[DriftKind]) -> Self {
        for drift in &mut self.drift {
            drift.kinds.retain(|kind| !kinds.contains(kind));
        }
        self.drift.retain(|drift| !drift.kinds.is_empty());
        self
    }
}

/// Why a tree could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot open {}", path.display())]
    Target { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: ImagePath, source: Errno },
}

/// Compares the tree at `target` with an image.
///
/// `lost+found` at the top belongs to the file system, and is never extra.
pub fn verify(manifest: &Manifest, target: &Path, mode: VerifyMode) -> Result<VerifyReport, VerifyError> {
    let started = Instant::now();
    let top =
        root::open_top(target).map_err(|source| VerifyError::Target { path: target.to_owned(), source })?;
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let comparison = Comparison {
        manifest,
        directories: Directories::new(top),
        children: Children::of(manifest),
        linked: linked(manifest),
        mode,
        next: AtomicUsize::new(0),
        found: Mutex::default(),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| comparison.work())).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let mut found = comparison.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.compare_links(manifest);
    let mut drift: Vec<Drift> = found.drift;
    drift.sort_by(|one, other| one.path.cmp(&other.path));
    drift.dedup_by(|next, one| {
        let same = next.path == one.path;
        if same {
            one.kinds.append(&mut next.kinds);
        }
        same
    });
    for one in &mut drift {
        one.kinds.sort_unstable();
        one.kinds.dedup();
    }
    Ok(VerifyReport {
        entries: manifest.tree().len() as u64,
        drift,
        elapsed_s: started.elapsed().as_secs_f64(),
    })
}

/// For each directory the entries in it, sorted by name.
struct Children {
    directories: Vec<EntryIndex>,
    /// By entry: where its children start, and after the last the number of all.
    starts: Vec<u32>,
    children: Vec<EntryIndex>,
}

impl Children {
    fn of(manifest: &Manifest) -> Self {
        let mut starts = vec![0_u32; manifest.tree().len() + 1];
        let below_root = || manifest.entries().skip(1);
        for entry in below_root() {
            starts[entry.parent().at() + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut children = vec![EntryIndex::ROOT; starts[manifest.tree().len()] as usize];
        for entry in below_root() {
            let slot = &mut next[entry.parent().at()];
            children[*slot as usize] = entry.index();
            *slot += 1;
        }
        let directories =
            manifest.entries().filter(|entry| entry.is_directory()).map(|entry| entry.index()).collect();
        Self { directories, starts, children }
    }

    fn of_directory(&self, directory: EntryIndex) -> &[EntryIndex] {
        &self.children[self.starts[directory.at()] as usize..self.starts[directory.at() + 1] as usize]
    }
}

/// What the threads found.
#[derive(Default)]
struct Found {
    drift: Vec<Drift>,
    /// Inodes with several names, in the tree or in the image.
    inodes: Vec<(EntryIndex, InodeKey)>,
}

/// Device and number.
type InodeKey = (u32, u32, u64);

impl Found {
    /// Two names must share an inode exactly when the image says so.
    fn compare_links(&mut self, manifest: &Manifest) {
        self.inodes.sort_unstable();
        let mut first_of_inode: HashMap<InodeKey, EntryIndex> = HashMap::new();
        let mut inode_of: HashMap<EntryIndex, InodeKey> = HashMap::new();
        for &(entry, key) in &self.inodes {
            inode_of.insert(entry, key);
            let first = *first_of_inode.entry(key).or_insert(entry);
            let meant = meant_first(manifest, entry);
            // With the first name gone or of another inode, the names that are left still belong together.
            let same = meant == meant_first(manifest, first)
                && (entry == meant || inode_of.get(&meant).is_none_or(|inode| *inode == key));
            if !same {
                self.drift
                    .push(Drift { path: manifest.entry(entry).path(), kinds: vec![DriftKind::HardLink] });
            }
        }
    }
}

fn linked(manifest: &Manifest) -> HashSet<EntryIndex> {
    let target = |entry: Entry<'_>| match entry.kind() {
        Kind::HardLink { to } => Some(to),
        _ => None,
    };
    manifest.entries().filter_map(target).collect()
}

fn meant_first(manifest: &Manifest, entry: EntryIndex) -> EntryIndex {
    match manifest.entry(entry).kind() {
        Kind::HardLink { to } => to,
        _ => entry,
    }
}

struct Comparison<'a> {
    manifest: &'a Manifest,
    directories: Directories,
    children: Children,
    /// Entries that the image has further names for.
    linked: HashSet<EntryIndex>,
    mode: VerifyMode,
    next: AtomicUsize,
    found: Mutex<Found>,
}

impl Comparison<'_> {
    fn work(&self) -> Result<(), VerifyError> {
        let mut found = Found::default();
        while let Some(&directory) = self.children.directories.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            self.directory(directory, &mut found)?;
        }
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        all.drift.append(&mut found.drift);
        all.inodes.append(&mut found.inodes);
        Ok(())
    }

    fn directory(&self, directory: EntryIndex, found: &mut Found) -> Result<(), VerifyError> {
        let meant = self.children.of_directory(directory);
        let entry = self.manifest.entry(directory);
        let dir = match self.directories.open(self.manifest.tree(), directory.get()) {
            Ok(dir) => dir,
            // The directory itself, or one above it, is missing or something else: that was said there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                let missing = |child: &EntryIndex| Drift {
                    path: self.manifest.entry(*child).path(),
                    kinds: vec![DriftKind::Missing],
                };
                found.drift.extend(meant.iter().map(missing));
                return Ok(());
            }
            Err(source) => return Err(VerifyError::Read { path: entry.path(), source }),
        };
        let failed = |source| VerifyError::Read { path: entry.path(), source };
        let stat = root::stat(&dir).map_err(failed)?;
        if entry.name().is_none() {
            let kinds = self.compare_open(entry, &dir, &stat).map_err(|error| read_failed(entry, error))?;
            note(found, entry, kinds);
        }
        let names = root::list(&dir).map_err(failed)?;
        let mut meant = meant.iter().map(|child| self.manifest.entry(*child)).peekable();
        for name in names {
            while let Some(missing) = meant.next_if(|entry| own_name(*entry) < &*name) {
                note(found, missing, vec![DriftKind::Missing]);
            }
            if let Some(child) = meant.next_if(|entry| own_name(*entry) == &*name) {
                self.child(&dir, child, found)?;
            } else if !(directory == EntryIndex::ROOT && *name == *b"lost+found") {
                let mut path = entry.path();
                if let Ok(name) = Component::new(&name) {
                    path.push(name);
                }
                found.drift.push(Drift { path, kinds: vec![DriftKind::Extra] });
            }
        }
        for missing in meant {
            note(found, missing, vec![DriftKind::Missing]);
        }
        Ok(())
    }

    fn child(&self, dir: &OwnedFd, entry: Entry<'_>, found: &mut Found) -> Result<(), VerifyError> {
        let stat = match root::stat_in(dir, own_name(entry)) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                note(found, entry, vec![DriftKind::Missing]);
                return Ok(());
            }
            Err(source) => return Err(VerifyError::Read { path: entry.path(), source }),
        };
        let kind = self.inode_kind(entry);
        let linked = matches!(entry.kind(), Kind::HardLink { .. }) || self.linked.contains(&entry.index());
        if kind != Kind::Directory && (linked || stat.stx_nlink > 1) {
            found.inodes.push((entry.index(), (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)));
        }
        let kinds = self.compare(dir, entry, kind, &stat).map_err(|error| read_failed(entry, error))?;
        note(found, entry, kinds);
        Ok(())
    }

    /// What the inode is: of a hard link, what it links to.
    fn inode_kind<'a>(&'a self, entry: Entry<'a>) -> Kind<'a> {
        match entry.kind() {
            Kind::HardLink { to } => self.manifest.entry(to).kind(),
            own => own,
        }
    }

    fn compare(
        &self,
        dir: &OwnedFd,
        entry: Entry<'_>,
        kind: Kind<'_>,
        stat: &Statx,
    ) -> Result<Vec<DriftKind>, ReadError> {
        let name = own_name(entry);
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let mut kinds = Vec::new();
        match (kind, FileType::from_raw_mode(stat.stx_mode.into())) {
            (Kind::Directory, FileType::Directory) => {
                let fd = root::open_directory_in(dir, name)?;
                return self.compare_open(entry, &fd, stat);
            }
            (Kind::File(content), FileType::RegularFile) => {
                let fd = root::open_in(dir, name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
                kinds = self.compare_open(entry, &fd, stat)?;
                if stat.stx_size != self.manifest.size(entry) {
                    kinds.push(DriftKind::Size);
                } else if self.mode == VerifyMode::Full && !content::equal(self.manifest, &content, &fd)? {
                    kinds.push(DriftKind::Content);
                }
                return Ok(kinds);
            }
            (Kind::Symlink { target }, FileType::Symlink) => {
                if rustix::fs::readlinkat(dir, name, Vec::new())?.as_bytes() != target {
                    kinds.push(DriftKind::LinkTarget);
                }
            }
            (Kind::CharDevice { major, minor }, FileType::CharacterDevice)
            | (Kind::BlockDevice { major, minor }, FileType::BlockDevice) => {
                if device != (major, minor) {
                    kinds.push(DriftKind::Device);
                }
            }
            (Kind::Fifo, FileType::Fifo) => {}
            _ => return Ok(vec![DriftKind::Type]),
        }
        compare_stat(entry, stat, matches!(kind, Kind::Symlink { .. }), &mut kinds)?;
        if metadata::read_xattrs(Inode::Named(dir, name))? != entry.attributes().xattrs() {
            kinds.push(DriftKind::Xattr);
        }
        Ok(kinds)
    }

    fn compare_open(
        &self,
        entry: Entry<'_>,
        fd: &OwnedFd,
        stat: &Statx,
    ) -> Result<Vec<DriftKind>, ReadError> {
        let mut kinds = Vec::new();
        compare_stat(entry, stat, false, &mut kinds)?;
        if metadata::read_xattrs(Inode::Open(fd))? != entry.attributes().xattrs() {
            kinds.push(DriftKind::Xattr);
        }
        if metadata::read_flags(fd)? != entry.attributes().flags() {
            kinds.push(DriftKind::Flags);
        }
        if project::read(fd)? != entry.attributes().project() {
            kinds.push(DriftKind::Project);
        }
        Ok(kinds)
    }
}

fn compare_stat(
    entry: Entry<'_>,
    stat: &Statx,
    link: bool,
    kinds: &mut Vec<DriftKind>,
) -> Result<(), ReadError> {
    let attributes = entry.attributes();
    if !link && u32::from(stat.stx_mode) & MODE_MASK != attributes.mode() {
        kinds.push(DriftKind::Mode);
    }
    if (stat.stx_uid, stat.stx_gid) != (attributes.uid(), attributes.gid()) {
        kinds.push(DriftKind::Owner);
    }
    if metadata::mtime_of(stat)? != entry.mtime() {
        kinds.push(DriftKind::Mtime);
    }
    Ok(())
}

fn own_name<'a>(entry: Entry<'a>) -> &'a [u8] {
    entry.name().map_or(&b""[..], |name| name.bytes())
}

fn note(found: &mut Found, entry: Entry<'_>, kinds: Vec<DriftKind>) {
    if !kinds.is_empty() {
        found.drift.push(Drift { path: entry.path(), kinds });
    }
}

fn read_failed(entry: Entry<'_>, error: ReadError) -> VerifyError {
    let source = match error {
        ReadError::System(source) => source,
        // A time or an attribute that no inode should have.
        ReadError::Entry(_) => Errno::INVAL,
    };
    VerifyError::Read { path: entry.path(), source }
}
