//! The layout: which block each chunk lies in.
//!
//! An image is laid on top of its parent, the image that nodes are expected to have. Its pieces come in this order:
//!
//! ```text
//! new          chunks that the parent lacks, in path order, in blocks of their own
//! inherited    blocks of the parent, as they are and in its order
//! left over    the other chunks that the parent has, in its order, laid in further blocks
//! ```
//!
//! A node that has the parent fetches exactly the new blocks, and no block of the image mixes what such a node has with
//! what it lacks. The seeder makes the new blocks and those left over; it has the inherited ones, and so has whoever
//! keeps the parent's blocks. Laid in plain path order, a security refresh of a Debian moves 42 MB instead of 17; a
//! fresh node pays 0.3 % for the rule.
//!
//! A block is inherited when the tree uses *all* of its chunks, so that no piece carries dead bytes, and when it is at
//! least two thirds full: so an image never has more than about one and a half times the pieces of one laid afresh,
//! however many generations it has behind it. A tree of exactly the parent's chunks inherits every block.
//!
//! The layout depends on the tree and the parent alone, as long as all of the parent's blocks can be had. Chunks of a
//! block that is lost count as chunks that the parent lacks.

use std::ops::Range;
use std::sync::Arc;

use super::chunks::{ChunkSlots, ChunkTable};
use super::manifest::Manifest;
use super::pieces::PieceIndex;
use crate::cid::{ChunkId, Cid};

/// Pieces that the block size is chosen to keep an image below.
pub const PIECES_AIM: u64 = 16 << 10;
/// The block sizes that an image may have.
pub const BLOCK_BYTES_CHOICES: [u32; 6] = [256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20];
/// A mebibyte is not divided where it makes this many pieces already: a swarm is as far from its bound as a dozen
/// pieces take, so that of fewer they should be smaller. The price is 2.3 % more bytes at 256 KiB and 1.5 % at 512 KiB,
/// since a block is compressed alone.
const PIECES_ENOUGH: u64 = 1 << 10;
const UNDIVIDED_BLOCK_BYTES: u32 = 1 << 20;
/// Most chunks of one block: bounds what a reader must hold of a piece of very small files.
pub const CHUNKS_PER_PIECE_MAX: usize = 16 << 10;

/// The smallest block size that keeps a tree of `raw_bytes` at about [`PIECES_AIM`] pieces, and below a mebibyte at
/// twice [`PIECES_ENOUGH`].
pub fn block_bytes_for(raw_bytes: u64) -> u32 {
    let fits = |choice: &u32| {
        let aim = if *choice < UNDIVIDED_BLOCK_BYTES { 2 * PIECES_ENOUGH } else { PIECES_AIM };
        raw_bytes / u64::from(*choice) <= aim
    };
    let [.., largest] = BLOCK_BYTES_CHOICES;
    BLOCK_BYTES_CHOICES.into_iter().find(fits).unwrap_or(largest)
}

/// The parent image, as far as its blocks can be had.
#[derive(Debug)]
pub struct ParentPieces {
    manifest: Arc<Manifest>,
    block_bytes: u32,
    slots: ChunkSlots,
    /// By piece.
    held: Vec<bool>,
}

impl ParentPieces {
    /// `block_bytes` is that of the parent's root record; `held` says which of its blocks can be had.
    pub fn new(manifest: Arc<Manifest>, block_bytes: u32, mut held: impl FnMut(&Cid) -> bool) -> Self {
        let held: Vec<bool> =
            manifest.content().indexes().map(|piece| held(&manifest.content().piece(piece).cid)).collect();
        let mut slots = ChunkSlots::with_capacity(manifest.chunk_count());
        for piece in manifest.content().indexes().filter(|piece| held[piece.at()]) {
            for chunk in manifest.piece_chunks(piece) {
                slots.insert(manifest.chunk_ids(), chunk);
            }
        }
        Self { manifest, block_bytes, slots, held }
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Block size of an image of about `raw_bytes`: the parent's, for blocks of another size could not be inherited,
    /// unless they would be too many.
    pub fn block_bytes_for(&self, raw_bytes: u64) -> u32 {
        match raw_bytes / u64::from(self.block_bytes) <= PIECES_AIM {
            true => self.block_bytes,
            false => block_bytes_for(raw_bytes),
        }
    }

    /// Whether these chunks of the parent can be had without reading the file that they are of.
    pub fn holds(&self, chunks: Range<u32>) -> bool {
        if chunks.is_empty() {
            return true;
        }
        let first = self.manifest.piece_of(chunks.start).at();
        let last = self.manifest.piece_of(chunks.end - 1).at();
        self.held[first..=last].iter().all(|held| *held)
    }

    fn find(&self, id: &ChunkId) -> Option<u32> {
        self.slots.find(self.manifest.chunk_ids(), id)
    }
}

/// A block that is yet to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockKey {
    /// Place among the blocks of chunks that the parent lacks; all blocks without a parent.
    New(u32),
    /// Place among the blocks of what is left over.
    LeftOver(u32),
}

