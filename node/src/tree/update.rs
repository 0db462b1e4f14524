//! A tree in use → another image.
//!
//! 1. [`Update::prepare`] looks at the whole tree, by hash, and plans ([`Plan`]). Nothing is touched.
//! 2. The caller fetches the pieces that [`Update::wanted`] names. What it has need not travel: [`Update::fill`].
//! 3. [`Update::apply`] writes what is new, with all its metadata, into [`STAGE`](super::STAGE) at the top of the file
//!    system that it belongs to, syncs, and only then renames each into its place: a path is as it was, or as it shall be.
//!    What only the earlier images had goes, then directories get their metadata, deepest first, and all is synced.
//!
//! **Crash.** Every step can be done again, and nothing is remembered: a killed update is finished by preparing anew, which
//! sees what is left to do. The caller must go on naming all images that may have left something (`owners`).
//!
//! Memory: the manifests, 22 bytes an entry, 5 bytes a chunk and 16 bytes for each use of one.

mod blocks;
mod commit;
mod reader;
mod room;
mod settled;
mod sources;
mod stage;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use rustix::io::Errno;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::ImagePath;
use shoal_proto::image::children::Children;
use shoal_proto::image::drift::{DriftKind, Drifts};
use shoal_proto::image::entry::{EntryIndex, Kind, Segment};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::plan::{Action, Conflict, Group, Observed, Plan, PlanOptions, Seen};

pub use self::blocks::TreeBlocks;
use self::sources::Sources;
use super::apply::{ApplyError, Losses, Target};
use super::itemize::{Item, items};
use super::root::Directories;
use super::rules::Rules;
use super::survey::{Owner, SurveyOptions, survey};
use super::verify::{VerifyError, VerifyMode};
use crate::block::EncodedBlock;
use crate::store::{self, Store};

/// zstd level of blocks that are made again from files: they are made while somebody waits.
const LEVEL: i32 = 1;

/// How an update treats its tree.
#[derive(Clone, Debug, Default)]
pub struct UpdateOptions {
    pub rules: Rules,
    /// Remove also what no image brought.
    pub remove_unowned: bool,
    /// Replace directories at the top as wholes, each in one call, where all in them is the image's.
    pub switch: bool,
    /// What could not be set when the first owner was applied.
    pub lost: Vec<DriftKind>,
}

/// A planned change of a tree to an image. See the module for the order of calls.
#[derive(Debug)]
pub struct Update {
    goal: Arc<Manifest>,
    tree: Target,
    children: Children,
    owners: Vec<Owner>,
    observed: Observed,
    plan: Plan,
    sources: Arc<Sources>,
    /// First names of the inodes that have several in the image.
    linked: BTreeSet<EntryIndex>,
    /// Chunks that must be written somewhere.
    needed: Vec<bool>,
}

/// What was done. Sizes in bytes.
#[derive(Clone, Debug, Default)]
pub struct UpdateReport {
    pub created: u64,
    pub replaced: u64,
    pub adjusted: u64,
    pub removed: u64,
    /// Raw bytes written that were on this machine already.
    pub reused_bytes: u64,
    /// Paths on which something is mounted, so that they could not be replaced.
    pub busy: Vec<ImagePath>,
    pub losses: Losses,
}

/// Why a tree is not the image.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error(transparent)]
    Survey(#[from] VerifyError),
    #[error(transparent)]
    Tree(#[from] ApplyError),
    #[error("{path} shall be no directory any more, and holds {holds}, which is not the image's{}", .others.checked_sub(1).map(|_| format!("; and {others} more such")).unwrap_or_default())]
    Conflict { path: ImagePath, holds: ImagePath, others: usize },
    #[error("{path} is the machine's own and no directory, so there is no place for {holds}{}", .others.checked_sub(1).map(|_| format!("; and {others} more such")).unwrap_or_default())]
    InTheWay { path: ImagePath, holds: ImagePath, others: usize },
    #[error("a chunk of {path} is not here any more: it changed meanwhile; run the update again")]
    ChunkGone { path: ImagePath },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("cannot prepare {path}")]
    Stage { path: ImagePath, source: Errno },
    #[error("cannot replace {path}")]
    Commit { path: ImagePath, source: Errno },
    #[error("a directory came to {path} meanwhile; run the update again")]
    DirectoryCame { path: ImagePath },
    #[error("cannot remove {path}")]
    Remove { path: ImagePath, source: Errno },
}

