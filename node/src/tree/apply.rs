//! Image → tree: verified pieces in any order, from several threads at once, into an empty target.
//!
//! 1. [`Apply::create`] checks for room and makes all directories, closed to everybody else.
//! 2. [`Apply::write_piece`] writes each chunk to every place that uses it. A file gets its owner, mode, extended
//!    attributes and time with its last chunk.
//! 3. [`Apply::finish`] makes what has no content: symbolic links (now that nothing is opened by path any more),
//!    devices, fifos, hard links; then flags, then directories' metadata, deepest first; then one `syncfs`.
//!
//! All of it goes on several threads. [`finish`](Apply::finish) does each step with all entries before it begins the
//! next, and directories' metadata one level at a time.
//!
//! **Invariant:** a file's metadata is set once, after its last byte. Until `finish` returns, a target is not the
//! image. A killed run leaves a part; the next run with the same manifest replaces whatever is in its way.
//!
//! Memory: the manifest's, 5 bytes an entry, 4 bytes more a directory, 4 bytes a chunk and 16 bytes for each use of one.

mod crew;
mod files;
mod finish;
mod room;
mod writeback;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::fs::Mode;
use rustix::io::Errno;
use shoal_proto::image::drift::DriftKind;
use shoal_proto::image::entry::EntryIndex;
use shoal_proto::image::manifest::{ChunkPlaces, Manifest};
use shoal_proto::image::{ImagePath, PieceIndex};

use self::crew::Levels;
use self::files::Files;
use self::writeback::Writeback;
use super::metadata;
pub use super::metadata::Aspect;
use super::root::{self, Directories};

/// Most losses that a report lists; it counts the others.
pub const LOSSES_LISTED_MAX: usize = 1000;

/// How an apply treats its target.
#[derive(Clone, Copy, Debug)]
pub struct ApplyOptions {
    /// Refuse a target with too little room before anything is written.
    pub check_room: bool,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self { check_room: true }
    }
}

/// A target that is being filled. See the module for the order of calls; after an error, drop it and begin again.
#[derive(Debug)]
pub struct Apply {
    manifest: Arc<Manifest>,
    target: Target,
    levels: Levels,
    places: ChunkPlaces,
    files: Files,
    pieces: Vec<AtomicU8>,
    writeback: Writeback,
    started: Instant,
}

const PIECE_MISSING: u8 = 0;
const PIECE_WRITING: u8 = 1;
const PIECE_WRITTEN: u8 = 2;

/// What was done, and what this user or this file system could not do.
#[derive(Clone, Debug)]
pub struct ApplyReport {
    pub entries: u64,
    pub losses: Losses,
    /// From `create` to the end of the sync.
    pub elapsed_s: f64,
}

/// What the target lacks of the image, because an ordinary user may not set it or its file system cannot hold it.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    /// The first of them, at most [`LOSSES_LISTED_MAX`].
    pub listed: Vec<Loss>,
    pub counts: BTreeMap<Aspect, u64>,
}

impl Losses {
    /// The kinds of drift that they show as. A device or link that could not be made is missing, and stays so.
    pub fn kinds(&self) -> Vec<DriftKind> {
        let kind = |aspect: &Aspect| match aspect {
            Aspect::Owner => Some(DriftKind::Owner),
            Aspect::Mode => Some(DriftKind::Mode),
            Aspect::Xattr => Some(DriftKind::Xattr),
            Aspect::Time => Some(DriftKind::Mtime),
            Aspect::Flags => Some(DriftKind::Flags),
            Aspect::Project => Some(DriftKind::Project),
            Aspect::Device | Aspect::Target => None,
        };
        self.counts.keys().filter_map(kind).collect()
    }
}

#[derive(Clone, Debug)]
pub struct Loss {
    pub path: ImagePath,
    pub aspect: Aspect,
    pub reason: Errno,
}

