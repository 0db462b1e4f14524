//! The manifest: the pieces of an image, the chunks in them, and the entries made of those chunks.
//!
//! A byte stream in one spelling: the same tree under the same parent gives the same bytes, and a reader refuses
//! bytes that it would have written otherwise. It holds no compressed size, no name of an image and no date. It is
//! cut every [`MANIFEST_BLOCK_BYTES`]; the root record names these blocks. `n` is a varint (base 128, low group first,
//! fewest bytes), `±n` one of a number of either sign (zigzag), `b*` bytes after their count.
//!
//! ```text
//! header       "shoal" 01          magic, format version
//!              n n n               pieces, chunks, entries
//! pieces  ×    cid[32]             BLAKE3 of the block's raw bytes
//!              n                   chunks in the block, 1 to CHUNKS_PER_PIECE_MAX
//!         × ×  n id[32]            bytes of the chunk (1 to CHUNK_BYTES_MAX), BLAKE3 of them
//! entries ×    head                bits 0–2 kind, bits 3–7 time
//!              n                   directories that end before this entry
//!              b*                  name; the first entry is the root directory, without one
//!              n [attributes]      number of the attributes; the next free number says that they follow
//!              [time]
//!              content
//!
//! kind         0 directory
//!              1 file of one chunk, the next one: nothing follows
//!              2 file: n segments, each  n·2 ±n  (chunks; first chunk less the next one)  or  n·2+1  (bytes of a hole)
//!              3 symbolic link: b*
//!              4 hard link: n, how many entries back its inode is; no time and no attributes
//!              5, 6 character, block device: n major, n minor
//!              7 fifo
//! time         0–15 that of the 16 last different ones, last used first;  16 ±n seconds follow;
//!              17 ±n seconds and n nanoseconds, not zero, follow
//! attributes   n mode, n uid, n gid, n flags, n project, n xattrs, each b* name, b* value, sorted by name
//! ```
//!
//! *The next chunk* is one after the chunk that was named last, 0 at first. A segment is never empty, and no two
//! neighbours could be one. Entries go depth first, sorted by the bytes of their names within a directory.
//! The version changes when a reader of the old one would misread a single byte.

mod decode;
mod encode;
mod recent;
#[cfg(test)]
mod tests;
mod varint;

use std::sync::Arc;

pub use decode::ManifestDecoder;

use super::entry::{EntryError, EntryIndex, FILE_BYTES_MAX, Kind, Segment};
use super::layout::LaidOut;
use super::pieces::{Piece, PieceIndex, PieceList, PieceListError};
use super::tree::{Entry, Tree, TreeError};
use crate::cid::{ChunkId, Cid};

/// Raw bytes of each block of a manifest but the last. Small, so that its first copies spread quickly.
pub const MANIFEST_BLOCK_BYTES: usize = 64 << 10;
/// Most bytes of a manifest stream.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// Most chunks of one image. A reader sets 36 bytes aside for each.
pub const CHUNKS_MAX: u64 = 7 << 20;
/// Most uses of chunks in all files. A writer of the tree sets 16 bytes aside for each, and a few bytes of a manifest can
/// say that a file is a list of chunks many times over.
pub const CHUNK_USES_MAX: u64 = 16 << 20;
const MAGIC: &[u8; 6] = b"shoal\x01";

/// A checked manifest: every chunk that an entry names exists, and all bounds hold.
///
/// Takes about 24 bytes and its name for an entry, 40 bytes for a chunk.
#[derive(Clone, Debug)]
pub struct Manifest {
    content: Arc<PieceList>,
    /// For each piece its first chunk, and after the last the number of chunks.
    piece_chunks: Vec<u32>,
    chunk_ids: Vec<ChunkId>,
    chunk_bytes: Vec<u32>,
    tree: Tree,
}

