//! What was staged goes into its place; what is over goes.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use shoal_proto::image::drift::DriftKind;
use shoal_proto::image::entry::{EntryIndex, Kind};
use shoal_proto::image::plan::{Action, Removal, Step};

use super::super::apply::ApplyError;
use super::super::metadata::{self, Aspect, Inode};
use super::super::root;
use super::super::survey::own_name;
use super::stage::{Staged, is_device, staged_name};
use super::{Update, UpdateError, UpdateReport};

/// What is needed by others comes first: libraries, then programs, then what configures them, then what boots them.
/// Paths that nobody has yet come before all.
const ORDER: [&[u8]; 4] = [b"usr/lib", b"usr", b"etc", b"boot"];

impl Update {
    /// Renames, adjusts, removes; then directories, deepest first, and the last sync.
    pub(super) fn commit(&self, staged: &Staged) -> Result<UpdateReport, UpdateError> {
        let mut report = UpdateReport::default();
        let mut touched: BTreeSet<EntryIndex> = BTreeSet::new();
        for step in self.in_order() {
            let entry = self.goal.entry(step.entry);
            match step.action {
                Action::Adjust if entry.is_directory() => {
                    touched.insert(step.entry);
                }
                Action::Adjust => self.adjust(step)?,
                Action::Create | Action::Replace => {
                    touched.insert(entry.parent());
                    if !self.move_in(step, staged)? {
                        report.busy.push(entry.path());
                        continue;
                    }
                    if entry.is_directory() {
                        touched.insert(step.entry);
                    }
                }
            }
            *match step.action {
                Action::Create => &mut report.created,
                Action::Replace => &mut report.replaced,
                Action::Adjust => &mut report.adjusted,
            } += 1;
        }
        self.directories().forget();
        for entry in self.new_entries().into_iter().filter(|entry| self.is_linked(*entry)) {
            self.lock(entry)?;
        }
        for removal in self.plan.removals.iter().rev() {
            let removed = self.remove(removal, &mut touched)?;
            report.removed += u64::from(removed);
        }
        for mount in staged.mounts() {
            self.remove_stage(mount)?;
            touched.insert(mount);
        }
        for &directory in touched.iter().rev() {
            if self.is_left(directory) {
                continue;
            }
            let dir = self.open(directory)?;
            // An immutable one refuses even what it has already.
            let _ = metadata::unlock(&dir);
            self.set_metadata(directory, Inode::Open(&dir))?;
            self.set_flags(directory, &dir)?;
        }
        self.sync()?;
        Ok(report)
    }

    fn in_order(&self) -> Vec<&Step> {
        let mut steps: Vec<_> = self
            .plan
            .steps
            .iter()
            .map(|step| {
                let path = self.goal.entry(step.entry).path();
                let below = |top: &&[u8]| path.bytes().starts_with(top);
                let place = ORDER.iter().position(below).unwrap_or(1);
                let boot = place == ORDER.len() - 1;
                (step.action != Action::Create || boot, place, step)
            })
            .collect();
        steps.sort_by_key(|(later, place, step)| (*later, *place, step.entry));
        steps.into_iter().map(|(.., step)| step).collect()
    }

    fn open(&self, directory: EntryIndex) -> Result<Arc<OwnedFd>, UpdateError> {
        self.directories()
            .open(self.goal.tree(), directory.get())
            .map_err(|source| UpdateError::Commit { path: self.goal.entry(directory).path(), source })
    }

