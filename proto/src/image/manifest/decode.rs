//! The manifest stream, read block by block.

use super::super::chunker::CHUNK_BYTES_MAX;
use super::super::entry::{
    Attributes, Content, InodeFlags, Kind, Mtime, SEGMENTS_MAX, SYMLINK_TARGET_BYTES_MAX, Segment,
    XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_MAX, Xattr, push_segment,
};
use super::super::layout::CHUNKS_PER_PIECE_MAX;
use super::super::path::{COMPONENT_BYTES_MAX, DEPTH_MAX};
use super::super::root::RootRecord;
use super::super::tree::TreeBuilder;
use super::encode::{
    KIND_BLOCK_DEVICE, KIND_CHAR_DEVICE, KIND_DIRECTORY, KIND_FIFO, KIND_FILE, KIND_HARD_LINK,
    KIND_NEXT_CHUNK, KIND_SYMLINK, TIME_NANOSECONDS, TIME_SECONDS,
};
use super::recent::{RECENT_TIMES, RecentTimes};
use super::varint::{Reader, unzigzag};
use super::{CHUNK_USES_MAX, MAGIC, MANIFEST_BLOCK_BYTES, Manifest, ManifestError, Parts};
use crate::cid::{ChunkId, Cid};

/// Most bytes of one entry, and so of what is held back until the next block comes.
const ENTRY_BYTES_MAX: usize = 24 << 20;

/// Why a reader stops.
#[derive(Debug)]
pub(super) enum Stop {
    /// What came so far ends within an item.
    NeedMore,
    Refuse(ManifestError),
}

impl From<ManifestError> for Stop {
    fn from(error: ManifestError) -> Self {
        Self::Refuse(error)
    }
}

/// [`push`](Self::push) the stream's bytes in order, in runs of any length, then [`finish`](Self::finish).
///
/// After an error it must be dropped. Memory: the growing manifest, and at most one entry's bytes held back, twice.
#[derive(Debug)]
pub struct ManifestDecoder {
    pieces: u64,
    chunks: u64,
    entries: u64,
    raw_bytes: u64,
    pending: Vec<u8>,
    /// So many bytes must wait before they are looked at again: an item that comes in many runs is not read from its
    /// start with each.
    wanted: usize,
    /// Uses of chunks that are still allowed.
    uses_left: u64,
    state: State,
    parts: Parts,
    tree: TreeBuilder,
    times: RecentTimes,
    next_chunk: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Piece,
    Chunks { cid: Cid, left: usize },
    Entry,
    End,
}

