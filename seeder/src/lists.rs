//! By which pieces an image's content travels: derived from its manifest once, and remembered in a sled table, so that
//! a seeder of many large images starts without reading every manifest.
//!
//! A value is a row of pieces: `| digest: 32 | raw bytes: u32 LE |`, keyed by the digest of the image id. Whatever is
//! wrong with the table, the manifest says it again.

use std::sync::Arc;

use shoal_node::manifest::{self, load_manifest};
use shoal_node::store::Store;
use shoal_node::store::{Table, TableError};
use shoal_proto::cid::{Cid, DIGEST_BYTES};
use shoal_proto::image::{Piece, PieceList};

use crate::catalog::Image;
use crate::home::Home;

const RECORD_BYTES: usize = DIGEST_BYTES + 4;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the table of piece lists cannot be made")]
    Table(#[from] TableError),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
}

/// Piece lists by image id.
#[derive(Debug)]
pub struct Lists {
    table: Table,
}

impl Lists {
    pub fn open(home: &Home) -> Result<Self, Error> {
        let dir = home.lists_dir();
        let table = Table::open(&dir).or_else(|error| {
            tracing::warn!(%error, "the table of piece lists is made again");
            Table::reset(&dir)
        })?;
        Ok(Self { table })
    }

    /// The content list of `image`, from the table or else from its manifest in `store`.
    pub fn content(&self, image: &Image, store: &Store) -> Result<Arc<PieceList>, Error> {
        let key = image.name.image.digest();
        if let Ok(Some(value)) = self.table.get(key)
            && let Some(list) = decode(&value)
        {
            return Ok(Arc::new(list));
        }
        let list = load_manifest(store, &image.root)?.content().clone();
        if let Err(error) = self.table.write([(key.as_slice(), Some(encode(&list).as_slice()))]) {
            tracing::warn!(%error, "a piece list is not remembered");
        }
        Ok(list)
    }
}

fn encode(list: &PieceList) -> Vec<u8> {
    let mut value = Vec::with_capacity(list.len() * RECORD_BYTES);
    for piece in list.indexes().map(|index| list.piece(index)) {
        value.extend_from_slice(piece.cid.digest());
        value.extend_from_slice(&piece.raw_bytes.to_le_bytes());
    }
    value
}

fn decode(value: &[u8]) -> Option<PieceList> {
    let (records, []) = value.as_chunks::<RECORD_BYTES>() else { return None };
    let piece = |record: &[u8; RECORD_BYTES]| {
        let (digest, raw_bytes) = record.split_at(DIGEST_BYTES);
        let cid = Cid::from_digest(digest.try_into().expect("split there"));
        Piece { cid, raw_bytes: u32::from_le_bytes(raw_bytes.try_into().expect("the rest")) }
    };
    PieceList::new(records.iter().map(piece).collect()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_survives_its_table_and_a_torn_value_does_not_pass() {
        let pieces =
            (0..5u32).map(|at| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: at + 1 }).collect();
        let list = PieceList::new(pieces).unwrap();
        let value = encode(&list);
        assert_eq!(decode(&value), Some(list));
        assert_eq!(decode(&value[..value.len() - 1]), None);
    }
}