/// Why a target is not the image.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("cannot open {}", path.display())]
    Target { path: PathBuf, source: io::Error },
    #[error("{} needs {need_bytes} bytes and has {have_bytes}", path.display())]
    NoRoom { path: PathBuf, need_bytes: u64, have_bytes: u64 },
    #[error("{} needs {need} inodes and has {have}", path.display())]
    NoInodes { path: PathBuf, need: u64, have: u64 },
    #[error("the target is full: cannot write {path}")]
    Full { path: ImagePath },
    #[error("cannot write {path}")]
    Write { path: ImagePath, source: Errno },
    #[error("cannot make {path}")]
    Make { path: ImagePath, source: Errno },
    #[error("cannot set {} of {path}", aspect.name())]
    Set { path: ImagePath, aspect: Aspect, source: Errno },
    #[error("piece {piece} has {found_bytes} bytes where the manifest says {raw_bytes}")]
    PieceLength { piece: PieceIndex, raw_bytes: u32, found_bytes: usize },
    #[error("{missing} pieces were not written")]
    Incomplete { missing: usize },
    #[error("cannot sync {}", path.display())]
    Sync { path: PathBuf, source: Errno },
}

impl Apply {
    /// Opens `target`, which exists, and makes every directory of the image in it.
    ///
    /// What else is in the target stays; what has the name of an entry is replaced when it is of another kind.
    pub fn create(manifest: Arc<Manifest>, target: &Path, options: ApplyOptions) -> Result<Self, ApplyError> {
        let started = Instant::now();
        let target = Target::open(target)?;
        if options.check_room {
            room::check(&manifest, &target)?;
        }
        let levels = Levels::of(manifest.tree());
        target.make_directories(&manifest, &levels)?;
        let places = manifest.places();
        let files = Files::of(&manifest);
        let pieces = manifest.content().indexes().map(|_| AtomicU8::new(PIECE_MISSING)).collect();
        let writeback = Writeback::start(target.open_again()?);
        Ok(Self { manifest, target, levels, places, files, pieces, writeback, started })
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Writes a piece to all its places, and finishes the files that it completes. `raw` was verified by its CID.
    ///
    /// In any order and from several threads; a piece that was written, or that another thread is writing, is left
    /// alone.
    pub fn write_piece(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), ApplyError> {
        let raw_bytes = self.manifest.content().piece(piece).raw_bytes;
        if raw.len() != raw_bytes as usize {
            return Err(ApplyError::PieceLength { piece, raw_bytes, found_bytes: raw.len() });
        }
        let state = &self.pieces[piece.at()];
        if state.compare_exchange(PIECE_MISSING, PIECE_WRITING, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return Ok(());
        }
        self.write_chunks(piece, raw)?;
        self.writeback.wrote(raw.len());
        state.store(PIECE_WRITTEN, Ordering::Release);
        Ok(())
    }

    /// Makes all the rest and syncs. The target is the image then, but for the losses reported.
    pub fn finish(self) -> Result<ApplyReport, ApplyError> {
        let written = |state: &&AtomicU8| state.load(Ordering::Acquire) == PIECE_WRITTEN;
        let missing = self.pieces.len() - self.pieces.iter().filter(written).count();
        if missing > 0 {
            return Err(ApplyError::Incomplete { missing });
        }
        self.writeback.sync_soon();
        self.finish_tree()?;
        drop(self.writeback);
        self.target.sync()?;
        let losses = self.target.losses.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(ApplyReport {
            entries: self.manifest.tree().len() as u64,
            losses,
            elapsed_s: self.started.elapsed().as_secs_f64(),
        })
    }
}

/// Whether an empty target has room for an image; writes nothing.
pub fn check_room(manifest: &Manifest, target: &Path) -> Result<(), ApplyError> {
    room::check(manifest, &Target::open(target)?)
}

/// The tree that is written, and what it would not take.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) directories: Directories,
    /// One directory of each further file system mounted in the target.
    mounts: Mutex<Vec<Arc<OwnedFd>>>,
    pub(super) losses: Mutex<Losses>,
    pub(super) privileged: bool,
}