impl ManifestDecoder {
    /// For the manifest of `root`, whose totals it must have.
    pub fn new(root: &RootRecord) -> Self {
        Self {
            pieces: u64::from(root.pieces()),
            chunks: root.chunks(),
            entries: root.entries(),
            raw_bytes: root.raw_bytes(),
            pending: Vec::new(),
            wanted: 0,
            uses_left: CHUNK_USES_MAX,
            state: State::Header,
            parts: Parts::with_capacity(root.pieces(), root.chunks().min(root.manifest_bytes() / 33)),
            tree: TreeBuilder::with_capacity(root.entries().min(root.manifest_bytes() / 3)),
            times: RecentTimes::default(),
            next_chunk: 0,
        }
    }

    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ManifestError> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() < self.wanted { Ok(()) } else { self.read_pending() }
    }

    fn read_pending(&mut self) -> Result<(), ManifestError> {
        let mut pending = std::mem::take(&mut self.pending);
        let mut done = 0;
        loop {
            if matches!(self.state, State::End) {
                if done < pending.len() {
                    return Err(ManifestError::Trailing);
                }
                break;
            }
            let mut reader = Reader::new(&pending[done..]);
            match self.item(&mut reader) {
                Ok(()) => done += reader.consumed(),
                Err(Stop::NeedMore) => break,
                Err(Stop::Refuse(error)) => return Err(error),
            }
        }
        pending.drain(..done);
        if pending.len() > ENTRY_BYTES_MAX {
            return Err(ManifestError::EntryBytes(ENTRY_BYTES_MAX));
        }
        self.wanted = match pending.len() {
            0..MANIFEST_BLOCK_BYTES => 0,
            held => (2 * held).min(ENTRY_BYTES_MAX + 1),
        };
        self.pending = pending;
        Ok(())
    }

    pub fn finish(mut self) -> Result<Manifest, ManifestError> {
        self.read_pending()?;
        if !matches!(self.state, State::End) {
            return Err(ManifestError::Short);
        }
        let manifest = self.parts.join(self.tree.finish())?;
        agree("content bytes", manifest.content().raw_bytes(), self.raw_bytes)?;
        Ok(manifest)
    }

    /// Reads one item whole, or changes nothing.
    fn item(&mut self, reader: &mut Reader<'_>) -> Result<(), Stop> {
        match self.state {
            State::Header => self.header(reader)?,
            State::Piece => {
                let cid = Cid::from_digest(reader.digest()?);
                let left = reader.length(CHUNKS_PER_PIECE_MAX)?;
                if left == 0 {
                    return Err(ManifestError::NotCanonical("a piece without chunks").into());
                }
                self.state = State::Chunks { cid, left };
            }
            State::Chunks { cid, left } => {
                let bytes = reader.length(CHUNK_BYTES_MAX)?;
                if bytes == 0 {
                    return Err(ManifestError::NotCanonical("an empty chunk").into());
                }
                let id = ChunkId::from_digest(reader.digest()?);
                if self.parts.chunk_ids.len() as u64 == self.chunks {
                    agree("chunks", self.chunks + 1, self.chunks)?;
                }
                self.parts.push_chunk(id, u32::try_from(bytes).expect("at most CHUNK_BYTES_MAX"));
                self.state = State::Chunks { cid, left: left - 1 };
                if left == 1 {
                    self.parts.end_piece(cid)?;
                    self.after_piece()?;
                }
            }
            State::Entry => {
                self.entry(reader)?;
                if self.tree.len() as u64 == self.entries {
                    self.state = State::End;
                }
            }
            State::End => {}
        }
        Ok(())
    }

    fn header(&mut self, reader: &mut Reader<'_>) -> Result<(), Stop> {
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(ManifestError::Magic.into());
        }
        let (pieces, chunks, entries) = (reader.varint()?, reader.varint()?, reader.varint()?);
        agree("pieces", pieces, self.pieces)?;
        agree("chunks", chunks, self.chunks)?;
        agree("entries", entries, self.entries)?;
        Ok(self.after_piece()?)
    }

    fn after_piece(&mut self) -> Result<(), ManifestError> {
        self.state = State::Piece;
        if self.parts.pieces.len() as u64 == self.pieces {
            agree("chunks", self.parts.chunk_ids.len() as u64, self.chunks)?;
            self.state = State::Entry;
        }
        Ok(())
    }

    fn entry(&mut self, reader: &mut Reader<'_>) -> Result<(), Stop> {
        let entry = self.tree.len();
        let head = reader.byte()?;
        let (kind, time_code) = (head & 7, usize::from(head >> 3));
        let up = reader.length(DEPTH_MAX)?;
        let name = bytes(reader, COMPONENT_BYTES_MAX)?;
        if kind == KIND_HARD_LINK {
            if time_code != 0 {
                return Err(ManifestError::NotCanonical("a hard link with a time").into());
            }
            let back = reader.varint_u32()?;
            let here = u32::try_from(entry).expect("at most ENTRIES_MAX");
            let to = here.checked_sub(back).filter(|_| back > 0).unwrap_or(u32::MAX);
            self.tree.push_hard_link(up, name, to).map_err(ManifestError::from)?;
            return Ok(());
        }
        let known = self.tree.tree().attributes.len() as u64;
        let number = reader.varint()?;
        if number > known {
            return Err(ManifestError::Number.into());
        }
        let new = if number == known { Some(self.attributes(entry, reader)?) } else { None };
        let mtime = self.time(entry, time_code, reader)?;
        let mut segments = Vec::new();
        let (mut next_chunk, mut uses_left) = (self.next_chunk, self.uses_left);
        let kind = match kind {
            KIND_DIRECTORY => Kind::Directory,
            KIND_NEXT_CHUNK => {
                let only = Segment::Chunks { first: next_chunk, count: 1 };
                self.parts.check_file(entry, &[only], &mut uses_left)?;
                next_chunk += 1;
                Kind::File(Content::One(only))
            }
            KIND_FILE => {
                next_chunk = self.segments(reader, &mut segments)?;
                self.parts.check_file(entry, &segments, &mut uses_left)?;
                Kind::File(Content::Segments(&segments))
            }
            KIND_SYMLINK => Kind::Symlink { target: bytes(reader, SYMLINK_TARGET_BYTES_MAX)? },
            KIND_CHAR_DEVICE => Kind::CharDevice { major: reader.varint_u32()?, minor: reader.varint_u32()? },
            KIND_BLOCK_DEVICE => {
                Kind::BlockDevice { major: reader.varint_u32()?, minor: reader.varint_u32()? }
            }
            KIND_FIFO => Kind::Fifo,
            _ => unreachable!("three bits, and hard links are done"),
        };
        let pushed = match new {
            Some(attributes) => self.tree.push(up, name, attributes, mtime, kind),
            None => {
                let number = u32::try_from(number).expect("at most one for each entry");
                self.tree.push_known(up, name, number, mtime, kind)
            }
        };
        pushed.map_err(ManifestError::from)?;
        self.times.use_time(mtime);
        self.next_chunk = next_chunk;
        self.uses_left = uses_left;
        Ok(())
    }

    fn segments(&self, reader: &mut Reader<'_>, segments: &mut Vec<Segment>) -> Result<u32, Stop> {
        let count = reader.length(SEGMENTS_MAX)?;
        let mut next_chunk = self.next_chunk;
        for done in 0..count {
            let head = reader.varint()?;
            let segment = if head & 1 == 1 {
                Segment::Hole { bytes: head >> 1 }
            } else {
                let delta = unzigzag(reader.varint()?);
                let first =
                    i64::from(next_chunk).checked_add(delta).and_then(|first| u32::try_from(first).ok());
                let first = first.ok_or(ManifestError::Number)?;
                let count = u32::try_from(head >> 1).map_err(|_| ManifestError::Number)?;
                next_chunk = first.checked_add(count).ok_or(ManifestError::Number)?;
                Segment::Chunks { first, count }
            };
            push_segment(segments, segment);
            if segments.len() != done + 1 {
                return Err(ManifestError::NotCanonical("segments that are empty or could be one").into());
            }
        }
        if matches!(segments[..], [Segment::Chunks { first, count: 1 }] if first == self.next_chunk) {
            return Err(ManifestError::NotCanonical("a file of the next chunk, spelt out").into());
        }
        Ok(next_chunk)
    }

    fn time(&self, entry: usize, code: usize, reader: &mut Reader<'_>) -> Result<Mtime, Stop> {
        if code < RECENT_TIMES {
            return self.times.at_rank(code).ok_or_else(|| ManifestError::Number.into());
        }
        let seconds = match code {
            TIME_SECONDS | TIME_NANOSECONDS => unzigzag(reader.varint()?),
            _ => return Err(ManifestError::Number.into()),
        };
        let nanoseconds = if code == TIME_NANOSECONDS { reader.varint_u32()? } else { 0 };
        let mtime =
            Mtime::new(seconds, nanoseconds).map_err(|source| ManifestError::Entry { entry, source })?;
        if code == TIME_NANOSECONDS && nanoseconds == 0 || self.times.contains(mtime) {
            return Err(ManifestError::NotCanonical("a time spelt out").into());
        }
        Ok(mtime)
    }

    fn attributes(&self, entry: usize, reader: &mut Reader<'_>) -> Result<Attributes, Stop> {
        let (mode, uid, gid) = (reader.varint_u32()?, reader.varint_u32()?, reader.varint_u32()?);
        let flags = InodeFlags::from_bits(reader.varint_u32()?).ok_or(ManifestError::Number)?;
        let project = reader.varint_u32()?;
        let count = reader.length(XATTRS_MAX)?;
        let mut xattrs = Vec::new();
        for _ in 0..count {
            let name = bytes(reader, XATTR_NAME_BYTES_MAX)?.into();
            let value = bytes(reader, XATTR_VALUE_BYTES_MAX)?.into();
            xattrs.push(Xattr { name, value });
        }
        let attributes = Attributes::new(mode, uid, gid, flags, xattrs)
            .and_then(|attributes| attributes.with_project(project))
            .map_err(|source| ManifestError::Entry { entry, source })?;
        if self.tree.knows(&attributes) {
            return Err(ManifestError::NotCanonical("attributes spelt out").into());
        }
        Ok(attributes)
    }
}

fn bytes<'a>(reader: &mut Reader<'a>, max: usize) -> Result<&'a [u8], Stop> {
    let len = reader.length(max)?;
    reader.take(len)
}

fn agree(what: &'static str, said: u64, signed: u64) -> Result<(), ManifestError> {
    if said == signed { Ok(()) } else { Err(ManifestError::Totals { what, said, signed }) }
}
