//! Which entries of an image a machine decides itself.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::fs::FileType;
use shoal_proto::image::ImagePath;
use shoal_proto::image::children::Children;
use shoal_proto::image::entry::EntryIndex;
use shoal_proto::image::manifest::Manifest;

use super::super::mounts::{self, Mount};
use super::super::root::{self, Directories};
use super::super::rules::{Class, Rules};
use super::own_name;

/// For each entry its class, and whether it is left alone here and now.
#[derive(Debug)]
pub(super) struct Scope {
    classes: Vec<Class>,
    left: Vec<bool>,
    visits: Vec<bool>,
    /// All that is mounted in the tree.
    mounted: BTreeSet<ImagePath>,
    /// Directories of the image on which a file system is mounted that holds a part of it.
    managed_mounts: BTreeSet<EntryIndex>,
}

impl Scope {
    pub(super) fn of(
        manifest: &Manifest,
        target: &Path,
        directories: &Directories,
        rules: &Rules,
        children: &Children,
    ) -> Self {
        let len = manifest.tree().len();
        let mut scope = Self {
            classes: vec![Class::Managed; len],
            left: vec![false; len],
            visits: vec![false; len],
            mounted: BTreeSet::new(),
            managed_mounts: BTreeSet::new(),
        };
        let holders = if rules.is_empty() { BTreeSet::new() } else { scope.classify(manifest, rules) };
        scope.note_mounts(manifest, mounts::below(target), children);
        scope.leave(manifest, directories, &holders);
        for entry in manifest.entries() {
            let index = entry.index();
            if !scope.left[index.at()] {
                scope.visits[index.at()] |= entry.is_directory();
                scope.visits[entry.parent().at()] = true;
            }
        }
        scope
    }

    /// Finds the class of each entry. Returns the managed directories whose content is the machine's.
    fn classify(&mut self, manifest: &Manifest, rules: &Rules) -> BTreeSet<EntryIndex> {
        let mut holders = BTreeSet::new();
        // Where the path of each directory on the way ends; entries come depth first.
        let mut path: Vec<u8> = Vec::new();
        let mut ends: Vec<(EntryIndex, usize)> = vec![(EntryIndex::ROOT, 0)];
        for entry in manifest.entries().skip(1) {
            while ends.last().is_some_and(|(directory, _)| *directory != entry.parent()) {
                ends.pop();
            }
            path.truncate(ends.last().map_or(0, |(_, end)| *end));
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(own_name(entry));
            let around = self.classes[entry.parent().at()];
            self.classes[entry.index().at()] = rules.class(&path, entry.is_directory(), around);
            if entry.is_directory() {
                ends.push((entry.index(), path.len()));
                let class = self.classes[entry.index().at()];
                path.extend_from_slice(b"/whatever");
                if class == Class::Managed && rules.class(&path, false, class) == Class::Ignored {
                    holders.insert(entry.index());
                }
            }
        }
        holders
    }

    fn note_mounts(&mut self, manifest: &Manifest, mounts: Vec<Mount>, children: &Children) {
        for mount in mounts {
            let find = |at, name: shoal_proto::image::path::Component<'_>| {
                children.find(manifest.tree(), at, name.bytes())
            };
            if let Some(entry) = mount.path.components().try_fold(EntryIndex::ROOT, find) {
                let holds_a_part = !children.of_directory(entry).is_empty();
                let inside = manifest.entry(entry).parent();
                if mount.local && holds_a_part && self.classes[inside.at()] == Class::Managed {
                    self.managed_mounts.insert(entry);
                } else {
                    let managed = |child: &EntryIndex| self.classes[child.at()] == Class::Managed;
                    if children.of_directory(entry).iter().any(managed) {
                        tracing::warn!(path = %mount.path, "what the image has below this mount is left alone");
                    }
                    self.classes[entry.at()] = Class::Ignored;
                    self.ignore_below(manifest, entry);
                }
            }
            self.mounted.insert(mount.path);
        }
    }

    fn ignore_below(&mut self, manifest: &Manifest, directory: EntryIndex) {
        let below = manifest.entries().skip(directory.at() + 1);
        let mut ignored = BTreeSet::from([directory]);
        for entry in below {
            if !ignored.contains(&entry.parent()) {
                break;
            }
            ignored.insert(entry.index());
            self.classes[entry.index().at()] = Class::Ignored;
        }
    }

    /// Leaves what is ignored, and seeds that are there, with all in them. A directory that is ignored is made when
    /// something in it is not. A link in the place of a directory whose content is the machine's leads to that content.
    fn leave(&mut self, manifest: &Manifest, directories: &Directories, holders: &BTreeSet<EntryIndex>) {
        let mut needed = vec![false; manifest.tree().len()];
        for entry in manifest.entries().rev() {
            let at = entry.index().at();
            if self.classes[at] != Class::Ignored || needed[at] {
                needed[entry.parent().at()] = true;
            }
        }
        let mut seeded = vec![false; manifest.tree().len()];
        for entry in manifest.entries().skip(1) {
            let (at, above) = (entry.index().at(), entry.parent().at());
            let class = self.classes[at];
            let there = || {
                let dir = directories.open(manifest.tree(), entry.parent().get()).ok()?;
                root::stat_in(&dir, own_name(entry)).ok()
            };
            self.left[at] = match class {
                Class::Seed | Class::Ignored if seeded[above] => true,
                Class::Managed => {
                    holders.contains(&entry.index())
                        && there()
                            .is_some_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()).is_symlink())
                }
                Class::Ignored if !needed[at] => true,
                Class::Present => there().is_none(),
                Class::Seed | Class::Ignored => there().is_some(),
            };
            seeded[at] = class != Class::Ignored && self.left[at];
        }
    }

    pub(super) fn class(&self, entry: EntryIndex) -> Class {
        self.classes[entry.at()]
    }

    pub(super) fn is_left(&self, entry: EntryIndex) -> bool {
        self.left[entry.at()]
    }

    /// Whether a directory holds something to be compared.
    pub(super) fn visits(&self, directory: EntryIndex) -> bool {
        self.visits[directory.at()]
    }

    pub(super) fn is_mount(&self, directory: EntryIndex) -> bool {
        self.managed_mounts.contains(&directory)
    }

    pub(super) fn is_mounted(&self, path: &ImagePath) -> bool {
        self.mounted.contains(path)
    }

    pub(super) fn into_managed_mounts(self) -> Vec<EntryIndex> {
        self.managed_mounts.into_iter().collect()
    }
}
