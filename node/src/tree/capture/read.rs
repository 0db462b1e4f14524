//! The second pass: metadata and content of each entry, cut and hashed.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::Sender;
use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use shoal_proto::cid::ChunkId;
use shoal_proto::image::chunker::{CHUNK_BYTES_MAX, Chunker};
use shoal_proto::image::entry::{Attributes, Mtime, SYMLINK_TARGET_BYTES_MAX};

use super::super::metadata::{self, ReadError};
use super::super::root::{self, Directories};
use super::scan::{Found, Scan};
use super::{CaptureProgress, UnreadableReason};

/// Times that a file is read again when it changed meanwhile.
const REREADS_MAX: u32 = 3;
/// Bytes read at once of a large file, and roughly the bytes of events sent at once.
const WINDOW_BYTES: usize = 1 << 20;

/// What a reader says of the entries of its job, in order: any number of parts of content, then the end of the entry.
#[derive(Debug)]
pub(super) enum Event {
    /// Chunks one after another, and their bytes.
    Chunks {
        data: Vec<u8>,
        chunks: Vec<(ChunkId, u32)>,
    },
    Hole(u64),
    /// The file changed: forget what was said of its content.
    Restart,
    End(Outcome),
}

#[derive(Debug)]
pub(super) enum Outcome {
    Entry { attributes: Attributes, mtime: Mtime, body: Body },
    HardLink(u32),
    Vanished,
    Unreadable(UnreadableReason),
}

#[derive(Debug)]
pub(super) enum Body {
    Directory,
    /// Its content was said before.
    File,
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// The other side wants no more: the capture failed elsewhere.
#[derive(Debug)]
pub(super) struct Stopped;

/// Why a run of data stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// All was read.
    End,
    Zeros,
    /// The file got shorter.
    Short,
}

/// Why an entry could not be said.
enum Failure {
    Stopped,
    Vanished,
    Changed,
    Reason(UnreadableReason),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        if error == Errno::NOENT { Self::Vanished } else { Self::Reason(error.into()) }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::System(error) => error.into(),
            ReadError::Entry(error) => Self::Reason(error.into()),
        }
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Reads entries, one job after another.
pub(super) struct Reader<'a> {
    pub(super) directories: &'a Directories,
    pub(super) scan: &'a Scan,
    pub(super) progress: &'a dyn CaptureProgress,
    chunker: Chunker,
    window: Vec<u8>,
    /// The directory of the last entry.
    directory: Option<(u32, Arc<OwnedFd>)>,
}

/// Collects events and sends them in batches.
struct Batch<'a> {
    events: Vec<Event>,
    bytes: usize,
    to: &'a Sender<Vec<Event>>,
}

