//! What the two ends of a remote capture say, as bytes.
//!
//! ```text
//! frame     = kind u8  length u32  body                                         (little endian throughout)
//! offer, begin, scanned = JSON      have = chunk id 32 *      go, done = nothing      failed = text
//! rows      = row *
//! row       = name length u8  name  parent u32  found u8  first u32  bytes to read u64
//! events    = length u32  event *  encoding u8  raw length u32  payload      (the bytes of the chunks among the events)
//! event     = 0 chunk:  id 32  length u32            1 known: id 32  length u32          2 hole: length u64
//!             3 restart                              4 entry (below)                     5 hard link: row u32
//!             6 vanished                             7 unreadable: length u32  text
//! entry     = mode u32  uid u32  gid u32  flags u32  project u32  seconds i64  nanoseconds u32  settled u8
//!             count u32  (name length u16  name  value length u32  value) *  body
//! body      = 0 directory  1 file  2 symlink: length u16 target  3, 4 character, block device: major u32 minor u32  5 fifo
//! ```

use std::collections::HashSet;
use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_proto::cid::{ChunkId, Cid, DIGEST_BYTES};
use shoal_proto::image::ImagePath;
use shoal_proto::image::chunker::CHUNK_BYTES_MAX;
use shoal_proto::image::entry::{Attributes, InodeFlags, Mtime, XATTRS_MAX, Xattr};
use shoal_proto::image::tree::ENTRIES_MAX;

use super::super::batch::{Batch, Body, Buffers, Event, Outcome};
use super::super::scan::{Counts, Found, Scan};
use super::super::seen::Stamp;
use super::super::{UnreadableReason, Unreadables};
use super::{RemoteError, Scanned};
use crate::block::{EncodedPart, Encoding};

/// Longest body. What is sent stays well below: an entry has at most a mebibyte of attributes.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Bytes after which rows, ids or events are sent.
const FULL_BYTES: usize = 1 << 20;
const HEADER_BYTES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Offer = 1,
    Begin,
    Have,
    Go,
    Rows,
    Scanned,
    Events,
    Done,
    Failed,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        use Kind::*;
        [Offer, Begin, Have, Go, Rows, Scanned, Events, Done, Failed]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }
}

pub(super) fn write_frame(
    to: &mut (impl Write + ?Sized),
    kind: Kind,
    body: &[u8],
) -> Result<(), RemoteError> {
    let length = u32::try_from(body.len()).expect("bodies are bounded");
    let [a, b, c, d] = length.to_le_bytes();
    let header: [u8; HEADER_BYTES] = [kind as u8, a, b, c, d];
    to.write_all(&header).and_then(|()| to.write_all(body)).map_err(RemoteError::BrokenOff)
}

