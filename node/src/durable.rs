//! Small files that must survive power loss: written beside their place, synced, renamed, and the directory synced.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Mode of a file that only its owner may read.
pub const PRIVATE: u32 = 0o600;
/// Mode of a file that anyone may read.
pub const PUBLIC: u32 = 0o644;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot create directory {}", .path.display())]
    CreateDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} can be read by others than its owner: chmod 600 it", .path.display())]
    Exposed { path: PathBuf },
    #[error("{} is in use by another process{}", .path.display(), .holder.as_deref().map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse { path: PathBuf, holder: Option<String> },
}

/// Makes a directory and its parents, readable by their owner only, unless they are there. The names of those that are
/// made are on disk when it returns.
pub fn create_private_dir(path: &Path) -> Result<(), Error> {
    create_dir(path).map_err(|source| Error::CreateDir { path: path.to_owned(), source })
}

fn create_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    sync_name(path)
}

/// Waits until the disk holds the name of what was made at `path`.
pub(crate) fn sync_name(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match File::open(parent.unwrap_or(Path::new("."))) {
        // One may be allowed to make names in a directory and not to look into it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// Replaces `path` with `bytes`: after a crash it holds the old bytes or the new ones, whole.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    write_beside(path, bytes, mode).map_err(|source| Error::Write { path: path.to_owned(), source })
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // The dot keeps it apart from every name that callers give to files of theirs.
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(".new");
    let beside = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Moves a file over another one, durably.
pub fn replace(from: &Path, to: &Path) -> Result<(), Error> {
    let dir = to.parent().unwrap_or(Path::new("/"));
    let moved = fs::rename(from, to).and_then(|()| File::open(dir)?.sync_all());
    moved.map_err(|source| Error::Write { path: to.to_owned(), source })
}

/// Makes `path` with `bytes` unless somebody made it first; false then, and theirs stays.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<bool, Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput.into()).map_err(failed)?);
    name.push(format!(".{:?}", std::thread::current().id()));
    name.push(std::process::id().to_string());
    let beside = dir.join(name);
    write(&beside, bytes, mode)?;
    // Unlike a rename, a link never replaces.
    let linked = fs::hard_link(&beside, path);
    fs::remove_file(&beside).map_err(failed)?;
    match linked {
        Ok(()) => File::open(dir).and_then(|dir| dir.sync_all()).map(|()| true).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(failed(source)),
    }
}

/// Reads a file that may not be there.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

/// Reads a secret that may not be there; refuses one that others can read.
pub fn read_private(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let bytes = read(path)?;
    if bytes.is_some() {
        let metadata = fs::metadata(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        if metadata.mode() & 0o077 != 0 {
            return Err(Error::Exposed { path: path.to_owned() });
        }
    }
    Ok(bytes)
}

/// Holds a directory for one process; released when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "held for its lock")] File);

impl DirLock {
    /// Takes the directory, or says who has it.
    pub fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("lock");
        let failed = |source: io::Error| Error::Write { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .open(&path)
            .map_err(failed)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = fs::read_to_string(&path).ok().map(|pid| pid.trim().to_owned());
                return Err(Error::InUse {
                    path: dir.to_owned(),
                    holder: holder.filter(|pid| !pid.is_empty()),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write(&path, b"one", PRIVATE).unwrap();
        write(&path, b"two", PRIVATE).unwrap();
        assert_eq!(read_private(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, b"secret", PRIVATE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_private(&path), Err(Error::Exposed { .. })));
        assert!(read_private(&dir.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn a_second_holder_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let error = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(lock);
        DirLock::take(dir.path()).unwrap();
    }
}
