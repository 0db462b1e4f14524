//! A disk as a power failure leaves it: what was synced is there; of everything since, any part may be.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::Rng;
use shoal_node::store::{Access, Witness};

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;

/// One access that changes something.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    CreateFolder(PathBuf),
    Create(PathBuf),
    Write { path: PathBuf, offset: usize, bytes: Vec<u8> },
    Resize { path: PathBuf, bytes: usize },
    Sync(PathBuf),
    Rename { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
}

impl Step {
    fn of(access: Access<'_>) -> Option<Self> {
        let number = |bytes| usize::try_from(bytes).unwrap();
        Some(match access {
            Access::Read { .. } => return None,
            Access::CreateFolder(path) => Self::CreateFolder(path.to_owned()),
            Access::Create(path) => Self::Create(path.to_owned()),
            Access::Write { path, offset, parts } => {
                Self::Write { path: path.to_owned(), offset: number(offset), bytes: parts.concat() }
            }
            Access::Resize { path, bytes } => Self::Resize { path: path.to_owned(), bytes: number(bytes) },
            Access::Sync(path) => Self::Sync(path.to_owned()),
            Access::Rename { from, to } => Self::Rename { from: from.to_owned(), to: to.to_owned() },
            Access::Remove(path) => Self::Remove(path.to_owned()),
        })
    }
}

/// Writes down what a store does to its files, and keeps a copy of its index from each time that a checkpoint follows.
#[derive(Debug)]
pub(crate) struct Recorder {
    index: PathBuf,
    steps: Mutex<Vec<Step>>,
    /// After how many steps, and the files.
    indexes: Mutex<Vec<(usize, Tree)>>,
}

impl Recorder {
    pub(crate) fn new(index: PathBuf) -> Self {
        Self { index, steps: Mutex::default(), indexes: Mutex::default() }
    }

    pub(crate) fn steps(&self) -> MutexGuard<'_, Vec<Step>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn indexes(&self) -> MutexGuard<'_, Vec<(usize, Tree)>> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for Recorder {
    fn before(&self, access: Access<'_>) -> io::Result<()> {
        let Some(step) = Step::of(access) else { return Ok(()) };
        let mut steps = self.steps();
        if matches!(&step, Step::Create(path) if path.ends_with("CHECKPOINT.new")) {
            self.indexes().push((steps.len(), Tree::read(&self.index)));
        }
        steps.push(step);
        Ok(())
    }
}

/// Files below a folder, by their paths from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree(pub(crate) BTreeMap<PathBuf, Vec<u8>>);

impl Tree {
    /// What lies in a folder, which need not be there.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
                }
            }
        }
        Self(files)
    }

    pub(crate) fn write(&self, folder: &Path) {
        for (path, bytes) in &self.0 {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

/// How much of what was not synced reaches the disk.
#[derive(Clone, Copy, Debug)]
enum Loss {
    All,
    Nothing,
    /// What came first; the next one torn.
    Later,
    /// Any of it in any part.
    Any,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

/// A file or folder, by its number; the name is in a folder.
#[derive(Clone, Debug)]
enum Node {
    File { bytes: Vec<u8>, unsynced: Vec<Change> },
    Folder { names: BTreeMap<PathBuf, usize>, unsynced: Vec<Names> },
}

/// Names that change at once: what each stands for from then on.
type Names = Vec<(PathBuf, Option<usize>)>;

/// What the disk holds, below one folder that was always there.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    /// As a running system sees them, synced or not.
    live: BTreeMap<PathBuf, usize>,
}

impl Disk {
    pub(crate) fn empty(root: &Path) -> Self {
        let folder = Node::Folder { names: BTreeMap::new(), unsynced: Vec::new() };
        Self { root: root.to_owned(), nodes: vec![folder], live: [(root.to_owned(), 0)].into() }
    }

    /// Performs the steps, then the power goes.
    pub(crate) fn cut(mut self, steps: &[Step], rng: &mut impl Rng) -> Self {
        steps.iter().for_each(|step| self.perform(step));
        let losses = [Loss::All, Loss::Nothing, Loss::Later, Loss::Any, Loss::Any];
        let loss = losses[rng.random_range(0..losses.len())];
        for node in &mut self.nodes {
            match node {
                Node::File { bytes, unsynced } => arrive(bytes, std::mem::take(unsynced), loss, rng),
                Node::Folder { names, unsynced } => {
                    for changed in chosen(std::mem::take(unsynced), loss, rng) {
                        rename(names, changed);
                    }
                }
            }
        }
        self.live.clear();
        self.live.insert(self.root.clone(), 0);
        self.find_names(0, &self.root.clone());
        self
    }

    fn find_names(&mut self, folder: usize, path: &Path) {
        let Node::Folder { names, .. } = &self.nodes[folder] else { return };
        for (name, node) in names.clone() {
            self.live.insert(path.join(&name), node);
            self.find_names(node, &path.join(&name));
        }
    }

    fn perform(&mut self, step: &Step) {
        match step {
            Step::CreateFolder(path) => {
                self.nodes.push(Node::Folder { names: BTreeMap::new(), unsynced: Vec::new() });
                self.name(vec![(path, Some(self.nodes.len() - 1))]);
            }
            Step::Create(path) => match self.live.get(path) {
                Some(_) => self.change(path, Change::Resize(0)),
                None => {
                    self.nodes.push(Node::File { bytes: Vec::new(), unsynced: Vec::new() });
                    self.name(vec![(path, Some(self.nodes.len() - 1))]);
                }
            },
            Step::Write { path, offset, bytes } => self.change(path, Change::Write(*offset, bytes.clone())),
            Step::Resize { path, bytes } => self.change(path, Change::Resize(*bytes)),
            Step::Sync(path) => match &mut self.nodes[self.live[path]] {
                Node::File { bytes, unsynced } => {
                    for change in unsynced.drain(..) {
                        apply(bytes, &change);
                    }
                }
                Node::Folder { names, unsynced } => {
                    for changed in unsynced.drain(..) {
                        rename(names, changed);
                    }
                }
            },
            Step::Rename { from, to } => {
                let node = self.live[from];
                self.name(vec![(to, Some(node)), (from, None)]);
            }
            Step::Remove(path) => {
                if self.live.contains_key(path) {
                    self.name(vec![(path, None)]);
                }
            }
        }
    }

    /// Changes names of one folder.
    fn name(&mut self, changed: Vec<(&PathBuf, Option<usize>)>) {
        let folder = self.live[changed[0].0.parent().unwrap()];
        let mut names = Names::new();
        for (path, node) in changed {
            match node {
                Some(node) => self.live.insert(path.clone(), node),
                None => self.live.remove(path),
            };
            names.push((path.file_name().unwrap().into(), node));
        }
        let Node::Folder { unsynced, .. } = &mut self.nodes[folder] else { panic!("a name in a file") };
        unsynced.push(names);
    }

    fn change(&mut self, path: &Path, change: Change) {
        let Node::File { unsynced, .. } = &mut self.nodes[self.live[path]] else {
            panic!("a write to a folder")
        };
        unsynced.push(change);
    }

    /// Makes the files that the disk holds.
    pub(crate) fn write(&self) {
        for (path, node) in &self.live {
            match &self.nodes[*node] {
                Node::Folder { .. } => fs::create_dir_all(path).unwrap(),
                Node::File { bytes, .. } => fs::write(path, bytes).unwrap(),
            }
        }
    }
}

fn rename(names: &mut BTreeMap<PathBuf, usize>, changed: Names) {
    for (name, node) in changed {
        match node {
            Some(node) => names.insert(name, node),
            None => names.remove(&name),
        };
    }
}

/// The changes that arrive, in their order.
fn chosen<T>(changes: Vec<T>, loss: Loss, rng: &mut impl Rng) -> Vec<T> {
    let kept = rng.random_range(0..=changes.len());
    let arrives = |at: usize, rng: &mut dyn rand::RngCore| match loss {
        Loss::All => false,
        Loss::Nothing => true,
        Loss::Later => at < kept,
        Loss::Any => rng.random_bool(0.5),
    };
    changes.into_iter().enumerate().filter(|(at, _)| arrives(*at, rng)).map(|(_, change)| change).collect()
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, written) => {
            let end = offset + written.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[*offset..end].copy_from_slice(written);
        }
        Change::Resize(length) => bytes.resize(*length, 0),
    }
}

