//! The door to a store's plain files (packs, checkpoint, folders): every access passes here, so that a test can
//! record what a power failure would cut short, and can make a disk fail. The index behind sled is not among them:
//! whatever becomes of it, it is made again from these.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::durable;

/// One thing that a store is about to do to its plain files.
#[derive(Clone, Copy, Debug)]
pub enum Access<'a> {
    CreateFolder(&'a Path),
    /// Makes an empty file; one of that name is emptied.
    Create(&'a Path),
    /// Writes the parts one behind the other.
    Write {
        path: &'a Path,
        offset: u64,
        parts: [&'a [u8]; 2],
    },
    /// Makes the file so many bytes long.
    Resize {
        path: &'a Path,
        bytes: u64,
    },
    Read {
        path: &'a Path,
        offset: u64,
    },
    /// Waits until the disk holds a file's bytes, or a folder's names.
    Sync(&'a Path),
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    Remove(&'a Path),
}

/// Sees every access before it is performed, in the order in which they are; an error is performed instead of it.
pub trait Witness: fmt::Debug + Send + Sync {
    fn before(&self, access: Access<'_>) -> io::Result<()>;
}

/// The disk, with its witness if it has one.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Option<Arc<dyn Witness>>);

impl Disk {
    pub(super) fn witnessed(witness: Arc<dyn Witness>) -> Self {
        Self(Some(witness))
    }

    fn tell(&self, access: Access<'_>) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |witness| witness.before(access))
    }

    /// Makes a folder and its parents, readable by their owner only, unless they are there. The names of those that
    /// are made are on disk when it returns.
    pub(super) fn create_folders(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_folders(parent)?;
        }
        self.tell(Access::CreateFolder(path))?;
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
        self.tell(Access::Sync(parent.unwrap_or(Path::new("."))))?;
        durable::sync_name(path)
    }

    /// Makes a file that was not there before, readable by its owner only.
    pub(super) fn create_new(&self, path: &Path) -> io::Result<PlainFile> {
        if path.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.tell(Access::Create(path))?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(self.plain(file, path))
    }

    /// Makes a file, or empties the one there is.
    pub(super) fn create(&self, path: &Path) -> io::Result<PlainFile> {
        self.tell(Access::Create(path))?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(self.plain(file, path))
    }

    pub(super) fn open(&self, path: &Path) -> io::Result<PlainFile> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(self.plain(file, path))
    }

    /// A file that stands alone, without a name.
    pub(super) fn adopt(&self, file: File) -> PlainFile {
        self.plain(file, Path::new(""))
    }

    fn plain(&self, file: File, path: &Path) -> PlainFile {
        PlainFile { file, path: path.to_owned(), disk: self.clone() }
    }

    /// The bytes of a small file.
    pub(super) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.tell(Access::Read { path, offset: 0 })?;
        fs::read(path)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.tell(Access::Rename { from, to })?;
        fs::rename(from, to)
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.tell(Access::Remove(path))?;
        fs::remove_file(path)
    }

    /// Waits until the disk holds the names in a folder.
    pub(super) fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.tell(Access::Sync(path))?;
        File::open(path)?.sync_all()
    }
}

/// A file of the store, open.
#[derive(Debug)]
pub(super) struct PlainFile {
    file: File,
    path: PathBuf,
    disk: Disk,
}

impl PlainFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Writes both parts, one behind the other.
    pub(super) fn write_at(&self, offset: u64, parts: [&[u8]; 2]) -> io::Result<()> {
        self.disk.tell(Access::Write { path: &self.path, offset, parts })?;
        let [head, rest] = parts;
        let written = rustix::io::pwritev(&self.file, &[IoSlice::new(head), IoSlice::new(rest)], offset)?;
        match written.checked_sub(head.len()) {
            Some(of_rest) => self.file.write_all_at(&rest[of_rest..], offset + written as u64),
            None => {
                self.file.write_all_at(&head[written..], offset + written as u64)?;
                self.file.write_all_at(rest, offset + head.len() as u64)
            }
        }
    }

    /// Reads until both parts are full or the file ends, and returns how much that was.
    pub(super) fn read_at(&self, offset: u64, parts: [&mut [u8]; 2]) -> io::Result<usize> {
        self.disk.tell(Access::Read { path: &self.path, offset })?;
        let [head, rest] = parts;
        let slices = &mut [IoSliceMut::new(head), IoSliceMut::new(rest)];
        let mut filled = rustix::io::preadv(&self.file, slices, offset)?;
        while filled < head.len() + rest.len() {
            let left = match filled.checked_sub(head.len()) {
                Some(of_rest) => &mut rest[of_rest..],
                None => &mut head[filled..],
            };
            match self.file.read_at(left, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    pub(super) fn resize(&self, bytes: u64) -> io::Result<()> {
        self.disk.tell(Access::Resize { path: &self.path, bytes })?;
        self.file.set_len(bytes)
    }

    /// Waits until the disk holds everything written so far.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.disk.tell(Access::Sync(&self.path))?;
        self.file.sync_data()
    }
}
