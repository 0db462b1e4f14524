//! A whole tree looked at beside an image: what is at the path of each entry, and what else there is.
//!
//! Directories are compared by several threads, each one directory at a time: what it lists against what the image has in
//! it. Regular files are read chunk by chunk in [`VerifyMode::Full`]; without that, a change that kept size and time goes
//! unseen. Nothing is changed, and no symbolic link is followed. What the machine decides, by [`rules`](super::rules) or
//! because another file system is mounted there, is not read.

mod compare;
mod content;
mod scope;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;
use shoal_proto::image::ImagePath;
use shoal_proto::image::children::Children;
use shoal_proto::image::drift::{DriftKind, Drifts};
use shoal_proto::image::entry::{EntryIndex, Kind};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::path::Component;
use shoal_proto::image::plan::{Extra, InodeKey, Observed, Seen};
use shoal_proto::image::tree::Entry;

use self::compare::{Linked, Looked};
use self::scope::Scope;
use super::root::{self, Directories};
use super::rules::{Class, Rules};
use super::verify::{VerifyError, VerifyMode};
use super::{LOST_AND_FOUND, STAGE};

/// An image that was applied to the tree before.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) manifest: Arc<Manifest>,
    children: Children,
}

impl Owner {
    pub(super) fn new(manifest: Arc<Manifest>) -> Self {
        Self { children: Children::of(manifest.tree()), manifest }
    }

    fn find(&self, directory: Option<EntryIndex>, name: &[u8]) -> Option<EntryIndex> {
        self.children.find(self.manifest.tree(), directory?, name)
    }

    pub(super) fn resolve(&self, path: &ImagePath) -> Option<EntryIndex> {
        path.components().try_fold(EntryIndex::ROOT, |at, name| self.find(Some(at), name.bytes()))
    }
}

/// How to look at a tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct SurveyOptions<'a> {
    pub(super) mode: VerifyMode,
    pub(super) rules: &'a Rules,
    pub(super) owners: &'a [Owner],
    /// Look into directories that no image brought.
    pub(super) unowned: bool,
}

/// Compares the tree at `target` with an image. `directories` are numbered by the image's entries.
pub(super) fn survey(
    manifest: &Manifest,
    target: &Path,
    directories: &Directories,
    options: SurveyOptions<'_>,
) -> Result<Observed, VerifyError> {
    let children = Children::of(manifest.tree());
    let scope = Scope::of(manifest, target, directories, options.rules, &children);
    let visited = manifest.tree().indexes().filter(|index| scope.visits(*index)).collect();
    let surveyor = Surveyor {
        manifest,
        directories,
        children,
        linked: Linked::of(manifest),
        shared_time: (0..manifest.tree().len()).map(|_| AtomicBool::new(false)).collect(),
        visited,
        scope,
        options,
        next: AtomicUsize::new(0),
        found: Mutex::default(),
    };
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| surveyor.work())).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    Ok(surveyor.finish())
}

/// What a thread found.
#[derive(Debug, Default)]
struct Found {
    drifts: Vec<(EntryIndex, Drifts)>,
    inodes: Vec<(EntryIndex, InodeKey)>,
    extras: Vec<Extra>,
    homeless: Vec<EntryIndex>,
}

impl Found {
    fn note(&mut self, entry: EntryIndex, drifts: Drifts) {
        if !drifts.is_empty() {
            self.drifts.push((entry, drifts));
        }
    }
}

struct Surveyor<'a> {
    manifest: &'a Manifest,
    directories: &'a Directories,
    children: Children,
    linked: Linked,
    /// Directories in which the machine makes and removes names: their time is not the image's.
    shared_time: Vec<AtomicBool>,
    visited: Vec<EntryIndex>,
    scope: Scope,
    options: SurveyOptions<'a>,
    next: AtomicUsize,
    found: Mutex<Found>,
}

