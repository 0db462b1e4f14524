//! What is new, made beside its place: whole files with all their metadata, whole directories with everything in them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use shoal_proto::image::entry::{EntryIndex, InodeFlags, Kind};
use shoal_proto::image::path::Component;
use shoal_proto::image::plan::{Action, Group};
use shoal_proto::image::tree::Tree;

use super::super::STAGE;
use super::super::apply::ApplyError;
use super::super::metadata::{self, Aspect, Inode};
use super::super::root::{self, Directories, Names};
use super::super::survey::own_name;
use super::reader::{ChunkReader, WriteError};
use super::sources::has_content;
use super::{Update, UpdateError, in_threads};
use crate::store::Store;

/// Entries that a thread takes at once: neighbours share a piece.
const BATCH: usize = 32;

/// All that waits to be renamed into its place.
#[derive(Debug)]
pub(super) struct Staged {
    /// By the directory that its file system is mounted on.
    areas: BTreeMap<EntryIndex, Area>,
    reused_bytes: AtomicU64,
}

/// The stage of one file system. Numbers of directories are those of the image's entries; 0 is the stage itself.
#[derive(Debug)]
struct Area {
    directories: Directories,
}

/// A directory with a stage in it, as it was before.
struct Top {
    fd: Arc<OwnedFd>,
    stat: Statx,
    flags: InodeFlags,
}

/// How entries are called in a stage: a step's by its number, what is in a directory that comes whole by its own name.
struct StagedNames<'a> {
    tree: &'a Tree,
    steps: &'a BTreeSet<EntryIndex>,
    numbers: &'a BTreeMap<EntryIndex, Vec<u8>>,
}

impl Names for StagedNames<'_> {
    fn parent_and_name(&self, number: u32) -> (u32, &[u8]) {
        let index = self.tree.index(number).unwrap_or(EntryIndex::ROOT);
        if self.steps.contains(&index) {
            return (0, self.numbers.get(&index).map_or(&b""[..], |name| name));
        }
        let entry = self.tree.entry(index);
        (entry.parent().get(), own_name(entry))
    }
}

/// A step's name in its stage.
pub(super) fn staged_name(entry: EntryIndex) -> Vec<u8> {
    format!("{:x}", entry.get()).into_bytes()
}

/// The name in a stage of an inode with several names.
fn inode_name(first: EntryIndex) -> Vec<u8> {
    format!("inode-{:x}", first.get()).into_bytes()
}

impl Staged {
    pub(super) fn reused_bytes(&self) -> u64 {
        self.reused_bytes.load(Ordering::Relaxed)
    }

    /// The stage that holds the step of `entry`, on the file system mounted at `mount`.
    pub(super) fn dir(&self, mount: EntryIndex) -> Option<&Arc<OwnedFd>> {
        self.areas.get(&mount).map(|area| area.directories.top())
    }

    pub(super) fn mounts(&self) -> impl Iterator<Item = EntryIndex> {
        self.areas.keys().copied()
    }
}

/// One run of staging.
struct Stager<'a> {
    update: &'a Update,
    staged: &'a Staged,
    steps: BTreeSet<EntryIndex>,
    numbers: BTreeMap<EntryIndex, Vec<u8>>,
    blocks: &'a Store,
}

impl Update {
    /// Makes everything new, and syncs it. After an error the tree is as it was, and takes no more room.
    pub(super) fn stage(&self, blocks: &Store) -> Result<Staged, UpdateError> {
        let mut tops = Vec::new();
        let staged = self.make_stages(blocks, &mut tops);
        if staged.is_err() {
            self.abandon(tops);
        }
        staged
    }

    /// Takes the stages away and gives the directories that they were in back what they had, as far as that can be.
    fn abandon(&self, tops: Vec<Top>) {
        for keeper in self.plan.keepers.values() {
            let _ = self.lock(*keeper);
        }
        for Top { fd, stat, flags } in tops {
            let _ = root::remove(&fd, STAGE);
            let _ = rustix::fs::fchmod(&*fd, Mode::from_raw_mode(stat.stx_mode.into()));
            if let Ok(mtime) = metadata::mtime_of(&stat) {
                let _ = metadata::set_time(Inode::Open(&fd), mtime);
            }
            let _ = metadata::set_flags(&fd, flags);
        }
    }

    /// Removes what interrupted updates left.
    pub(super) fn remove_stages(&self) -> Result<(), UpdateError> {
        let mut mounts = self.observed.mounts.iter().copied().chain([EntryIndex::ROOT]);
        mounts.try_for_each(|mount| self.remove_stage(mount))
    }

