//! Reads a tar: ustar, GNU and pax, with holes in all four ways that GNU tar has written them.
//!
//! The `tar` crate knows what is in a header; which headers belong together is decided here, since it unpacks holes to
//! zeros and drops what it has no name for.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use shoal_proto::image::entry::{Attributes, Mtime};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::compression::{Compression, detect, unpack};
use super::content::{Extent, Range};
use super::pax::Extended;
use super::{Archive, ArchiveError, EntryFault, Inode, Node, TarError, acl};

const BLOCK_BYTES: u64 = BLOCK_LEN as u64;
const BLOCK_LEN: usize = 512;
/// Most bytes of the extended headers of one entry: attributes of more no inode has.
pub(super) const EXTENSION_BYTES_MAX: u64 = 8 << 20;
const COPY_BYTES: usize = 256 << 10;
/// Most runs of data of one file, as an image has.
const EXTENTS_MAX: usize = 1 << 20;

/// What an archive's entries mean beside what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    Plain,
    /// Names that begin with `.wh.` take away what lower layers have.
    Layer,
}

/// Reads a tar from a file or a pipe.
pub(super) fn read_file(archive: &mut Archive, file: File, path: &Path) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::Read { path: path.to_owned(), source };
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return read_stream(archive, file, path, Rules::Plain);
    }
    let file = Arc::new(file);
    read_range(archive, Range::new(file, 0, meta.len()), path, Rules::Plain)
}

/// Reads a tar that lies in a file; content stays there unless it is compressed.
pub(super) fn read_range(
    archive: &mut Archive,
    range: Range,
    path: &Path,
    rules: Rules,
) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::Read { path: path.to_owned(), source };
    let start = range.at;
    let (file, end) = (Arc::clone(range.file()), range.end());
    let (compression, _) = detect(range).map_err(failed)?;
    let range = Range::new(Arc::clone(&file), start, end);
    if compression != Compression::None {
        return read_stream(archive, range, path, rules);
    }
    let store = archive.spool.leave_in(file, path)?;
    Reader { archive, input: Input::Left(range, store), path, rules, at: 0 }.run()
}

/// Reads a tar as it comes, compressed or not.
fn read_stream(
    archive: &mut Archive,
    from: impl Read,
    path: &Path,
    rules: Rules,
) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::Read { path: path.to_owned(), source };
    let (compression, from) = detect(from).map_err(failed)?;
    if let Compression::Other(what) = compression {
        return Err(ArchiveError::Compression { path: path.to_owned(), what });
    }
    let from = unpack(compression, from).map_err(failed)?;
    Reader { archive, input: Input::Stream(from), path, rules, at: 0 }.run()
}

enum Input<'a> {
    /// Content stays in this store of the spool.
    Left(Range, u32),
    Stream(Box<dyn Read + 'a>),
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Left(range, _) => range.read(buffer),
            Self::Stream(stream) => stream.read(buffer),
        }
    }
}

struct Reader<'a> {
    archive: &'a mut Archive,
    input: Input<'a>,
    path: &'a Path,
    rules: Rules,
    /// Bytes of the tar that were read.
    at: u64,
}

/// One entry: what its headers say of it together.
struct Entry {
    header: Header,
    path: Vec<u8>,
    link: Vec<u8>,
    extended: Extended,
    /// Content in the archive, without padding.
    bytes: u64,
}