fn arrive(bytes: &mut Vec<u8>, unsynced: Vec<Change>, loss: Loss, rng: &mut impl Rng) {
    let kept = rng.random_range(0..=unsynced.len());
    for (at, change) in unsynced.into_iter().enumerate() {
        match loss {
            Loss::All => {}
            Loss::Nothing => apply(bytes, &change),
            Loss::Later if at < kept => apply(bytes, &change),
            Loss::Later if at == kept => apply_torn(bytes, &change, rng),
            Loss::Later => {}
            Loss::Any => match rng.random_range(0..4) {
                0 => {}
                1 => apply_torn(bytes, &change, rng),
                _ => apply(bytes, &change),
            },
        }
    }
}

/// Part of a write: its start up to a byte or a sector, some of its sectors, or nothing but the length that it gives
/// the file, which then holds zeroes or what was once in that place of the disk.
fn apply_torn(bytes: &mut Vec<u8>, change: &Change, rng: &mut impl Rng) {
    let Change::Write(offset, written) = change else { return };
    let sector = |at: usize| at / SECTOR_BYTES;
    let cut = rng.random_range(0..=written.len());
    let end = offset + written.len();
    match rng.random_range(0..4) {
        0 => apply(bytes, &Change::Write(*offset, written[..cut].to_vec())),
        1 => {
            let cut = (sector(offset + cut) * SECTOR_BYTES).saturating_sub(*offset);
            apply(bytes, &Change::Write(*offset, written[..cut].to_vec()));
        }
        2 => {
            let arrived: Vec<bool> = (0..=sector(end)).map(|_| rng.random_bool(0.5)).collect();
            bytes.resize(bytes.len().max(end), 0);
            for (at, byte) in (*offset..).zip(written).filter(|(at, _)| arrived[sector(*at)]) {
                bytes[at] = *byte;
            }
        }
        _ => {
            let stale = rng.random_bool(0.5);
            let before = bytes.len();
            bytes.resize(before.max(end), 0);
            if stale {
                rng.fill(&mut bytes[before..]);
            }
        }
    }
}
