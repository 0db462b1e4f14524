//! Content: from pieces into files.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use shoal_proto::image::PieceIndex;
use shoal_proto::image::entry::{EntryIndex, InodeFlags, Kind, Segment};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::tree::Entry;

use super::super::metadata::{self, Inode};
use super::super::root;
use super::{Apply, ApplyError, made};

/// From this size on, a file is given its room at once: its pieces come in any order, and would lie scattered.
const PREALLOCATE_BYTES: u64 = 8 << 20;
/// Of a mode, what may hold before its owner does: neither set-id bits nor the sticky bit.
const PERMISSIONS: u32 = 0o777;
/// Files of several pieces are begun under one of so many locks.
const STRIPES: usize = 64;

/// How far each file is.
#[derive(Debug)]
pub(super) struct Files {
    /// For each entry the uses of chunks that are still to be written; zero when it has no content.
    left: Vec<AtomicU32>,
    begun: Vec<AtomicU8>,
    stripes: Vec<Mutex<()>>,
}

impl Files {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let left = manifest.entries().map(|entry| AtomicU32::new(chunk_uses(entry.kind()))).collect();
        let begun = manifest.entries().map(|_| AtomicU8::new(0)).collect();
        Self { left, begun, stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }
}

pub(super) fn chunk_uses(kind: Kind<'_>) -> u32 {
    let Kind::File(content) = kind else { return 0 };
    let uses = |segment: &Segment| match *segment {
        Segment::Chunks { count, .. } => count,
        Segment::Hole { .. } => 0,
    };
    content.segments().iter().map(uses).sum()
}

/// A part of a piece that goes into a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Write {
    entry: EntryIndex,
    offset: u64,
    /// Where in the piece.
    start: usize,
    bytes: usize,
}

impl Apply {
    pub(super) fn write_chunks(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), ApplyError> {
        let chunks = self.manifest.piece_chunks(piece);
        let mut writes = Vec::with_capacity(chunks.len());
        let mut start = 0;
        for chunk in chunks {
            let bytes = self.manifest.chunk_bytes(chunk) as usize;
            for place in self.places.of_chunk(chunk) {
                writes.push(Write { entry: place.entry, offset: place.offset, start, bytes });
            }
            start += bytes;
        }
        writes.sort_unstable();
        let mut directory: Option<(EntryIndex, std::sync::Arc<OwnedFd>)> = None;
        for file in writes.chunk_by(|one, next| one.entry == next.entry) {
            let entry = self.manifest.entry(file[0].entry);
            let parent = entry.parent();
            let dir = match &directory {
                Some((open, dir)) if *open == parent => std::sync::Arc::clone(dir),
                _ => {
                    let dir = self.target.open_directory(&self.manifest, parent)?;
                    directory = Some((parent, std::sync::Arc::clone(&dir)));
                    dir
                }
            };
            self.write_file(entry, &dir, file, raw)?;
        }
        Ok(())
    }

    fn write_file(
        &self,
        entry: Entry<'_>,
        dir: &OwnedFd,
        writes: &[Write],
        raw: &[u8],
    ) -> Result<(), ApplyError> {
        let left = &self.files.left[entry.index().at()];
        let count = u32::try_from(writes.len()).expect("at most the uses of the file");
        let whole = count == chunk_uses(entry.kind());
        let fd = if whole { self.create_whole_file(entry, dir)? } else { self.begin(entry, dir)? };
        if whole && has_hole(entry) {
            // A file system may give room to what lies before a write beyond the end.
            self.size_file(entry, &fd)?;
        }
        let mut at = 0;
        while at < writes.len() {
            let first = writes[at];
            let mut bytes = first.bytes;
            at += 1;
            // Neighbours in the piece that are neighbours in the file too go in one call.
            while let Some(next) = writes.get(at)
                && next.offset == first.offset + bytes as u64
                && next.start == first.start + bytes
            {
                bytes += next.bytes;
                at += 1;
            }
            root::write_all(&fd, &raw[first.start..first.start + bytes], first.offset)
                .map_err(|error| wrote(entry, error))?;
        }
        if left.fetch_sub(count, Ordering::AcqRel) == count {
            self.finish_file(entry, &fd)?;
        }
        Ok(())
    }