/// Bytes that are no manifest, or a tree that no manifest can say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("not a manifest of format 1")]
    Magic,
    #[error("the manifest says {said} {what}, its root record {signed}")]
    Totals { what: &'static str, said: u64, signed: u64 },
    #[error("the manifest has a number in another spelling or beyond its range")]
    Number,
    #[error("the manifest has a length beyond {0}")]
    Length(usize),
    #[error("the manifest says the same thing in another way than a writer would: {0}")]
    NotCanonical(&'static str),
    #[error("the manifest has an entry longer than {0} bytes")]
    EntryBytes(usize),
    #[error("the manifest ends early")]
    Short,
    #[error("the manifest has bytes after its last entry")]
    Trailing,
    #[error("manifest {0}")]
    Tree(#[from] TreeError),
    #[error("manifest entry {entry} has {source}")]
    Entry { entry: usize, source: EntryError },
    #[error("manifest entry {entry} needs chunk {chunk} where {chunks} are listed")]
    Chunk { entry: usize, chunk: u64, chunks: usize },
    #[error("manifest entry {0} is larger than any file")]
    FileBytes(usize),
    #[error("the manifest lists {0}")]
    Pieces(#[from] PieceListError),
    #[error("{0} chunks where at most {CHUNKS_MAX} are allowed")]
    TooManyChunks(u64),
    #[error("manifest entry {0} brings the uses of chunks beyond {CHUNK_USES_MAX}")]
    TooManyUses(usize),
    #[error("a manifest of more than {MANIFEST_BYTES_MAX} bytes")]
    TooLong,
}

/// Where a chunk is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub entry: EntryIndex,
    /// Where in the file it starts.
    pub offset: u64,
}

impl Manifest {
    /// Joins a tree whose chunks have the numbers that a layout gave them with that layout. `cids` names the laid blocks.
    pub fn assemble(mut tree: Tree, laid: &LaidOut, cids: &[Cid]) -> Result<Self, ManifestError> {
        assert_eq!(laid.blocks.len(), cids.len(), "one name for each block");
        tree.renumber(&laid.numbers);
        let pieces = u32::try_from(laid.blocks.len()).unwrap_or(u32::MAX);
        let mut parts = Parts::with_capacity(pieces, laid.chunk_count() as u64);
        for (block, cid) in laid.blocks.iter().zip(cids) {
            for (id, bytes) in laid.chunks(block) {
                parts.push_chunk(id, bytes);
            }
            parts.end_piece(*cid)?;
        }
        parts.join(tree)
    }

    /// Joins a tree whose chunks are those of these pieces, one after another, with the pieces.
    pub(super) fn of_pieces(pieces: &[(&Self, PieceIndex)], tree: Tree) -> Result<Self, ManifestError> {
        let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let chunks: usize = pieces.iter().map(|(manifest, piece)| manifest.piece_chunks(*piece).len()).sum();
        let mut parts = Parts::with_capacity(count, chunks as u64);
        for (manifest, piece) in pieces {
            for chunk in manifest.piece_chunks(*piece) {
                parts.push_chunk(*manifest.chunk_id(chunk), manifest.chunk_bytes(chunk));
            }
            parts.end_piece(manifest.content().piece(*piece).cid)?;
        }
        parts.join(tree)
    }

    /// The pieces that carry content, in order.
    pub fn content(&self) -> &Arc<PieceList> {
        &self.content
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// All entries, parents before children; see [`Tree`] for what holds of them.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = Entry<'_>> + ExactSizeIterator {
        self.tree.entries()
    }

    pub fn entry(&self, index: EntryIndex) -> Entry<'_> {
        self.tree.entry(index)
    }

    pub fn chunk_count(&self) -> usize {
        self.chunk_ids.len()
    }

    pub fn chunk_id(&self, chunk: u32) -> &ChunkId {
        &self.chunk_ids[chunk as usize]
    }

    /// Raw bytes of a chunk.
    pub fn chunk_bytes(&self, chunk: u32) -> u32 {
        self.chunk_bytes[chunk as usize]
    }

    /// The numbers of the chunks in a piece, which lie in it in this order without a gap.
    pub fn piece_chunks(&self, piece: PieceIndex) -> std::ops::Range<u32> {
        self.piece_chunks[piece.at()]..self.piece_chunks[piece.at() + 1]
    }

    /// All chunks, by number.
    pub fn chunk_ids(&self) -> &[ChunkId] {
        &self.chunk_ids
    }

    /// The piece that a chunk lies in.
    ///
    /// # Panics
    /// When there is no such chunk.
    pub fn piece_of(&self, chunk: u32) -> PieceIndex {
        assert!((chunk as usize) < self.chunk_ids.len(), "chunk {chunk} of {}", self.chunk_ids.len());
        let at = self.piece_chunks.partition_point(|first| *first <= chunk) - 1;
        PieceIndex::new(u32::try_from(at).expect("at most PIECES_MAX"))
    }

    /// Bytes of a segment of one of this manifest's files.
    pub fn segment_bytes(&self, segment: Segment) -> u64 {
        match segment {
            Segment::Hole { bytes } => bytes,
            Segment::Chunks { first, count } => self.chunk_bytes[first as usize..][..count as usize]
                .iter()
                .map(|&bytes| u64::from(bytes))
                .sum(),
        }
    }

    /// Size of a file, holes included; of a symbolic link, the length of its target; otherwise zero.
    pub fn size(&self, entry: Entry<'_>) -> u64 {
        match entry.kind() {
            Kind::File(content) => {
                content.segments().iter().map(|&segment| self.segment_bytes(segment)).sum()
            }
            Kind::Symlink { target } => target.len() as u64,
            Kind::HardLink { to } => self.size(self.entry(to)),
            _ => 0,
        }
    }

    /// By chunk: whether a file has it. Of an image every chunk is, of a fold of layers not.
    pub fn used_chunks(&self) -> Vec<bool> {
        let mut used = vec![false; self.chunk_count()];
        self.for_each_use(|chunk, _| used[chunk as usize] = true);
        used
    }

    /// Every place of every chunk. Takes 4 bytes for a chunk and 16 for a place.
    pub fn places(&self) -> ChunkPlaces {
        ChunkPlaces::of(self)
    }
}

/// Chunk → the places that use it. A chunk used by one file twice has two places.
#[derive(Debug)]
pub struct ChunkPlaces {
    /// For each chunk the start of its places, and after the last the number of places.
    starts: Vec<u32>,
    places: Vec<Place>,
}

impl ChunkPlaces {
    fn of(manifest: &Manifest) -> Self {
        let mut starts = vec![0_u32; manifest.chunk_count() + 1];
        manifest.for_each_use(|chunk, _| starts[chunk as usize + 1] += 1);
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let nowhere = Place { entry: EntryIndex::ROOT, offset: 0 };
        let mut places = vec![nowhere; starts[manifest.chunk_count()] as usize];
        manifest.for_each_use(|chunk, place| {
            places[next[chunk as usize] as usize] = place;
            next[chunk as usize] += 1;
        });
        Self { starts, places }
    }

    /// In the order of entries and offsets.
    pub fn of_chunk(&self, chunk: u32) -> &[Place] {
        &self.places[self.starts[chunk as usize] as usize..self.starts[chunk as usize + 1] as usize]
    }
}

impl Manifest {
    fn for_each_use(&self, mut each: impl FnMut(u32, Place)) {
        for entry in self.entries() {
            let Kind::File(content) = entry.kind() else { continue };
            let mut offset = 0;
            for &segment in content.segments() {
                match segment {
                    Segment::Hole { bytes } => offset += bytes,
                    Segment::Chunks { first, count } => {
                        for chunk in first..first + count {
                            each(chunk, Place { entry: entry.index(), offset });
                            offset += u64::from(self.chunk_bytes(chunk));
                        }
                    }
                }
            }
        }
    }
}

/// The piece table while it grows.
#[derive(Debug)]
struct Parts {
    pieces: Vec<Piece>,
    piece_chunks: Vec<u32>,
    chunk_ids: Vec<ChunkId>,
    chunk_bytes: Vec<u32>,
    piece_bytes: u64,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            piece_chunks: vec![0],
            chunk_ids: Vec::new(),
            chunk_bytes: Vec::new(),
            piece_bytes: 0,
        }
    }
}

