//! Content of new files: from the tree, else from fetched blocks.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use shoal_proto::image::PieceIndex;
use shoal_proto::image::entry::{EntryIndex, Segment};

use super::super::root;
use super::Update;
use crate::store::{self, Store};

/// Why a file could not be written.
pub(super) enum WriteError {
    /// A chunk is nowhere any more.
    Gone,
    System(Errno),
    Store(store::Error),
}

/// Reads chunks for one thread: from the tree, else from a block, the last of which is kept decoded.
pub(super) struct ChunkReader<'a> {
    update: &'a Update,
    blocks: &'a Store,
    /// The piece of each chunk is found by where it starts.
    starts: Vec<u32>,
    piece: Option<PieceIndex>,
    raw: Vec<u8>,
    chunk: Vec<u8>,
    /// Raw bytes that were read from the tree.
    pub(super) reused_bytes: u64,
}

impl<'a> ChunkReader<'a> {
    pub(super) fn new(update: &'a Update, blocks: &'a Store) -> Self {
        let goal = &update.goal;
        let starts = goal.content().indexes().map(|piece| goal.piece_chunks(piece).start).collect();
        Self { update, blocks, starts, piece: None, raw: Vec::new(), chunk: Vec::new(), reused_bytes: 0 }
    }

    /// Writes the content of an entry into an empty file.
    pub(super) fn write(
        &mut self,
        entry: EntryIndex,
        segments: &[Segment],
        fd: &OwnedFd,
    ) -> Result<(), WriteError> {
        let goal = &self.update.goal;
        if segments.iter().any(|segment| matches!(segment, Segment::Hole { .. })) {
            // First: some file systems give room behind what is written, where the hole shall be.
            let size = goal.size(goal.entry(entry));
            rustix::fs::ftruncate(fd, size).map_err(WriteError::System)?;
        }
        let mut at = 0;
        for &segment in segments {
            match segment {
                Segment::Hole { bytes } => at += bytes,
                Segment::Chunks { first, count } => {
                    for chunk in first..first + count {
                        let bytes = self.read(chunk)?;
                        root::write_all(fd, bytes, at).map_err(WriteError::System)?;
                        at += bytes.len() as u64;
                    }
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, chunk: u32) -> Result<&[u8], WriteError> {
        let goal = &self.update.goal;
        if self.update.sources.is_present(chunk) && self.update.sources.read(chunk, &mut self.chunk) {
            self.reused_bytes += self.chunk.len() as u64;
            return Ok(&self.chunk);
        }
        let at = self.starts.partition_point(|start| *start <= chunk) - 1;
        let piece = goal.content().indexes().nth(at).ok_or(WriteError::Gone)?;
        if self.piece != Some(piece) {
            self.piece = None;
            let cid = goal.content().piece(piece).cid;
            let block = self.blocks.get(&cid).map_err(WriteError::Store)?.ok_or(WriteError::Gone)?;
            block.decode_into(&mut self.raw).map_err(|_| WriteError::Gone)?;
            self.piece = Some(piece);
        }
        let before = goal.piece_chunks(piece).start..chunk;
        let start: usize = before.map(|chunk| goal.chunk_bytes(chunk) as usize).sum();
        Ok(&self.raw[start..start + goal.chunk_bytes(chunk) as usize])
    }
}