impl Surveyor<'_> {
    fn finish(self) -> Observed {
        let mut found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut seen: Vec<Seen> = self
            .manifest
            .tree()
            .indexes()
            .map(|index| if self.scope.is_left(index) { Seen::Left } else { Seen::Same })
            .collect();
        found.inodes.sort_unstable();
        let mut observed = Observed { mounts: self.scope.into_managed_mounts(), ..Observed::default() };
        let mount_of = |entry| observed.mount_of(self.manifest, entry);
        self.linked.compare(self.manifest, &found.inodes, mount_of, |entry| {
            found.drifts.push((entry, Drifts::of(DriftKind::HardLink)));
        });
        for (entry, drifts) in found.drifts {
            seen[entry.at()] = match seen[entry.at()] {
                Seen::Left => Seen::Left,
                Seen::Same => Seen::Drifted(drifts),
                Seen::Drifted(others) => Seen::Drifted(others.union(drifts)),
            };
        }
        for (one, shared) in seen.iter_mut().zip(&self.shared_time) {
            if let Seen::Drifted(drifts) = *one
                && shared.load(Ordering::Relaxed)
            {
                let drifts = drifts.without(Drifts::of(DriftKind::Mtime));
                *one = if drifts.is_empty() { Seen::Same } else { Seen::Drifted(drifts) };
            }
        }
        found.extras.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        observed.seen = seen;
        observed.inodes = found.inodes;
        observed.extras = found.extras;
        observed.homeless = found.homeless;
        observed
    }

    fn work(&self) -> Result<(), VerifyError> {
        let mut found = Found::default();
        while let Some(&directory) = self.visited.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            self.directory(directory, &mut found)?;
        }
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        all.drifts.append(&mut found.drifts);
        all.inodes.append(&mut found.inodes);
        all.extras.append(&mut found.extras);
        all.homeless.append(&mut found.homeless);
        Ok(())
    }

    fn directory(&self, directory: EntryIndex, found: &mut Found) -> Result<(), VerifyError> {
        let meant = self.children.of_directory(directory);
        let entry = self.manifest.entry(directory);
        let missing = Drifts::of(DriftKind::Missing);
        let dir = match self.directories.open(self.manifest.tree(), directory.get()) {
            Ok(dir) => dir,
            // The directory itself, or one above it, is missing or something else: that was said there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                meant.iter().for_each(|child| found.note(*child, missing));
                if self.scope.is_left(directory) {
                    found.homeless.extend(meant.iter().find(|child| !self.scope.is_left(**child)));
                }
                return Ok(());
            }
            Err(source) => return Err(VerifyError::Read { path: entry.path(), source }),
        };
        let failed = |source| VerifyError::Read { path: entry.path(), source };
        if entry.name().is_none() {
            let stat = root::stat(&dir).map_err(failed)?;
            found.note(directory, self.look_open(entry, &dir, &stat)?);
        }
        let names = root::list(&dir).map_err(failed)?;
        let mut meant = meant.iter().map(|child| self.manifest.entry(*child)).peekable();
        let mut extras = ExtraFinder::new(self, entry);
        for name in names {
            while let Some(gone) = meant.next_if(|entry| own_name(*entry) < &*name) {
                found.note(gone.index(), missing);
            }
            if let Some(child) = meant.next_if(|entry| own_name(*entry) == &*name) {
                if self.scope.is_left(child.index()) {
                    self.shared_time[directory.at()].store(true, Ordering::Relaxed);
                } else {
                    self.child(&dir, child, found)?;
                }
            } else if !self.is_built_in(directory, &name) {
                extras.add(&dir, &name, None, found)?;
            }
        }
        for gone in meant {
            found.note(gone.index(), missing);
        }
        Ok(())
    }

    /// What every tree may have: a file system's own directory, and an interrupted update's.
    fn is_built_in(&self, directory: EntryIndex, name: &[u8]) -> bool {
        let top = directory == EntryIndex::ROOT || self.scope.is_mount(directory);
        top && (name == LOST_AND_FOUND || name == STAGE)
    }

    fn child(&self, dir: &OwnedFd, entry: Entry<'_>, found: &mut Found) -> Result<(), VerifyError> {
        let stat = match root::stat_in(dir, own_name(entry)) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                found.note(entry.index(), Drifts::of(DriftKind::Missing));
                return Ok(());
            }
            Err(source) => return Err(VerifyError::Read { path: entry.path(), source }),
        };
        let kind = self.linked.inode_kind(self.manifest, entry);
        let there = FileType::from_raw_mode(stat.stx_mode.into());
        let linked = self.linked.contains(entry.index()) || stat.stx_nlink > 1;
        if kind != Kind::Directory && there != FileType::Directory && linked {
            found.inodes.push((entry.index(), (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)));
        }
        match self.look(dir, entry, kind, &stat)? {
            Looked::At(drifts) => found.note(entry.index(), drifts),
            Looked::Gone => found.note(entry.index(), Drifts::of(DriftKind::Missing)),
        }
        if kind != Kind::Directory && there == FileType::Directory {
            self.within(dir, entry, found)?;
        }
        Ok(())
    }

    /// Lists what is in a directory that stands where the image has something else.
    fn within(&self, dir: &OwnedFd, entry: Entry<'_>, found: &mut Found) -> Result<(), VerifyError> {
        let failed = |source| VerifyError::Read { path: entry.path(), source };
        let inner = root::open_directory_in(dir, own_name(entry)).map_err(failed)?;
        let mut extras = ExtraFinder::new(self, entry);
        for name in root::list(&inner).map_err(failed)? {
            extras.add(&inner, &name, Some(entry.index()), found)?;
        }
        Ok(())
    }
}