/// Where [`Layout::place`] put a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its number until the layout is finished: the parent's number for what the parent has, higher for the others.
    pub chunk: u32,
    /// The new block to append the bytes to, or `None` when there is nothing to append. The blocks before it are
    /// complete.
    pub append_to: Option<u32>,
}

/// Feed every chunk of the tree in path order, then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Layout {
    block_bytes: u32,
    parent: Option<Arc<ParentPieces>>,
    /// By chunk of the parent: whether the tree has it.
    used: Vec<bool>,
    /// Chunks that the parent lacks, in the order of first appearance, which is that of their blocks.
    table: ChunkTable,
    chunk_bytes: Vec<u32>,
    /// For each new block its first chunk in `table`.
    new_starts: Vec<u32>,
    /// Bytes in the last of them.
    last_bytes: u32,
}

/// A finished layout: blocks in the order of the image.
#[derive(Debug)]
pub struct LaidOut {
    pub blocks: Vec<LaidBlock>,
    /// Blocks that a node with the parent's chunks lacks: the first so many.
    pub new_blocks: usize,
    pub block_bytes: u32,
    /// For each chunk by the number that [`Placed`] said, its number in the image (blocks in order, chunks in block
    /// order).
    pub(super) numbers: Vec<u32>,
    parent: Option<Arc<ParentPieces>>,
    table: ChunkTable,
    chunk_bytes: Vec<u32>,
}

/// One block of a finished layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaidBlock {
    /// Made while the chunks were placed. Its chunks, counted among those that the parent lacks.
    New { ordinal: u32, chunks: Range<u32> },
    /// This piece of the parent.
    Inherited(PieceIndex),
    /// To be made of these chunks of the parent.
    LeftOver { ordinal: u32, chunks: Vec<u32> },
}

impl LaidBlock {
    /// Which block it is of those that had to be made.
    pub fn key(&self) -> Option<BlockKey> {
        match self {
            Self::New { ordinal, .. } => Some(BlockKey::New(*ordinal)),
            Self::Inherited(_) => None,
            Self::LeftOver { ordinal, .. } => Some(BlockKey::LeftOver(*ordinal)),
        }
    }
}

/// What is in a block while it is filled.
#[derive(Clone, Copy, Debug, Default)]
struct Filling {
    chunks: usize,
    bytes: u32,
}

impl Filling {
    fn has_room(self, bytes: u32, block_bytes: u32) -> bool {
        self.chunks < CHUNKS_PER_PIECE_MAX && self.bytes.saturating_add(bytes) <= block_bytes
    }

    fn add(&mut self, bytes: u32) {
        self.chunks += 1;
        self.bytes += bytes;
    }

    /// Full enough to stand for good. See the module for what the two thirds bound.
    fn is_inherited(self, block_bytes: u32) -> bool {
        let bytes = u64::from(self.bytes) * 3 >= u64::from(block_bytes) * 2;
        self.bytes <= block_bytes && (bytes || self.chunks * 3 >= CHUNKS_PER_PIECE_MAX * 2)
    }
}