    /// Opens a file of several pieces; the first thread that needs it makes it.
    fn begin(&self, entry: Entry<'_>, dir: &OwnedFd) -> Result<OwnedFd, ApplyError> {
        let begun = &self.files.begun[entry.index().at()];
        if begun.load(Ordering::Acquire) == 0 {
            let stripe = &self.files.stripes[entry.index().at() % STRIPES];
            let _guard = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            if begun.load(Ordering::Acquire) == 0 {
                let fd = self.create_file(entry, dir, Mode::RUSR | Mode::WUSR)?;
                self.size_file(entry, &fd)?;
                begun.store(1, Ordering::Release);
                return Ok(fd);
            }
        }
        let name = entry.name().map_or(&b""[..], |name| name.bytes());
        root::open_in(dir, name, OFlags::WRONLY, Mode::empty()).map_err(|error| wrote(entry, error))
    }

    /// A file that is opened once. It is made with its own permissions where they can hold already: setting them
    /// later would cost more. Nobody else can enter the directory yet. Attributes are set by who may write the file.
    pub(super) fn create_whole_file(&self, entry: Entry<'_>, dir: &OwnedFd) -> Result<OwnedFd, ApplyError> {
        let attributes = entry.attributes();
        let plain = attributes.xattrs().is_empty();
        let own = Mode::from_raw_mode(attributes.mode() & PERMISSIONS);
        self.create_file(entry, dir, if plain { own } else { Mode::RUSR | Mode::WUSR })
    }

    /// A new, empty file; whatever had its name is gone.
    fn create_file(&self, entry: Entry<'_>, dir: &OwnedFd, mode: Mode) -> Result<OwnedFd, ApplyError> {
        let name = entry.name().map_or(&b""[..], |name| name.bytes());
        let create = || root::open_in(dir, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode);
        let created = match create() {
            Err(Errno::EXIST | Errno::LOOP) => root::remove(dir, name).and_then(|()| create()),
            done => done,
        };
        let created = created.map_err(|error| made(entry.path(), error))?;
        if entry.attributes().flags().intersects(InodeFlags::NO_COW) {
            metadata::set_no_cow(&created);
        }
        Ok(created)
    }

    /// Gives a file its length, and its room where that pays.
    pub(super) fn size_file(&self, entry: Entry<'_>, fd: &OwnedFd) -> Result<(), ApplyError> {
        let size = self.manifest.size(entry);
        if size >= PREALLOCATE_BYTES && !has_hole(entry) {
            match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, size) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(wrote(entry, error)),
            }
        }
        rustix::fs::ftruncate(fd, size).map_err(|error| wrote(entry, error))
    }

    /// The last byte is there: owner, mode, extended attributes, time.
    pub(super) fn finish_file(&self, entry: Entry<'_>, fd: &OwnedFd) -> Result<(), ApplyError> {
        self.set_metadata(entry, Inode::Open(fd))
    }

    pub(super) fn set_metadata(&self, entry: Entry<'_>, inode: Inode<'_>) -> Result<(), ApplyError> {
        let link = matches!(entry.kind(), Kind::Symlink { .. });
        let mut done = Ok(());
        metadata::set(inode, entry.attributes(), entry.mtime(), link, |aspect, error| {
            if done.is_ok() {
                done = self.target.fail_or_lose(entry.path(), aspect, error);
            }
        });
        done
    }
}

fn has_hole(entry: Entry<'_>) -> bool {
    let hole = |segment: &Segment| matches!(segment, Segment::Hole { .. });
    matches!(entry.kind(), Kind::File(content) if content.segments().iter().any(hole))
}

fn wrote(entry: Entry<'_>, source: Errno) -> ApplyError {
    let path = entry.path();
    if matches!(source, Errno::NOSPC | Errno::DQUOT) {
        ApplyError::Full { path }
    } else {
        ApplyError::Write { path, source }
    }
}