impl Update {
    /// Compares `target` with `goal` and plans. `owners` were applied to it before, the present one first: what only they
    /// have goes. `kept` has chunks that an earlier update set aside.
    pub fn prepare(
        goal: Arc<Manifest>,
        owners: Vec<Arc<Manifest>>,
        target: &Path,
        options: &UpdateOptions,
        kept: Option<Arc<Store>>,
    ) -> Result<Self, UpdateError> {
        let tree = Target::open(target)?;
        let owners: Vec<Owner> = owners.into_iter().map(Owner::new).collect();
        let how = SurveyOptions {
            mode: VerifyMode::Full,
            rules: &options.rules,
            owners: &owners,
            unowned: options.remove_unowned,
        };
        let mut observed = survey(&goal, target, &tree.directories, how)?;
        if let Some(present) = owners.first().filter(|_| !options.lost.is_empty()) {
            let lost = options.lost.iter().fold(Drifts::NONE, |lost, kind| lost.with(*kind));
            settled::settle(&mut observed, &goal, present, lost);
        }
        let how = PlanOptions { remove_unowned: options.remove_unowned, switch: options.switch };
        let plan = Plan::of(&goal, &observed, how);
        let sources = Sources::find(&goal, &tree.directories, &observed, &owners, kept);
        let children = Children::of(goal.tree());
        let to = |entry: shoal_proto::image::tree::Entry<'_>| match entry.kind() {
            Kind::HardLink { to } => Some(to),
            _ => None,
        };
        let mut update = Self {
            linked: goal.entries().filter_map(to).collect(),
            needed: vec![false; goal.chunk_count()],
            goal,
            tree,
            children,
            owners,
            observed,
            plan,
            sources: Arc::new(sources),
        };
        for (first, _) in update.written_files() {
            update.need(first);
        }
        Ok(update)
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn goal(&self) -> &Arc<Manifest> {
        &self.goal
    }

    /// The plan, a line for each path.
    pub fn items(&self) -> Vec<Item> {
        items(&self.goal, &self.plan)
    }

    /// An error when something that is not the image's would be lost.
    pub fn check(&self) -> Result<(), UpdateError> {
        match self.plan.conflicts.split_first() {
            None => self.check_room(),
            Some((Conflict { path, holds, in_the_way }, others)) => {
                let (path, holds, others) = (path.clone(), holds.clone(), others.len());
                Err(match in_the_way {
                    true => UpdateError::InTheWay { path, holds, others },
                    false => UpdateError::Conflict { path, holds, others },
                })
            }
        }
    }

    /// The pieces that can be made from files of this machine.
    pub fn held(&self) -> Bitfield {
        self.sources.held()
    }

    /// The pieces that carry a chunk which is needed and not here.
    pub fn wanted(&self) -> Bitfield {
        let list = self.goal.content();
        let mut wanted = Bitfield::empty(list.len());
        for piece in list.indexes() {
            let lacks = |chunk: u32| self.needed[chunk as usize] && !self.sources.is_present(chunk);
            if self.goal.piece_chunks(piece).any(lacks) {
                wanted.insert(piece);
            }
        }
        wanted
    }

    /// Raw bytes that have to be fetched: of needed chunks that are not here.
    pub fn lacking_bytes(&self) -> u64 {
        let chunks = 0..u32::try_from(self.needed.len()).expect("at most CHUNKS_MAX");
        let lacking = chunks.filter(|&chunk| self.needed[chunk as usize] && !self.sources.is_present(chunk));
        lacking.map(|chunk| u64::from(self.goal.chunk_bytes(chunk))).sum()
    }

    /// Blocks made again from the files of the tree: before, during and after the update.
    pub fn blocks(&self) -> TreeBlocks {
        TreeBlocks::of(self.goal.clone(), self.sources.clone())
    }