    fn make_stages(&self, blocks: &Store, tops: &mut Vec<Top>) -> Result<Staged, UpdateError> {
        let new = self.new_entries();
        let steps: BTreeSet<EntryIndex> = self
            .plan
            .steps
            .iter()
            .filter(|step| step.action != Action::Adjust)
            .map(|step| step.entry)
            .collect();
        let mut staged = Staged { areas: BTreeMap::new(), reused_bytes: AtomicU64::new(0) };
        self.remove_stages()?;
        for &entry in &steps {
            let mount = self.mount_of(entry);
            if let Entry::Vacant(area) = staged.areas.entry(mount) {
                area.insert(self.open_stage(mount, tops)?);
            }
        }
        let numbers = steps.iter().map(|step| (*step, staged_name(*step))).collect();
        let stager = Stager { update: self, staged: &staged, steps, numbers, blocks };
        stager.run(&new)?;
        for area in staged.areas.values() {
            rustix::fs::syncfs(area.directories.top())
                .map_err(|source| ApplyError::Sync { path: self.tree.path.clone(), source })?;
        }
        Ok(staged)
    }

    /// Removes what an interrupted update left on one file system.
    pub(super) fn remove_stage(&self, mount: EntryIndex) -> Result<(), UpdateError> {
        let mut path = self.goal.entry(mount).path();
        if let Ok(stage) = Component::new(STAGE) {
            path.push(stage);
        }
        let failed = |source| UpdateError::Remove { path, source };
        let top = match self.directories().open(self.goal.tree(), mount.get()) {
            Ok(top) => top,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        match root::remove(&top, STAGE) {
            // Nothing is staged on it either; what has to be says so itself.
            Err(Errno::ROFS) => Ok(()),
            done => done.map_err(failed),
        }
    }

    fn open_stage(&self, mount: EntryIndex, tops: &mut Vec<Top>) -> Result<Area, UpdateError> {
        let failed = |source| UpdateError::Stage { path: self.goal.entry(mount).path(), source };
        let top = self.directories().open(self.goal.tree(), mount.get()).map_err(failed)?;
        let (stat, flags) = (root::stat(&top).map_err(failed)?, metadata::read_flags(&top).map_err(failed)?);
        tops.push(Top { fd: top.clone(), stat, flags });
        let make = || {
            rustix::fs::mkdirat(&*top, STAGE, Mode::RWXU)?;
            root::open_directory_in(&top, STAGE)
        };
        let made = match make() {
            // The top may be locked; it gets its metadata back at the end.
            Err(Errno::PERM | Errno::ACCESS) => metadata::open_up(&top).and_then(|()| make()),
            made => made,
        };
        let dir = made.map_err(failed)?;
        metadata::open_for_filling(&dir).map_err(failed)?;
        Ok(Area { directories: Directories::new(dir) })
    }
}

impl Stager<'_> {
    fn run(&self, new: &[EntryIndex]) -> Result<(), UpdateError> {
        let goal = &self.update.goal;
        let directory = |entry: &&EntryIndex| goal.entry(**entry).is_directory();
        let linked = |entry: &EntryIndex| self.update.is_linked(*entry);
        for &entry in new.iter().filter(directory) {
            self.place(entry, |dir, name| rustix::fs::mkdirat(dir, name, Mode::RWXU))?;
        }
        let (inodes, keepers) = self.inodes(new);
        let mut jobs: Vec<(EntryIndex, Option<EntryIndex>)> =
            inodes.into_iter().map(|(first, mount)| (first, Some(mount))).collect();
        let lone = new.iter().filter(|entry| !directory(entry) && !linked(entry));
        jobs.extend(lone.map(|entry| (*entry, None)));
        self.make_all(&jobs)?;
        // Late, because it may take a lock away.
        keepers.into_iter().try_for_each(|(group, keeper)| self.link_keeper(group, keeper))?;
        for &entry in new.iter().filter(|entry| linked(entry)) {
            self.link(entry)?;
        }
        for &entry in new.iter().rev() {
            self.finish(entry)?;
        }
        Ok(())
    }

    /// The inodes with several names that have to be made, and those that are right on disk, with a name of each there.
    fn inodes(&self, new: &[EntryIndex]) -> (Vec<Group>, Vec<(Group, EntryIndex)>) {
        let linked = new.iter().filter(|entry| self.update.is_linked(**entry));
        let groups: BTreeSet<Group> =
            linked.map(|entry| self.update.observed.group_of(&self.update.goal, *entry)).collect();
        let (mut to_make, mut keepers) = (Vec::new(), Vec::new());
        for group in groups {
            match self.update.plan.keepers.get(&group) {
                Some(&keeper) => keepers.push((group, keeper)),
                None => to_make.push(group),
            }
        }
        (to_make, keepers)
    }