impl Parts {
    /// Sets aside room at once: growing by doubling would take twice the room.
    fn with_capacity(pieces: u32, chunks: u64) -> Self {
        let chunks = usize::try_from(chunks.min(CHUNKS_MAX)).expect("at most CHUNKS_MAX");
        Self {
            pieces: Vec::with_capacity((pieces as usize).min(chunks)),
            chunk_ids: Vec::with_capacity(chunks),
            chunk_bytes: Vec::with_capacity(chunks),
            ..Self::default()
        }
    }

    fn push_chunk(&mut self, id: ChunkId, bytes: u32) {
        self.chunk_ids.push(id);
        self.chunk_bytes.push(bytes);
        self.piece_bytes += u64::from(bytes);
    }

    fn end_piece(&mut self, cid: Cid) -> Result<(), ManifestError> {
        if self.chunk_ids.len() as u64 > CHUNKS_MAX {
            return Err(ManifestError::TooManyChunks(self.chunk_ids.len() as u64));
        }
        // A sum beyond u32 is beyond the list's bound too.
        let raw_bytes = u32::try_from(self.piece_bytes).unwrap_or(u32::MAX);
        self.pieces.push(Piece { cid, raw_bytes });
        self.piece_chunks.push(u32::try_from(self.chunk_ids.len()).expect("at most CHUNKS_MAX"));
        self.piece_bytes = 0;
        Ok(())
    }

    /// Checks that a file's segments name listed chunks and that no file is larger than a file can be. Takes its uses of
    /// chunks from `uses_left`.
    fn check_file(
        &self,
        entry: usize,
        segments: &[Segment],
        uses_left: &mut u64,
    ) -> Result<(), ManifestError> {
        let mut size = 0_u64;
        for segment in segments {
            let bytes = match *segment {
                Segment::Hole { bytes } => bytes,
                Segment::Chunks { first, count } => {
                    let end = u64::from(first) + u64::from(count);
                    let chunks = self.chunk_ids.len();
                    if end > chunks as u64 {
                        return Err(ManifestError::Chunk { entry, chunk: end - 1, chunks });
                    }
                    *uses_left =
                        uses_left.checked_sub(count.into()).ok_or(ManifestError::TooManyUses(entry))?;
                    let run = &self.chunk_bytes[first as usize..][..count as usize];
                    run.iter().map(|&bytes| u64::from(bytes)).sum()
                }
            };
            size = size
                .checked_add(bytes)
                .filter(|&size| size <= FILE_BYTES_MAX)
                .ok_or(ManifestError::FileBytes(entry))?;
        }
        Ok(())
    }

    fn join(self, tree: Tree) -> Result<Manifest, ManifestError> {
        let mut uses_left = CHUNK_USES_MAX;
        for entry in tree.entries() {
            if let Kind::File(content) = entry.kind() {
                self.check_file(entry.index().at(), content.segments(), &mut uses_left)?;
            }
        }
        Ok(Manifest {
            content: Arc::new(PieceList::new(self.pieces)?),
            piece_chunks: self.piece_chunks,
            chunk_ids: self.chunk_ids,
            chunk_bytes: self.chunk_bytes,
            tree,
        })
    }
}