impl Batch<'_> {
    fn push(&mut self, event: Event) -> Result<(), Stopped> {
        if let Event::Chunks { data, .. } = &event {
            self.bytes += data.len();
        }
        self.events.push(event);
        if self.bytes >= WINDOW_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Stopped> {
        self.bytes = 0;
        self.to.send(std::mem::take(&mut self.events)).map_err(|_| Stopped)
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        directories: &'a Directories,
        scan: &'a Scan,
        progress: &'a dyn CaptureProgress,
    ) -> Self {
        Self { directories, scan, progress, chunker: Chunker::default(), window: Vec::new(), directory: None }
    }

    /// Says everything about these rows.
    pub(super) fn read(
        &mut self,
        rows: std::ops::Range<u32>,
        to: &Sender<Vec<Event>>,
    ) -> Result<(), Stopped> {
        let mut batch = Batch { events: Vec::new(), bytes: 0, to };
        for number in rows {
            let outcome = match self.entry(number, &mut batch) {
                Ok(outcome) => outcome,
                Err(Failure::Stopped) => return Err(Stopped),
                Err(Failure::Vanished) => Outcome::Vanished,
                Err(Failure::Changed) => Outcome::Unreadable(UnreadableReason::Changing),
                Err(Failure::Reason(reason)) => Outcome::Unreadable(reason),
            };
            batch.push(Event::End(outcome))?;
        }
        batch.send()
    }

    fn entry(&mut self, number: u32, batch: &mut Batch<'_>) -> Result<Outcome, Failure> {
        let found = self.scan.rows[number as usize].found;
        if let Found::HardLink(first) = found {
            return Ok(Outcome::HardLink(first));
        }
        if found == Found::Directory {
            let dir = self.directories.open(self.scan, number)?;
            let stat = root::stat(&dir)?;
            if stat.stx_nlink == 0 {
                // Removed while it was kept open.
                return Err(Failure::Vanished);
            }
            return said(metadata::read_open(&dir, &stat)?, &stat, Body::Directory);
        }
        let dir = self.parent(number)?;
        let name = self.scan.name(number);
        if found == Found::File {
            return self.file(&dir, name, batch);
        }
        let stat = root::stat_in(&dir, name)?;
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let (body, same) = match (found, FileType::from_raw_mode(stat.stx_mode.into())) {
            (Found::Symlink, FileType::Symlink) => {
                let target =
                    rustix::fs::readlinkat(&*dir, name, Vec::with_capacity(SYMLINK_TARGET_BYTES_MAX))?;
                (Body::Symlink(target.into_bytes()), true)
            }
            (Found::CharDevice, FileType::CharacterDevice) => (Body::CharDevice(device.0, device.1), true),
            (Found::BlockDevice, FileType::BlockDevice) => (Body::BlockDevice(device.0, device.1), true),
            (Found::Fifo, FileType::Fifo) => (Body::Fifo, true),
            _ => (Body::Fifo, false),
        };
        if !same {
            return Err(Failure::Changed);
        }
        said(metadata::read_named(&dir, name, &stat)?, &stat, body)
    }

    fn parent(&mut self, number: u32) -> Result<Arc<OwnedFd>, Errno> {
        let parent = self.scan.parent(number);
        if let Some((open, dir)) = &self.directory
            && *open == parent
        {
            return Ok(Arc::clone(dir));
        }
        let dir = self.directories.open(self.scan, parent)?;
        self.directory = Some((parent, Arc::clone(&dir)));
        Ok(dir)
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8], batch: &mut Batch<'_>) -> Result<Outcome, Failure> {
        let file = open_file(dir, name)?;
        let mut before = root::stat(&file)?;
        if FileType::from_raw_mode(before.stx_mode.into()) != FileType::RegularFile {
            return Err(Failure::Changed);
        }
        for _ in 0..=REREADS_MAX {
            let read = self.content(&file, &before, batch)?;
            let attributes = metadata::read_open(&file, &before)?;
            let after = root::stat(&file)?;
            if read == after.stx_size && unchanged(&before, &after) {
                return said(attributes, &after, Body::File);
            }
            batch.push(Event::Restart)?;
            before = after;
        }
        Err(Failure::Changed)
    }

    /// Says the content of a file, and how long it is by what was read.
    fn content(&mut self, file: &OwnedFd, stat: &Statx, batch: &mut Batch<'_>) -> Result<u64, Failure> {
        let size = stat.stx_size;
        let sparse = stat.stx_blocks.saturating_mul(512) < size;
        let mut at = 0;
        while at < size {
            let (data, end) = if sparse { root::next_content(file, at, size)? } else { (at, size) };
            if data > at {
                batch.push(Event::Hole(data - at))?;
            }
            let (read, stop) = self.run(file, data, end, sparse, batch)?;
            if stop == Stop::Short {
                return Ok(data + read);
            }
            at = data + read;
        }
        Ok(size)
    }

    /// Cuts one run of data and says how many bytes it had. In a sparse file it ends before a block of zeros.
    fn run(
        &mut self,
        file: &OwnedFd,
        start: u64,
        end: u64,
        sparse: bool,
        batch: &mut Batch<'_>,
    ) -> Result<(u64, Stop), Failure> {
        let mut at = start;
        let mut stop = Stop::End;
        // Bytes of the window that wait for more: less than a chunk's maximum.
        let mut held = 0;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let room = WINDOW_BYTES - held;
            // Of a sparse file whole blocks: some may be zeros.
            let want = left.min(if sparse { room - room % root::HOLE_BYTES } else { room });
            if self.window.len() < held + want {
                self.window.resize(held + want, 0);
            }
            let mut got = root::read_full(file, &mut self.window[held..held + want], at)?;
            self.progress.read(got as u64);
            if got < want {
                stop = Stop::Short;
            }
            if sparse && let Some(zeros) = root::first_zero_block(&self.window[held..held + got], at) {
                got = zeros;
                stop = Stop::Zeros;
            }
            at += got as u64;
            let last = at == end || stop != Stop::End;
            let filled = held + got;
            let mut chunks = Vec::new();
            let mut done = 0;
            while done < filled && (last || filled - done >= CHUNK_BYTES_MAX) {
                let bytes = self.chunker.first_chunk_bytes(&self.window[done..filled]);
                let chunk = &self.window[done..done + bytes];
                chunks.push((ChunkId::of(chunk), u32::try_from(bytes).expect("at most CHUNK_BYTES_MAX")));
                done += bytes;
            }
            batch.push(Event::Chunks { data: self.window[..done].to_vec(), chunks })?;
            self.window.copy_within(done..filled, 0);
            held = filled - done;
            if stop != Stop::End {
                break;
            }
        }
        Ok((at - start, stop))
    }
}

fn said(attributes: Attributes, stat: &Statx, body: Body) -> Result<Outcome, Failure> {
    let mtime = metadata::mtime_of(stat).map_err(UnreadableReason::from).map_err(Failure::Reason)?;
    Ok(Outcome::Entry { attributes, mtime, body })
}

/// Without leaving a trace in its access time, where that is allowed.
fn open_file(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match root::open_in(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => root::open_in(dir, name, flags, Mode::empty()),
        done => done,
    };
    // Another kind of thing stands there now.
    opened.map_err(|error| match error {
        Errno::LOOP | Errno::NXIO => Failure::Changed,
        error => error.into(),
    })
}

fn unchanged(before: &Statx, after: &Statx) -> bool {
    let times = |stat: &Statx| {
        let (m, c) = (stat.stx_mtime, stat.stx_ctime);
        (m.tv_sec, m.tv_nsec, c.tv_sec, c.tv_nsec)
    };
    before.stx_size == after.stx_size && times(before) == times(after)
}