    /// Brings an inode that is right on disk into a stage. Its flags come back when all names are in their places: what is
    /// immutable can get no name.
    fn link_keeper(&self, (first, mount): Group, keeper: EntryIndex) -> Result<(), UpdateError> {
        let goal = &self.update.goal;
        let entry = goal.entry(keeper);
        let failed = |source| UpdateError::Stage { path: entry.path(), source };
        let dir = self.update.directories().open(goal.tree(), entry.parent().get()).map_err(failed)?;
        let stage = self.staged.dir(mount).expect("a stage for each mount with steps");
        let link =
            || rustix::fs::linkat(&*dir, own_name(entry), &**stage, inode_name(first), AtFlags::empty());
        match link() {
            Err(Errno::PERM) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let fd = root::open_in(&dir, own_name(entry), flags, Mode::empty()).map_err(failed)?;
                metadata::unlock(&fd).map_err(failed)?;
                link().map_err(failed)
            }
            done => done.map_err(failed),
        }
    }

    /// `jobs` are entries, and of inodes with several names the file systems that they are made on.
    fn make_all(&self, jobs: &[(EntryIndex, Option<EntryIndex>)]) -> Result<(), UpdateError> {
        let next = AtomicUsize::new(0);
        in_threads(|| {
            let mut reader = ChunkReader::new(self.update, self.blocks);
            loop {
                let start = next.fetch_add(BATCH, Ordering::Relaxed);
                let Some(batch) = jobs.get(start..jobs.len().min(start + BATCH)) else { break };
                if batch.is_empty() {
                    break;
                }
                for &(entry, inode) in batch {
                    if let Some(mount) = inode {
                        let Some(dir) = self.staged.dir(mount) else { continue };
                        self.make(entry, dir, &inode_name(entry), &mut reader)?;
                    } else {
                        let dir = self.parent(entry)?;
                        self.make(entry, &dir, self.name(entry), &mut reader)?;
                    }
                }
            }
            self.staged.reused_bytes.fetch_add(reader.reused_bytes, Ordering::Relaxed);
            Ok(())
        })
    }

    fn names(&self) -> StagedNames<'_> {
        StagedNames { tree: self.update.goal.tree(), steps: &self.steps, numbers: &self.numbers }
    }

    fn name(&self, entry: EntryIndex) -> &[u8] {
        match self.numbers.get(&entry) {
            Some(number) => number,
            None => own_name(self.update.goal.entry(entry)),
        }
    }

    /// The directory of the stage that an entry is made in.
    fn parent(&self, entry: EntryIndex) -> Result<Arc<OwnedFd>, UpdateError> {
        let area = &self.staged.areas[&self.update.mount_of(entry)];
        if self.steps.contains(&entry) {
            return Ok(area.directories.top().clone());
        }
        let parent = self.update.goal.entry(entry).parent();
        area.directories.open(&self.names(), parent.get()).map_err(|source| self.failed(entry, source))
    }

    fn failed(&self, entry: EntryIndex, source: Errno) -> UpdateError {
        let path = self.update.goal.entry(entry).path();
        if matches!(source, Errno::NOSPC | Errno::DQUOT) {
            return ApplyError::Full { path }.into();
        }
        UpdateError::Stage { path, source }
    }

    fn place(
        &self,
        entry: EntryIndex,
        make: impl Fn(&OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), UpdateError> {
        let dir = self.parent(entry)?;
        make(&dir, self.name(entry)).map_err(|source| self.failed(entry, source))
    }

    /// Makes anything but a directory, with all but its flags.
    fn make(
        &self,
        index: EntryIndex,
        dir: &OwnedFd,
        name: &[u8],
        reader: &mut ChunkReader<'_>,
    ) -> Result<(), UpdateError> {
        let entry = self.update.goal.entry(index);
        let node = |kind, (major, minor)| {
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(dir, name, kind, mode, rustix::fs::makedev(major, minor))
        };
        let made = match entry.kind() {
            Kind::Directory | Kind::HardLink { .. } => unreachable!("made elsewhere"),
            Kind::File(content) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let fd = root::open_in(dir, name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(|source| self.failed(index, source))?;
                if self.clone_own(index, &fd) {
                    reader.reused_bytes += self.update.goal.size(entry);
                    return self.set_metadata(index, Inode::Open(&fd));
                }
                reader.write(index, content.segments(), &fd).map_err(|error| match error {
                    WriteError::Gone => UpdateError::ChunkGone { path: entry.path() },
                    WriteError::System(source) => self.failed(index, source),
                    WriteError::Store(error) => error.into(),
                })?;
                return self.set_metadata(index, Inode::Open(&fd));
            }
            Kind::Symlink { target } => rustix::fs::symlinkat(target, dir, name),
            Kind::Fifo => node(FileType::Fifo, (0, 0)),
            Kind::CharDevice { major, minor } => node(FileType::CharacterDevice, (major, minor)),
            Kind::BlockDevice { major, minor } => node(FileType::BlockDevice, (major, minor)),
        };
        match made {
            Ok(()) => self.set_metadata(index, Inode::Named(dir, name)),
            Err(source) if is_device(entry.kind()) => {
                Ok(self.update.tree.fail_or_lose(entry.path(), Aspect::Device, source)?)
            }
            Err(source) => Err(self.failed(index, source)),
        }
    }

    /// Shares the extents of a file that stands at its path with the right content: true where the file system can.
    fn clone_own(&self, index: EntryIndex, fd: &OwnedFd) -> bool {
        let entry = self.update.goal.entry(index);
        if !has_content(self.update.observed.seen[index.at()]) || self.update.goal.size(entry) == 0 {
            return false;
        }
        let Ok(dir) = self.update.directories().open(self.update.goal.tree(), entry.parent().get()) else {
            return false;
        };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        root::open_in(&dir, own_name(entry), flags, Mode::empty())
            .and_then(|own| rustix::fs::ioctl_ficlone(fd, own))
            .is_ok()
    }

    fn set_metadata(&self, entry: EntryIndex, inode: Inode<'_>) -> Result<(), UpdateError> {
        self.update.set_metadata(entry, inode)
    }

    fn link(&self, entry: EntryIndex) -> Result<(), UpdateError> {
        let first = self.update.first_of(entry);
        let stage = self.staged.dir(self.update.mount_of(entry)).expect("a stage for each mount with steps");
        let linked = self.place(entry, |dir, name| {
            rustix::fs::linkat(&**stage, inode_name(first), dir, name, AtFlags::empty())
        });
        match linked {
            // Its device could not be made, which is a loss already.
            Err(UpdateError::Stage { source: Errno::NOENT, .. })
                if is_device(self.update.goal.entry(first).kind()) =>
            {
                Ok(())
            }
            done => done,
        }
    }

    /// After everything in it: a directory's metadata, and flags of what is in directories that come whole. A step's own
    /// flags, and those of an inode with several names, come when all is in its place: what is immutable cannot be
    /// renamed.
    fn finish(&self, index: EntryIndex) -> Result<(), UpdateError> {
        let entry = self.update.goal.entry(index);
        let step = self.steps.contains(&index);
        if entry.is_directory() {
            let area = &self.staged.areas[&self.update.mount_of(index)];
            let dir = area
                .directories
                .open(&self.names(), index.get())
                .map_err(|source| self.failed(index, source))?;
            // Only root may rename a directory that it may not write to.
            if !step || self.update.tree.privileged {
                self.set_metadata(index, Inode::Open(&dir))?;
            }
            if !step && !entry.attributes().flags().is_empty() {
                self.update.set_flags(index, &dir)?;
            }
        } else if !step
            && !self.update.is_linked(index)
            && matches!(entry.kind(), Kind::File(_))
            && !entry.attributes().flags().is_empty()
        {
            let dir = self.parent(index)?;
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let fd = root::open_in(&dir, self.name(index), flags, Mode::empty())
                .map_err(|source| self.failed(index, source))?;
            self.update.set_flags(index, &fd)?;
        }
        Ok(())
    }
}

