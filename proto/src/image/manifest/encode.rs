//! A manifest as its one byte stream.

use super::super::entry::{Attributes, Kind, Mtime, Segment};
use super::super::root::RootRecord;
use super::super::tree::Entry;
use super::recent::{RECENT_TIMES, RecentTimes};
use super::varint::{put, zigzag};
use super::{MAGIC, MANIFEST_BLOCK_BYTES, MANIFEST_BYTES_MAX, Manifest, ManifestError};
use crate::cid::Cid;

pub(super) const TIME_SECONDS: usize = RECENT_TIMES;
pub(super) const TIME_NANOSECONDS: usize = RECENT_TIMES + 1;

pub(super) const KIND_DIRECTORY: u8 = 0;
pub(super) const KIND_NEXT_CHUNK: u8 = 1;
pub(super) const KIND_FILE: u8 = 2;
pub(super) const KIND_SYMLINK: u8 = 3;
pub(super) const KIND_HARD_LINK: u8 = 4;
pub(super) const KIND_CHAR_DEVICE: u8 = 5;
pub(super) const KIND_BLOCK_DEVICE: u8 = 6;
pub(super) const KIND_FIFO: u8 = 7;

impl Manifest {
    /// Hands out the stream in pieces of convenient length.
    pub fn encode(&self, mut sink: impl FnMut(&[u8])) {
        let mut out = Vec::with_capacity(MANIFEST_BLOCK_BYTES + 4096);
        out.extend_from_slice(MAGIC);
        put(&mut out, self.content.len() as u64);
        put(&mut out, self.chunk_ids.len() as u64);
        put(&mut out, self.tree.len() as u64);
        for index in self.content.indexes() {
            out.extend_from_slice(self.content.piece(index).cid.digest());
            let chunks = self.piece_chunks(index);
            put(&mut out, chunks.len() as u64);
            for chunk in chunks {
                put(&mut out, u64::from(self.chunk_bytes(chunk)));
                out.extend_from_slice(self.chunk_id(chunk).digest());
            }
            flush_if_full(&mut out, &mut sink);
        }
        let mut writer = EntryWriter::default();
        for entry in self.entries() {
            writer.write(entry, &mut out);
            flush_if_full(&mut out, &mut sink);
        }
        sink(&out);
    }

    /// Cuts the stream into manifest blocks, hands out each, and returns the root record that names them.
    pub fn encode_blocks(
        &self,
        block_bytes: u32,
        mut sink: impl FnMut(Cid, &[u8]),
    ) -> Result<RootRecord, ManifestError> {
        let mut digests = Vec::new();
        let mut manifest_bytes = 0_u64;
        let mut pending: Vec<u8> = Vec::with_capacity(2 * MANIFEST_BLOCK_BYTES);
        let mut cut = |block: &[u8]| {
            let cid = Cid::of(block);
            digests.push(cid);
            sink(cid, block);
        };
        self.encode(|bytes| {
            manifest_bytes += bytes.len() as u64;
            pending.extend_from_slice(bytes);
            let whole = pending.len() / MANIFEST_BLOCK_BYTES * MANIFEST_BLOCK_BYTES;
            pending[..whole].chunks(MANIFEST_BLOCK_BYTES).for_each(&mut cut);
            pending.drain(..whole);
        });
        if !pending.is_empty() {
            cut(&pending);
        }
        if manifest_bytes > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong);
        }
        Ok(RootRecord::of(self, block_bytes, manifest_bytes, digests))
    }
}

fn flush_if_full(out: &mut Vec<u8>, sink: &mut impl FnMut(&[u8])) {
    if out.len() >= MANIFEST_BLOCK_BYTES {
        sink(out);
        out.clear();
    }
}

/// What an entry is told relative to.
#[derive(Default)]
struct EntryWriter {
    times: RecentTimes,
    attributes_known: u32,
    next_chunk: u32,
    /// Directories around the last entry, the last entry itself if it is one.
    open: Vec<u32>,
}

