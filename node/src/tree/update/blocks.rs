//! Blocks of an image from the files of a tree.

use std::collections::HashMap;
use std::sync::Arc;

use shoal_proto::cid::Cid;
use shoal_proto::image::PieceIndex;
use shoal_proto::image::manifest::Manifest;
use shoal_proto::wire::ByteRanges;

use super::LEVEL;
use super::sources::Sources;
use crate::block::EncodedBlock;
use crate::peer::Lacking;

/// An image's blocks, made from the files of a tree that has them.
#[derive(Clone, Debug)]
pub struct TreeBlocks {
    goal: Arc<Manifest>,
    sources: Arc<Sources>,
    pieces: Arc<HashMap<Cid, PieceIndex>>,
}

impl TreeBlocks {
    pub(super) fn of(goal: Arc<Manifest>, sources: Arc<Sources>) -> Self {
        let list = goal.content();
        let pieces = Arc::new(list.indexes().map(|piece| (list.piece(piece).cid, piece)).collect());
        Self { goal, sources, pieces }
    }

    /// As [`piece`](Self::piece), by its name.
    pub fn block(&self, cid: &Cid) -> Option<EncodedBlock> {
        self.piece(*self.pieces.get(cid)?)
    }

    /// The block of a piece, with every chunk checked; `None` when some file is not what it was.
    pub fn piece(&self, piece: PieceIndex) -> Option<EncodedBlock> {
        let mut raw = Vec::with_capacity(self.goal.content().piece(piece).raw_bytes as usize);
        let mut chunk_bytes = Vec::new();
        for chunk in self.goal.piece_chunks(piece) {
            if !self.sources.read(chunk, &mut chunk_bytes) {
                return None;
            }
            raw.extend_from_slice(&chunk_bytes);
        }
        let named = Cid::of(&raw) == self.goal.content().piece(piece).cid;
        named.then(|| EncodedBlock::encode(&raw, LEVEL))
    }

    /// Which bytes of a piece have to travel: its chunks that are not here.
    pub fn lacking(&self, piece: PieceIndex) -> Lacking {
        let mut ranges = Vec::new();
        let mut at = 0;
        for chunk in self.goal.piece_chunks(piece) {
            let end = at + self.goal.chunk_bytes(chunk);
            if !self.sources.is_present(chunk) {
                ranges.push(at..end);
            }
            at = end;
        }
        match ByteRanges::covering(ranges) {
            Some(ranges) if ranges.bytes() < at => Lacking::Ranges(ranges),
            _ => Lacking::Whole,
        }
    }

    /// Writes the chunks of a piece that are not in `arrived` to their places in `raw`, each of them checked. False when
    /// some file is not what it was.
    pub fn fill(&self, piece: PieceIndex, raw: &mut [u8], arrived: &ByteRanges) -> bool {
        let mut chunk_bytes = Vec::new();
        let mut at = 0;
        for chunk in self.goal.piece_chunks(piece) {
            let end = at + self.goal.chunk_bytes(chunk);
            if !arrived.iter().any(|range| range.start <= at && end <= range.end) {
                if !self.sources.read(chunk, &mut chunk_bytes) {
                    return false;
                }
                raw[at as usize..end as usize].copy_from_slice(&chunk_bytes);
            }
            at = end;
        }
        true
    }
}