/// Describes what one directory holds beyond the image.
struct ExtraFinder<'a> {
    surveyor: &'a Surveyor<'a>,
    /// The directory, its class, and what the earlier images have there; worked out with the first name.
    place: Option<(ImagePath, Vec<Option<EntryIndex>>)>,
    directory: Entry<'a>,
}

impl<'a> ExtraFinder<'a> {
    fn new(surveyor: &'a Surveyor<'_>, directory: Entry<'a>) -> Self {
        Self { surveyor, place: None, directory }
    }

    fn add(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        within: Option<EntryIndex>,
        found: &mut Found,
    ) -> Result<(), VerifyError> {
        let owners = self.surveyor.options.owners;
        let (path, places) = self.place.get_or_insert_with(|| {
            let path = self.directory.path();
            let places = owners.iter().map(|owner| owner.resolve(&path)).collect();
            (path, places)
        });
        let class = self.surveyor.scope.class(self.directory.index());
        let class = self.surveyor.extra(dir, name, path, places, class, within, found)?;
        if class != Class::Managed {
            let at = self.directory.index().at();
            self.surveyor.shared_time[at].store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Surveyor<'_> {
    /// Adds `name` in `dir`, and what is in it when that may have to go; says its class.
    #[expect(clippy::too_many_arguments, reason = "one step of a recursion")]
    fn extra(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        around: &ImagePath,
        places: &[Option<EntryIndex>],
        class: Class,
        within: Option<EntryIndex>,
        found: &mut Found,
    ) -> Result<Class, VerifyError> {
        let Ok(component) = Component::new(name) else { return Ok(class) };
        let mut path = around.clone();
        path.push(component);
        let stat = match root::stat_in(dir, name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(class),
            Err(source) => return Err(VerifyError::Read { path, source }),
        };
        let directory = is_directory(&stat);
        let class = self.options.rules.class(path.bytes(), directory, class);
        let owners = self.options.owners;
        let places: Vec<_> =
            owners.iter().zip(places).map(|(owner, place)| owner.find(*place, name)).collect();
        let owned = places.iter().any(Option::is_some);
        let left = class != Class::Managed || self.scope.is_mounted(&path);
        found.extras.push(Extra { path: path.clone(), directory, owned, left, within });
        if directory && !left && (owned || within.is_some() || self.options.unowned) {
            let failed = |source| VerifyError::Read { path: path.clone(), source };
            let inner = root::open_directory_in(dir, name).map_err(failed)?;
            for name in root::list(&inner).map_err(failed)? {
                self.extra(&inner, &name, &path, &places, class, within, found)?;
            }
        }
        Ok(class)
    }
}

fn is_directory(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory
}

pub(super) fn own_name<'a>(entry: Entry<'a>) -> &'a [u8] {
    entry.name().map_or(&b""[..], |name| name.bytes())
}