impl Update {
    pub(super) fn first_of(&self, entry: EntryIndex) -> EntryIndex {
        match self.goal.entry(entry).kind() {
            Kind::HardLink { to } => to,
            _ => entry,
        }
    }

    pub(super) fn is_linked(&self, entry: EntryIndex) -> bool {
        self.linked.contains(&self.first_of(entry))
    }

    pub(super) fn set_metadata(&self, index: EntryIndex, inode: Inode<'_>) -> Result<(), UpdateError> {
        let entry = self.goal.entry(index);
        let link = matches!(entry.kind(), Kind::Symlink { .. });
        let mut done = Ok(());
        metadata::set(inode, entry.attributes(), entry.mtime(), link, |aspect, error| {
            if done.is_ok() {
                done = self.tree.fail_or_lose(entry.path(), aspect, error);
            }
        });
        Ok(done?)
    }

    pub(super) fn set_flags(&self, index: EntryIndex, fd: &OwnedFd) -> Result<(), UpdateError> {
        let entry = self.goal.entry(index);
        match metadata::set_flags(fd, entry.attributes().flags()) {
            Ok(()) => Ok(()),
            Err(error) => Ok(self.tree.fail_or_lose(entry.path(), Aspect::Flags, error)?),
        }
    }
}

pub(super) fn is_device(kind: Kind<'_>) -> bool {
    matches!(kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. })
}
