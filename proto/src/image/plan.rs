//! What has to be done to a tree so that it becomes an image: decided from what was seen of it, touching nothing.
//!
//! A file is never changed in place: it is replaced as a whole, or one call sets one attribute of it. So at any instant
//! each path is as it was or as it shall be. A directory that is missing is made with all that is in it, as one step.
//! What the tree has and the image has not goes only when an earlier image brought it (or the caller says otherwise).

use std::collections::{BTreeMap, BTreeSet};

use super::drift::{DriftKind, Drifts};
use super::entry::{EntryIndex, InodeFlags, Kind};
use super::manifest::Manifest;
use super::path::ImagePath;
use super::tree::Entry;

/// What is at the path of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// What the image says.
    Same,
    /// Whatever it is, it is the machine's own: ignored, a seed that is there, or on another file system.
    Left,
    /// Not empty; never [`DriftKind::Extra`].
    Drifted(Drifts),
}

/// Names that share an inode: the first of them in the image, and the directory that their file system is mounted on,
/// because there is an inode for each file system that has a name.
pub type Group = (EntryIndex, EntryIndex);

/// Device (major, minor) and inode number.
pub type InodeKey = (u32, u32, u64);

/// Something in the tree that the image does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    pub path: ImagePath,
    pub directory: bool,
    /// An image that was applied here before has this path.
    pub owned: bool,
    /// The machine's own by rule, or on another file system.
    pub left: bool,
    /// The entry whose path is a directory on disk, and none in the image, with this in it.
    pub within: Option<EntryIndex>,
}

/// A whole tree, compared with an image.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// By entry.
    pub seen: Vec<Seen>,
    /// Of entries that are there and whose inode has several names, there or in the image; in order.
    pub inodes: Vec<(EntryIndex, InodeKey)>,
    /// In path order; of a directory also what is in it, if it may have to go.
    pub extras: Vec<Extra>,
    /// Directories of the image on which a file system is mounted that holds a part of it.
    pub mounts: Vec<EntryIndex>,
    /// Entries that are not [`Seen::Left`] in a directory that is, and that on disk is none.
    pub homeless: Vec<EntryIndex>,
}

/// What to do with the path of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing is there. A directory comes with everything in it.
    Create,
    /// What is there gives way in the same instant. A directory comes with everything in it.
    Replace,
    /// One call sets one attribute; of a directory, as many as there are.
    Adjust,
}

/// One change of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub entry: EntryIndex,
    pub action: Action,
    /// Why.
    pub drifts: Drifts,
}

/// A path that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub path: ImagePath,
    pub directory: bool,
}

/// Why a change cannot be made without losing what is not the image's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The path that shall become something else than a directory, or that is none and should be.
    pub path: ImagePath,
    /// What is in it and stays; or, when the machine has something else than a directory there, what the image has in it.
    pub holds: ImagePath,
    /// The machine's own path is in the way, not what is in the directory.
    pub in_the_way: bool,
}

/// All that has to be done, and what is left alone. Empty when the tree is the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of entries.
    pub steps: Vec<Step>,
    /// In path order: a directory before what is in it.
    pub removals: Vec<Removal>,
    /// In the tree, not in the image, and not touched. What is in such a directory is not listed.
    pub kept: Vec<ImagePath>,
    pub conflicts: Vec<Conflict>,
    /// The entry on disk that has the inode of a group already.
    pub keepers: BTreeMap<Group, EntryIndex>,
}

/// How far a plan goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// Remove also what no image brought.
    pub remove_unowned: bool,
    /// Replace a directory at the top as a whole, in one call, where anything in it changes and all of it is the image's.
    pub switch: bool,
}

impl Observed {
    /// The directory that the file system of an entry is mounted on: one of `mounts`, or the root.
    pub fn mount_of(&self, goal: &Manifest, entry: EntryIndex) -> EntryIndex {
        let mut at = entry;
        while at != EntryIndex::ROOT && !self.mounts.is_empty() {
            at = goal.entry(at).parent();
            if self.mounts.contains(&at) {
                return at;
            }
        }
        EntryIndex::ROOT
    }

    pub fn group_of(&self, goal: &Manifest, entry: EntryIndex) -> Group {
        let first = match goal.entry(entry).kind() {
            Kind::HardLink { to } => to,
            _ => entry,
        };
        (first, self.mount_of(goal, entry))
    }
}

