//! The one descriptor that a tree is seen through. The only file that opens paths below it.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;
use shoal_proto::image::entry::EntryIndex;
use shoal_proto::image::tree::Tree;

/// Directories that stay open at once. Well below the 1024 descriptors that a process gets by default.
const OPEN_DIRECTORIES_MAX: usize = 256;
const LISTING_BYTES: usize = 64 << 10;
/// Holes of an image start and end at multiples of this, or at the end of the file: the block of nearly every file
/// system. Another value gives the same tree another image id.
pub(super) const HOLE_BYTES: usize = 4096;

/// Set when the kernel has no `openat2` (before 5.6, or a container's filter).
static WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens the top of a tree; here, and nowhere below, a symbolic link is followed.
pub(super) fn open_top(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens `name`, one component, in `dir`. A symbolic link there is an error, `ELOOP`.
pub(super) fn open_in(dir: &OwnedFd, name: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    debug_assert!(!name.contains(&b'/') && name != b"..");
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if !WITHOUT_OPENAT2.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(dir, name, flags, mode, resolve) {
            Err(Errno::NOSYS | Errno::PERM) => {}
            done => return done,
        }
        // With one component, O_NOFOLLOW promises the same. EPERM may also mean the file: it then comes again.
        let opened = rustix::fs::openat(dir, name, flags, mode);
        if opened.is_ok() {
            WITHOUT_OPENAT2.store(true, Ordering::Relaxed);
        }
        return opened;
    }
    rustix::fs::openat(dir, name, flags, mode)
}