impl EntryWriter {
    fn write(&mut self, entry: Entry<'_>, out: &mut Vec<u8>) {
        let up = self.close_until(entry);
        let name = entry.name().map_or(&b""[..], |name| name.bytes());
        let kind = self.kind_code(entry);
        if let Kind::HardLink { to } = entry.kind() {
            out.push(kind);
            put(out, up);
            put_bytes(out, name);
            put(out, u64::from(entry.index().get() - to.get()));
            return;
        }
        let mtime = entry.mtime();
        let time = self.times.use_time(mtime);
        let time_code =
            time.unwrap_or(if mtime.nanoseconds() == 0 { TIME_SECONDS } else { TIME_NANOSECONDS });
        out.push(kind | u8::try_from(time_code << 3).expect("less than 18 in five bits"));
        put(out, up);
        put_bytes(out, name);
        let attributes = entry.attributes_number();
        put(out, u64::from(attributes));
        if attributes == self.attributes_known {
            self.attributes_known += 1;
            put_attributes(out, entry.attributes());
        }
        if time.is_none() {
            put_time(out, mtime);
        }
        self.put_content(out, entry, kind);
    }

    fn close_until(&mut self, entry: Entry<'_>) -> u64 {
        let mut up = 0;
        if entry.name().is_some() {
            while self.open.last() != Some(&entry.parent().get()) {
                self.open.pop().expect("a parent is among the open directories");
                up += 1;
            }
        }
        if entry.is_directory() {
            self.open.push(entry.index().get());
        }
        up
    }

    fn kind_code(&self, entry: Entry<'_>) -> u8 {
        match entry.kind() {
            Kind::Directory => KIND_DIRECTORY,
            Kind::File(content) => match *content.segments() {
                [Segment::Chunks { first, count: 1 }] if first == self.next_chunk => KIND_NEXT_CHUNK,
                _ => KIND_FILE,
            },
            Kind::Symlink { .. } => KIND_SYMLINK,
            Kind::HardLink { .. } => KIND_HARD_LINK,
            Kind::CharDevice { .. } => KIND_CHAR_DEVICE,
            Kind::BlockDevice { .. } => KIND_BLOCK_DEVICE,
            Kind::Fifo => KIND_FIFO,
        }
    }

    fn put_content(&mut self, out: &mut Vec<u8>, entry: Entry<'_>, kind: u8) {
        match entry.kind() {
            Kind::File(_) if kind == KIND_NEXT_CHUNK => self.next_chunk += 1,
            Kind::File(content) => {
                put(out, content.segments().len() as u64);
                for &segment in content.segments() {
                    match segment {
                        Segment::Hole { bytes } => put(out, bytes << 1 | 1),
                        Segment::Chunks { first, count } => {
                            put(out, u64::from(count) << 1);
                            put(out, zigzag(i64::from(first) - i64::from(self.next_chunk)));
                            self.next_chunk = first + count;
                        }
                    }
                }
            }
            Kind::Symlink { target } => put_bytes(out, target),
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                put(out, u64::from(major));
                put(out, u64::from(minor));
            }
            Kind::Directory | Kind::HardLink { .. } | Kind::Fifo => {}
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_time(out: &mut Vec<u8>, mtime: Mtime) {
    put(out, zigzag(mtime.seconds()));
    if mtime.nanoseconds() != 0 {
        put(out, u64::from(mtime.nanoseconds()));
    }
}

fn put_attributes(out: &mut Vec<u8>, attributes: &Attributes) {
    put(out, u64::from(attributes.mode()));
    put(out, u64::from(attributes.uid()));
    put(out, u64::from(attributes.gid()));
    put(out, u64::from(attributes.flags().bits()));
    put(out, u64::from(attributes.project()));
    put(out, attributes.xattrs().len() as u64);
    for xattr in attributes.xattrs() {
        put_bytes(out, &xattr.name);
        put_bytes(out, &xattr.value);
    }
}
