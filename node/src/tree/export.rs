//! Image → tar: a pax archive with everything that an image keeps, which GNU tar and bsdtar read too.
//!
//! Entries come in path order, so the same image is the same tar. Owners are numbers; times have their nanoseconds;
//! extended attributes are written as GNU tar writes them and ACLs once more as text, for tools that look there; files
//! with holes are in GNU tar's format 1.0; flags have libarchive's names. Only a project number is written in a way that
//! is our own. What is captured from it again is the same image.

use std::io::{self, Write};

use shoal_proto::cid::ChunkId;
use shoal_proto::image::entry::{Kind, Mtime, Segment};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::tree::Entry;
use shoal_proto::image::{ImagePath, PieceIndex};

use super::archive::header::{Header, Member, Written};
use super::root::HOLE_BYTES;

/// Decoded pieces kept for the chunks that come next: a file's chunks lie in few of them.
const PIECES_KEPT_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error("cannot read piece {piece}")]
    Read { piece: PieceIndex, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("piece {piece} is not what the manifest says")]
    Damaged { piece: PieceIndex },
    #[error("cannot write {path} to a tar")]
    Entry { path: ImagePath, source: io::Error },
}

/// Gives the raw bytes of a piece of the image, checked.
pub type ReadPiece<'a> =
    &'a mut dyn FnMut(PieceIndex) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;

/// Writes the image as a tar, its end mark included. Returns how many bytes it has.
///
/// # Errors
/// When a piece cannot be had or `to` takes no more. What was written then is no whole archive.
pub fn export_tar(manifest: &Manifest, read: ReadPiece<'_>, to: &mut dyn Write) -> Result<u64, ExportError> {
    let mut exporter = Exporter { manifest, read, pieces: Vec::new(), to, bytes: 0 };
    for entry in manifest.entries() {
        exporter.entry(entry)?;
    }
    // Two empty blocks end a tar; whole records of 20 please tapes, and nobody else.
    exporter.write(&[0; 2 * Written::BLOCK_BYTES])?;
    exporter.to.flush().map_err(ExportError::Write)?;
    Ok(exporter.bytes)
}

struct Exporter<'a> {
    manifest: &'a Manifest,
    read: ReadPiece<'a>,
    /// The last ones used, the latest last.
    pieces: Vec<(PieceIndex, Vec<u8>)>,
    to: &'a mut dyn Write,
    bytes: u64,
}

impl Exporter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes).map_err(ExportError::Write)
    }

    fn pad(&mut self, bytes: u64) -> Result<(), ExportError> {
        const ZEROS: [u8; Written::BLOCK_BYTES] = [0; Written::BLOCK_BYTES];
        let over = usize::try_from(bytes % Written::BLOCK_BYTES as u64).expect("below a block");
        if over == 0 { Ok(()) } else { self.write(&ZEROS[over..]) }
    }

    fn entry(&mut self, entry: Entry<'_>) -> Result<(), ExportError> {
        let path = entry.path();
        let mut name = path.bytes().to_vec();
        let mut link = Vec::new();
        let mut data = Vec::new();
        let mut map = None;
        let mut bytes = 0;
        let member = match entry.kind() {
            Kind::Directory => {
                name = if name.is_empty() { b"./".to_vec() } else { [&name, &b"/"[..]].concat() };
                Member::Directory
            }
            Kind::File(content) => {
                data = content.segments().to_vec();
                bytes = self.manifest.size(entry);
                map = holes(self.manifest, &data, bytes);
                Member::File
            }
            Kind::Symlink { target } => {
                link = target.to_vec();
                Member::Symlink
            }
            Kind::HardLink { to } => {
                link = self.manifest.entry(to).path().bytes().to_vec();
                Member::HardLink
            }
            Kind::CharDevice { major, minor } => Member::CharDevice(major, minor),
            Kind::BlockDevice { major, minor } => Member::BlockDevice(major, minor),
            Kind::Fifo => Member::Fifo,
        };
        let (attributes, mtime): (_, Mtime) = (entry.attributes(), entry.mtime());
        let header =
            Header { name: &name, link: &link, member, attributes, mtime, bytes, map: map.as_deref() };
        let Written { headers, packed } =
            header.write().map_err(|source| ExportError::Entry { path: path.clone(), source })?;
        self.write(&headers)?;
        for segment in data {
            if let Segment::Chunks { first, count } = segment {
                for chunk in first..first + count {
                    self.chunk(chunk)?;
                }
            }
        }
        self.pad(packed)
    }

    fn chunk(&mut self, chunk: u32) -> Result<(), ExportError> {
        let piece = self.manifest.piece_of(chunk);
        match self.pieces.iter().position(|(kept, _)| *kept == piece) {
            Some(at) => {
                let kept = self.pieces.remove(at);
                self.pieces.push(kept);
            }
            None => {
                let raw = (self.read)(piece).map_err(|source| ExportError::Read { piece, source })?;
                if self.pieces.len() == PIECES_KEPT_MAX {
                    self.pieces.remove(0);
                }
                self.pieces.push((piece, raw));
            }
        }
        let (_, raw) = self.pieces.last().expect("just pushed");
        let before = self.manifest.piece_chunks(piece).start..chunk;
        let start: usize = before.map(|before| self.manifest.chunk_bytes(before) as usize).sum();
        let bytes = raw.get(start..start + self.manifest.chunk_bytes(chunk) as usize);
        let bytes = bytes.filter(|bytes| ChunkId::of(bytes) == *self.manifest.chunk_id(chunk));
        let bytes = bytes.ok_or(ExportError::Damaged { piece })?;
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes).map_err(ExportError::Write)
    }
}

/// Where a file has data, when it has holes too: offset and length of each run. GNU tar ends the map with an empty run
/// when the file ends with a hole.
fn holes(manifest: &Manifest, segments: &[Segment], bytes: u64) -> Option<Vec<(u64, u64)>> {
    if !segments.iter().any(|segment| matches!(segment, Segment::Hole { .. })) {
        return None;
    }
    let (mut at, mut map) = (0, Vec::new());
    for segment in segments {
        let length = manifest.segment_bytes(*segment);
        if let Segment::Chunks { .. } = segment {
            match map.last_mut() {
                Some((start, run)) if *start + *run == at => *run += length,
                _ => map.push((at, length)),
            }
        }
        at += length;
    }
    if map.last().is_none_or(|(start, run)| start + run < bytes) {
        map.push((bytes, 0));
    }
    debug_assert!(map.iter().all(|(start, _)| start % HOLE_BYTES as u64 == 0 || *start == bytes));
    Some(map)
}