impl Reader<'_> {
    fn run(mut self) -> Result<(), ArchiveError> {
        let mut global = Extended::default();
        let mut next = global.clone();
        let (mut long_name, mut long_link) = (None, None);
        let mut entries = 0_u64;
        while let Some(header) = self.header(entries == 0)? {
            entries += 1;
            let kind = header.entry_type();
            let bytes = header.entry_size().map_err(|_| self.broken(TarError::Number))?;
            match kind {
                EntryType::GNULongName => long_name = Some(self.text(bytes)?),
                EntryType::GNULongLink => long_link = Some(self.text(bytes)?),
                EntryType::XGlobalHeader => {
                    self.extend(&mut global, bytes)?;
                    next = global.clone();
                }
                EntryType::XHeader => self.extend(&mut next, bytes)?,
                _ => {
                    let extended = std::mem::replace(&mut next, global.clone());
                    let names = (long_name.take(), long_link.take());
                    let entry = self.entry(header, extended, names, bytes)?;
                    self.take(entry)?;
                }
            }
        }
        // To its very end: checksums of compression are there.
        let drained = match &mut self.input {
            Input::Left(..) => Ok(0),
            Input::Stream(stream) => io::copy(stream, &mut io::sink()),
        };
        drained.map(drop).map_err(|source| self.unreadable(source))
    }

    fn broken(&self, why: TarError) -> ArchiveError {
        ArchiveError::Tar { path: self.path.to_owned(), at: self.at, why }
    }

    fn unreadable(&self, source: io::Error) -> ArchiveError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return self.broken(TarError::Torn);
        }
        ArchiveError::Read { path: self.path.to_owned(), source }
    }

    fn fault(&self, entry: &[u8], why: impl Into<EntryFault>) -> ArchiveError {
        ArchiveError::Entry { path: self.path.to_owned(), entry: entry.to_owned(), why: why.into() }
    }

    /// The next header; `None` at the archive's end mark.
    fn header(&mut self, first: bool) -> Result<Option<Header>, ArchiveError> {
        let mut bytes = [0; BLOCK_LEN];
        let read = self.fill(&mut bytes)?;
        if read == 0 {
            return Err(if first { self.unknown() } else { self.broken(TarError::NoEnd) });
        }
        if read < bytes.len() {
            return Err(if first { self.unknown() } else { self.broken(TarError::Torn) });
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&bytes).clone();
        let mut summed = header.clone();
        summed.set_cksum();
        if header.cksum().ok() != summed.cksum().ok() {
            return Err(if first { self.unknown() } else { self.broken(TarError::Checksum) });
        }
        Ok(Some(header))
    }

    fn unknown(&self) -> ArchiveError {
        ArchiveError::Unknown { path: self.path.to_owned() }
    }

    /// Fills the buffer, or reads to the end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(error)),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }

    /// The content of a header that extends the next one.
    fn extension(&mut self, bytes: u64) -> Result<Vec<u8>, ArchiveError> {
        if bytes > EXTENSION_BYTES_MAX {
            return Err(self.broken(TarError::Extension(bytes)));
        }
        let mut content = vec![0; usize::try_from(bytes.next_multiple_of(BLOCK_BYTES)).expect("bounded")];
        if self.fill(&mut content)? < content.len() {
            return Err(self.broken(TarError::Torn));
        }
        content.truncate(usize::try_from(bytes).expect("bounded"));
        Ok(content)
    }

    fn text(&mut self, bytes: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.extension(bytes)?;
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        Ok(text)
    }

    fn extend(&mut self, extended: &mut Extended, bytes: u64) -> Result<(), ArchiveError> {
        let content = self.extension(bytes)?;
        let taken = extended.read(&content).map_err(|why| self.broken(why))?;
        let name = extended.path.clone().unwrap_or_else(|| b"(extended header)".to_vec());
        taken.map_err(|why| self.fault(&name, why))
    }

    fn entry(
        &self,
        header: Header,
        extended: Extended,
        (long_name, long_link): (Option<Vec<u8>>, Option<Vec<u8>>),
        bytes: u64,
    ) -> Result<Entry, ArchiveError> {
        let path = extended.path.clone().or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let own_link = || header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        let link = extended.link.clone().or(long_link).unwrap_or_else(own_link);
        let bytes = extended.bytes.unwrap_or(bytes);
        Ok(Entry { header, path, link, extended, bytes })
    }

    fn take(&mut self, entry: Entry) -> Result<(), ArchiveError> {
        let kind = entry.header.entry_type();
        if self.rules == Rules::Layer && self.whiteout(&entry)? {
            return self.skip(entry.bytes);
        }
        let fail = |reader: &Self, why: EntryFault| reader.fault(&entry.path, why);
        let node = match kind {
            EntryType::Link => {
                self.skip(entry.bytes)?;
                let linked = self.archive.link(&entry.path, &entry.link);
                return linked.map_err(|why| fail(self, why));
            }
            EntryType::Regular if entry.path.ends_with(b"/") => Node::Directory(Default::default()),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.content(&entry)?,
            EntryType::Directory => Node::Directory(Default::default()),
            EntryType::Symlink => Node::Symlink(entry.link.clone().into()),
            EntryType::Char | EntryType::Block => {
                let number = |field: io::Result<Option<u32>>| field.ok().flatten();
                let (major, minor) = (entry.header.device_major(), entry.header.device_minor());
                let numbers = number(major).zip(number(minor));
                let (major, minor) = numbers.ok_or_else(|| self.broken(TarError::Number))?;
                match kind {
                    EntryType::Char => Node::CharDevice(major, minor),
                    _ => Node::BlockDevice(major, minor),
                }
            }
            EntryType::Fifo => Node::Fifo,
            // What GNU tar lists of a directory, and the name of a volume.
            other if other.as_byte() == b'D' => Node::Directory(Default::default()),
            other if other.as_byte() == b'V' => return self.skip(entry.bytes),
            other => return Err(fail(self, EntryFault::Kind(other.as_byte()))),
        };
        if !matches!(node, Node::File { .. }) {
            self.skip(entry.bytes)?;
        }
        let inode = self.inode(&entry, node)?;
        let inserted = self.archive.insert(&entry.path, inode);
        inserted.map_err(|why| self.fault(&entry.path, why))
    }

    /// Whether the entry stands for the absence of others.
    fn whiteout(&mut self, entry: &Entry) -> Result<bool, ArchiveError> {
        let trimmed = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
        let split = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (dir, name) = trimmed.split_at(split);
        let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(false) };
        let done = match hidden {
            b".wh..opq" => self.archive.opaque(dir),
            // What a storage driver keeps to itself.
            [b'.', b'w', b'h', b'.', ..] => Ok(()),
            _ => self.archive.whiteout(&[dir, hidden].concat()),
        };
        done.map(|()| true).map_err(|why| self.fault(&entry.path, why))
    }

    fn inode(&self, entry: &Entry, node: Node) -> Result<Inode, ArchiveError> {
        let Entry { header, path, extended, .. } = entry;
        let number = |field: io::Result<u64>| {
            field.ok().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| self.broken(TarError::Number))
        };
        let uid = extended.uid.map_or_else(|| number(header.uid()), Ok)?;
        let gid = extended.gid.map_or_else(|| number(header.gid()), Ok)?;
        let mode = header.mode().map_err(|_| self.broken(TarError::Number))? & 0o7777;
        let mtime = extended.mtime.map_or_else(|| header_time(header), Some);
        let mtime = mtime.ok_or_else(|| self.broken(TarError::Number))?;
        let mut extended = extended.clone();
        self.take_acls(&mut extended, path)?;
        let (has_flags, has_mode) = match node {
            Node::Directory(_) | Node::File { .. } => (true, true),
            Node::Symlink(_) => (false, false),
            _ => (false, true),
        };
        let flags = if has_flags { extended.flags } else { Default::default() };
        let project = if has_flags { extended.project } else { 0 };
        let mode = if has_mode { mode } else { 0 };
        let attributes = Attributes::new(mode, uid, gid, flags, extended.into_xattrs())
            .and_then(|attributes| attributes.with_project(project));
        Ok(Inode { attributes: attributes.map_err(|why| self.fault(path, why))?, mtime, node })
    }

    /// Turns ACLs that came as text into attributes, unless these came as well.
    fn take_acls(&self, extended: &mut Extended, path: &[u8]) -> Result<(), ArchiveError> {
        for (name, text) in std::mem::take(&mut extended.acls) {
            if extended.has_xattr(name) {
                continue;
            }
            let find = |user: bool, name: &str| self.archive.id_of(user, name);
            let attribute = acl::from_text(&text, &find).ok_or_else(|| {
                self.fault(path, EntryFault::Record { key: name.to_owned(), value: text.clone() })
            })?;
            if !attribute.is_empty() {
                extended.xattr(name.as_bytes().to_vec(), &attribute);
            }
        }
        Ok(())
    }

    /// Learns where a file's content is, and goes behind it.
    fn content(&mut self, entry: &Entry) -> Result<Node, ArchiveError> {
        let sparse = &entry.extended.sparse;
        let mut packed = entry.bytes;
        let (bytes, map) = match sparse.real_bytes {
            Some(real) if sparse.map_in_content => {
                let map = self.map_in_content(&mut packed)?;
                (real, map)
            }
            Some(real) => (real, pairs(&sparse.map).ok_or_else(|| self.broken(TarError::Sparse))?),
            None if entry.header.entry_type() == EntryType::GNUSparse => {
                self.map_in_headers(&entry.header)?
            }
            None => (packed, vec![(0, packed)]),
        };
        let whole = packed.next_multiple_of(BLOCK_BYTES);
        let (store, mut at) = self.keep(packed)?;
        let mut extents = Vec::with_capacity(map.len());
        let (mut end, mut left) = (0, packed);
        for (start, len) in map {
            let fits = start >= end && start.checked_add(len).is_some_and(|end| end <= bytes) && len <= left;
            if !fits || extents.len() == EXTENTS_MAX {
                return Err(self.broken(TarError::Sparse));
            }
            if len > 0 {
                extents.push(Extent { start, bytes: len, store, at });
            }
            (end, left, at) = (start + len, left - len, at + len);
        }
        if left > 0 {
            return Err(self.broken(TarError::Sparse));
        }
        self.skip_bytes(whole - packed)?;
        Ok(Node::File { bytes, extents: extents.into() })
    }

    /// Leaves so many bytes of content where they are, or keeps them; where they are then.
    fn keep(&mut self, bytes: u64) -> Result<(u32, u64), ArchiveError> {
        if let Input::Left(range, store) = &mut self.input {
            let place = (*store, range.at);
            self.at += bytes;
            return if range.skip(bytes) { Ok(place) } else { Err(self.broken(TarError::Torn)) };
        }
        if bytes == 0 {
            return Ok((0, 0));
        }
        let (store, file, start) = self.archive.spool.own()?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut done = 0;
        while done < bytes {
            let want = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(buffer.len());
            let got = self.fill(&mut buffer[..want])?;
            if got < want {
                return Err(self.broken(TarError::Torn));
            }
            let kept = file.write_all_at(&buffer[..got], start + done);
            kept.map_err(|source| self.archive.spool.scratch_failed(source))?;
            done += got as u64;
        }
        self.archive.spool.appended(bytes);
        Ok((store, start))
    }

    /// Goes behind content that says nothing.
    fn skip(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.skip_bytes(bytes.next_multiple_of(BLOCK_BYTES))
    }

    fn skip_bytes(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let skipped = match &mut self.input {
            Input::Left(range, _) => range.skip(bytes),
            Input::Stream(stream) => {
                let copied = io::copy(&mut stream.take(bytes), &mut io::sink());
                copied.map_err(|source| self.unreadable(source))? == bytes
            }
        };
        self.at += bytes;
        if skipped { Ok(()) } else { Err(self.broken(TarError::Torn)) }
    }

    /// The map of pax version 1.0: decimal numbers, a line each, in blocks before the content.
    fn map_in_content(&mut self, packed: &mut u64) -> Result<Vec<(u64, u64)>, ArchiveError> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut line = 0_u64;
        let mut digits = 0;
        loop {
            let mut block = [0; BLOCK_LEN];
            if *packed < BLOCK_BYTES || self.fill(&mut block)? < block.len() {
                return Err(self.broken(TarError::Sparse));
            }
            *packed -= BLOCK_BYTES;
            for byte in block {
                let digit = match byte {
                    b'0'..=b'9' if digits < 20 => u64::from(byte - b'0'),
                    b'\n' if digits > 0 => {
                        numbers.push(line);
                        (line, digits) = (0, 0);
                        let count = usize::try_from(numbers[0]).unwrap_or(usize::MAX);
                        if count > EXTENTS_MAX {
                            return Err(self.broken(TarError::Sparse));
                        }
                        if numbers.len() == 1 + 2 * count {
                            return pairs(&numbers[1..]).ok_or_else(|| self.broken(TarError::Sparse));
                        }
                        continue;
                    }
                    _ => return Err(self.broken(TarError::Sparse)),
                };
                digits += 1;
                line = line
                    .checked_mul(10)
                    .and_then(|line| line.checked_add(digit))
                    .ok_or_else(|| self.broken(TarError::Sparse))?;
            }
        }
    }

    /// The map of the old GNU format: in the header, and in blocks behind it while there is more.
    fn map_in_headers(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>), ArchiveError> {
        let gnu = header.as_gnu().ok_or_else(|| self.broken(TarError::Sparse))?;
        let real = gnu.real_size().map_err(|_| self.broken(TarError::Number))?;
        let mut map = Vec::new();
        let mut more = gnu.is_extended();
        self.push_runs(&mut map, &gnu.sparse)?;
        while more {
            let mut next = GnuExtSparseHeader::new();
            if self.fill(next.as_mut_bytes())? < BLOCK_LEN || map.len() > EXTENTS_MAX {
                return Err(self.broken(TarError::Sparse));
            }
            self.push_runs(&mut map, next.sparse())?;
            more = next.is_extended();
        }
        Ok((real, map))
    }

    fn push_runs(&self, map: &mut Vec<(u64, u64)>, runs: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
        for run in runs.iter().filter(|run| !run.is_empty()) {
            let numbers = run.offset().and_then(|offset| Ok((offset, run.length()?)));
            map.push(numbers.map_err(|_| self.broken(TarError::Number))?);
        }
        Ok(())
    }
}

fn pairs(numbers: &[u64]) -> Option<Vec<(u64, u64)>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[offset, bytes]| (*offset, *bytes)).collect())
}

/// Seconds: octal digits, or for what these cannot say a binary number with a sign.
fn header_time(header: &Header) -> Option<Mtime> {
    let field = &header.as_old().mtime;
    if field[0] & 0x80 == 0 {
        return Mtime::new(i64::try_from(header.mtime().ok()?).ok()?, 0).ok();
    }
    let (high, low) = field.split_last_chunk::<8>()?;
    // Four more bytes in front, which only repeat the sign.
    let seconds = i64::from_be_bytes(*low);
    let sign = if high[0] & 0x40 == 0 { 0 } else { 0xff };
    let repeated = high[1..].iter().all(|byte| *byte == sign) && (seconds < 0) == (sign == 0xff);
    repeated.then(|| Mtime::new(seconds, 0).ok()).flatten()
}