impl Target {
    pub(super) fn open(path: &Path) -> Result<Self, ApplyError> {
        let top =
            root::open_top(path).map_err(|source| ApplyError::Target { path: path.to_owned(), source })?;
        Ok(Self {
            path: path.to_owned(),
            directories: Directories::new(top),
            mounts: Mutex::default(),
            losses: Mutex::default(),
            privileged: rustix::process::geteuid().is_root(),
        })
    }

    fn open_again(&self) -> Result<OwnedFd, ApplyError> {
        let opened = root::open_directory_in(self.directories.top(), b".");
        opened.map_err(|error| ApplyError::Target { path: self.path.clone(), source: error.into() })
    }

    fn make_directories(&self, manifest: &Manifest, levels: &Levels) -> Result<(), ApplyError> {
        let top = self.directories.top();
        metadata::open_for_filling(top).map_err(|error| made(ImagePath::ROOT, error))?;
        levels.top_down(|directory| {
            let entry = manifest.entry(directory);
            let Some(name) = entry.name() else { return Ok(()) };
            let parent = self.open_directory(manifest, entry.parent())?;
            self.make_directory(&parent, name.bytes()).map_err(|error| made(entry.path(), error))
        })
    }

    fn make_directory(&self, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            done => return done,
        }
        match root::open_closed_directory_in(parent, name) {
            Ok(there) => {
                metadata::open_for_filling(&there)?;
                self.note_mount(parent, there);
                Ok(())
            }
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                root::remove(parent, name)?;
                rustix::fs::mkdirat(parent, name, Mode::RWXU)
            }
            Err(error) => Err(error),
        }
    }

    fn note_mount(&self, parent: &OwnedFd, there: OwnedFd) {
        let device = |fd| root::stat(fd).map(|stat| (stat.stx_dev_major, stat.stx_dev_minor)).ok();
        if device(parent) != device(&there) {
            self.mounts.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(there));
        }
    }

    fn open_directory(&self, manifest: &Manifest, directory: EntryIndex) -> Result<Arc<OwnedFd>, ApplyError> {
        self.directories
            .open(manifest.tree(), directory.get())
            .map_err(|source| made(manifest.entry(directory).path(), source))
    }

    /// Counts what cannot be helped as a loss; anything else is an error.
    pub(super) fn fail_or_lose(
        &self,
        path: ImagePath,
        aspect: Aspect,
        error: Errno,
    ) -> Result<(), ApplyError> {
        // Root may not everything either: in a container, or on a file system without owners.
        let may_not = matches!(error, Errno::PERM | Errno::ACCESS);
        let cannot_hold = matches!(error, Errno::OPNOTSUPP | Errno::NOTTY | Errno::TOOBIG | Errno::INVAL)
            || aspect == Aspect::Xattr && matches!(error, Errno::NOSPC | Errno::RANGE)
            || aspect == Aspect::Target && error == Errno::NAMETOOLONG
            || aspect == Aspect::Time && error == Errno::OVERFLOW;
        if !may_not && !cannot_hold {
            return Err(ApplyError::Set { path, aspect, source: error });
        }
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        *losses.counts.entry(aspect).or_default() += 1;
        if losses.listed.len() < LOSSES_LISTED_MAX {
            losses.listed.push(Loss { path, aspect, reason: error });
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), ApplyError> {
        let mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        for fd in mounts.iter().chain([self.directories.top()]) {
            rustix::fs::syncfs(fd).map_err(|source| ApplyError::Sync { path: self.path.clone(), source })?;
        }
        Ok(())
    }
}

/// The error of making something: a full target is told apart.
fn made(path: ImagePath, source: Errno) -> ApplyError {
    if matches!(source, Errno::NOSPC | Errno::DQUOT) {
        ApplyError::Full { path }
    } else {
        ApplyError::Make { path, source }
    }
}
