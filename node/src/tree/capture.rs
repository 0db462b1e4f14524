//! Tree → image.
//!
//! ```text
//! scan ──rows──▶ readers ×N ──batches, in path order──▶ packer ──full blocks──▶ compressors ×N ──▶ sink
//! (names, sizes)  (metadata, cut, hash)                 (this thread: dedup)     (zstd, hash)
//! └──────────────── source ────────────┘
//! ```
//! A source ([`source`]) is a tree of this machine or one that an [`Archive`] holds. What comes behind it cannot tell
//! which: the same tree is the same image.
//!
//! Every arrow is a bounded channel, so memory depends on the number of entries (about 40 bytes and a name each) and of
//! chunks, not on sizes of files. Readers finish out of order; the packer takes their results in path order, so the
//! image does not depend on the number of threads.
//!
//! **On top of a parent**, blocks are inherited ([`layout`](shoal_proto::image::layout)), and an entry whose inode has
//! not changed since the parent was captured is taken over without being opened ([`reuse`], [`seen`]). Either way the
//! image is the same as one for which everything was read. A block of the parent that is damaged is found when it is
//! needed: the capture then begins again without it.
//!
//! Nothing is published when anything could not be read: the error names all such paths.

mod ahead;
mod batch;
mod left_over;
mod pack;
mod packer;
mod read;
mod read_archive;
mod read_live;
pub mod remote;
mod reuse;
mod scan;
mod seen;
mod source;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use std::{fmt, io};

use rustix::io::Errno;
use shoal_proto::cid::Cid;
use shoal_proto::image::entry::EntryError;
use shoal_proto::image::layout::ParentPieces;
use shoal_proto::image::manifest::{Manifest, ManifestError};
use shoal_proto::image::tree::TreeError;
use shoal_proto::image::{ImagePath, RootRecord};

use super::archive::{Archive, ArchiveError};
use super::exclude::Excludes;
use super::root::Directories;
use crate::block::EncodedBlock;
use crate::store::Store;
use pack::{PackError, Packed, Setting};
use remote::RemoteError;
use reuse::Reuse;
use seen::{Circumstances, Seen, SeenWriter};
use source::{Archived, Live, Source};

/// Most unreadable paths that an error lists; it counts the others.
pub const UNREADABLE_LISTED_MAX: usize = 1000;
/// Most paths that a report lists of files that changed all the time.
pub const CHANGED_LISTED_MAX: usize = 1000;
/// Most that the error's one line names.
const UNREADABLE_SHOWN_MAX: usize = 5;
/// zstd level of blocks. The next one saves 3 % of an OS tree's bytes and costs half as much work again.
pub const LEVEL_DEFAULT: i32 = 2;
/// zstd level of blocks that the parent lacks: few, and each updating machine fetches just these.
pub const UPDATE_LEVEL_DEFAULT: i32 = 9;

/// What a capture leaves out, what it builds on, and how hard it works.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    pub excludes: Excludes,
    /// The image that nodes are expected to have, whose blocks the sink holds.
    pub parent: Option<Parent>,
    /// A file where captures of one tree leave word for the next one of what they saw. Read when there is a parent,
    /// and replaced. Nothing about it makes a capture fail.
    pub seen: Option<PathBuf>,
    /// Take what is unchanged by the file `seen` from the parent. Otherwise everything is read.
    pub reuse: bool,
    /// Take a file that changes each time it is read as it was read last, and list it, instead of failing.
    pub allow_changed: bool,
    /// zstd level.
    pub level: i32,
    /// zstd level of blocks that the parent lacks, where there is one.
    pub update_level: i32,
    /// Readers, and compressors; at least one.
    pub threads: usize,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            excludes: Excludes::default(),
            parent: None,
            seen: None,
            reuse: true,
            allow_changed: false,
            level: LEVEL_DEFAULT,
            update_level: UPDATE_LEVEL_DEFAULT,
            threads,
        }
    }
}

/// The image that another one is laid on.
#[derive(Clone, Debug)]
pub struct Parent {
    pub root: RootRecord,
    /// That of `root`.
    pub manifest: Arc<Manifest>,
}

impl From<&Captured> for Parent {
    fn from(captured: &Captured) -> Self {
        Self { root: captured.root.clone(), manifest: Arc::clone(&captured.manifest) }
    }
}

/// What a sink's failure is.
pub type BlockSinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where a capture leaves its blocks, and finds those of the parent. Called from several threads.
pub trait BlockSink: Sync {
    fn put(&self, block: &EncodedBlock) -> Result<(), BlockSinkError>;

    /// Bytes of the payload of a block that is here already. A block of the parent that is not is laid anew.
    fn held(&self, cid: &Cid) -> Option<u64> {
        let _ = cid;
        None
    }

    /// The raw bytes of a block that is here. `None` when it cannot be read: the capture goes on without it, and may
    /// put it again.
    fn raw(&self, cid: &Cid) -> Option<Vec<u8>> {
        let _ = cid;
        None
    }
}

