//! Where the chunks of an image are on this machine already.
//!
//! Everything is found by hash: a chunk counts as present once its bytes were read and matched its name, and it is
//! checked again whenever it is read, because the tree is in use.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use shoal_proto::cid::{ChunkId, Cid};
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::chunker::{CHUNK_BYTES_MAX, Chunker};
use shoal_proto::image::drift::{DriftKind, Drifts};
use shoal_proto::image::entry::{EntryIndex, Kind, Segment};
use shoal_proto::image::manifest::{ChunkPlaces, Manifest, Place};
use shoal_proto::image::plan::{Observed, Seen};

use super::super::root::{self, Directories};
use super::super::survey::{Owner, own_name};
use crate::store::Store;

/// Places of one chunk that are tried before it counts as gone.
const PLACES_TRIED_MAX: usize = 4;
/// Bytes of a changed file that are cut at once.
const WINDOW_BYTES: usize = 4 << 20;

/// An image that may be on the disk, and how to open its paths.
#[derive(Debug)]
struct Located {
    manifest: Arc<Manifest>,
    directories: Directories,
}

/// Where a chunk was found that no unchanged file of the image has.
#[derive(Clone, Copy, Debug)]
struct Elsewhere {
    /// Index into `located`.
    image: usize,
    place: Place,
}

/// The chunks of one image, and where to read them.
#[derive(Debug)]
pub(super) struct Sources {
    /// The image itself first, then those that were applied before.
    located: Vec<Located>,
    places: ChunkPlaces,
    /// Entries of the image whose content is on the disk at their own path.
    intact: Vec<bool>,
    elsewhere: HashMap<u32, Elsewhere>,
    /// Chunks that an update kept for its reversal, each a block of its own.
    kept: Option<Arc<Store>>,
    present: Vec<bool>,
}

/// The block that a lone chunk is kept as.
pub(super) fn block_of(chunk: &ChunkId) -> Cid {
    Cid::from_digest(*chunk.digest())
}

impl Sources {
    pub(super) fn find(
        goal: &Arc<Manifest>,
        directories: &Directories,
        observed: &Observed,
        owners: &[Owner],
        kept: Option<Arc<Store>>,
    ) -> Self {
        let mut located = vec![Located { manifest: goal.clone(), directories: directories.renumbered() }];
        located.extend(owners.iter().map(|owner| Located {
            manifest: owner.manifest.clone(),
            directories: directories.renumbered(),
        }));
        let intact: Vec<bool> =
            goal.entries().map(|entry| has_content(observed.seen[entry.index().at()])).collect();
        let mut sources = Self {
            located,
            places: goal.places(),
            intact,
            elsewhere: HashMap::new(),
            kept,
            present: vec![false; goal.chunk_count()],
        };
        for chunk in 0..sources.present.len() {
            let number = u32::try_from(chunk).expect("at most CHUNKS_MAX");
            let places = sources.places.of_chunk(number);
            sources.present[chunk] = places.iter().any(|place| sources.intact[place.entry.at()]);
        }
        sources.look_elsewhere();
        sources.cut_changed_files(observed);
        sources
    }

    pub(super) fn is_present(&self, chunk: u32) -> bool {
        self.present[chunk as usize]
    }

    fn goal(&self) -> &Manifest {
        &self.located[0].manifest
    }

    /// Chunks not found yet, by name.
    fn wanted(&self) -> HashMap<ChunkId, u32> {
        let mut wanted = HashMap::new();
        for chunk in (0..self.present.len()).filter(|chunk| !self.present[*chunk]) {
            let chunk = u32::try_from(chunk).expect("at most CHUNKS_MAX");
            let id = *self.goal().chunk_id(chunk);
            // A fold of layers has chunks that no file has, perhaps of the same name as one that a file has.
            match self.places.of_chunk(chunk) {
                [] => drop(wanted.entry(id).or_insert(chunk)),
                _ => drop(wanted.insert(id, chunk)),
            }
        }
        wanted
    }