/// Opens the directory `name` in `dir`.
pub(super) fn open_directory_in(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    open_in(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// As [`open_directory_in`], and gives its owner, when that is this user, back the right to enter.
pub(super) fn open_closed_directory_in(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    match open_directory_in(dir, name) {
        Err(Errno::ACCESS) => {
            let closed = open_in(dir, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            rustix::fs::chmod(format!("/proc/self/fd/{}", closed.as_raw_fd()), Mode::RWXU)?;
            open_directory_in(dir, name)
        }
        done => done,
    }
}

/// Looks at `name` in `dir`, a link itself and not what it points to.
pub(super) fn stat_in(dir: &OwnedFd, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// Looks at an open file.
pub(super) fn stat(fd: &OwnedFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// A path for the few calls that take no descriptor and cannot open the file either: extended attributes of symbolic
/// links, devices and fifos. It leads through the descriptor of the directory, so only the last name is looked up.
pub(super) fn proc_path(dir: &OwnedFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Removes whatever is called `name` in `dir`, with all that is in it, immutable or not. Nothing there is fine.
///
/// What is mounted there stays as it is, and is an error: `EBUSY`.
pub(super) fn remove(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
        done => return done,
    }
    if !matches!(FileType::from_raw_mode(stat_in(dir, name)?.stx_mode.into()), FileType::Directory) {
        return unlocked(dir, name, || rustix::fs::unlinkat(dir, name, AtFlags::empty()));
    }
    // Failures to unlock show when the removal fails.
    let _ = super::metadata::open_up(dir);
    let inner = open_closed_directory_in(dir, name)?;
    let _ = super::metadata::unlock(&inner);
    if mount(&stat(&inner)?) != mount(&stat(dir)?) {
        return Err(Errno::BUSY);
    }
    // Its owner may have closed it; a failure shows when the removal fails.
    let _ = super::metadata::open_for_filling(&inner);
    for below in list(&inner)? {
        remove(&inner, &below)?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Does `act` to `name` in `dir`; where that is refused, again with the locks of both taken away. `dir` stays open for
/// changes then. Other names of a file that goes stay, and stay locked.
pub(super) fn unlocked(dir: &OwnedFd, name: &[u8], act: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match act() {
        Err(Errno::PERM | Errno::ACCESS) => {}
        done => return done,
    }
    // Failures to unlock show when it is refused again.
    let _ = super::metadata::open_up(dir);
    let mut locked = None;
    match stat_in(dir, name).map(|stat| FileType::from_raw_mode(stat.stx_mode.into())) {
        Ok(FileType::RegularFile) => {
            if let Ok(fd) = open_in(dir, name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
                && let Ok(flags) = super::metadata::read_flags(&fd)
            {
                let _ = super::metadata::unlock(&fd);
                locked = Some((fd, flags));
            }
        }
        // To be moved, it must be writable for its owner.
        Ok(FileType::Directory) => {
            let _ = open_closed_directory_in(dir, name).and_then(|fd| super::metadata::open_up(&fd));
        }
        _ => {}
    }
    let done = act();
    if let Some((fd, flags)) = locked
        && stat(&fd).is_ok_and(|stat| stat.stx_nlink > 0)
    {
        super::metadata::set_flags(&fd, flags)?;
    }
    done
}

/// Which mount something is on.
fn mount(stat: &Statx) -> (u32, u32, u64) {
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id)
}

/// The names in a directory, sorted by bytes, without `.` and `..`.
pub(super) fn list(dir: &OwnedFd) -> Result<Vec<Box<[u8]>>, Errno> {
    // A descriptor of its own: reading moves the position, and others may share `dir`.
    names_from(&open_in(dir, b".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?)
}

/// As [`list`], from the position of `dir` on, which is moved to the end.
pub(super) fn names_from(dir: &OwnedFd) -> Result<Vec<Box<[u8]>>, Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); LISTING_BYTES];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names: Vec<Box<[u8]>> = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.into()),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The next run of data from `at` on: its start and end. At the end of the file when there is none.
pub(super) fn next_data(file: &OwnedFd, at: u64, size: u64) -> Result<(u64, u64), Errno> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return Ok((size, size)),
        // A file system without holes to tell.
        Err(Errno::INVAL) => return Ok((at, size)),
        Err(error) => return Err(error),
    };
    if start == size {
        return Ok((size, size));
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
    // The file changed between the two calls; reading to the end is never wrong.
    Ok((start, if end > start { end } else { size }))
}

/// The next run of data of a sparse file from `at` on, which is a multiple of [`HOLE_BYTES`]: its start and at most its
/// end. At the end of the file when there is none.
///
/// Every block of zeros is a hole, whether it takes room or not: how much room is given beside data depends on the file
/// system and on how the file was written, and the same tree must be the same image everywhere.
pub(super) fn next_content(file: &OwnedFd, at: u64, size: u64) -> Result<(u64, u64), Errno> {
    let data = |at| next_data(file, at, size);
    next_content_of(data, |buffer, at| read_full(file, buffer, at), at, size)
}

/// As [`next_content`], of anything that says where its next data is and reads.
pub(super) fn next_content_of(
    next_data: impl Fn(u64) -> Result<(u64, u64), Errno>,
    read_full: impl Fn(&mut [u8], u64) -> Result<usize, Errno>,
    mut at: u64,
    size: u64,
) -> Result<(u64, u64), Errno> {
    let block_bytes = HOLE_BYTES as u64;
    let mut block = [0; HOLE_BYTES];
    while at < size {
        let (start, end) = next_data(at)?;
        let mut end = end.next_multiple_of(block_bytes).min(size);
        at = if start < size { (start / block_bytes * block_bytes).max(at) } else { size };
        // Where blocks are smaller, a run of ours may be several of the file system's.
        while end < size {
            let (start, more) = next_data(end)?;
            if start / block_bytes * block_bytes > end {
                break;
            }
            end = more.next_multiple_of(block_bytes).min(size);
        }
        while at < end {
            let want = HOLE_BYTES.min(usize::try_from(end - at).unwrap_or(HOLE_BYTES));
            let read = read_full(&mut block[..want], at)?;
            if read < want || !is_zeros(&block[..read]) {
                return Ok((at, end));
            }
            at += read as u64;
        }
    }
    Ok((size, size))
}

/// Where the first block of zeros is in `bytes`, which lie in a file at the multiple `at` of [`HOLE_BYTES`].
pub(super) fn first_zero_block(bytes: &[u8], at: u64) -> Option<usize> {
    debug_assert!(at.is_multiple_of(HOLE_BYTES as u64));
    bytes.chunks(HOLE_BYTES).position(is_zeros).map(|number| number * HOLE_BYTES)
}

fn is_zeros(block: &[u8]) -> bool {
    const ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    block == &ZEROS[..block.len()]
}

/// Fills the buffer, or reads to the end of the file.
pub(super) fn read_full(file: &OwnedFd, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes all of `bytes` at `offset`.
pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A tree of names, some of them directories, each known by a number; the root is 0.
pub(super) trait Names {
    /// The number of the directory that `number` is in, and its name there. Not asked of the root.
    fn parent_and_name(&self, number: u32) -> (u32, &[u8]);
}

impl Names for Tree {
    fn parent_and_name(&self, number: u32) -> (u32, &[u8]) {
        let index = self.index(number).unwrap_or(EntryIndex::ROOT);
        let entry = self.entry(index);
        (entry.parent().get(), entry.name().map_or(&b""[..], |name| name.bytes()))
    }
}

/// Opens the directories of a tree by number, and keeps the last ones open. All calls must use one numbering.
#[derive(Debug)]
pub(super) struct Directories {
    top: Arc<OwnedFd>,
    open: Mutex<HashMap<u32, Arc<OwnedFd>>>,
}

impl Directories {
    pub(super) fn new(top: OwnedFd) -> Self {
        Self { top: Arc::new(top), open: Mutex::default() }
    }

    /// For another numbering of the same tree: numbers of one mean nothing in the other.
    pub(super) fn renumbered(&self) -> Self {
        Self { top: Arc::clone(&self.top), open: Mutex::default() }
    }

    /// Closes what is kept open: directories may have been replaced.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    pub(super) fn top(&self) -> &Arc<OwnedFd> {
        &self.top
    }

    /// The directory with this number, opened one component after another from the nearest one that is open.
    pub(super) fn open(&self, names: &impl Names, number: u32) -> Result<Arc<OwnedFd>, Errno> {
        let mut below = Vec::new();
        let mut at = number;
        let mut dir = loop {
            if at == 0 {
                break Arc::clone(&self.top);
            }
            if let Some(dir) = self.lock().get(&at) {
                break Arc::clone(dir);
            }
            below.push(at);
            at = names.parent_and_name(at).0;
        };
        for at in below.into_iter().rev() {
            dir = Arc::new(open_directory_in(&dir, names.parent_and_name(at).1)?);
            let mut open = self.lock();
            if open.len() >= OPEN_DIRECTORIES_MAX {
                // Work goes from directory to neighbouring directory: what is needed again comes back soon.
                open.clear();
            }
            open.insert(at, Arc::clone(&dir));
        }
        Ok(dir)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<OwnedFd>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