impl BlockSink for Store {
    fn put(&self, block: &EncodedBlock) -> Result<(), BlockSinkError> {
        Store::put(self, block)?;
        Ok(())
    }

    fn held(&self, cid: &Cid) -> Option<u64> {
        self.payload_bytes(cid)
    }

    fn raw(&self, cid: &Cid) -> Option<Vec<u8>> {
        let failed =
            |error: &dyn fmt::Display| tracing::warn!(%cid, %error, "a block of the parent image is lost");
        // A block that the store found damaged it has forgotten already.
        let block = self.get(cid).map_err(|error| failed(&error)).ok().flatten()?;
        let raw = block.decode().map_err(|error| failed(&error));
        if raw.is_err() {
            self.discard(cid);
        }
        raw.ok()
    }
}

/// Told how far a capture is. Called often and from several threads: it must be quick.
pub trait CaptureProgress: Sync {
    /// The scan is done: so many entries, with so many bytes of files to read. Comes again when the capture has to
    /// begin again.
    fn scanned(&self, entries: u64, bytes: u64) {
        let _ = (entries, bytes);
    }

    /// So many more bytes were read and cut.
    fn read(&self, bytes: u64) {
        let _ = bytes;
    }

    /// One more block was compressed and stored.
    fn stored(&self, raw_bytes: u64, compressed_bytes: u64) {
        let _ = (raw_bytes, compressed_bytes);
    }
}

/// Tells nobody.
impl CaptureProgress for () {}

/// A tree that is an image now. Its blocks and its manifest's blocks are in the sink.
#[derive(Clone, Debug)]
pub struct Captured {
    pub root: RootRecord,
    pub manifest: Arc<Manifest>,
    pub report: CaptureReport,
}

