//! The second pass: metadata and content of each entry, cut and hashed.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::Sender;
use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use shoal_proto::cid::ChunkId;
use shoal_proto::image::chunker::{CHUNK_BYTES_MAX, Chunker};
use shoal_proto::image::entry::{Attributes, SYMLINK_TARGET_BYTES_MAX};

use super::super::metadata::{self, ReadError};
use super::super::root::{self, Directories};
use super::batch::{Batch, Batcher, Body, Buffers, Event, Outcome, Stopped};
use super::scan::{Found, Scan};
use super::seen::Stamp;
use super::{CaptureProgress, UnreadableReason};

/// Times that a file is read again when it changed meanwhile.
const REREADS_MAX: u32 = 3;

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
    pub(super) buffers: &'a Buffers,
    /// Take a file that changes each time it is read as it was read last.
    pub(super) allow_changed: bool,
    pub(super) chunker: Chunker,
    /// The directory of the last entry.
    pub(super) directory: Option<(u32, Arc<OwnedFd>)>,
}

impl Reader<'_> {
    /// Says everything about these rows.
    pub(super) fn read(&mut self, rows: std::ops::Range<u32>, to: &Sender<Batch>) -> Result<(), Stopped> {
        let mut batch = Batcher::new(self.buffers, to);
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

    fn entry(&mut self, number: u32, batch: &mut Batcher<'_>) -> Result<Outcome, Failure> {
        if let Some(same) = self.scan.same(number) {
            return Ok(Outcome::Same(same));
        }
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

    fn file(&mut self, dir: &OwnedFd, name: &[u8], batch: &mut Batcher<'_>) -> Result<Outcome, Failure> {
        let file = open_file(dir, name)?;
        let mut before = root::stat(&file)?;
        if FileType::from_raw_mode(before.stx_mode.into()) != FileType::RegularFile {
            return Err(Failure::Changed);
        }
        for reread in 0..=REREADS_MAX {
            let read = self.content(&file, &before, batch)?;
            let attributes = metadata::read_open(&file, &before)?;
            let after = root::stat(&file)?;
            let settled = read == after.stx_size && unchanged(&before, &after);
            if settled || self.allow_changed && reread == REREADS_MAX {
                let outcome = said(attributes, &after, Body::File)?;
                return Ok(if settled { outcome } else { unsettled(outcome) });
            }
            batch.push(Event::Restart)?;
            before = after;
        }
        Err(Failure::Changed)
    }

    /// Says the content of a file, and how long it is by what was read.
    fn content(&mut self, file: &OwnedFd, stat: &Statx, batch: &mut Batcher<'_>) -> Result<u64, Failure> {
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
        batch: &mut Batcher<'_>,
    ) -> Result<(u64, Stop), Failure> {
        let mut at = start;
        let mut stop = Stop::End;
        while at < end && stop == Stop::End {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let room = batch.room(left)?;
            // Of a sparse file whole blocks: some may be zeros.
            let want = if sparse && room.len() < left {
                room.len() - room.len() % root::HOLE_BYTES
            } else {
                room.len()
            };
            let mut got = root::read_full(file, &mut room[..want], at)?;
            self.progress.read(got as u64);
            if got < want {
                stop = Stop::Short;
            }
            if sparse && let Some(zeros) = root::first_zero_block(&room[..got], at) {
                got = zeros;
                stop = Stop::Zeros;
            }
            batch.fill(got);
            at += got as u64;
            let last = at == end || stop != Stop::End;
            loop {
                let left = batch.unsaid();
                if left.is_empty() || !last && left.len() < CHUNK_BYTES_MAX {
                    break;
                }
                let chunk = &left[..self.chunker.first_chunk_bytes(left)];
                let (id, bytes) = (ChunkId::of(chunk), chunk.len());
                batch.say(id, bytes);
            }
        }
        Ok((at - start, stop))
    }
}

fn said(attributes: Attributes, stat: &Statx, body: Body) -> Result<Outcome, Failure> {
    let mtime = metadata::mtime_of(stat).map_err(UnreadableReason::from).map_err(Failure::Reason)?;
    Ok(Outcome::Entry { attributes, mtime, body, stamp: Stamp::of(stat), settled: true })
}

/// Read for what it is worth: the next capture reads it again.
fn unsettled(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Entry { attributes, mtime, body, .. } => {
            Outcome::Entry { attributes, mtime, body, stamp: Stamp::NONE, settled: false }
        }
        other => other,
    }
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
