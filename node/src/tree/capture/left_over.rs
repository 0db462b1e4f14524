//! Blocks of what is left over of the parent's: made of the parent's blocks, not of files.

use std::collections::HashSet;

use crossbeam_channel::Sender;
use shoal_proto::cid::{ChunkId, Cid};
use shoal_proto::image::PieceIndex;
use shoal_proto::image::layout::{LaidBlock, LaidOut, ParentPieces};

use super::BlockSink;
use super::batch::{BlockBytes, Buffers};
use super::pack::Block;

pub(super) enum Trouble {
    /// The compressors have stopped.
    Stopped,
    /// Blocks that cannot be read, or are not what they are said to be.
    Lost(HashSet<Cid>),
}

/// One block of the parent. What the sink says of it is checked chunk by chunk.
struct Open<'a> {
    parent: &'a ParentPieces,
    sink: &'a dyn BlockSink,
    piece: Option<PieceIndex>,
    raw: Vec<u8>,
    /// Where the next chunk starts that is asked for, and its number.
    next: (u32, usize),
    lost: HashSet<Cid>,
}

/// Sends the blocks that are left over. Their chunks are in the parent's order: each of its blocks is read once.
pub(super) fn send(
    laid: &LaidOut,
    parent: &ParentPieces,
    sink: &dyn BlockSink,
    buffers: &Buffers,
    blocks: &Sender<Block<'_>>,
) -> Option<Trouble> {
    let mut open = Open { parent, sink, piece: None, raw: Vec::new(), next: (0, 0), lost: HashSet::new() };
    for block in &laid.blocks {
        let (LaidBlock::LeftOver { chunks, .. }, Some(key)) = (block, block.key()) else { continue };
        let mut raw = buffers.take().unwrap_or_else(|| Vec::with_capacity(laid.block_bytes as usize));
        raw.clear();
        for chunk in chunks {
            if let Some(bytes) = open.chunk(*chunk) {
                raw.extend_from_slice(bytes);
            }
        }
        // Goes on after a loss, to name them all at once.
        if open.lost.is_empty() && blocks.send((key, BlockBytes::Own(raw))).is_err() {
            return Some(Trouble::Stopped);
        }
    }
    (!open.lost.is_empty()).then_some(Trouble::Lost(open.lost))
}

impl Open<'_> {
    /// The bytes of a chunk, asked for in order; `None` when its block is lost.
    fn chunk(&mut self, chunk: u32) -> Option<&[u8]> {
        let manifest = self.parent.manifest();
        let piece = manifest.piece_of(chunk);
        if self.piece != Some(piece) {
            let cid = manifest.content().piece(piece).cid;
            self.raw = self.sink.raw(&cid).unwrap_or_default();
            (self.piece, self.next) = (Some(piece), (manifest.piece_chunks(piece).start, 0));
        }
        let (mut at, mut start) = self.next;
        while at < chunk {
            start += manifest.chunk_bytes(at) as usize;
            at += 1;
        }
        self.next = (at, start);
        let bytes = self.raw.get(start..start + manifest.chunk_bytes(chunk) as usize);
        let bytes = bytes.filter(|bytes| ChunkId::of(bytes) == *manifest.chunk_id(chunk));
        if bytes.is_none() {
            self.lost.insert(manifest.content().piece(piece).cid);
        }
        bytes
    }
}