impl Plan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.removals.is_empty() && self.conflicts.is_empty()
    }

    /// # Panics
    /// When `observed` is of another image.
    pub fn of(goal: &Manifest, observed: &Observed, options: PlanOptions) -> Self {
        assert_eq!(goal.tree().len(), observed.seen.len(), "an observation of another image");
        let inodes = Inodes::of(goal, observed);
        let mut plan = Self { keepers: inodes.keepers.clone(), ..Self::default() };
        plan.decide_steps(goal, observed, &inodes);
        plan.decide_extras(goal, observed, options);
        plan.conflicts.extend(observed.homeless.iter().map(|&entry| Conflict {
            path: goal.entry(goal.entry(entry).parent()).path(),
            holds: goal.entry(entry).path(),
            in_the_way: true,
        }));
        if options.switch {
            plan.decide_switches(goal, observed);
        }
        plan
    }

    fn decide_switches(&mut self, goal: &Manifest, observed: &Observed) {
        let mut tops = vec![EntryIndex::ROOT; goal.tree().len()];
        let mut wholes: BTreeSet<EntryIndex> = BTreeSet::new();
        for entry in goal.entries().skip(1) {
            let index = entry.index();
            let top = if entry.parent() == EntryIndex::ROOT { index } else { tops[entry.parent().at()] };
            tops[index.at()] = top;
            let seen = observed.seen[index.at()];
            if index == top && entry.is_directory() && !gives_way(seen) {
                wholes.insert(top);
            }
            if seen == Seen::Left || observed.mounts.contains(&index) {
                wholes.remove(&top);
            }
        }
        let stays = |path: &ImagePath| self.removals.binary_search_by(|gone| gone.path.cmp(path)).is_err();
        let staying: Vec<&ImagePath> =
            observed.extras.iter().map(|extra| &extra.path).filter(|path| stays(path)).collect();
        let changes = |top: EntryIndex| self.steps.iter().any(|step| tops[step.entry.at()] == top);
        wholes.retain(|&top| {
            let path = goal.entry(top).path();
            let removed = self.removals.iter().any(|removal| removal.path.is_below(&path));
            (removed || changes(top)) && !staying.iter().any(|extra| extra.is_below(&path))
        });
        self.steps.retain(|step| !wholes.contains(&tops[step.entry.at()]));
        let whole = |top: &EntryIndex| {
            let drifts = match observed.seen[top.at()] {
                Seen::Drifted(drifts) => drifts,
                _ => Drifts::NONE,
            };
            Step { entry: *top, action: Action::Replace, drifts: drifts.with(DriftKind::Content) }
        };
        self.steps.extend(wholes.iter().map(whole));
        self.steps.sort_unstable_by_key(|step| step.entry);
        let paths: Vec<ImagePath> = wholes.iter().map(|top| goal.entry(*top).path()).collect();
        self.removals.retain(|removal| !paths.iter().any(|top| removal.path.is_below(top)));
    }

    fn decide_steps(&mut self, goal: &Manifest, observed: &Observed, inodes: &Inodes) {
        // Directories that come whole, and all below them.
        let mut comes_whole = vec![false; goal.tree().len()];
        for entry in goal.entries() {
            let index = entry.index();
            let seen = observed.seen[index.at()];
            if index != EntryIndex::ROOT && comes_whole[entry.parent().at()] {
                comes_whole[index.at()] = true;
                continue;
            }
            let mut drifts = match seen {
                Seen::Left => continue,
                Seen::Same => Drifts::NONE,
                Seen::Drifted(drifts) => drifts.without(HARD_LINK),
            };
            if inodes.misplaced.contains(&index) {
                drifts.insert(DriftKind::HardLink);
            }
            if drifts.is_empty() {
                continue;
            }
            let action = action(entry, drifts, inodes.shared.contains(&index));
            comes_whole[index.at()] = entry.is_directory() && action != Action::Adjust;
            self.steps.push(Step { entry: index, action, drifts });
        }
    }

    fn decide_extras(&mut self, goal: &Manifest, observed: &Observed, options: PlanOptions) {
        let replaced: BTreeSet<EntryIndex> =
            self.steps.iter().filter(|step| step.action == Action::Replace).map(|step| step.entry).collect();
        // What stays keeps the directories around it.
        let mut holders: BTreeSet<&ImagePath> = BTreeSet::new();
        let mut kept = Vec::new();
        let mut stack: Vec<&Extra> = Vec::new();
        for extra in &observed.extras {
            while stack.last().is_some_and(|above| !extra.path.is_below(&above.path)) {
                stack.pop();
            }
            if !goes(extra, options) {
                holders.extend(stack.iter().map(|above| &above.path));
                kept.push(extra);
            }
            if extra.directory {
                stack.push(extra);
            }
        }
        for extra in &observed.extras {
            let own = !goes(extra, options);
            let stays = own || holders.contains(&extra.path);
            match extra.within.filter(|within| replaced.contains(within)) {
                Some(within) if own => {
                    let path = goal.entry(within).path();
                    if self.conflicts.last().is_none_or(|last| last.path != path) {
                        self.conflicts.push(Conflict { path, holds: extra.path.clone(), in_the_way: false });
                    }
                }
                // Goes with the directory that gives way.
                Some(_) => {}
                None if stays => {}
                None => {
                    self.removals.push(Removal { path: extra.path.clone(), directory: extra.directory });
                }
            }
        }
        for extra in kept {
            if !extra.left && self.kept.last().is_none_or(|last| !extra.path.is_below(last)) {
                self.kept.push(extra.path.clone());
            }
        }
    }
}

