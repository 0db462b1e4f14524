//! Manifest streams written by hand, right or wrong.

use shoal_proto::image::manifest::ManifestError;
use shoal_proto::image::{Manifest, ManifestDecoder, RootRecord};

/// Kinds of entries, as the manifest numbers them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Directory = 0,
    NextChunk = 1,
    File = 2,
    Symlink = 3,
    CharDevice = 5,
    BlockDevice = 6,
    Fifo = 7,
}

/// Bytes, and what the root record says of them.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) bytes: Vec<u8>,
    pub(crate) pieces: u64,
    pub(crate) chunks: u64,
    pub(crate) entries: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) attributes: u64,
}

pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A row of attributes with nothing but a mode.
pub(crate) fn attributes(mode: u64) -> Vec<u8> {
    let mut row = Vec::new();
    put(&mut row, mode);
    row.extend([0; 5]);
    row
}

/// A row of attributes with nothing but extended ones.
pub(crate) fn xattrs(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut row = vec![0; 5];
    put(&mut row, pairs.len() as u64);
    for (name, value) in pairs {
        put_bytes(&mut row, name);
        put_bytes(&mut row, value);
    }
    row
}

impl Stream {
    /// A header with these totals, which the root record has too.
    pub(crate) fn with(pieces: u64, chunks: u64, entries: u64) -> Self {
        let mut bytes = b"shoal\x01".to_vec();
        [pieces, chunks, entries].iter().for_each(|number| put(&mut bytes, *number));
        Self { bytes, pieces, chunks, entries, raw_bytes: 0, attributes: 0 }
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A piece of chunks of these lengths.
    pub(crate) fn piece(mut self, chunks: &[u32]) -> Self {
        self.bytes.extend([0xcd; 32]);
        put(&mut self.bytes, chunks.len() as u64);
        for &length in chunks {
            put(&mut self.bytes, length.into());
            self.bytes.extend([0xab; 32]);
            self.raw_bytes += u64::from(length);
        }
        self
    }

    /// The root directory, of mode 755 and second 0.
    pub(crate) fn root(self) -> Self {
        let mut root = self.raw(&[16 << 3, 0, 0, 0]).raw(&attributes(0o755)).raw(&[0]);
        root.attributes = 1;
        root
    }

    /// An entry with the time of the last one and the attributes of the root.
    pub(crate) fn entry(mut self, kind: Kind, up: u64, name: &[u8], content: &[u8]) -> Self {
        self.bytes.push(kind as u8);
        put(&mut self.bytes, up);
        put_bytes(&mut self.bytes, name);
        self.raw(&[0]).raw(content)
    }

    /// An entry with attributes of its own. With second 0 when it is the first.
    pub(crate) fn spelt(mut self, kind: Kind, up: u64, name: &[u8], row: &[u8], content: &[u8]) -> Self {
        let first = self.attributes == 0;
        self.bytes.push(kind as u8 | if first { 16 << 3 } else { 0 });
        put(&mut self.bytes, up);
        put_bytes(&mut self.bytes, name);
        put(&mut self.bytes, self.attributes);
        self.attributes += 1;
        self.raw(row).raw(if first { &[0] } else { &[] }).raw(content)
    }

    /// A symbolic link, the first of its tree.
    pub(crate) fn link_to(self, name: &[u8], target: &[u8]) -> Self {
        let mut content = Vec::new();
        put_bytes(&mut content, target);
        self.spelt(Kind::Symlink, 0, name, &attributes(0), &content)
    }

    pub(crate) fn hard_link(mut self, name: &[u8], back: u64) -> Self {
        self.bytes.extend([4, 0]);
        put_bytes(&mut self.bytes, name);
        put(&mut self.bytes, back);
        self
    }

    /// The record that an author would sign for these bytes.
    pub(crate) fn root_record(&self) -> RootRecord {
        let mut out = vec![0x08, 1];
        let mut chunker = Vec::new();
        for (field, number) in [(1, 16 << 10), (2, 64 << 10), (3, 256 << 10)] {
            chunker.push(field << 3);
            put(&mut chunker, number);
        }
        out.push(0x12);
        put_bytes(&mut out, &chunker);
        let fields =
            [1 << 20, self.entries, self.raw_bytes, self.chunks, self.pieces, self.bytes.len() as u64];
        for (field, number) in (3..).zip(fields).filter(|(_, number)| *number != 0) {
            out.push(field << 3);
            put(&mut out, number);
        }
        out.push(0x4a);
        put_bytes(&mut out, &vec![0xee; self.bytes.len().div_ceil(64 << 10) * 32]);
        RootRecord::decode(&out).unwrap()
    }
}

/// Reads a stream in runs of so many bytes.
pub(crate) fn decode(stream: &Stream, run: usize) -> Result<Manifest, ManifestError> {
    let mut decoder = ManifestDecoder::new(&stream.root_record());
    for bytes in stream.bytes.chunks(run) {
        decoder.push(bytes)?;
    }
    decoder.finish()
}