    /// Looks in what was kept, and where the images that were applied before have the chunk.
    fn look_elsewhere(&mut self) {
        let mut wanted = self.wanted();
        if let Some(kept) = &self.kept {
            wanted.retain(|id, chunk| {
                let held = kept.contains(&block_of(id));
                self.present[*chunk as usize] |= held;
                !held
            });
        }
        let mut buffer = Vec::new();
        for image in 1..self.located.len() {
            if wanted.is_empty() {
                return;
            }
            let Located { manifest, directories } = &self.located[image];
            let places = manifest.places();
            for number in 0..u32::try_from(manifest.chunk_count()).expect("at most CHUNKS_MAX") {
                let id = manifest.chunk_id(number);
                let Some(&chunk) = wanted.get(id) else { continue };
                let bytes = manifest.chunk_bytes(number);
                let mut tried = places.of_chunk(number).iter().take(PLACES_TRIED_MAX);
                let found = tried.find(|place| read_at(manifest, directories, place, id, bytes, &mut buffer));
                if let Some(&place) = found {
                    self.elsewhere.insert(chunk, Elsewhere { image, place });
                    self.present[chunk as usize] = true;
                    wanted.remove(id);
                }
            }
        }
    }

    /// Cuts files that stand at their path with other content: most of a changed file is often what it was.
    fn cut_changed_files(&mut self, observed: &Observed) {
        let wanted = self.wanted();
        if wanted.is_empty() {
            return;
        }
        let changed = |seen: &Seen| {
            matches!(seen, Seen::Drifted(drifts)
                if drifts.intersects(CONTENT) && !drifts.contains(DriftKind::Missing) && !drifts.contains(DriftKind::Type))
        };
        let goal = self.located[0].manifest.clone();
        let files: Vec<EntryIndex> = goal
            .entries()
            .filter(|entry| changed(&observed.seen[entry.index().at()]))
            .filter(|entry| matches!(entry.kind(), Kind::File(_)))
            .map(|entry| entry.index())
            .collect();
        let next = AtomicUsize::new(0);
        let found: Mutex<Vec<(u32, Place)>> = Mutex::default();
        let directories = &self.located[0].directories;
        let work = || {
            let mut window = vec![0; WINDOW_BYTES];
            while let Some(&entry) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                // What cannot be read has nothing to offer.
                let _ = cut(&goal, directories, entry, &mut window, |offset, bytes| {
                    if let Some(&chunk) = wanted.get(&ChunkId::of(bytes)) {
                        let place = Place { entry, offset };
                        found.lock().unwrap_or_else(PoisonError::into_inner).push((chunk, place));
                    }
                });
            }
        };
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        for (chunk, place) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.elsewhere.insert(chunk, Elsewhere { image: 0, place });
            self.present[chunk as usize] = true;
        }
    }

    /// Reads a chunk into `buffer` and checks it; false when it cannot be had any more.
    ///
    /// During an update old files go and new ones come: any place where the image has the chunk is tried.
    pub(super) fn read(&self, chunk: u32, buffer: &mut Vec<u8>) -> bool {
        let Located { manifest, directories } = &self.located[0];
        let (id, bytes) = (manifest.chunk_id(chunk), manifest.chunk_bytes(chunk));
        let places = self.places.of_chunk(chunk);
        let here = |place: &&Place| self.intact[place.entry.at()];
        let first = places.iter().filter(here).take(PLACES_TRIED_MAX);
        for place in first {
            if read_at(manifest, directories, place, id, bytes, buffer) {
                return true;
            }
        }
        if let Some(Elsewhere { image, place }) = self.elsewhere.get(&chunk) {
            let Located { manifest, directories } = &self.located[*image];
            if read_at(manifest, directories, place, id, bytes, buffer) {
                return true;
            }
        }
        if let Some(kept) = &self.kept
            && let Ok(Some(block)) = kept.get(&block_of(id))
            && block.decode_into(buffer).is_ok()
        {
            return true;
        }
        let others = places.iter().filter(|place| !here(place)).take(PLACES_TRIED_MAX);
        others.into_iter().any(|place| read_at(manifest, directories, place, id, bytes, buffer))
    }

    /// The tree was changed: what is open may be gone from it.
    pub(super) fn forget(&self) {
        self.located.iter().for_each(|located| located.directories.forget());
    }

    /// The pieces all of whose chunks are present.
    pub(super) fn held(&self) -> Bitfield {
        let list = self.goal().content();
        let mut held = Bitfield::empty(list.len());
        for piece in list.indexes() {
            if self.goal().piece_chunks(piece).all(|chunk| self.is_present(chunk)) {
                held.insert(piece);
            }
        }
        held
    }
}

