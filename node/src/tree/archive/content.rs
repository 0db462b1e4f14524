//! Where the content of an archive's files lies.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::root;
use super::ArchiveError;

/// A run of a file's bytes, and where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Extent {
    /// In the file.
    pub(in super::super) start: u64,
    pub(in super::super) bytes: u64,
    /// Which of the spool's files, and where in it.
    pub(super) store: u32,
    pub(super) at: u64,
}

/// The files that content is in: archives themselves, and one of our own for what cannot be left in its archive.
#[derive(Debug)]
pub(super) struct Spool {
    /// The archive, for messages.
    path: PathBuf,
    scratch: PathBuf,
    stores: Vec<Store>,
    /// Our own among them, and how long it is.
    own: Option<(u32, u64)>,
}

#[derive(Debug)]
struct Store {
    file: Arc<File>,
    /// Of an archive that content was left in, to see whether it changed.
    archive: Option<(PathBuf, Stamp)>,
}

type Stamp = (u64, i64, i64, i64, i64);

fn stamp(meta: &Metadata) -> Stamp {
    (meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
}

impl Spool {
    pub(super) fn new(path: &Path, scratch: &Path) -> Self {
        Self { path: path.to_owned(), scratch: scratch.to_owned(), stores: Vec::new(), own: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Takes a file in which content stays.
    pub(super) fn leave_in(&mut self, file: Arc<File>, path: &Path) -> Result<u32, ArchiveError> {
        let meta = file.metadata().map_err(|source| ArchiveError::Read { path: path.to_owned(), source })?;
        Ok(self.push(Store { file, archive: Some((path.to_owned(), stamp(&meta))) }))
    }

    fn push(&mut self, store: Store) -> u32 {
        self.stores.push(store);
        u32::try_from(self.stores.len() - 1).expect("fewer files than descriptors")
    }

    /// The file of our own to append to, and where its end is.
    pub(super) fn own(&mut self) -> Result<(u32, Arc<File>, u64), ArchiveError> {
        let (number, end) = match self.own {
            Some(own) => own,
            None => {
                let file = unnamed(&self.scratch).map_err(|source| self.scratch_failed(source))?;
                let number = self.push(Store { file: Arc::new(file), archive: None });
                (number, 0)
            }
        };
        self.own = Some((number, end));
        Ok((number, Arc::clone(&self.stores[number as usize].file), end))
    }

    /// So many bytes were appended.
    pub(super) fn appended(&mut self, bytes: u64) {
        if let Some((_, end)) = &mut self.own {
            *end += bytes;
        }
    }

    pub(super) fn scratch_failed(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Scratch { path: self.path.clone(), scratch: self.scratch.clone(), source }
    }

    /// The whole of a file that lies in one run: the file and where it starts.
    pub(super) fn file_of(&self, extent: Extent) -> (Arc<File>, u64) {
        (Arc::clone(&self.stores[extent.store as usize].file), extent.at)
    }

    /// The files that content is in, for an archive in the archive.
    pub(super) fn check_unchanged(&self) -> Result<(), ArchiveError> {
        for (file, path, old) in self
            .stores
            .iter()
            .filter_map(|store| store.archive.as_ref().map(|(path, stamp)| (&store.file, path, stamp)))
        {
            let read = |source| ArchiveError::Read { path: path.clone(), source };
            if stamp(&file.metadata().map_err(read)?) != *old {
                return Err(ArchiveError::Changed { path: path.clone() });
            }
        }
        Ok(())
    }
}

/// A file that nobody else sees and that is gone with us.
fn unnamed(dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    let flags = i32::try_from(OFlags::TMPFILE.bits()).expect("flags fit an int");
    let opened = options.custom_flags(flags).open(dir);
    if opened.is_ok() {
        return opened;
    }
    // A file system without O_TMPFILE.
    let path = dir.join(format!(".archive-{}", std::process::id()));
    let file = options.custom_flags(0).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A file of the archive, as its reader sees it.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ArchivedFile<'a> {
    spool: &'a Spool,
    bytes: u64,
    extents: &'a [Extent],
}

impl<'a> ArchivedFile<'a> {
    pub(super) fn new(spool: &'a Spool, bytes: u64, extents: &'a [Extent]) -> Self {
        Self { spool, bytes, extents }
    }

    /// Whether it would take less room than it is long, as most file systems count.
    pub(in super::super) fn is_sparse(&self) -> bool {
        let block = root::HOLE_BYTES as u64;
        let (mut allocated, mut last) = (0, 0);
        for extent in self.extents.iter().filter(|extent| extent.bytes > 0) {
            let first = (extent.start / block).max(last);
            last = (extent.start + extent.bytes).div_ceil(block).max(first);
            allocated += (last - first) * block;
        }
        allocated < self.bytes
    }

    /// The next run of data from `at` on: its start and end; twice the end of the file when there is none.
    pub(in super::super) fn next_data(&self, at: u64) -> (u64, u64) {
        let next = self.extents.partition_point(|extent| extent.start + extent.bytes <= at);
        self.extents
            .get(next)
            .map_or((self.bytes, self.bytes), |extent| (extent.start.max(at), extent.start + extent.bytes))
    }

    /// Fills the buffer, or reads to the end of the file.
    pub(in super::super) fn read_full(&self, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
        let left = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let buffer = &mut buffer[..want];
        let end = at + want as u64;
        let mut done = at;
        let first = self.extents.partition_point(|extent| extent.start + extent.bytes <= at);
        for extent in &self.extents[first..] {
            if extent.start >= end {
                break;
            }
            let from = extent.start.max(done);
            let to = (extent.start + extent.bytes).min(end);
            let (gap, part) = (index(done - at), index(from - at));
            buffer[gap..part].fill(0);
            let file = &self.spool.stores[extent.store as usize].file;
            let into = &mut buffer[part..index(to - at)];
            file.read_exact_at(into, extent.at + (from - extent.start)).map_err(errno)?;
            done = to;
        }
        buffer[index(done - at)..].fill(0);
        Ok(want)
    }

    /// All of it, when it is no longer than that.
    pub(super) fn read_all(&self, bytes_max: u64) -> Result<Vec<u8>, Errno> {
        if self.bytes > bytes_max {
            return Err(Errno::FBIG);
        }
        let mut bytes = vec![0; index(self.bytes)];
        self.read_full(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// Within a buffer.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("within a buffer")
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// A part of a file, read without moving the position that others share.
#[derive(Debug)]
pub(super) struct Range {
    file: Arc<File>,
    pub(super) at: u64,
    end: u64,
}

impl Range {
    pub(super) fn new(file: Arc<File>, at: u64, end: u64) -> Self {
        Self { file, at, end }
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// False when it ends before.
    pub(super) fn skip(&mut self, bytes: u64) -> bool {
        self.at = self.at.saturating_add(bytes);
        self.at <= self.end
    }
}

impl io::Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