pub(super) fn read_frame(from: &mut (impl Read + ?Sized)) -> Result<(Kind, Vec<u8>), RemoteError> {
    let mut header = [0; HEADER_BYTES];
    from.read_exact(&mut header).map_err(RemoteError::BrokenOff)?;
    let [code, length @ ..] = header;
    let kind = Kind::from_code(code).ok_or(RemoteError::Nonsense("an unknown kind of frame"))?;
    let length = u32::from_le_bytes(length) as usize;
    if length > BODY_BYTES_MAX {
        return Err(RemoteError::Nonsense("a frame that is too long"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).map_err(RemoteError::BrokenOff)?;
    Ok((kind, body))
}

pub(super) fn unexpected(kind: Kind, body: &[u8]) -> RemoteError {
    match kind {
        Kind::Failed => RemoteError::Failed(String::from_utf8_lossy(body).into_owned()),
        _ => RemoteError::Nonsense("a frame out of turn"),
    }
}

pub(super) fn write_document(
    to: &mut (impl Write + ?Sized),
    kind: Kind,
    value: &impl Serialize,
) -> Result<(), RemoteError> {
    write_frame(to, kind, &serde_json::to_vec(value).expect("plain data"))
}

pub(super) fn document<T: DeserializeOwned>(body: &[u8]) -> Result<T, RemoteError> {
    serde_json::from_slice(body).map_err(|_| RemoteError::Nonsense("a document of another version"))
}

pub(super) fn read_document<T: DeserializeOwned>(from: &mut impl Read, kind: Kind) -> Result<T, RemoteError> {
    match read_frame(from)? {
        (found, body) if found == kind => document(&body),
        (found, body) => Err(unexpected(found, &body)),
    }
}

pub(super) fn write_ids<'a>(
    to: &mut (impl Write + ?Sized),
    ids: impl Iterator<Item = &'a ChunkId>,
) -> Result<(), RemoteError> {
    let mut body = Vec::new();
    for id in ids {
        body.extend_from_slice(id.digest());
        if body.len() + DIGEST_BYTES > FULL_BYTES {
            write_frame(to, Kind::Have, &body)?;
            body.clear();
        }
    }
    if body.is_empty() { Ok(()) } else { write_frame(to, Kind::Have, &body) }
}

pub(super) fn read_ids(body: &[u8], into: &mut HashSet<ChunkId>) -> Result<(), RemoteError> {
    let (ids, rest) = body.as_chunks::<DIGEST_BYTES>();
    into.extend(ids.iter().map(|id| ChunkId::from_digest(*id)));
    if rest.is_empty() { Ok(()) } else { Err(RemoteError::Nonsense("half a chunk's name")) }
}

/// Sends the rows of a scan.
#[derive(Default)]
pub(super) struct RowWriter {
    body: Vec<u8>,
}

impl RowWriter {
    pub(super) fn push(
        &mut self,
        scan: &Scan,
        number: u32,
        to: &mut (impl Write + ?Sized),
    ) -> Result<(), RemoteError> {
        let row = &scan.rows[number as usize];
        let name = scan.name(number);
        self.body.push(u8::try_from(name.len()).expect("a component is at most 255 bytes"));
        self.body.extend_from_slice(name);
        self.body.extend(scan.parent(number).to_le_bytes());
        let (code, first) = match row.found {
            Found::Directory => (0, 0),
            Found::File => (1, 0),
            Found::Symlink => (2, 0),
            Found::CharDevice => (3, 0),
            Found::BlockDevice => (4, 0),
            Found::Fifo => (5, 0),
            Found::HardLink(first) => (6, first),
        };
        self.body.push(code);
        self.body.extend(first.to_le_bytes());
        self.body.extend(row.read_bytes.to_le_bytes());
        if self.body.len() > FULL_BYTES {
            write_frame(to, Kind::Rows, &self.body)?;
            self.body.clear();
        }
        Ok(())
    }

    pub(super) fn finish(self, scan: &Scan, to: &mut (impl Write + ?Sized)) -> Result<(), RemoteError> {
        write_frame(to, Kind::Rows, &self.body)?;
        let Counts { sockets, vanished, excluded, mounts } = scan.counts;
        let listed = scan.unreadable.listed.iter();
        let scanned = Scanned {
            rows: u32::try_from(scan.len()).expect("the scan numbers rows with u32"),
            data_bytes: scan.data_bytes,
            read_bytes: scan.read_bytes,
            sockets,
            vanished,
            excluded,
            mounts,
            unreadable: listed.map(|one| (one.path.bytes().to_vec(), one.reason.to_string())).collect(),
            unreadable_count: scan.unreadable.count,
        };
        write_document(to, Kind::Scanned, &scanned)
    }
}

/// Takes the rows of a scan: in path order they are only by the other side's word, which the tree's builder checks.
#[derive(Default)]
pub(super) struct RowReader {
    scan: Scan,
}

impl RowReader {
    pub(super) fn push(&mut self, body: &[u8]) -> Result<(), RemoteError> {
        let mut from = Fields(body);
        while !from.0.is_empty() {
            let number = self.scan.len();
            let length = from.u8()?;
            let name = from.bytes(usize::from(length))?;
            let (parent, code, first, bytes) = (from.u32()?, from.u8()?, from.u32()?, from.u64()?);
            let found = match code {
                0 => Found::Directory,
                1 => Found::File,
                2 => Found::Symlink,
                3 => Found::CharDevice,
                4 => Found::BlockDevice,
                5 => Found::Fifo,
                6 => Found::HardLink(first),
                _ => return Err(RemoteError::Nonsense("an unknown kind of entry")),
            };
            let in_directory =
                self.scan.rows.get(parent as usize).is_some_and(|row| row.found == Found::Directory);
            let is_root = number == 0 && parent == 0 && found == Found::Directory && name.is_empty();
            let links_back = match found {
                Found::HardLink(first) => (first as usize) < number,
                _ => true,
            };
            if number >= ENTRIES_MAX || !(is_root || number > 0 && in_directory) || !links_back {
                return Err(RemoteError::Nonsense("an entry that is in no directory"));
            }
            let row = self.scan.push_far(name, parent, found, bytes);
            row.ok_or(RemoteError::Nonsense("too many names"))?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self, scanned: Scanned) -> Result<Scan, RemoteError> {
        if scanned.rows as usize != self.scan.len() || self.scan.len() == 0 {
            return Err(RemoteError::Nonsense("fewer entries than it counted"));
        }
        let Scanned { sockets, vanished, excluded, mounts, .. } = scanned;
        self.scan.counts = Counts { sockets, vanished, excluded, mounts };
        (self.scan.data_bytes, self.scan.read_bytes) = (scanned.data_bytes, scanned.read_bytes);
        let mut unreadable = Unreadables::default();
        for (path, why) in scanned.unreadable {
            let path = ImagePath::parse(&path).map_err(|_| RemoteError::Nonsense("a path that is none"))?;
            unreadable.add(path, UnreadableReason::There(why));
        }
        unreadable.count = unreadable.count.max(scanned.unreadable_count);
        self.scan.unreadable = unreadable;
        Ok(self.scan)
    }
}

/// Sends what readers say, each chunk's bytes once.
pub(super) struct EventWriter {
    known: HashSet<ChunkId>,
    events: Vec<u8>,
    data: Vec<u8>,
    sent_bytes: u64,
}

impl EventWriter {
    pub(super) fn new(known: HashSet<ChunkId>) -> Self {
        Self { known, events: Vec::new(), data: Vec::new(), sent_bytes: 0 }
    }

    /// Raw bytes of chunks that were sent.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    pub(super) fn push(&mut self, batch: &Batch, to: &mut (impl Write + ?Sized)) -> Result<(), RemoteError> {
        let mut at = 0;
        for event in &batch.events {
            match event {
                Event::Chunk(id, bytes) | Event::Known(id, bytes) => {
                    let end = at + *bytes as usize;
                    let fresh = self.known.insert(*id);
                    self.events.push(u8::from(!fresh));
                    self.events.extend_from_slice(id.digest());
                    self.events.extend(bytes.to_le_bytes());
                    if fresh {
                        self.data.extend_from_slice(&batch.data[at..end]);
                        self.sent_bytes += u64::from(*bytes);
                    }
                    at = end;
                }
                Event::Hole(bytes) => {
                    self.events.push(2);
                    self.events.extend(bytes.to_le_bytes());
                }
                Event::Restart => self.events.push(3),
                Event::End(outcome) => self.outcome(outcome),
            }
            if self.events.len() > FULL_BYTES || self.data.len() > FULL_BYTES {
                self.flush(to)?;
            }
        }
        Ok(())
    }

    pub(super) fn flush(&mut self, to: &mut (impl Write + ?Sized)) -> Result<(), RemoteError> {
        let part = EncodedPart::encode(Cid::of(b""), &self.data);
        let mut body = Vec::with_capacity(self.events.len() + part.payload.len() + 16);
        body.extend(u32::try_from(self.events.len()).expect("flushed before").to_le_bytes());
        body.append(&mut self.events);
        body.push(part.encoding.code());
        body.extend(part.raw_bytes.to_le_bytes());
        body.extend_from_slice(&part.payload);
        self.data.clear();
        write_frame(to, Kind::Events, &body)
    }

    fn outcome(&mut self, outcome: &Outcome) {
        let out = &mut self.events;
        match outcome {
            Outcome::Entry { attributes, mtime, body, settled, .. } => {
                out.push(4);
                for number in
                    [attributes.mode(), attributes.uid(), attributes.gid(), attributes.flags().bits()]
                {
                    out.extend(number.to_le_bytes());
                }
                out.extend(attributes.project().to_le_bytes());
                out.extend(mtime.seconds().to_le_bytes());
                out.extend(mtime.nanoseconds().to_le_bytes());
                out.push(u8::from(*settled));
                let length =
                    |bytes: &[u8]| u32::try_from(bytes.len()).expect("attributes are bounded").to_le_bytes();
                out.extend(u32::try_from(attributes.xattrs().len()).expect("bounded").to_le_bytes());
                for Xattr { name, value } in attributes.xattrs() {
                    out.extend(u16::try_from(name.len()).expect("at most 255").to_le_bytes());
                    out.extend_from_slice(name);
                    out.extend(length(value));
                    out.extend_from_slice(value);
                }
                match body {
                    Body::Directory => out.push(0),
                    Body::File => out.push(1),
                    Body::Symlink(target) => {
                        out.push(2);
                        out.extend(u16::try_from(target.len()).expect("at most 4095").to_le_bytes());
                        out.extend_from_slice(target);
                    }
                    Body::CharDevice(major, minor) | Body::BlockDevice(major, minor) => {
                        out.push(if matches!(body, Body::CharDevice(..)) { 3 } else { 4 });
                        out.extend(major.to_le_bytes());
                        out.extend(minor.to_le_bytes());
                    }
                    Body::Fifo => out.push(5),
                }
            }
            Outcome::HardLink(first) => {
                out.push(5);
                out.extend(first.to_le_bytes());
            }
            Outcome::Vanished => out.push(6),
            Outcome::Unreadable(reason) => {
                let text = reason.to_string();
                out.push(7);
                out.extend(u32::try_from(text.len()).expect("a line").to_le_bytes());
                out.extend(text.bytes());
            }
            Outcome::Same(_) => unreachable!("nothing is taken over where there is no parent"),
        }
    }
}

/// Takes what readers say elsewhere.
pub(super) struct EventReader {
    rows: u32,
    ended: u32,
}

impl EventReader {
    /// Of so many rows.
    pub(super) fn new(rows: u32) -> Self {
        Self { rows, ended: 0 }
    }

    pub(super) fn finish(self) -> Result<(), RemoteError> {
        if self.ended == self.rows { Ok(()) } else { Err(RemoteError::Nonsense("it left entries out")) }
    }

    pub(super) fn batch(&mut self, body: &[u8], buffers: &Buffers) -> Result<Batch, RemoteError> {
        let mut from = Fields(body);
        let length = from.u32()?;
        let mut said = Fields(from.bytes(length as usize)?);
        let encoding = Encoding::from_code(from.u8()?).ok_or(RemoteError::Nonsense("an unknown encoding"))?;
        let raw_bytes = from.u32()?;
        if raw_bytes as usize > 2 * FULL_BYTES + CHUNK_BYTES_MAX {
            return Err(RemoteError::Nonsense("more bytes than travel at once"));
        }
        let part = EncodedPart { cid: Cid::of(b""), encoding, raw_bytes, payload: from.0.to_vec().into() };
        let mut data = buffers.take().unwrap_or_default();
        part.decode_into(&mut data).map_err(|_| RemoteError::Nonsense("content that cannot be unpacked"))?;
        let mut events = Vec::new();
        let mut at = 0;
        while !said.0.is_empty() {
            let event = self.event(&mut said)?;
            if let Event::Chunk(id, bytes) = event {
                let chunk = data.get(at..at + bytes as usize);
                if chunk.is_none_or(|chunk| ChunkId::of(chunk) != id) {
                    return Err(RemoteError::Nonsense("a chunk that is not what it is called"));
                }
                at += bytes as usize;
            }
            events.push(event);
        }
        if at == data.len() {
            Ok(Batch { data, events })
        } else {
            Err(RemoteError::Nonsense("bytes of no chunk"))
        }
    }

    fn event(&mut self, from: &mut Fields<'_>) -> Result<Event, RemoteError> {
        let code = from.u8()?;
        Ok(match code {
            0 | 1 => {
                let (id, bytes) = (ChunkId::from_digest(from.array()?), from.u32()?);
                if bytes == 0 || bytes as usize > CHUNK_BYTES_MAX {
                    return Err(RemoteError::Nonsense("a chunk of a size that none has"));
                }
                if code == 0 { Event::Chunk(id, bytes) } else { Event::Known(id, bytes) }
            }
            2 => Event::Hole(from.u64()?),
            3 => Event::Restart,
            4..=7 => {
                let outcome = self.outcome(code, from)?;
                self.ended += 1;
                Event::End(outcome)
            }
            _ => return Err(RemoteError::Nonsense("an unknown event")),
        })
    }

    fn outcome(&self, code: u8, from: &mut Fields<'_>) -> Result<Outcome, RemoteError> {
        if self.ended == self.rows {
            return Err(RemoteError::Nonsense("more entries than it counted"));
        }
        Ok(match code {
            4 => entry(from)?,
            5 => {
                let first = from.u32()?;
                if first >= self.ended {
                    return Err(RemoteError::Nonsense("a hard link to what is to come"));
                }
                Outcome::HardLink(first)
            }
            6 => Outcome::Vanished,
            _ => {
                let length = from.u32()?;
                let text = String::from_utf8_lossy(from.bytes(length as usize)?).into_owned();
                Outcome::Unreadable(UnreadableReason::There(text))
            }
        })
    }
}

fn entry(from: &mut Fields<'_>) -> Result<Outcome, RemoteError> {
    let wrong = RemoteError::Nonsense;
    let (mode, uid, gid) = (from.u32()?, from.u32()?, from.u32()?);
    let flags = InodeFlags::from_bits(from.u32()?).ok_or(wrong("unknown flags"))?;
    let project = from.u32()?;
    let (seconds, nanoseconds) = (i64::from_le_bytes(from.array()?), from.u32()?);
    let settled = from.u8()? != 0;
    let count = from.u32()? as usize;
    if count > XATTRS_MAX {
        return Err(wrong("too many attributes"));
    }
    let mut xattrs = Vec::new();
    for _ in 0..count {
        let length = u16::from_le_bytes(from.array()?);
        let name = from.bytes(usize::from(length))?.into();
        let length = from.u32()?;
        xattrs.push(Xattr { name, value: from.bytes(length as usize)?.into() });
    }
    let attributes = Attributes::new(mode, uid, gid, flags, xattrs)
        .and_then(|attributes| attributes.with_project(project))
        .map_err(|_| wrong("attributes that no inode has"))?;
    let mtime = Mtime::new(seconds, nanoseconds).map_err(|_| wrong("a time that is none"))?;
    let body = match from.u8()? {
        0 => Body::Directory,
        1 => Body::File,
        2 => {
            let length = u16::from_le_bytes(from.array()?);
            Body::Symlink(from.bytes(usize::from(length))?.to_vec())
        }
        3 => Body::CharDevice(from.u32()?, from.u32()?),
        4 => Body::BlockDevice(from.u32()?, from.u32()?),
        5 => Body::Fifo,
        _ => return Err(wrong("an unknown kind of entry")),
    };
    Ok(Outcome::Entry { attributes, mtime, body, stamp: Stamp::NONE, settled })
}

/// What is left of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], RemoteError> {
        let (first, rest) =
            self.0.split_at_checked(length).ok_or(RemoteError::Nonsense("a frame that ends early"))?;
        self.0 = rest;
        Ok(first)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RemoteError> {
        let bytes = self.bytes(N)?;
        Ok(bytes.try_into().expect("so many were taken"))
    }

    fn u8(&mut self) -> Result<u8, RemoteError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, RemoteError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RemoteError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}
