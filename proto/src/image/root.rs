//! The root record: what is signed, and whose CID is the image's id. Its fields are in `schema/image.proto`.

use std::sync::Arc;

use prost::Message;

use super::chunker::{CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
use super::layout::BLOCK_BYTES_CHOICES;
use super::manifest::{CHUNKS_MAX, MANIFEST_BLOCK_BYTES, MANIFEST_BYTES_MAX, Manifest};
use super::pieces::{PIECES_MAX, Piece, PieceList};
use super::schema;
use super::tree::ENTRIES_MAX;
use crate::cid::{Cid, DIGEST_BYTES};
use crate::signing::Statement;

/// The format that this code reads and writes.
const FORMAT: u32 = 1;
/// Longest root record: one of the longest manifest, 4096 digests, with room for the other fields.
pub const ROOT_BYTES_MAX: usize = 256 << 10;

/// A checked root record. Equal records have equal bytes and so one image id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootRecord {
    block_bytes: u32,
    entries: u64,
    raw_bytes: u64,
    chunks: u64,
    pieces: u32,
    manifest_bytes: u64,
    manifest: Arc<PieceList>,
}

/// Bytes that are no root record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    #[error("a root record of {0} bytes where at most {ROOT_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("not a root record: {0}")]
    Malformed(prost::DecodeError),
    #[error("a root record of format {0}; this version of Shoal reads {FORMAT}")]
    Format(u32),
    #[error("a root record whose files were cut with other parameters")]
    Chunker,
    #[error("a root record with {what} {value}, which is out of range")]
    Range { what: &'static str, value: u64 },
    #[error("a root record that names {named} bytes of manifest blocks where {needed} are needed")]
    Blocks { named: usize, needed: u64 },
    #[error("a root record in another spelling")]
    NotCanonical,
}

impl RootRecord {
    /// `manifest_bytes` is the length of the stream and `digests` the names of its blocks.
    pub(super) fn of(manifest: &Manifest, block_bytes: u32, manifest_bytes: u64, digests: Vec<Cid>) -> Self {
        Self {
            block_bytes,
            entries: manifest.tree().len() as u64,
            raw_bytes: manifest.content().raw_bytes(),
            chunks: manifest.chunk_count() as u64,
            pieces: u32::try_from(manifest.content().len()).expect("at most PIECES_MAX"),
            manifest_bytes,
            manifest: Arc::new(block_list(manifest_bytes, digests)),
        }
    }

    /// Reads canonical bytes, and nothing else.
    pub fn decode(bytes: &[u8]) -> Result<Self, RootError> {
        if bytes.len() > ROOT_BYTES_MAX {
            return Err(RootError::TooLong(bytes.len()));
        }
        let record = schema::RootRecord::decode(bytes).map_err(RootError::Malformed)?;
        if record.format != FORMAT {
            return Err(RootError::Format(record.format));
        }
        if record.chunker != Some(chunker()) {
            return Err(RootError::Chunker);
        }
        if !BLOCK_BYTES_CHOICES.contains(&record.block_bytes) {
            return Err(RootError::Range { what: "block_bytes", value: u64::from(record.block_bytes) });
        }
        in_range("entries", record.entries, 1, ENTRIES_MAX as u64)?;
        in_range("chunks", record.chunks, 0, CHUNKS_MAX)?;
        in_range("pieces", u64::from(record.pieces), 0, PIECES_MAX as u64)?;
        in_range("manifest_bytes", record.manifest_bytes, 1, MANIFEST_BYTES_MAX)?;
        let needed = record.manifest_bytes.div_ceil(MANIFEST_BLOCK_BYTES as u64) * DIGEST_BYTES as u64;
        if record.manifest_digests.len() as u64 != needed {
            return Err(RootError::Blocks { named: record.manifest_digests.len(), needed });
        }
        let (digests, _) = record.manifest_digests.as_chunks();
        let digests = digests.iter().map(|digest| Cid::from_digest(*digest)).collect();
        let checked = Self {
            block_bytes: record.block_bytes,
            entries: record.entries,
            raw_bytes: record.raw_bytes,
            chunks: record.chunks,
            pieces: record.pieces,
            manifest_bytes: record.manifest_bytes,
            manifest: Arc::new(block_list(record.manifest_bytes, digests)),
        };
        if checked.encode() != bytes {
            return Err(RootError::NotCanonical);
        }
        Ok(checked)
    }

    /// The canonical bytes: what is signed, and what the image id names.
    pub fn encode(&self) -> Vec<u8> {
        let mut digests = Vec::with_capacity(self.manifest.len() * DIGEST_BYTES);
        for index in self.manifest.indexes() {
            digests.extend_from_slice(self.manifest.piece(index).cid.digest());
        }
        let record = schema::RootRecord {
            format: FORMAT,
            chunker: Some(chunker()),
            block_bytes: self.block_bytes,
            entries: self.entries,
            raw_bytes: self.raw_bytes,
            chunks: self.chunks,
            pieces: self.pieces,
            manifest_bytes: self.manifest_bytes,
            manifest_digests: digests,
        };
        record.encode_to_vec()
    }

    /// The image's id.
    pub fn image_id(&self) -> Cid {
        Cid::of(&self.encode())
    }

    /// The blocks of the manifest stream, in order.
    pub fn manifest(&self) -> &Arc<PieceList> {
        &self.manifest
    }

    pub fn manifest_bytes(&self) -> u64 {
        self.manifest_bytes
    }

    /// Most raw bytes of one content block.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Entries, the root directory included.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes of all distinct chunks.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Content pieces.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }
}

impl Statement for RootRecord {
    const DOMAIN: &'static str = "shoal root record v1";
    type Error = RootError;

    fn to_payload(&self) -> Vec<u8> {
        self.encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, RootError> {
        Self::decode(payload)
    }
}

fn chunker() -> schema::Chunker {
    let bytes = |bytes: usize| u32::try_from(bytes).expect("at most 256 KiB");
    schema::Chunker {
        min_bytes: bytes(CHUNK_BYTES_MIN),
        average_bytes: bytes(CHUNK_BYTES_AVERAGE),
        max_bytes: bytes(CHUNK_BYTES_MAX),
    }
}

fn in_range(what: &'static str, value: u64, min: u64, max: u64) -> Result<(), RootError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(RootError::Range { what, value }) }
}

fn block_list(manifest_bytes: u64, digests: Vec<Cid>) -> PieceList {
    let mut left = manifest_bytes;
    let mut pieces = Vec::with_capacity(digests.len());
    for cid in digests {
        let raw_bytes = left.min(MANIFEST_BLOCK_BYTES as u64);
        left -= raw_bytes;
        pieces.push(Piece { cid, raw_bytes: u32::try_from(raw_bytes).expect("at most 64 KiB") });
    }
    PieceList::new(pieces).expect("at most 4096 blocks of 1 byte to 64 KiB")
}