impl Layout {
    /// `block_bytes` is one of [`BLOCK_BYTES_CHOICES`].
    pub fn new(block_bytes: u32, parent: Option<Arc<ParentPieces>>) -> Self {
        assert!(BLOCK_BYTES_CHOICES.contains(&block_bytes), "no image has blocks of {block_bytes} bytes");
        let chunks = parent.as_ref().map_or(0, |parent| parent.manifest.chunk_count());
        Self {
            block_bytes,
            parent,
            used: vec![false; chunks],
            table: ChunkTable::default(),
            chunk_bytes: Vec::new(),
            new_starts: Vec::new(),
            last_bytes: 0,
        }
    }

    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Decides the place of the next chunk of the tree, `bytes` long (1 to the chunker's maximum).
    pub fn place(&mut self, id: ChunkId, bytes: u32) -> Placed {
        if let Some(chunk) = self.parent.as_ref().and_then(|parent| parent.find(&id)) {
            self.used[chunk as usize] = true;
            return Placed { chunk, append_to: None };
        }
        let (new, fresh) = self.table.insert(id);
        let chunk = to_u32(self.used.len()) + new;
        if !fresh {
            return Placed { chunk, append_to: None };
        }
        self.chunk_bytes.push(bytes);
        let mut last = match self.new_starts.last() {
            Some(start) => Filling { chunks: (new - start) as usize, bytes: self.last_bytes },
            None => Filling::default(),
        };
        if self.new_starts.is_empty() || !last.has_room(bytes, self.block_bytes) {
            self.new_starts.push(new);
            last = Filling::default();
        }
        last.add(bytes);
        self.last_bytes = last.bytes;
        Placed { chunk, append_to: Some(to_u32(self.new_starts.len() - 1)) }
    }

    /// The tree has these chunks of the parent: as [`place`](Self::place) would find, with the same numbers.
    ///
    /// # Panics
    /// When the parent has no such chunks.
    pub fn keep(&mut self, chunks: Range<u32>) {
        self.used[chunks.start as usize..chunks.end as usize].fill(true);
    }

    /// The order of the image. The last new block, if any, is complete now.
    pub fn finish(self) -> LaidOut {
        let Self { block_bytes, parent, used, table, chunk_bytes, new_starts, .. } = self;
        let mut laid = LaidOut {
            blocks: Vec::new(),
            new_blocks: new_starts.len(),
            block_bytes,
            numbers: Vec::new(),
            parent,
            table,
            chunk_bytes,
        };
        let ends = new_starts.iter().skip(1).copied().chain([to_u32(laid.table.len())]);
        for (ordinal, (&start, end)) in (0..).zip(new_starts.iter().zip(ends)) {
            laid.blocks.push(LaidBlock::New { ordinal, chunks: start..end });
        }
        laid.inherit(&used);
        laid.number(used.len());
        laid
    }
}

impl LaidOut {
    /// The chunks of a block, in order, with their bytes.
    pub fn chunks<'a>(&'a self, block: &'a LaidBlock) -> Box<dyn Iterator<Item = (ChunkId, u32)> + 'a> {
        let of_parent = |chunk: u32| {
            let manifest = &self.parent.as_ref().expect("laid on a parent").manifest;
            (*manifest.chunk_id(chunk), manifest.chunk_bytes(chunk))
        };
        match block {
            LaidBlock::New { chunks, .. } => Box::new(
                chunks.clone().map(|new| (self.table.ids()[new as usize], self.chunk_bytes[new as usize])),
            ),
            LaidBlock::Inherited(piece) => {
                let manifest = &self.parent.as_ref().expect("laid on a parent").manifest;
                Box::new(manifest.piece_chunks(*piece).map(of_parent))
            }
            LaidBlock::LeftOver { chunks, .. } => Box::new(chunks.iter().copied().map(of_parent)),
        }
    }

    /// Chunks of the image.
    pub fn chunk_count(&self) -> usize {
        self.numbers.iter().filter(|number| **number != UNUSED).count()
    }

    fn inherit(&mut self, used: &[bool]) {
        let Some(parent) = self.parent.clone() else { return };
        let manifest = &parent.manifest;
        let same_chunks = self.table.is_empty() && used.iter().all(|used| *used);
        if same_chunks {
            self.block_bytes = parent.block_bytes;
        }
        let mut left_over: Vec<Vec<u32>> = Vec::new();
        let mut last = Filling::default();
        for piece in manifest.content().indexes().filter(|piece| parent.held[piece.at()]) {
            let chunks = manifest.piece_chunks(piece);
            let filling = Filling { chunks: chunks.len(), bytes: manifest.content().piece(piece).raw_bytes };
            let whole = used[chunks.start as usize..chunks.end as usize].iter().all(|used| *used);
            if same_chunks || whole && filling.is_inherited(self.block_bytes) {
                self.blocks.push(LaidBlock::Inherited(piece));
                continue;
            }
            for chunk in chunks.filter(|chunk| used[*chunk as usize]) {
                let bytes = manifest.chunk_bytes(chunk);
                if left_over.is_empty() || !last.has_room(bytes, self.block_bytes) {
                    left_over.push(Vec::new());
                    last = Filling::default();
                }
                last.add(bytes);
                left_over.last_mut().expect("one was pushed when there was none").push(chunk);
            }
        }
        for (ordinal, chunks) in (0..).zip(left_over) {
            self.blocks.push(LaidBlock::LeftOver { ordinal, chunks });
        }
    }

    fn number(&mut self, parent_chunks: usize) {
        let mut numbers = vec![UNUSED; parent_chunks + self.table.len()];
        let mut next = 0;
        let mut take = |chunk: usize| {
            numbers[chunk] = next;
            next += 1;
        };
        for block in &self.blocks {
            match block {
                LaidBlock::New { chunks, .. } => {
                    chunks.clone().for_each(|new| take(parent_chunks + new as usize));
                }
                LaidBlock::Inherited(piece) => {
                    let manifest = &self.parent.as_ref().expect("laid on a parent").manifest;
                    manifest.piece_chunks(*piece).for_each(|chunk| take(chunk as usize));
                }
                LaidBlock::LeftOver { chunks, .. } => chunks.iter().for_each(|chunk| take(*chunk as usize)),
            }
        }
        self.numbers = numbers;
    }
}

/// The number of a chunk of the parent that the image lacks.
const UNUSED: u32 = u32::MAX;

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).expect("fewer than 2^32 chunks")
}

#[cfg(test)]
mod tests;