const HARD_LINK: Drifts = Drifts::of(DriftKind::HardLink);

/// Whether nothing that stands at the path can stay.
fn gives_way(seen: Seen) -> bool {
    matches!(seen, Seen::Drifted(drifts) if drifts.contains(DriftKind::Missing) || drifts.contains(DriftKind::Type))
}

fn goes(extra: &Extra, options: PlanOptions) -> bool {
    !extra.left && (extra.owned || options.remove_unowned)
}

/// `shared`: the inode has other names, which a change in place would reach too.
fn action(entry: Entry<'_>, drifts: Drifts, shared: bool) -> Action {
    if drifts.contains(DriftKind::Missing) {
        return Action::Create;
    }
    if drifts.contains(DriftKind::Type) {
        return Action::Replace;
    }
    if entry.is_directory() {
        return Action::Adjust;
    }
    let attributes = entry.attributes();
    let one_call = match drifts.kinds().collect::<Vec<_>>()[..] {
        [DriftKind::Mtime | DriftKind::Mode | DriftKind::Flags] => true,
        // A change of owner drops set-id bits and capabilities, which then have to be set again.
        [DriftKind::Owner] => attributes.mode() & SET_ID == 0 && attributes.xattrs().is_empty(),
        _ => false,
    };
    // Whatever is set on an immutable file, it takes a call before and a call after.
    let locked = attributes.flags().intersects(InodeFlags::IMMUTABLE)
        || attributes.flags().intersects(InodeFlags::APPEND);
    let locked = locked && drifts != Drifts::of(DriftKind::Flags);
    if matches!(entry.kind(), Kind::File(_)) && one_call && !shared && !locked {
        Action::Adjust
    } else {
        Action::Replace
    }
}

const SET_ID: u32 = 0o6000;

/// Which names share which inode, and which of them are right.
struct Inodes {
    keepers: BTreeMap<Group, EntryIndex>,
    /// Names that have another inode than the image says.
    misplaced: BTreeSet<EntryIndex>,
    /// Names of an inode with several.
    shared: BTreeSet<EntryIndex>,
}

impl Inodes {
    fn of(goal: &Manifest, observed: &Observed) -> Self {
        let group_of = |entry: EntryIndex| observed.group_of(goal, entry);
        let right = |entry: EntryIndex| match observed.seen[entry.at()] {
            Seen::Same => true,
            Seen::Left => false,
            Seen::Drifted(drifts) => drifts.without(HARD_LINK).is_empty(),
        };
        // An inode on disk belongs to the first group of names that has a right one there.
        let mut owners: BTreeMap<InodeKey, Group> = BTreeMap::new();
        let mut keepers: BTreeMap<Group, (EntryIndex, InodeKey)> = BTreeMap::new();
        for &(entry, key) in observed.inodes.iter().filter(|(entry, _)| right(*entry)) {
            let group = group_of(entry);
            if *owners.entry(key).or_insert(group) == group {
                keepers.entry(group).or_insert((entry, key));
            }
        }
        let misplaced = observed.inodes.iter().filter(|(entry, key)| {
            // One that drifted otherwise too is replaced anyway.
            right(*entry) && keepers.get(&group_of(*entry)).is_none_or(|(_, kept)| kept != key)
        });
        Self {
            misplaced: misplaced.map(|(entry, _)| *entry).collect(),
            shared: observed.inodes.iter().map(|(entry, _)| *entry).collect(),
            keepers: keepers.into_iter().map(|(group, (entry, _))| (group, entry)).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