/// What a capture did. *New* is what the parent lacks; everything without a parent.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CaptureReport {
    /// The image's id.
    pub image: String,
    pub entries: u64,
    /// Distinct chunks.
    pub chunks: u64,
    /// Content blocks.
    pub blocks: u64,
    pub new_blocks: u64,
    /// Bytes of all distinct chunks.
    pub raw_bytes: u64,
    /// The same as it travels.
    pub compressed_bytes: u64,
    pub new_compressed_bytes: u64,
    /// The manifest as it travels.
    pub manifest_bytes: u64,
    /// Left out: sockets, which no image holds.
    pub sockets: u64,
    /// Left out: gone between being seen and being opened.
    pub vanished: u64,
    /// Left out: by a pattern (a directory counts once).
    pub excluded: u64,
    /// Left out: the content of other file systems mounted in the tree (each counts once).
    pub mounts: u64,
    /// Entries that were taken over from the parent without being opened.
    #[serde(default)]
    pub reused: u64,
    /// Files that changed each time they were read, taken as they were read last.
    #[serde(default)]
    pub changed: u64,
    /// The first of them, at most [`CHANGED_LISTED_MAX`].
    #[serde(default)]
    pub changed_paths: Vec<String>,
    pub elapsed_s: f64,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("cannot open {}", path.display())]
    Source { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Unreadable(Unreadables),
    #[error(transparent)]
    Archive(ArchiveError),
    #[error("cannot capture the tree of another machine")]
    Remote(#[from] RemoteError),
    #[error("cannot store block {cid}")]
    Sink { cid: Cid, source: BlockSinkError },
    #[error("cannot describe the tree")]
    Tree(#[from] TreeError),
    #[error("cannot describe the image")]
    Manifest(#[from] ManifestError),
}

/// All paths that could not be read.
#[derive(Debug, Default)]
pub struct Unreadables {
    /// The first of them, at most [`UNREADABLE_LISTED_MAX`].
    pub listed: Vec<Unreadable>,
    pub count: u64,
}

/// Files that changed each time they were read.
#[derive(Debug, Default)]
struct Changed {
    listed: Vec<String>,
    count: u64,
}

impl Changed {
    fn add(&mut self, path: ImagePath) {
        self.count += 1;
        if self.listed.len() < CHANGED_LISTED_MAX {
            self.listed.push(path.to_string());
        }
    }
}

#[derive(Debug)]
pub struct Unreadable {
    pub path: ImagePath,
    pub reason: UnreadableReason,
}

#[derive(Debug, thiserror::Error)]
pub enum UnreadableReason {
    #[error(transparent)]
    System(#[from] Errno),
    #[error("changed each time it was read")]
    Changing,
    #[error("its first name vanished while it was captured")]
    LinkVanished,
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// In the words of the machine that could not.
    #[error("{0}")]
    There(String),
}

impl Unreadables {
    fn add(&mut self, path: ImagePath, reason: UnreadableReason) {
        // A directory may fail for its attributes and for its entries: one path, one line.
        if self.listed.last().is_some_and(|last| last.path == path) {
            return;
        }
        self.count += 1;
        if self.listed.len() < UNREADABLE_LISTED_MAX {
            self.listed.push(Unreadable { path, reason });
        }
    }
}

impl fmt::Display for Unreadables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let shown = self.listed.len().min(UNREADABLE_SHOWN_MAX);
        for Unreadable { path, reason } in &self.listed[..shown] {
            write!(f, "{separator}cannot read {path}: {reason}")?;
            separator = "; ";
        }
        match self.count - shown as u64 {
            0 => Ok(()),
            others => write!(f, "; and {others} more"),
        }
    }
}

/// Reads the tree at `source` into `sink`: content blocks and manifest blocks. The caller keeps the root record, and
/// makes the sink durable.
///
/// The same tree under the same parent gives the same image, as long as the parent's blocks are whole. One file system
/// is captured; sockets are left out.
pub fn capture(
    source: &Path,
    options: &CaptureOptions,
    sink: &dyn BlockSink,
    progress: &dyn CaptureProgress,
) -> Result<Captured, CaptureError> {
    let failed = |error: io::Error| CaptureError::Source { path: source.to_owned(), source: error };
    capture_from(&Live::open(source).map_err(failed)?, options, sink, progress)
}

/// As [`capture`], of a tree that an archive holds. The same tree is the same image wherever it comes from.
pub fn capture_archive(
    archive: &Archive,
    options: &CaptureOptions,
    sink: &dyn BlockSink,
    progress: &dyn CaptureProgress,
) -> Result<Captured, CaptureError> {
    capture_from(&Archived::new(archive), options, sink, progress)
}

fn capture_from(
    source: &dyn Source,
    options: &CaptureOptions,
    sink: &dyn BlockSink,
    progress: &dyn CaptureProgress,
) -> Result<Captured, CaptureError> {
    let started = Instant::now();
    let here = source.circumstances();
    let mut lost = HashSet::new();
    let packed = loop {
        let parent = options.parent.as_ref().map(|Parent { root, manifest }| {
            let held = |cid: &Cid| !lost.contains(cid) && sink.held(cid).is_some();
            Arc::new(ParentPieces::new(Arc::clone(manifest), root.block_bytes(), held))
        });
        match attempt(&Setting { source, options, sink, progress, parent }, here) {
            Ok(packed) => break packed,
            Err(PackError::Capture(error)) => return Err(error),
            Err(PackError::Lost(more)) => {
                tracing::warn!(blocks = more.len(), "blocks of the parent image are lost: capturing again");
                lost.extend(more);
            }
        }
    };
    finish(packed, options.level, sink, started)
}

fn attempt(setting: &Setting<'_>, here: Option<Circumstances>) -> Result<Packed, PackError> {
    let Setting { source, options, progress, .. } = *setting;
    let file = options.seen.as_deref().zip(here);
    let open = || {
        let (path, here) = file.filter(|_| options.reuse)?;
        Seen::open(path, &options.parent.as_ref()?.root.image_id(), here)
    };
    let reuse = setting.parent.as_deref().zip(open()).map(|(parent, seen)| Reuse::new(parent, seen));
    let writer = file.and_then(|(path, here)| {
        let failed =
            |error| tracing::warn!(path = %path.display(), %error, "the next capture reads everything");
        SeenWriter::create(path, here).map_err(failed).ok()
    });
    let scan = source.scan(setting, reuse).map_err(PackError::Capture)?;
    progress.scanned(scan.len() as u64, scan.read_bytes);
    pack::pack(setting, scan, (open(), writer))
}

fn finish(
    packed: Packed,
    level: i32,
    sink: &dyn BlockSink,
    started: Instant,
) -> Result<Captured, CaptureError> {
    let Packed { manifest, block_bytes, counts, changed, .. } = packed;
    let mut manifest_bytes = 0;
    let mut failure = None;
    let root = manifest.encode_blocks(block_bytes, |cid, raw| {
        if failure.is_none() {
            let block = EncodedBlock::encode(raw, level);
            manifest_bytes += block.payload.len() as u64;
            failure = sink.put(&block).err().map(|source| CaptureError::Sink { cid, source });
        }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    if let Some(seen) = packed.seen
        && let Err(error) = seen.finish(root.image_id())
    {
        tracing::warn!(%error, "cannot keep what was seen: the next capture reads everything");
    }
    let report = CaptureReport {
        image: root.image_id().to_string(),
        entries: root.entries(),
        chunks: root.chunks(),
        blocks: u64::from(root.pieces()),
        new_blocks: packed.new_blocks,
        raw_bytes: root.raw_bytes(),
        compressed_bytes: packed.compressed_bytes,
        new_compressed_bytes: packed.new_compressed_bytes,
        manifest_bytes,
        sockets: counts.sockets,
        vanished: counts.vanished,
        excluded: counts.excluded,
        mounts: counts.mounts,
        reused: packed.reused,
        changed: changed.count,
        changed_paths: changed.listed,
        elapsed_s: started.elapsed().as_secs_f64(),
    };
    Ok(Captured { root, manifest: Arc::new(manifest), report })
}

/// Entries below the top of a tree, and the bytes of its files, as far as they can be seen.
pub(super) fn room_of(directories: &Directories) -> (u64, u64) {
    let scan = scan::scan(&directories.renumbered(), &Excludes::default(), None, 1);
    (scan.len() as u64, scan.data_bytes)
}