    /// Puts a step into its place. False when something is mounted there.
    fn move_in(&self, step: &Step, staged: &Staged) -> Result<bool, UpdateError> {
        let index = step.entry;
        let entry = self.goal.entry(index);
        // Only then was it looked at what else a directory there holds.
        let may_exchange =
            step.action == Action::Replace && (step.drifts.contains(DriftKind::Type) || entry.is_directory());
        let failed = |source| UpdateError::Commit { path: entry.path(), source };
        let stage = staged.dir(self.mount_of(index)).expect("a stage for each mount with steps");
        let (dir, from, name) = (self.open(entry.parent())?, staged_name(index), own_name(entry));
        let put = || match rustix::fs::renameat(&**stage, &*from, &*dir, name) {
            // A directory there, or a directory that comes: only an exchange is one call.
            Err(Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) if may_exchange => {
                exchange(stage, &from, &dir, name)
            }
            done => done,
        };
        match root::unlocked(&dir, name, put) {
            Ok(()) => {}
            Err(Errno::BUSY) => return Ok(false),
            // Its device could not be made, which is a loss already.
            Err(Errno::NOENT) if is_device(self.goal.entry(self.first_of(index)).kind()) => return Ok(true),
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                return Err(UpdateError::DirectoryCame { path: entry.path() });
            }
            Err(error) => return Err(failed(error)),
        }
        if !self.is_linked(index) {
            self.lock(index)?;
        }
        Ok(true)
    }

    /// Gives a file in its place its flags.
    pub(super) fn lock(&self, index: EntryIndex) -> Result<(), UpdateError> {
        let entry = self.goal.entry(index);
        if !matches!(self.goal.entry(self.first_of(index)).kind(), Kind::File(_))
            || entry.attributes().flags().is_empty()
        {
            return Ok(());
        }
        let failed = |source| UpdateError::Commit { path: entry.path(), source };
        let dir = self.open(entry.parent())?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let fd = root::open_in(&dir, own_name(entry), flags, Mode::empty()).map_err(failed)?;
        self.set_flags(index, &fd)
    }

    /// Sets the one attribute that differs, in one call.
    fn adjust(&self, step: &Step) -> Result<(), UpdateError> {
        let entry = self.goal.entry(step.entry);
        let failed = |source| UpdateError::Commit { path: entry.path(), source };
        let dir = self.open(entry.parent())?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let fd = root::open_in(&dir, own_name(entry), flags, Mode::empty()).map_err(failed)?;
        let attributes = entry.attributes();
        for kind in step.drifts.kinds() {
            let (aspect, done) = match kind {
                DriftKind::Flags => (Aspect::Flags, metadata::set_flags(&fd, attributes.flags())),
                DriftKind::Mtime => (Aspect::Time, metadata::set_time(Inode::Open(&fd), entry.mtime())),
                DriftKind::Mode => {
                    (Aspect::Mode, rustix::fs::fchmod(&fd, Mode::from_raw_mode(attributes.mode())))
                }
                DriftKind::Owner => {
                    let (uid, gid) = (Uid::from_raw(attributes.uid()), Gid::from_raw(attributes.gid()));
                    (Aspect::Owner, rustix::fs::fchown(&fd, Some(uid), Some(gid)))
                }
                _ => unreachable!("planned as a replacement"),
            };
            if let Err(error) = done {
                self.tree.fail_or_lose(entry.path(), aspect, error)?;
            }
        }
        Ok(())
    }

    /// Removes one path; false when it is in use as a mount point, or has become full meanwhile.
    fn remove(&self, removal: &Removal, touched: &mut BTreeSet<EntryIndex>) -> Result<bool, UpdateError> {
        let failed = |source| UpdateError::Remove { path: removal.path.clone(), source };
        let mut names: Vec<_> = removal.path.components().collect();
        let Some(name) = names.pop() else { return Ok(false) };
        let mut dir = self.directories().top().clone();
        let mut at = Some(EntryIndex::ROOT);
        for above in names {
            dir = match root::open_directory_in(&dir, above.bytes()) {
                Ok(inner) => Arc::new(inner),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
                Err(error) => return Err(failed(error)),
            };
            at = at.and_then(|at| self.children.find(self.goal.tree(), at, above.bytes()));
        }
        touched.extend(at);
        let how = if removal.directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let unlink = || rustix::fs::unlinkat(&*dir, name.bytes(), how);
        match root::unlocked(&dir, name.bytes(), unlink) {
            Ok(()) => Ok(true),
            Err(
                Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR | Errno::NOTDIR,
            ) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    fn sync(&self) -> Result<(), UpdateError> {
        for mount in self.observed.mounts.iter().copied().chain([EntryIndex::ROOT]) {
            let dir = self.open(mount)?;
            rustix::fs::syncfs(&*dir)
                .map_err(|source| ApplyError::Sync { path: self.tree.path.clone(), source })?;
        }
        Ok(())
    }
}

/// Puts `from` where `name` is and what was there into the stage, where it goes with it.
fn exchange(stage: &OwnedFd, from: &[u8], dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::renameat_with(stage, from, dir, name, RenameFlags::EXCHANGE) {
        // A file system without it: two calls, and for a moment nothing.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let aside = [b"old-", from].concat();
            rustix::fs::renameat(dir, name, stage, aside)?;
            rustix::fs::renameat(stage, from, dir, name)
        }
        done => done,
    }
}