const CONTENT: Drifts = Drifts::of(DriftKind::Size).union(Drifts::of(DriftKind::Content));

/// Whether what was seen has the entry's content, whatever else differs.
pub(super) fn has_content(seen: Seen) -> bool {
    const OTHER: Drifts = CONTENT
        .union(Drifts::of(DriftKind::Missing))
        .union(Drifts::of(DriftKind::Type))
        .union(Drifts::of(DriftKind::LinkTarget))
        .union(Drifts::of(DriftKind::Device));
    match seen {
        Seen::Same => true,
        Seen::Left => false,
        Seen::Drifted(drifts) => !drifts.intersects(OTHER),
    }
}

/// Reads one chunk where an image has it, and checks it.
fn read_at(
    manifest: &Manifest,
    directories: &Directories,
    place: &Place,
    id: &ChunkId,
    bytes: u32,
    buffer: &mut Vec<u8>,
) -> bool {
    let Ok(file) = open(manifest, directories, place.entry) else { return false };
    buffer.resize(bytes as usize, 0);
    root::read_full(&file, buffer, place.offset) == Ok(bytes as usize) && ChunkId::of(buffer) == *id
}

/// Reads a chunk at one of the places where an image has it.
pub(super) fn read_any(
    manifest: &Manifest,
    directories: &Directories,
    places: &ChunkPlaces,
    chunk: u32,
    buffer: &mut Vec<u8>,
) -> bool {
    let (id, bytes) = (manifest.chunk_id(chunk), manifest.chunk_bytes(chunk));
    let mut tried = places.of_chunk(chunk).iter().take(PLACES_TRIED_MAX);
    tried.any(|place| read_at(manifest, directories, place, id, bytes, buffer))
}

/// The chunks of one image's files that another one's lack.
pub(super) fn only_in(one: &Manifest, other: &Manifest) -> Vec<u32> {
    let used = other.used_chunks();
    let others: HashSet<ChunkId> =
        other.chunk_ids().iter().zip(used).filter(|(_, used)| *used).map(|(id, _)| *id).collect();
    let used = one.used_chunks();
    let chunks = 0..u32::try_from(one.chunk_count()).expect("at most CHUNKS_MAX");
    chunks.filter(|chunk| used[*chunk as usize] && !others.contains(one.chunk_id(*chunk))).collect()
}

fn open(manifest: &Manifest, directories: &Directories, entry: EntryIndex) -> Result<OwnedFd, Errno> {
    let entry = manifest.entry(entry);
    let dir = directories.open(manifest.tree(), entry.parent().get())?;
    root::open_in(&dir, own_name(entry), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
}

/// Cuts the data of a file as a capture would, and tells each chunk with where it starts.
fn cut(
    manifest: &Manifest,
    directories: &Directories,
    entry: EntryIndex,
    window: &mut [u8],
    mut each: impl FnMut(u64, &[u8]),
) -> Result<(), Errno> {
    let file = open(manifest, directories, entry)?;
    let stat = root::stat(&file)?;
    if !rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()).is_file() {
        return Ok(());
    }
    let chunker = Chunker::default();
    let size = stat.stx_size;
    let sparse = stat.stx_blocks.saturating_mul(512) < size;
    let mut at = 0;
    while at < size {
        let (start, end) = if sparse { root::next_content(&file, at, size)? } else { (at, size) };
        at = start;
        while at < end {
            let want = window.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let read = root::read_full(&file, &mut window[..want], at)?;
            let last = at + read as u64 >= end || read < want;
            let mut done = 0;
            while done < read && (last || read - done >= CHUNK_BYTES_MAX) {
                let bytes = chunker.first_chunk_bytes(&window[done..read]);
                each(at + done as u64, &window[done..done + bytes]);
                done += bytes;
            }
            at += done as u64;
            if read < want || done == 0 {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The bytes that a file has of an image's chunks.
pub(super) fn data_bytes(manifest: &Manifest, entry: EntryIndex) -> u64 {
    let Kind::File(content) = manifest.entry(entry).kind() else { return 0 };
    let data = content.segments().iter().filter(|segment| matches!(segment, Segment::Chunks { .. }));
    data.map(|&segment| manifest.segment_bytes(segment)).sum()
}