    /// Sets aside, in `kept`, the chunks of the first owner that the new image lacks, so that the update can be reversed.
    /// Gives the raw bytes, or `None` when that would be more than `bytes_max`: nothing is kept then.
    pub fn keep_previous(&self, kept: &Store, bytes_max: u64) -> Result<Option<u64>, UpdateError> {
        let Some(previous) = self.owners.first() else { return Ok(Some(0)) };
        let goes = sources::only_in(&previous.manifest, &self.goal);
        let bytes: u64 = goes.iter().map(|&chunk| u64::from(previous.manifest.chunk_bytes(chunk))).sum();
        if bytes > bytes_max {
            return Ok(None);
        }
        let directories = self.tree.directories.renumbered();
        let next = AtomicUsize::new(0);
        let places = previous.manifest.places();
        let work = || -> Result<(), UpdateError> {
            let mut raw = Vec::new();
            while let Some(&chunk) = goes.get(next.fetch_add(1, Ordering::Relaxed)) {
                let name = sources::block_of(previous.manifest.chunk_id(chunk));
                // What is not as the previous image had it cannot be brought back by its name either.
                if !kept.contains(&name)
                    && sources::read_any(&previous.manifest, &directories, &places, chunk, &mut raw)
                {
                    kept.put(&EncodedBlock::encode(&raw, LEVEL))?;
                }
            }
            Ok(())
        };
        in_threads(work)?;
        kept.sync()?;
        Ok(Some(bytes))
    }

    /// Makes the tree the image. `blocks` has every piece that was [`wanted`](Self::wanted).
    pub fn apply(&self, blocks: &Store) -> Result<UpdateReport, UpdateError> {
        self.check()?;
        if self.plan.is_empty() {
            self.remove_stages()?;
            return Ok(UpdateReport::default());
        }
        let staged = self.stage(blocks)?;
        let mut report = self.commit(&staged)?;
        report.reused_bytes = staged.reused_bytes();
        self.sources.forget();
        report.losses = std::mem::take(&mut *self.tree.losses.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(report)
    }

    /// Every entry that gets a new inode: those of steps, and all in directories that come whole.
    fn new_entries(&self) -> Vec<EntryIndex> {
        let mut new = Vec::new();
        let mut whole = BTreeSet::new();
        let mut steps = self.plan.steps.iter().filter(|step| step.action != Action::Adjust).peekable();
        for entry in self.goal.entries() {
            let index = entry.index();
            let step = steps.next_if(|step| step.entry == index).is_some();
            let inside = index != EntryIndex::ROOT && whole.contains(&entry.parent());
            if !step && (!inside || self.is_left(index)) {
                continue;
            }
            if entry.is_directory() {
                whole.insert(index);
            }
            new.push(index);
        }
        new
    }

    fn directories(&self) -> &Directories {
        &self.tree.directories
    }

    fn is_left(&self, entry: EntryIndex) -> bool {
        self.observed.seen[entry.at()] == Seen::Left
    }

    /// The files whose content has to be written, by their first names, and on which file systems.
    fn written_files(&self) -> Vec<Group> {
        let file = |(first, _): &Group| matches!(self.goal.entry(*first).kind(), Kind::File(_));
        let kept = |group: &Group| self.plan.keepers.contains_key(group);
        let groups: BTreeSet<Group> =
            self.new_entries().into_iter().map(|entry| self.observed.group_of(&self.goal, entry)).collect();
        groups.into_iter().filter(|group| file(group) && !kept(group)).collect()
    }

    fn need(&mut self, entry: EntryIndex) {
        let Kind::File(content) = self.goal.entry(entry).kind() else { return };
        for segment in content.segments() {
            if let Segment::Chunks { first, count } = *segment {
                self.needed[first as usize..(first + count) as usize].fill(true);
            }
        }
    }

    /// The top of the file system that an entry lies on.
    fn mount_of(&self, entry: EntryIndex) -> EntryIndex {
        self.observed.mount_of(&self.goal, entry)
    }
}

/// The blocks that [`Update::keep_previous`] keeps for the way from `present` back to `previous`.
pub fn kept_blocks<'a>(previous: &'a Manifest, present: &Manifest) -> impl Iterator<Item = Cid> + 'a {
    let chunks = sources::only_in(previous, present);
    chunks.into_iter().map(|chunk| sources::block_of(previous.chunk_id(chunk)))
}

/// Runs `work` on every processor.
fn in_threads<E: Send>(work: impl Fn() -> Result<(), E> + Sync) -> Result<(), E> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("the work does not panic"))
    })
}
